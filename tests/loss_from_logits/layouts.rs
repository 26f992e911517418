//! The same tokens in other layouts and dtypes have the same results.

use crate::case::{Case, config, configs};
use crate::{assert_same_tensors, backends, run};
use half::{bf16, f16};
use qae::{Config, ImportanceWeight, Layout, Logits, LogitsBatch, LogitsLayout, Tensor};
use qae_test_support::{Weight, aggregations, bits, kls, objectives};

pub const ROWS: usize = 5;
pub const WIDTH: usize = 4;
pub const VOCAB: usize = 7;
pub const SLOTS: usize = ROWS * WIDTH;

/// With weights and a mask.
pub fn case() -> Case {
    Case {
        weight: Weight::PerToken((0..SLOTS).map(|slot| 0.5 + slot as f32 / 16.0).collect()),
        ..Case::random(51, ROWS, WIDTH, VOCAB)
    }
}

/// Values of [ROWS, WIDTH] with `row_stride` elements between rows and `gap` between them.
fn strided<T: Copy>(values: &[T], row_stride: usize, gap: T) -> Vec<T> {
    let mut all = vec![gap; ROWS * row_stride];
    for (row, values) in values.chunks(WIDTH).enumerate() {
        all[row * row_stride..][..WIDTH].copy_from_slice(values);
    }
    all
}

#[test]
fn strides_skip_the_gaps() {
    let case = case();
    let (row_stride, mask_row_stride) = (6, 9);
    let mask = strided(case.mask.as_ref().unwrap(), mask_row_stride, 1);
    let token_id = strided(&case.token_id, row_stride, -5);
    let [old, reference] = [&case.old_log_prob, &case.ref_log_prob]
        .map(|tensor| strided(tensor.as_ref().unwrap(), row_stride, f32::NAN));
    let Weight::PerToken(weight) = &case.weight else {
        unreachable!("the case has weights of tokens")
    };
    let weight = strided(weight, row_stride, f32::NAN);
    // As a view of a larger tensor: gaps behind a row of logits and behind a response.
    let (logit_stride, response_stride) = (9, 50);
    let mut logits = vec![f32::NAN; ROWS * response_stride];
    for (slot, row) in case.logits.chunks(VOCAB).enumerate() {
        let start = slot / WIDTH * response_stride + slot % WIDTH * logit_stride;
        logits[start..][..VOCAB].copy_from_slice(row);
    }
    let batch = LogitsBatch {
        layout: Layout::Padded {
            num_rows: ROWS,
            width: WIDTH,
            row_stride,
            mask_row_stride,
            lengths: None,
        }
        .into(),
        mask: Some(&mask),
        logits: Logits {
            values: Tensor::F32(&logits),
            vocab_size: VOCAB,
            row_stride: logit_stride,
            response_stride: Some(response_stride),
        },
        token_id: &token_id,
        old_log_prob: Some(Tensor::F32(&old)),
        ref_log_prob: Some(Tensor::F32(&reference)),
        importance_weight: Some(ImportanceWeight::PerToken(&weight)),
        advantages: case.advantage.borrow(),
    };
    for config in configs() {
        for backend in backends() {
            let expected = run(&*backend, &case.batch(), &config);
            let found = run(&*backend, &batch, &config);
            assert_eq!(bits(&found.d_logits), bits(&expected.d_logits));
            assert_eq!(found.loss.metrics, expected.loss.metrics);
            for (found, expected) in [
                (&found.loss.d_log_prob, &expected.loss.d_log_prob),
                (&found.log_prob, &expected.log_prob),
                (&found.entropy, &expected.entropy),
            ] {
                // A gap holds 0.
                assert_eq!(bits(found), bits(&strided(expected, row_stride, 0.0)));
            }
        }
    }
}

#[test]
fn all_but_the_last_position_of_each_response() {
    // logits[:, :-1] of [ROWS, WIDTH + 1, VOCAB], next to tokens of [ROWS, WIDTH].
    let case = case();
    let mut logits = vec![f32::NAN; ROWS * (WIDTH + 1) * VOCAB];
    for (row, values) in case.logits.chunks(WIDTH * VOCAB).enumerate() {
        logits[row * (WIDTH + 1) * VOCAB..][..WIDTH * VOCAB].copy_from_slice(values);
    }
    let view = |len: usize| LogitsBatch {
        logits: Logits {
            values: Tensor::F32(&logits[..len]),
            response_stride: Some((WIDTH + 1) * VOCAB),
            ..case.batch().logits
        },
        ..case.batch()
    };
    let len = logits.len();
    for backend in backends() {
        let expected = run(&*backend, &case.batch(), &config());
        // With and without the last position of the last response.
        for batch in [view(len), view(len - VOCAB)] {
            let found = run(&*backend, &batch, &config());
            assert_same_tensors(&found, &expected, "view");
        }
    }
}

#[test]
fn without_a_response_stride_responses_follow_the_token_tensors() {
    // Both the tokens and the logits of [ROWS, WIDTH + 1, …], of which WIDTH count.
    let case = case();
    let row_stride = WIDTH + 1;
    let token_id = strided(&case.token_id, row_stride, 0);
    let mask = strided(case.mask.as_ref().unwrap(), row_stride, 0);
    let old = strided(case.old_log_prob.as_ref().unwrap(), row_stride, 0.0);
    let mut logits = vec![f32::NAN; ROWS * row_stride * VOCAB];
    for (slot, row) in case.logits.chunks(VOCAB).enumerate() {
        let start = slot / WIDTH * row_stride + slot % WIDTH;
        logits[start * VOCAB..][..VOCAB].copy_from_slice(row);
    }
    let batch = LogitsBatch {
        layout: Layout::Padded {
            num_rows: ROWS,
            width: WIDTH,
            row_stride,
            mask_row_stride: row_stride,
            lengths: None,
        }
        .into(),
        mask: Some(&mask),
        logits: Logits::contiguous(Tensor::F32(&logits), VOCAB),
        token_id: &token_id,
        old_log_prob: Some(Tensor::F32(&old)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: case.advantage.borrow(),
    };
    let contiguous = Case {
        weight: Weight::None,
        ..case.clone()
    };
    for backend in backends() {
        let expected = run(&*backend, &contiguous.batch(), &config());
        let found = run(&*backend, &batch, &config());
        assert_eq!(bits(&found.d_logits), bits(&expected.d_logits));
    }
}

#[test]
fn packed_and_padded_agree() {
    let case = case();
    let offsets: Vec<i64> = (0..=ROWS).map(|row| (row * WIDTH) as i64).collect();
    let packed = LogitsBatch {
        layout: Layout::Packed { offsets: &offsets }.into(),
        ..case.batch()
    };
    for config in configs() {
        for backend in backends() {
            let expected = run(&*backend, &case.batch(), &config);
            let found = run(&*backend, &packed, &config);
            assert_same_tensors(&found, &expected, "packed");
            assert_eq!(found.loss.metrics, expected.loss.metrics);
        }
    }
}

#[test]
fn lengths_are_masks_of_leading_tokens() {
    let lengths = [4, 0, 2, 1, 3];
    let mut case = case();
    let is_valid = |slot: usize| ((slot % WIDTH) as i32) < lengths[slot / WIDTH];
    case.mask = Some((0..SLOTS).map(|slot| u8::from(is_valid(slot))).collect());
    let by_length = LogitsBatch {
        layout: Layout::Padded {
            num_rows: ROWS,
            width: WIDTH,
            row_stride: WIDTH,
            mask_row_stride: WIDTH,
            lengths: Some(&lengths),
        }
        .into(),
        mask: None,
        ..case.batch()
    };
    for backend in backends() {
        let expected = run(&*backend, &case.batch(), &config());
        assert_same_tensors(&run(&*backend, &by_length, &config()), &expected, "lengths");
    }
}

#[test]
fn narrow_dtypes_are_widened_exactly() {
    let case = case();
    let batch = case.batch();
    let as_bf16: Vec<bf16> = case.logits.iter().map(|&x| bf16::from_f32(x)).collect();
    let old: Vec<f16> = case
        .old_log_prob
        .iter()
        .flatten()
        .map(|&x| f16::from_f32(x))
        .collect();
    let reference: Vec<f16> = case
        .ref_log_prob
        .iter()
        .flatten()
        .map(|&x| f16::from_f32(x))
        .collect();
    // Logits of one dtype, log-probs of another.
    let narrow = LogitsBatch {
        logits: Logits::contiguous(Tensor::Bf16(&as_bf16), VOCAB),
        old_log_prob: Some(Tensor::F16(&old)),
        ref_log_prob: Some(Tensor::F16(&reference)),
        ..batch
    };
    let wide = Case {
        logits: as_bf16.iter().map(|x| x.to_f32()).collect(),
        old_log_prob: Some(old.iter().map(|x| x.to_f32()).collect()),
        ref_log_prob: Some(reference.iter().map(|x| x.to_f32()).collect()),
        ..case.clone()
    };
    for objective in objectives() {
        let config = Config {
            objective,
            kl: kls()[4],
            aggregation: aggregations()[1],
            entropy_coef: 0.25,
            ..config()
        };
        for backend in backends() {
            let expected = run(&*backend, &wide.batch(), &config);
            assert_same_tensors(&run(&*backend, &narrow, &config), &expected, "narrow");
        }
    }
}

#[test]
fn an_empty_batch_has_loss_zero() {
    let empty: &[f32] = &[];
    for layout in [
        Layout::padded(0, 0).into(),
        Layout::padded(0, 8).into(),
        Layout::padded(3, 0).into(),
        Layout::Packed { offsets: &[0, 0] }.into(),
        LogitsLayout::Indexed {
            response: &[],
            num_responses: 2,
        },
    ] {
        let advantages = vec![1.0; layout.num_responses()];
        let batch = LogitsBatch {
            layout,
            mask: Some(&[]),
            logits: Logits::contiguous(Tensor::F32(empty), VOCAB),
            token_id: &[],
            old_log_prob: Some(Tensor::F32(empty)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: qae::Advantages::PerResponse(&advantages),
        };
        for backend in backends() {
            let output = run(&*backend, &batch, &config());
            assert_eq!(output.loss.metrics.loss.to_bits(), 0);
            assert!(output.d_logits.is_empty() && output.log_prob.is_empty());
            let entropy = output.loss.metrics.entropy.unwrap();
            assert_eq!((entropy.mean(), entropy.loss), (0.0, 0.0));
        }
    }
}
