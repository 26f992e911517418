//! A gradient times the factor of a backward pass: bit for bit the reference rounded to f32 and then
//! to the dtype, and no byte more than it takes.

use half::{bf16, f16};
use qae::{DType, Factor, GradientRows, Tensor, reference};
use qae_emulator::{EmulatorBackend, LogitsPlacement, Options, Order, ScaleRun, ScaledPlace};
use qae_test_support::Random;

use crate::case::Values;
use crate::random::vec_of;

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Rows that own their tensors.
#[derive(Clone)]
struct Case {
    rows: GradientRows<Values>,
    factor: f64,
    wide_factor: bool,
    row_gradient: Option<Vec<f32>>,
    place: ScaledPlace,
    backend: EmulatorBackend,
}

impl Case {
    fn new(seed: u64, num_rows: usize, num_columns: usize, dtype: DType) -> Self {
        let values = Random(seed).values(num_rows * num_columns, -3.0, 3.0);
        Self {
            rows: GradientRows::contiguous(Values::new(dtype, &values), num_rows, num_columns),
            factor: f64::from(-0.3_f32),
            wide_factor: false,
            row_gradient: None,
            place: ScaledPlace::InPlace,
            backend: EmulatorBackend::default(),
        }
    }

    /// Elsewhere, in the same dtype and with the same strides.
    fn apart(mut self) -> Self {
        self.place = ScaledPlace::Apart {
            dtype: self.rows.values.tensor().dtype(),
            row_stride: self.rows.row_stride,
            response_stride: self.rows.response_stride,
        };
        self
    }

    /// With strides: what lies between rows is NaN.
    fn strided(mut self, row_stride: usize, width: Option<usize>, response_stride: usize) -> Self {
        let dense = self.rows.values.widened();
        let columns = self.rows.num_columns;
        self.rows.row_stride = row_stride;
        self.rows.width = width;
        self.rows.response_stride = width.map(|_| response_stride);
        let end = match self.rows.num_rows {
            0 => 0,
            rows => self.start(rows - 1, row_stride, Some(response_stride)) + columns,
        };
        let mut values = vec![f32::NAN; end];
        for (row, from) in dense.chunks(columns).enumerate() {
            let start = self.start(row, row_stride, Some(response_stride));
            values[start..][..columns].copy_from_slice(from);
        }
        self.rows.values = Values::new(self.rows.values.tensor().dtype(), &values);
        self
    }

    fn start(&self, row: usize, row_stride: usize, response_stride: Option<usize>) -> usize {
        match self.rows.width {
            None => row * row_stride,
            Some(width) => {
                let stride = response_stride.unwrap_or(width * row_stride);
                row / width * stride + row % width * row_stride
            }
        }
    }

    fn gradient(&self) -> GradientRows<Tensor<'_>> {
        let rows = &self.rows;
        GradientRows {
            values: rows.values.tensor(),
            num_rows: rows.num_rows,
            num_columns: rows.num_columns,
            row_stride: rows.row_stride,
            width: rows.width,
            response_stride: rows.response_stride,
        }
    }

    fn of_factor(&self) -> Factor<'_> {
        Factor {
            value: self.factor,
            row_gradient: self.row_gradient.as_deref().map(Tensor::F32),
        }
    }

    fn run(&self) -> qae::Result<ScaleRun> {
        let factor = self.of_factor();
        self.backend
            .run_scale_gradient(&self.gradient(), &factor, self.place, self.wide_factor)
    }

    /// The tensor that should have been written; `None` where nothing should.
    fn expected(&self) -> Vec<Option<f64>> {
        let gradient = self.gradient();
        let scaled = reference::scale_gradient(&gradient, &self.of_factor()).unwrap();
        let (mut tensor, dtype, row_stride, response_stride) = match self.place {
            ScaledPlace::InPlace => {
                let values = gradient.values;
                let before = (0..values.len()).map(|i| Some(values.get(i))).collect();
                (
                    before,
                    values.dtype(),
                    gradient.row_stride,
                    gradient.response_stride,
                )
            }
            ScaledPlace::Apart {
                dtype,
                row_stride,
                response_stride,
            } => (vec![], dtype, row_stride, response_stride),
        };
        let columns = gradient.num_columns;
        for (row, scaled) in scaled.chunks(columns).enumerate() {
            let start = self.start(row, row_stride, response_stride);
            let is_kept = self.row_gradient.as_ref().is_some_and(|g| g[row] == 0.0);
            if is_kept && matches!(self.place, ScaledPlace::InPlace) {
                continue;
            }
            let end = start + columns;
            tensor.resize(tensor.len().max(end), None);
            for (target, &scaled) in tensor[start..end].iter_mut().zip(scaled) {
                *target = Some(rounded(dtype, scaled));
            }
        }
        tensor
    }

    fn check(&self, what: &str) {
        let run = self.run().unwrap_or_else(|error| panic!("{what}: {error}"));
        let expected = self.expected();
        assert_eq!(run.scaled.len(), expected.len(), "{what}");
        for (index, (&found, expected)) in run.scaled.iter().zip(expected).enumerate() {
            assert_eq!(
                run.written[index],
                expected.is_some(),
                "{what}: element {index}"
            );
            let Some(expected) = expected else { continue };
            let is_same = found == expected || (found.is_nan() && expected.is_nan());
            assert!(
                is_same,
                "{what}: element {index}: {found} instead of {expected}"
            );
        }
    }
}

/// By way of f32, in which the kernels multiply.
fn rounded(dtype: DType, value: f64) -> f64 {
    let value = value as f32;
    match dtype {
        DType::Bf16 => bf16::from_f32(value).into(),
        DType::F16 => f16::from_f32(value).into(),
        _ => value.into(),
    }
}

#[test]
fn every_size_in_every_dtype() {
    for dtype in DTYPES {
        for columns in [
            1, 2, 3, 7, 8, 31, 1000, 1024, 1025, 2049, 8193, 16_385, 40_000,
        ] {
            let case = Case::new(columns as u64, 5, columns, dtype);
            let what = format!("{columns} columns, {dtype:?}");
            case.check(&what);
            case.apart().check(&format!("{what}, apart"));
        }
    }
}

#[test]
fn the_gradient_of_log_probs_becomes_f16_in_one_rounding() {
    for rows in [1, 700, 20_000] {
        let mut case = Case::new(3, rows, 1, DType::F32);
        // An element is a row, so that it stays 0.
        case.rows.values.set(rows / 2, 0.0);
        case.place = ScaledPlace::Apart {
            dtype: DType::F16,
            row_stride: 1,
            response_stride: None,
        };
        for factor in [1.0, 1024.0, f64::INFINITY] {
            case.factor = factor;
            case.check(&format!("{rows} elements times {factor}"));
        }
    }
}

#[test]
fn strides_placements_and_rows_that_stay_zero() {
    for seed in 0..120 {
        let random = &mut Random(seed);
        let dtype = random.pick(&DTYPES);
        let columns = random.pick(&[1, 3, 37, 500, 2100, 17_000]);
        let width = random.coin().then(|| 1 + random.below(4));
        let num_rows = width.unwrap_or(1) * random.below(5);
        let row_stride = columns + random.pick(&[0, 1, 8]);
        let by_response = |row_stride, gap| width.unwrap_or(0) * row_stride + gap;
        let gap = random.below(3);
        let mut case = Case::new(seed, num_rows, columns, dtype).strided(
            row_stride,
            width,
            by_response(row_stride, gap),
        );
        let factors = [-0.3_f32, 1.0, 0.0, f32::INFINITY, f32::NAN, 1e30];
        case.factor = random.pick(&factors).into();
        case.wide_factor = random.coin();
        if random.coin() {
            let given = vec_of(num_rows, |_| random.pick(&[0.0_f32, -0.0, 1e-38, f32::NAN]));
            // What is known to be 0 is not looked at.
            for row in (0..num_rows).filter(|&row| given[row] == 0.0) {
                let start = case.start(row, row_stride, case.rows.response_stride);
                case.rows.values.set(start, f32::INFINITY);
            }
            case.row_gradient = Some(given);
        }
        case.backend.logits = LogitsPlacement {
            misalignment: random.below(9),
            gradient_misalignment: random.below(9),
            ..LogitsPlacement::default()
        };
        if random.coin() {
            let row_stride = columns + random.below(9);
            case.place = ScaledPlace::Apart {
                dtype,
                row_stride,
                response_stride: width.map(|_| by_response(row_stride, 5)),
            };
        }
        for order in [Order::Sequential, Order::Random(seed)] {
            case.backend.options = Options {
                order,
                ..Options::default()
            };
            case.check(&format!("seed {seed}"));
        }
    }
}

#[test]
fn more_rows_than_the_grid_has_teams() {
    let mut case = Case::new(1, 20_000, 3, DType::Bf16);
    case.row_gradient = Some(vec_of(20_000, |row| (row % 5 == 0) as u8 as f32));
    case.check("in place");
    case.apart().check("apart");
    Case::new(2, 2100, 1100, DType::F32).check("rows of a block each");
}

#[test]
fn an_infinite_factor_leaves_rows_without_a_gradient_alone() {
    let mut case = Case::new(9, 4, 40, DType::Bf16).apart();
    case.row_gradient = Some(vec![0.0, 1.0, 0.0, 1.0]);
    case.rows.values = Values::new(DType::Bf16, &vec_of(160, |i| (i / 40 % 2) as f32));
    for factor in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        case.factor = factor;
        let run = case.run().unwrap();
        assert!(run.scaled[..40].iter().all(|x| x.to_bits() == 0));
        assert!(run.scaled[40..80].iter().all(|x| !x.is_finite()));
    }
}

/// Bytes read and written.
fn bytes(case: &Case) -> (u64, u64) {
    let trace = case.run().unwrap().trace;
    (trace.bytes_read(), trace.bytes_written())
}

#[test]
fn a_factor_of_one_in_place_reads_nothing_but_itself() {
    let mut case = Case::new(5, 30, 151_937, DType::Bf16);
    case.row_gradient = Some(vec![1.0; 30]);
    case.factor = 1.0;
    let warps = 8 * 30 * 10;
    assert_eq!(bytes(&case), (4 * warps, 0));
    case.wide_factor = true;
    assert_eq!(bytes(&case), (8 * warps, 0));
    let (read, written) = bytes(&case.clone().apart());
    let all = 2 * 30 * 151_937;
    assert!((all..all + all / 100).contains(&read) && written == all);
}

/// Bytes moved over those of the rows that have to move.
#[test]
fn only_rows_that_act_are_moved() {
    for (columns, dtype) in [
        (32_000, DType::Bf16),
        (151_936, DType::Bf16),
        (151_937, DType::F32),
    ] {
        let row = (columns * dtype.size()) as u64;
        let mut case = Case::new(6, 20, columns, dtype);
        for (sparse, moved_in_place, moved_apart) in [(false, 40, 40), (true, 8, 24)] {
            let act = |i| f32::from(u8::from(!sparse || i % 5 == 0));
            case.row_gradient = Some(vec_of(20, act));
            for (case, rows) in [
                (case.clone(), moved_in_place),
                (case.clone().apart(), moved_apart),
            ] {
                let (read, written) = bytes(&case);
                let ratio = (read + written) as f64 / (rows * row) as f64;
                println!(
                    "{ratio:.4} of {rows} rows of {columns} {dtype:?}: {:?}",
                    case.place
                );
                assert!((1.0..1.01).contains(&ratio), "{ratio}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new(1, 6, 4, DType::F32);
    let refused = |change: &dyn Fn(&mut Case)| {
        let mut case = case.clone();
        change(&mut case);
        case.run().unwrap_err().to_string()
    };
    for (change, message) in [
        (
            (&|case: &mut Case| case.rows.num_rows = 7) as &dyn Fn(&mut Case),
            "gradient: expected 28 elements, found 24",
        ),
        (
            &|case| case.rows.row_stride = 3,
            "gradient.row_stride: expected at least the vocabulary of 4, found 3",
        ),
        (
            &|case| case.rows.width = Some(4),
            "width: expected a divisor of the 6 rows, found 4",
        ),
        (
            &|case| case.row_gradient = Some(vec![1.0; 5]),
            "row_gradient: expected shape [6], found [5]",
        ),
        (
            &|case| {
                case.place = ScaledPlace::Apart {
                    dtype: DType::Bf16,
                    row_stride: 4,
                    response_stride: None,
                }
            },
            "scaled: expected dtype F32 as the gradient, or F16 of F32, found Bf16",
        ),
    ] {
        assert_eq!(refused(change), message);
    }
}
