//! Infinite, huge and unusable logits.

use crate::case::Rows;
use crate::{TOLERANCE, backends, backward, forward};
use qae::{Backend, LogProbsOutput};
use qae_test_support::{assert_close, bits};

const NEG_INF: f32 = f32::NEG_INFINITY;

/// Row `row` of the results: log-prob, entropy, log-sum-exp.
fn row_of(out: &LogProbsOutput, row: usize) -> [f64; 3] {
    [out.log_prob[row], out.entropy[row], out.log_sum_exp[row]]
}

#[test]
fn columns_of_negative_infinity_are_as_if_they_were_not_there() {
    let kept = [1.5, -0.25, 3.0, 0.0];
    let holed = [NEG_INF, 1.5, -0.25, NEG_INF, 3.0, 0.0, NEG_INF];
    let (kept, holed) = (Rows::of_row(&kept, &[2]), Rows::of_row(&holed, &[4]));
    for backend in backends() {
        let expected = forward(&*backend, &kept.input());
        assert_eq!(forward(&*backend, &holed.input()), expected);
        let of = |rows: &Rows| backward(&*backend, &rows.input(), &[1.5], Some(&[-2.0]));
        let d = of(&kept);
        let expected = [0.0, d[0], d[1], 0.0, d[2], d[3], 0.0];
        assert_eq!(bits(&of(&holed)), bits(&expected));
    }
}

#[test]
fn a_token_of_probability_zero_has_no_gradient_but_that_of_its_entropy() {
    let rows = Rows::of_row(&[0.5, NEG_INF, -1.0], &[1, 0]);
    for backend in backends() {
        let out = forward(&*backend, &rows.input());
        assert_eq!(out.log_prob[0], f64::NEG_INFINITY);
        assert_eq!(out.entropy[0], out.entropy[1]);
        assert_eq!(out.log_sum_exp[0], out.log_sum_exp[1]);
        let d_logits = backward(&*backend, &rows.input(), &[1.0, 0.0], None);
        assert_eq!(bits(&d_logits), [0; 6]);
        let of_entropy = backward(&*backend, &rows.input(), &[1.0, 0.0], Some(&[1.0; 2]));
        assert_eq!(of_entropy[..3], of_entropy[3..]);
        assert!(of_entropy[0] < 0.0 && of_entropy[1].to_bits() == 0);
    }
}

#[test]
fn rows_of_which_nothing_finite_can_be_said_are_nan_alone() {
    let usable = Rows::random(11, 1, 5);
    for bad in [
        [0.0, f32::NAN, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, f32::INFINITY],
        [f32::INFINITY, NEG_INF, f32::NAN, 0.0, 0.0],
        [NEG_INF; 5],
        [f32::NAN; 5],
    ] {
        let mut rows = Rows::of_row(&bad, &[0, 3]);
        rows.logits.extend(usable.row(0));
        rows.token_id.push(usable.token_id[0]);
        for backend in backends() {
            let out = forward(&*backend, &rows.input());
            for row in 0..2 {
                assert!(row_of(&out, row).iter().all(|x| x.is_nan()), "{bad:?}");
            }
            let expected = forward(&*backend, &usable.input());
            assert_eq!(row_of(&out, 2), row_of(&expected, 0));
            let d_logits = backward(&*backend, &rows.input(), &[1.0; 3], Some(&[1.0; 3]));
            assert_eq!(bits(&d_logits[..10]), [0; 10], "{bad:?}");
            let expected = backward(&*backend, &usable.input(), &[1.0], Some(&[1.0]));
            assert_eq!(bits(&d_logits[10..]), bits(&expected));
        }
    }
}

#[test]
fn the_maximum_is_subtracted_first() {
    // Distances of 0, 7/8 and 2·10⁴ from the maximum, at temperature 0.7.
    let row = [1e4, 1e4 - 0.875, -1e4, 1e4];
    let mut rows = Rows::of_row(&row, &[0, 1, 2]);
    rows.temperature = 0.7;
    let z = -0.875 / 0.7;
    let sum = 2.0 + f64::exp(z);
    let log_prob = [-sum.ln(), z - sum.ln(), -2e4 / 0.7 - sum.ln()];
    let entropy = sum.ln() - f64::exp(z) * z / sum;
    for backend in backends() {
        let out = forward(&*backend, &rows.input());
        assert_close(&out.log_prob, &log_prob, 1e-12, "log_prob");
        assert_close(&out.log_prob[..2], &log_prob[..2], TOLERANCE, "log_prob");
        assert_close(&out.entropy, &[entropy; 3], TOLERANCE, "entropy");
        let d_logits = backward(&*backend, &rows.input(), &[0.0, 0.0, 1.75], None);
        let p = 2.5 / sum;
        let expected = [-p, -p * f64::exp(z), 2.5, -p];
        assert_close(&d_logits[8..], &expected, TOLERANCE, "d_logits");
    }
}

#[test]
fn certainty_has_no_entropy_and_no_gradient() {
    let rows = Rows::of_row(&[-1e4, 1e4, -1e4], &[1]);
    for backend in backends() {
        let out = forward(&*backend, &rows.input());
        assert_eq!(row_of(&out, 0), [0.0, 0.0, 1e4]);
        let d_logits = backward(&*backend, &rows.input(), &[1.0], Some(&[1.0]));
        assert_eq!(bits(&d_logits), [0; 3]);
    }
}

/// Largest log-prob and entropy of a row at a temperature.
fn of_temperature(backend: &dyn Backend, row: &[f32], temperature: f64) -> (f64, f64) {
    let mut rows = Rows::of_row(row, &[0]);
    rows.temperature = temperature;
    let out = forward(backend, &rows.input());
    let d_logits = backward(backend, &rows.input(), &[1.0], Some(&[1.0]));
    assert!(d_logits.iter().all(|g| g.is_finite()), "{temperature}");
    (out.log_prob[0], out.entropy[0])
}

#[test]
fn the_largest_logits_and_any_temperature_stay_finite() {
    for backend in backends() {
        let row = [f32::MAX, f32::MIN, 0.0];
        assert_eq!(of_temperature(&*backend, &row, 1.0), (0.0, 0.0));
        assert_eq!(of_temperature(&*backend, &row, 1e-30), (0.0, 0.0));
        // Distances overflow, and are −∞.
        assert_eq!(of_temperature(&*backend, &[2.0, 1.0], 1e-300), (0.0, 0.0));
        assert_eq!(of_temperature(&*backend, &[1.0; 2], 1e-300).1, 2_f64.ln());
        let (log_prob, entropy) = of_temperature(&*backend, &row, 1e60);
        assert_close(&[log_prob], &[-3_f64.ln()], TOLERANCE, "log_prob");
        assert_close(&[entropy], &[3_f64.ln()], TOLERANCE, "entropy");
    }
}

#[test]
fn exact_zeros_are_positive() {
    // p = 0 by underflow and by −∞, g < 0 and h < 0.
    let rows = Rows::of_row(&[0.0, -1e30, NEG_INF], &[0]);
    for backend in backends() {
        let d_logits = backward(&*backend, &rows.input(), &[-1.0], Some(&[-1.0]));
        assert_eq!(bits(&d_logits), [0; 3]);
    }
}
