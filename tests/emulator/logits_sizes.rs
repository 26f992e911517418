//! Vocabulary sizes around every boundary of the kernels, in every dtype and with every policy.

use qae::params::RowPolicy;
use qae::{DType, MetricsScope};
use qae_emulator::{EmulatorBackend, LogitsPlacement, Options};

use crate::case::Rows;
use crate::logits_case::LogitsCase;
use crate::logits_compare::check;

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Elements of a chunk of 1,024 vectors of 16 bytes.
fn chunk(dtype: DType) -> usize {
    16_384 / dtype.size()
}

/// Rows in clusters, in blocks, and in blocks of a device that has no clusters.
fn devices() -> [(RowPolicy, Options); 3] {
    [
        (RowPolicy::Cluster, Options::default()),
        (RowPolicy::Block, Options::default()),
        (RowPolicy::Auto, Options::sm80()),
    ]
}

/// A device with clusters and less shared memory, as of compute capability 12.0.
fn small_sms() -> Options {
    Options {
        capability_major: 12,
        max_shared_per_block: 99 << 10,
        ..Options::default()
    }
}

/// Three responses of two, no and two tokens, of which one is masked, on each device; with an
/// entropy term, so that every part of the gradient is there.
fn check_size(vocab_size: usize, dtype: DType, devices: &[(RowPolicy, Options)]) {
    for (row_policy, options) in devices {
        let mut case = LogitsCase::fill(
            vocab_size as u64,
            Rows::packed(&[2, 0, 2]),
            vocab_size,
            dtype,
        );
        case.mask = Some(vec![1, 1, 0, 1]);
        case.config.entropy_coef = 0.01;
        case.config.temperature = 0.7;
        case.set_log_ratios(|slot| [0.1, -0.4, 0.0, -0.1][slot]);
        case.poison_invalid();
        case.backend = EmulatorBackend {
            options: options.clone(),
            logits: LogitsPlacement {
                row_policy: *row_policy,
                ..LogitsPlacement::default()
            },
            ..EmulatorBackend::default()
        };
        let what = format!("{vocab_size} columns, {dtype:?}, {row_policy:?}, {options:?}");
        check(&case, &what);
    }
}

#[test]
fn small_vocabularies() {
    for vocab_size in [
        1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 255, 256, 1000, 1001, 4097,
    ] {
        for dtype in DTYPES {
            check_size(vocab_size, dtype, &devices());
        }
    }
}

#[test]
fn vocabularies_around_whole_chunks() {
    for dtype in DTYPES {
        let (chunk, vector) = (chunk(dtype), 16 / dtype.size());
        for chunks in [1, 2, 4] {
            for vocab_size in [
                chunks * chunk - vector - 1,
                chunks * chunk - 1,
                chunks * chunk,
                chunks * chunk + 1,
                chunks * chunk + vector,
            ] {
                check_size(vocab_size, dtype, &devices());
            }
        }
    }
}

#[test]
fn vocabularies_of_models() {
    for vocab_size in [32_000, 128_256, 151_936] {
        for dtype in DTYPES {
            check_size(vocab_size, dtype, &devices());
        }
        for dtype in [DType::F32, DType::Bf16] {
            check_size(vocab_size, dtype, &[(RowPolicy::Auto, small_sms())]);
        }
    }
}

/// More than the rings of the largest cluster hold goes to blocks.
#[test]
fn the_largest_vocabularies() {
    check_size(262_144, DType::F32, &devices());
    check_size(262_144, DType::Bf16, &devices()[..2]);
    // Rings of 13 chunks.
    let largest = 8 * 13 * chunk(DType::F32);
    let cluster = &devices()[..1];
    check_size(largest, DType::F32, cluster);
    check_size(
        largest + 1,
        DType::F32,
        &[(RowPolicy::Auto, Options::default())],
    );
}

/// Every offset of a row to 16 bytes, and every one of its gradient to the row.
#[test]
fn rows_that_are_not_aligned() {
    for dtype in DTYPES {
        let vector = 16 / dtype.size();
        for vocab_size in [5, 131, 2 * chunk(dtype) + 3] {
            for misalignment in 0..vector {
                for gradient_misalignment in [0, 1, misalignment] {
                    let mut case = LogitsCase::fill(7, Rows::padded(1, 2), vocab_size, dtype);
                    case.backend.logits = LogitsPlacement {
                        row_policy: RowPolicy::Cluster,
                        misalignment,
                        gradient_misalignment,
                        ..LogitsPlacement::default()
                    };
                    let what = format!("{:?}, {vocab_size} columns", case.backend.logits);
                    check(&case, &what);
                    case.backend.logits.row_policy = RowPolicy::Block;
                    check(&case, &what);
                }
            }
        }
    }
}

/// A team has many more rows than it describes at once, and its ring goes round many times.
#[test]
fn many_rows_of_one_team() {
    for (row_policy, options) in devices() {
        for (num_rows, vocab_size) in [(300, 33), (21, 5000)] {
            let options = Options {
                num_sms: 1,
                ..options.clone()
            };
            let mut case =
                LogitsCase::fill(11, Rows::padded(num_rows / 3, 3), vocab_size, DType::Bf16);
            case.backend.options = options;
            case.backend.logits.row_policy = row_policy;
            case.config.metrics_scope = MetricsScope::Active;
            check(&case, &format!("{num_rows} rows, {row_policy:?}"));
        }
    }
}

/// From a ring that holds a block's slice of a row and no more, to one with chunks to spare.
#[test]
fn rings_of_every_size() {
    for chunks in 1..=4 {
        for vocab_size in [700, 5000, 9000, 17_000, 70_000] {
            let mut case = LogitsCase::fill(13, Rows::padded(4, 2), vocab_size, DType::F32);
            case.config.metrics_scope = MetricsScope::Active;
            case.backend.options = Options {
                max_shared_per_block: (13 << 10) + chunks * (16 << 10),
                num_sms: 2,
                ..Options::default()
            };
            check(&case, &format!("{vocab_size} columns, {chunks} chunks"));
        }
    }
}
