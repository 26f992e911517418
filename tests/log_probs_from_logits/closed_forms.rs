//! Log-probs, entropies and gradients that can be written down.

use crate::case::Rows;
use crate::{TOLERANCE, backends, backward, forward};
use qae_test_support::{assert_close, bits};

#[test]
fn a_uniform_row_has_the_entropy_of_its_vocabulary() {
    for vocab_size in [1, 2, 3, 7, 64, 1000] {
        for logit in [0.0, 5.0, -3e4, 1e4] {
            let last = vocab_size as i32 - 1;
            let mut rows = Rows::of_row(&vec![logit; vocab_size], &[0, last]);
            rows.temperature = 0.5;
            let uniform = (vocab_size as f64).ln();
            for backend in backends() {
                let out = forward(&*backend, &rows.input());
                assert_close(&out.log_prob, &[-uniform; 2], TOLERANCE, "log_prob");
                assert_close(&out.entropy, &[uniform; 2], TOLERANCE, "entropy");
                let expected = [f64::from(logit) / 0.5 + uniform; 2];
                assert_close(&out.log_sum_exp, &expected, TOLERANCE, "log_sum_exp");
                // g (1[token] − 1/V) / T; the entropy is at its maximum.
                let d_logits = backward(&*backend, &rows.input(), &[1.5, 0.0], Some(&[0.25, 3.0]));
                let p = 1.0 / vocab_size as f64;
                let of_token = |j: usize| f64::from(u8::from(j == 0)) - p;
                let mut expected: Vec<f64> = (0..vocab_size).map(|j| 3.0 * of_token(j)).collect();
                expected.resize(2 * vocab_size, 0.0);
                assert_close(&d_logits, &expected, TOLERANCE, "d_logits");
            }
        }
    }
}

#[test]
fn two_columns_are_a_sigmoid() {
    let [a, b] = [0.75_f32, -1.5];
    let temperature = 1.25;
    let mut rows = Rows::of_row(&[a, b], &[0, 1]);
    rows.temperature = temperature;
    let x = f64::from(a - b) / temperature;
    let p = 1.0 / (1.0 + (-x).exp());
    let entropy = -p * p.ln() - (1.0 - p) * (1.0 - p).ln();
    for backend in backends() {
        let out = forward(&*backend, &rows.input());
        assert_close(
            &out.log_prob,
            &[p.ln(), (1.0 - p).ln()],
            TOLERANCE,
            "log_prob",
        );
        assert_close(&out.entropy, &[entropy; 2], TOLERANCE, "entropy");
        // d ln σ(x) / da = (1 − σ) / T, and dH/dx = −x σ (1 − σ).
        let d_logits = backward(&*backend, &rows.input(), &[2.0, 0.0], Some(&[0.0, 4.0]));
        let of_log_prob = 2.0 * (1.0 - p) / temperature;
        let of_entropy = -4.0 * x * p * (1.0 - p) / temperature;
        let expected = [of_log_prob, -of_log_prob, of_entropy, -of_entropy];
        assert_close(&d_logits, &expected, TOLERANCE, "d_logits");
    }
}

#[test]
fn a_shift_of_a_row_changes_its_log_sum_exp_alone() {
    let rows = Rows::random(1, 6, 37);
    let mut shifted = rows.clone();
    // Exact: the logits are multiples of 2⁻¹².
    shifted.logits.iter_mut().for_each(|logit| *logit += 512.0);
    for backend in backends() {
        let expected = forward(&*backend, &rows.input());
        let found = forward(&*backend, &shifted.input());
        assert_eq!(bits(&found.log_prob), bits(&expected.log_prob));
        assert_eq!(bits(&found.entropy), bits(&expected.entropy));
        let moved: Vec<f64> = expected.log_sum_exp.iter().map(|x| x + 512.0).collect();
        assert_close(&found.log_sum_exp, &moved, TOLERANCE, "log_sum_exp");
        let of = |rows: &Rows| backward(&*backend, &rows.input(), &[1.0; 6], Some(&[-0.5; 6]));
        assert_eq!(bits(&of(&shifted)), bits(&of(&rows)));
    }
}

#[test]
fn a_temperature_divides_the_logits() {
    let mut rows = Rows::random(2, 6, 37);
    rows.temperature = 0.25;
    let mut scaled = rows.clone();
    scaled.temperature = 1.0;
    scaled.logits.iter_mut().for_each(|logit| *logit *= 4.0);
    for backend in backends() {
        let found = forward(&*backend, &rows.input());
        assert_eq!(found, forward(&*backend, &scaled.input()));
        let of = |rows: &Rows| backward(&*backend, &rows.input(), &[1.0; 6], Some(&[-0.5; 6]));
        let expected: Vec<f64> = of(&scaled).iter().map(|g| 4.0 * g).collect();
        assert_eq!(of(&rows), expected);
    }
}

#[test]
fn log_probs_are_those_of_a_distribution() {
    let vocab_size = 53;
    let row = Rows::random(3, 1, vocab_size).logits;
    let all: Vec<i32> = (0..vocab_size as i32).collect();
    let mut rows = Rows::of_row(&row, &all);
    rows.temperature = 0.7;
    for backend in backends() {
        let out = forward(&*backend, &rows.input());
        let sum: f64 = out.log_prob.iter().map(|log_prob| log_prob.exp()).sum();
        assert_close(&[sum], &[1.0], TOLERANCE, "sum");
        let entropy: f64 = out.log_prob.iter().map(|l| -l.exp() * l).sum();
        assert_close(
            &out.entropy,
            &vec![entropy; vocab_size],
            TOLERANCE,
            "entropy",
        );
    }
}

#[test]
fn the_gradient_of_a_row_sums_to_zero() {
    let rows = Rows::random(4, 9, 41);
    for backend in backends() {
        let d_logits = backward(&*backend, &rows.input(), &[1.0; 9], Some(&[0.75; 9]));
        for row in d_logits.chunks(41) {
            assert!(row.iter().sum::<f64>().abs() < 1e-14);
        }
    }
}
