//! Cases of `scale_gradient`.

use super::log_probs::{PLACED, PLACEMENTS};
use super::{DTYPES, List};
use crate::batch::{DType, GradientRows};
use crate::error::Result;
use crate::selftest::random::Random;
use crate::selftest::tensor::OwnedTensor;
use crate::selftest::{Call, Placement};

/// Rows that a warp or a block takes, of several segments too, in every place.
pub(super) fn cases(list: &mut List) -> Result<()> {
    for (dtype_name, dtype) in DTYPES {
        for (num_columns, num_rows) in [(1, 300), (67, 41), (2501, 5), (40_001, 3), (5, 0)] {
            for (place, placement) in PLACEMENTS {
                let name = format!("scale {dtype_name} {num_rows} x {num_columns} {place}");
                add(list, name, dtype, (num_rows, num_columns), 0.375, placement);
            }
        }
        for factor in [1.0, 0.0, f64::INFINITY] {
            let name = format!("scale {dtype_name} times {factor}");
            add(list, name, dtype, (9, 70), factor, PLACED);
        }
    }
    let narrow = Placement {
        narrow_gradient: true,
        ..PLACED
    };
    let name = "scale f32 to f16".to_string();
    add(list, name, DType::F32, (5000, 1), 0.375, narrow);
    Ok(())
}

/// Rows of zeros among others, which every other case says beforehand.
fn add(
    list: &mut List,
    name: String,
    dtype: DType,
    (num_rows, num_columns): (usize, usize),
    factor: f64,
    placement: Placement,
) {
    let seed = list.cases.len() as u64;
    let random = &mut Random(seed);
    let row_gradient: Vec<f32> = (0..num_rows).map(|_| random.below(3) as f32).collect();
    let mut element = |row: usize| (random.grid(8) + 0.25) * row_gradient[row].min(1.0);
    let values = (0..num_rows * num_columns).map(|i| element(i / num_columns));
    let values = OwnedTensor::new(dtype, values.collect());
    list.push(
        name,
        Call::Scale {
            gradient: GradientRows::contiguous(values, num_rows, num_columns),
            factor,
            row_gradient: (factor.is_infinite() || seed.is_multiple_of(2)).then_some(row_gradient),
            placement,
        },
    );
}
