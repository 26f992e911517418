//! How far a result is from the f64 reference.

use crate::backend::LossOutput;
use serde::Serialize;

/// Largest differences from the reference.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Difference {
    /// Of the gradient, relative to its largest value.
    pub gradient_over_largest: f64,
    /// Of the loss, absolute.
    pub loss: f64,
    /// Of the advantages, absolute; 0 where they were given.
    pub advantage: f64,
}

impl Difference {
    /// Between `output` and `reference`, which describe the same batch.
    pub(super) fn between(output: &LossOutput, reference: &LossOutput) -> Self {
        let largest = reference.d_log_prob.iter().fold(0.0, |m, g| g.abs().max(m));
        let gradient = largest_difference(&output.d_log_prob, &reference.d_log_prob);
        let advantages = output.advantage.as_ref().zip(reference.advantage.as_ref());
        Self {
            gradient_over_largest: if largest > 0.0 {
                gradient / largest
            } else {
                gradient
            },
            loss: (output.metrics.loss - reference.metrics.loss).abs(),
            advantage: advantages.map_or(0.0, |(a, b)| largest_difference(a, b)),
        }
    }
}

/// NaN, rather than a smaller number, where anything is NaN.
fn largest_difference(values: &[f64], reference: &[f64]) -> f64 {
    let pairs = values.iter().zip(reference);
    pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |largest, difference| {
            if largest.is_nan() || difference <= largest {
                largest
            } else {
                difference
            }
        })
}

#[cfg(test)]
mod tests {
    use super::largest_difference;

    #[test]
    fn nan_is_the_largest_difference() {
        assert_eq!(largest_difference(&[1.0, 2.5], &[1.0, 2.0]), 0.5);
        assert!(largest_difference(&[1.0, f64::NAN, 9.0], &[1.0, 2.0, 3.0]).is_nan());
    }
}
