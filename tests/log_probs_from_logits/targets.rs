//! Results in the caller's memory are those of the reference, rounded once, and nothing else is
//! written.

use crate::case::Rows;
use half::{bf16, f16};
use qae::cpu::{self, LogProbsTargets};
use qae::{LogProbsInput, Logits, LogitsMut, Tensor, TensorMut, reference};
use qae_test_support::bits;

const ROWS: usize = 11;
const VOCAB: usize = 13;
const POISON: f32 = 12_352.0;

fn rows() -> Rows {
    let mut rows = Rows::random(71, ROWS, VOCAB);
    rows.temperature = 0.7;
    rows.mask = Some((0..ROWS).map(|row| u8::from(row % 4 > 0)).collect());
    rows
}

#[test]
fn every_result_is_the_reference_rounded_once() {
    let rows = rows();
    let expected = reference::log_probs_from_logits(&rows.input()).unwrap();
    let (mut log_prob, mut entropy, mut log_sum_exp) =
        ([f64::NAN; ROWS], [f32::NAN; ROWS], [bf16::NAN; ROWS]);
    let targets = LogProbsTargets {
        log_prob: Some(TensorMut::F64(&mut log_prob)),
        entropy: Some(TensorMut::F32(&mut entropy)),
        log_sum_exp: Some(TensorMut::Bf16(&mut log_sum_exp)),
    };
    cpu::log_probs_from_logits_into(&rows.input(), targets).unwrap();
    assert_eq!(bits(&log_prob), bits(&expected.log_prob));
    for row in 0..ROWS {
        assert_eq!(entropy[row], expected.entropy[row] as f32);
        let error = f64::from(log_sum_exp[row]) - expected.log_sum_exp[row];
        assert!(error.abs() <= expected.log_sum_exp[row].abs() / 256.0);
    }
    // Nothing wanted, nothing written.
    cpu::log_probs_from_logits_into(&rows.input(), LogProbsTargets::default()).unwrap();
}

#[test]
fn gradients_of_every_dtype_and_stride() {
    let rows = rows();
    let g: Vec<f32> = (0..ROWS).map(|row| (row % 3) as f32 - 1.0).collect();
    let h: Vec<f32> = (0..ROWS).map(|row| (row % 2) as f32 / 8.0).collect();
    let expected = reference::log_probs_from_logits_backward(&rows.input(), &g, Some(&h)).unwrap();
    // Derivatives in other dtypes, which have these values.
    let wide: Vec<f64> = g.iter().map(|&x| x.into()).collect();
    let narrow: Vec<f16> = h.iter().map(|&x| f16::from_f32(x)).collect();
    for stride in [VOCAB, VOCAB + 3] {
        let run = |values: TensorMut<'_>| {
            let target = LogitsMut {
                values,
                row_stride: Some(stride),
                response_stride: None,
            };
            let (g, h) = (Tensor::F64(&wide), Some(Tensor::F16(&narrow)));
            cpu::log_probs_from_logits_backward_into(&rows.input(), g, h, target).unwrap();
        };
        let len = ROWS * stride;
        let (mut f64s, mut f32s) = (vec![f64::from(POISON); len], vec![POISON; len]);
        let (mut bf16s, mut f16s) = (
            vec![bf16::from_f32(POISON); len],
            vec![f16::from_f32(POISON); len],
        );
        run(TensorMut::F64(&mut f64s));
        run(TensorMut::F32(&mut f32s));
        run(TensorMut::Bf16(&mut bf16s));
        run(TensorMut::F16(&mut f16s));
        for place in 0..len {
            let (row, column) = (place / stride, place % stride);
            if column >= VOCAB {
                let found = [f64s[place], f32s[place].into(), bf16s[place].into()];
                assert_eq!(found, [f64::from(POISON); 3]);
                assert_eq!(f16s[place], f16::from_f32(POISON));
                continue;
            }
            let exact = expected[row * VOCAB + column];
            assert_eq!(f64s[place].to_bits(), exact.to_bits());
            assert_eq!(f32s[place].to_bits(), (exact as f32).to_bits());
            assert!((f64::from(bf16s[place]) - exact).abs() <= exact.abs() / 256.0);
            let smallest = 2f64.powi(-25);
            let bound = (exact.abs() / 2048.0).max(smallest);
            assert!((f64::from(f16s[place]) - exact).abs() <= bound);
        }
    }
}

#[test]
fn f64_logits_are_not_rounded() {
    // 1 + 1e-12 and 1 are one value in f32.
    let logits = [1.0 + 1e-12, 1.0];
    let input = LogProbsInput {
        logits: Logits::contiguous(Tensor::F64(&logits), 2),
        token_id: &[0],
        mask: None,
        temperature: 1.0,
    };
    for output in [
        reference::log_probs_from_logits(&input).unwrap(),
        cpu::log_probs_from_logits(&input).unwrap(),
    ] {
        let above_half = output.log_prob[0] + 2f64.ln();
        assert!((above_half - 5e-13).abs() < 1e-15, "{above_half:e}");
    }
}

#[test]
fn targets_that_do_not_fit() {
    let rows = rows();
    let mut short = [POISON; ROWS - 1];
    let targets = LogProbsTargets {
        entropy: Some(TensorMut::F32(&mut short)),
        ..LogProbsTargets::default()
    };
    let error = cpu::log_probs_from_logits_into(&rows.input(), targets).unwrap_err();
    let expected = "entropy: expected shape [11], one for each row, found [10]";
    assert_eq!(error.to_string(), expected);
    let g = [1.0; ROWS];
    let mut gradient = [POISON; ROWS * VOCAB];
    for (len, row_stride, response_stride, message) in [
        (
            142,
            None,
            None,
            "d_logits: expected 143 elements, found 142",
        ),
        (
            143,
            Some(12),
            None,
            "d_logits.row_stride: expected at least the vocabulary of 13, found 12",
        ),
        (
            143,
            None,
            Some(13),
            "d_logits.response_stride: expected none, since only the responses of a padded layout \
             have one, found 13",
        ),
    ] {
        let target = LogitsMut {
            values: TensorMut::F32(&mut gradient[..len]),
            row_stride,
            response_stride,
        };
        let run =
            cpu::log_probs_from_logits_backward_into(&rows.input(), Tensor::F32(&g), None, target);
        assert_eq!(run.unwrap_err().to_string(), message);
    }
    let target = TensorMut::F32(&mut gradient).into();
    let run =
        cpu::log_probs_from_logits_backward_into(&rows.input(), Tensor::F64(&[1.0]), None, target);
    let expected = "d_log_prob: expected shape [11], one for each row, found [1]";
    assert_eq!(run.unwrap_err().to_string(), expected);
    assert_eq!(
        (short, gradient),
        ([POISON; ROWS - 1], [POISON; ROWS * VOCAB])
    );
}
