//! The same tokens in every layout and dtype give the same.

use crate::case::Case;
use crate::runners;
use qae::{Config, DType, Gradient, ImportanceWeight, Layout, Tensor, TensorMut, TokenBatch, cpu};
use qae_test_support::{Owned, bits, kls, objectives};

const WIDTH: usize = 6;
const LENGTHS: [i32; 5] = [6, 0, 3, 1, 5];

/// Rows whose valid tokens are their first [`LENGTHS`].
fn case() -> Case {
    let mask = (0..5 * WIDTH).map(|slot| u8::from(slot % WIDTH < LENGTHS[slot / WIDTH] as usize));
    Case {
        mask: Some(mask.collect()),
        ..Case::random(61, 5, WIDTH)
    }
}

/// The values of the valid slots, back to back.
fn packed<T: Copy>(values: &[T]) -> Vec<T> {
    let valid = |slot: &usize| slot % WIDTH < LENGTHS[slot / WIDTH] as usize;
    (0..5 * WIDTH)
        .filter(valid)
        .map(|slot| values[slot])
        .collect()
}

/// Rows `stride` apart, with `fill` in the gaps but for the one after the last row.
fn strided<T: Copy>(values: &[T], stride: usize, fill: T) -> Vec<T> {
    let mut spread = vec![fill; 4 * stride + WIDTH];
    for (row, from) in values.chunks(WIDTH).enumerate() {
        spread[row * stride..][..WIDTH].copy_from_slice(from);
    }
    spread
}

fn configs() -> Vec<Config> {
    let mut configs = vec![];
    for objective in objectives() {
        for kl in [None, kls()[3]] {
            configs.push(Config {
                objective,
                kl,
                ..Config::default()
            });
        }
    }
    configs
}

#[test]
fn lengths_and_packed_rows_equal_a_mask() {
    let case = case();
    let offsets = [0, 6, 6, 9, 10, 15];
    let token_weight: Vec<f32> = (0..30).map(|i| i as f32 / 16.0).collect();
    let masked = TokenBatch {
        importance_weight: Some(ImportanceWeight::PerToken(&token_weight)),
        ..case.batch()
    };
    let lengths = TokenBatch {
        layout: Layout::Padded {
            num_rows: 5,
            width: WIDTH,
            row_stride: WIDTH,
            mask_row_stride: WIDTH,
            lengths: Some(&LENGTHS),
        },
        mask: None,
        ..masked
    };
    let log_prob = packed(&case.log_prob);
    let old = packed(case.old_log_prob.as_ref().unwrap());
    let reference = packed(case.ref_log_prob.as_ref().unwrap());
    let packed_weight = packed(&token_weight);
    let back_to_back = TokenBatch {
        layout: Layout::Packed { offsets: &offsets },
        mask: None,
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: Some(Tensor::F32(&old)),
        ref_log_prob: Some(Tensor::F32(&reference)),
        importance_weight: Some(ImportanceWeight::PerToken(&packed_weight)),
        ..masked
    };
    for config in configs() {
        for runner in runners() {
            let expected = runner.run(&masked, &config);
            let found = runner.run(&lengths, &config);
            assert_eq!(found.metrics, expected.metrics);
            assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
            let found = runner.run(&back_to_back, &config);
            assert_eq!(found.metrics, expected.metrics);
            let valid = packed(&expected.d_log_prob);
            assert_eq!(bits(&found.d_log_prob), bits(&valid));
            assert_eq!(found.active_rows, expected.active_rows);
        }
    }
}

#[test]
fn strides_skip_the_gaps() {
    let case = case();
    let log_prob = strided(&case.log_prob, 9, f32::NAN);
    let old = strided(case.old_log_prob.as_ref().unwrap(), 9, f32::NAN);
    let reference = strided(case.ref_log_prob.as_ref().unwrap(), 9, f32::NAN);
    let mask = strided(case.mask.as_ref().unwrap(), 8, 1);
    let batch = TokenBatch {
        layout: Layout::Padded {
            num_rows: 5,
            width: WIDTH,
            row_stride: 9,
            mask_row_stride: 8,
            lengths: None,
        },
        mask: Some(&mask),
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: Some(Tensor::F32(&old)),
        ref_log_prob: Some(Tensor::F32(&reference)),
        ..case.batch()
    };
    for config in configs() {
        for runner in runners() {
            let expected = runner.run(&case.batch(), &config);
            let found = runner.run(&batch, &config);
            assert_eq!(found.metrics, expected.metrics);
            let spread = strided(&expected.d_log_prob, 9, 0.0);
            assert_eq!(bits(&found.d_log_prob), bits(&spread));
        }
    }
}

#[test]
fn gaps_between_rows_are_not_written() {
    let case = case();
    let mut log_prob = strided(&case.log_prob, 9, 0.0);
    // The gap after the last row may be there.
    log_prob.extend([0.0; 3]);
    let batch = TokenBatch {
        layout: Layout::Padded {
            num_rows: 5,
            width: WIDTH,
            row_stride: 9,
            mask_row_stride: WIDTH,
            lengths: None,
        },
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: Some(Tensor::F32(&log_prob)),
        ref_log_prob: None,
        ..case.batch()
    };
    let mut d_log_prob = vec![9.0; 45];
    for gradient in [Gradient::ZeroFill, Gradient::Untouched] {
        let config = Config {
            gradient,
            ..Config::default()
        };
        let target = TensorMut::F64(&mut d_log_prob).into();
        cpu::loss_from_log_probs_into(&batch, &config, target).unwrap();
        for row in d_log_prob.chunks(9) {
            assert_eq!(row[WIDTH..], [9.0; 3]);
        }
    }
}

#[test]
fn mask_and_lengths_both_hold() {
    let mut case = case();
    let mask: Vec<u8> = (0..30).map(|slot| u8::from(slot % 2 == 0)).collect();
    let both = (0..30).map(|slot| mask[slot] & case.mask.as_ref().unwrap()[slot]);
    let both: Vec<u8> = both.collect();
    // Any non-zero value counts.
    let mask: Vec<u8> = mask.iter().map(|&valid| valid * 255).collect();
    case.mask = Some(both);
    let batch = TokenBatch {
        layout: Layout::Padded {
            num_rows: 5,
            width: WIDTH,
            row_stride: WIDTH,
            mask_row_stride: WIDTH,
            lengths: Some(&LENGTHS),
        },
        mask: Some(&mask),
        ..case.batch()
    };
    for runner in runners() {
        let expected = runner.run(&case.batch(), &Config::default());
        let found = runner.run(&batch, &Config::default());
        assert_eq!(found.metrics, expected.metrics);
        assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
    }
}

#[test]
fn every_dtype_is_widened_exactly() {
    let case = case();
    for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
        let log_prob = Owned::new(dtype, &case.log_prob);
        let old = Owned::new(dtype, case.old_log_prob.as_ref().unwrap());
        let reference = Owned::new(dtype, case.ref_log_prob.as_ref().unwrap());
        let stored = TokenBatch {
            log_prob: log_prob.tensor(),
            old_log_prob: Some(old.tensor()),
            ref_log_prob: Some(reference.tensor()),
            ..case.batch()
        };
        let wide = Case {
            log_prob: log_prob.widened(),
            old_log_prob: Some(old.widened()),
            ref_log_prob: Some(reference.widened()),
            ..case.clone()
        };
        for config in configs() {
            for runner in runners() {
                let expected = runner.run(&wide.batch(), &config);
                let found = runner.run(&stored, &config);
                assert_eq!(found.metrics, expected.metrics);
                assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
            }
        }
    }
}
