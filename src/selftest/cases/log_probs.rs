//! Cases of `log_probs_from_logits`, its backward pass, and a vocabulary in shards.

use super::{DTYPES, List};
use crate::batch::DType;
use crate::error::Result;
use crate::selftest::logits::{OwnedRows, RowsDescription, ValuesKind};
use crate::selftest::{Call, Placement};

const PLAIN: RowsDescription = RowsDescription {
    dtype: DType::F32,
    vocab_size: 67,
    gap: 0,
    temperature: 1.0,
    values: ValuesKind::Plain,
};

/// Where logits and gradient stand: alike with respect to 16 bytes, or not.
pub(super) const PLACEMENTS: [(&str, Placement); 4] = [
    ("apart", PLACED),
    (
        "in place",
        Placement {
            in_place: true,
            ..PLACED
        },
    ),
    (
        "in place misaligned",
        Placement {
            in_place: true,
            misalignment: 3,
            wide_token_ids: true,
            ..PLACED
        },
    ),
    (
        "aligned differently",
        Placement {
            misalignment: 1,
            gradient_misalignment: 2,
            ..PLACED
        },
    ),
];

pub(super) const PLACED: Placement = Placement {
    row_policy: crate::params::RowPolicy::Auto,
    in_place: false,
    misalignment: 0,
    gradient_misalignment: 0,
    wide_token_ids: false,
    narrow_gradient: false,
};

fn add(
    list: &mut List,
    name: String,
    num_rows: usize,
    description: &RowsDescription,
    placement: Placement,
    shards: Option<Vec<usize>>,
) {
    let seed = list.cases.len() as u64;
    let (is_masked, has_entropy_term) = (seed.is_multiple_of(2), !seed.is_multiple_of(3));
    let rows = OwnedRows::new(seed, num_rows, description, is_masked, has_entropy_term);
    let rows = Box::new(rows);
    list.push(
        name,
        Call::LogProbs {
            rows,
            shards,
            placement,
        },
    );
}

/// Every instance: dtypes x rows that a warp or a block takes (more than 4 KiB), of lengths that
/// are odd, or a multiple of every vector, in every place.
pub(super) fn row_cases(list: &mut List) -> Result<()> {
    for (dtype_name, dtype) in DTYPES {
        for (vocab_size, num_rows) in [(67, 19), (1024, 9), (2501, 5), (16_384, 2)] {
            for (place, placement) in PLACEMENTS {
                let description = RowsDescription {
                    dtype,
                    vocab_size,
                    temperature: 0.7,
                    ..PLAIN
                };
                let name = format!("log-probs {dtype_name} {vocab_size} columns {place}");
                add(list, name, num_rows, &description, placement, None);
            }
        }
        for (name, values) in [
            ("not finite", ValuesKind::NotFinite),
            ("±10⁴", ValuesKind::Large),
        ] {
            for vocab_size in [130, 3001] {
                let description = RowsDescription {
                    dtype,
                    vocab_size,
                    gap: 5,
                    temperature: 0.7,
                    values,
                };
                let name = format!("log-probs {dtype_name} {vocab_size} columns {name}");
                add(list, name, 13, &description, PLACED, None);
            }
        }
    }
    for (vocab_size, num_rows) in [(2, 40), (3, 3), (8, 1), (5, 0)] {
        let description = RowsDescription {
            vocab_size,
            ..PLAIN
        };
        let name = format!("log-probs {num_rows} x {vocab_size}");
        add(list, name, num_rows, &description, PLACED, None);
    }
    Ok(())
}

/// Statistics of shards, merged; one of them is shorter than a vector.
pub(super) fn shard_cases(list: &mut List) -> Result<()> {
    for (dtype_name, dtype) in DTYPES {
        for (name, values) in [
            ("shards", ValuesKind::Plain),
            ("shards not finite", ValuesKind::NotFinite),
        ] {
            let description = RowsDescription {
                dtype,
                vocab_size: 3300,
                temperature: 1.5,
                values,
                ..PLAIN
            };
            let shards = Some(vec![700, 2500, 3, 97]);
            let name = format!("log-probs {dtype_name} {name}");
            add(list, name, 12, &description, PLACED, shards);
        }
    }
    Ok(())
}
