//! The gradient against differences of log-prob and entropy.

use crate::case::Rows;
use crate::{backends, backward};
use qae::reference;
use qae_test_support::{Random, assert_close};

/// A power of two that keeps the perturbed f32 inputs exact.
const STEP: f32 = 1.0 / 256.0;
/// Beyond the fourth power of the step over the temperature, which the extrapolation leaves.
const TOLERANCE: f64 = 1e-8;

/// Σ g · log_prob + h · entropy over the rows.
fn objective(rows: &Rows, g: &[f32], h: &[f32]) -> f64 {
    let out = reference::log_probs_from_logits(&rows.input()).unwrap();
    let terms = |values: &[f64], weights: &[f32]| -> f64 {
        let each = values.iter().zip(weights);
        each.map(|(value, &weight)| value * f64::from(weight)).sum()
    };
    terms(&out.log_prob, g) + terms(&out.entropy, h)
}

/// Central differences of two steps, extrapolated (Richardson).
fn difference(rows: &Rows, g: &[f32], h: &[f32], element: usize) -> f64 {
    let of_step = |step: f32| {
        let side = |step: f32| {
            let mut moved = rows.clone();
            moved.logits[element] += step;
            objective(&moved, g, h)
        };
        (side(step) - side(-step)) / (2.0 * f64::from(step))
    };
    (4.0 * of_step(STEP / 2.0) - of_step(STEP)) / 3.0
}

#[test]
fn of_log_prob_and_entropy_at_every_logit() {
    let mut random = Random(21);
    for (seed, temperature) in [(22, 1.0), (23, 0.7), (24, 2.5)] {
        let mut rows = Rows::random(seed, 5, 11);
        rows.temperature = temperature;
        let mut several = || -> Vec<f32> { (0..5).map(|_| random.grid(4.0) - 2.0).collect() };
        let zeros = vec![0.0; 5];
        for (g, h) in [
            (several(), zeros.clone()),
            (zeros, several()),
            (several(), several()),
        ] {
            let elements = 0..rows.logits.len();
            let expected: Vec<f64> = elements.map(|i| difference(&rows, &g, &h, i)).collect();
            for backend in backends() {
                let found = backward(&*backend, &rows.input(), &g, Some(&h));
                assert_close(&found, &expected, TOLERANCE, &backend.name());
            }
        }
    }
}
