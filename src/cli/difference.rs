//! How far a result is from the f64 reference.

use crate::backend::{LogitsOutput, LossOutput};
use serde::Serialize;

/// Largest differences from the reference.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Difference {
    /// Of the gradient with respect to log-probs, relative to its largest value.
    pub gradient_over_largest: f64,
    /// The same with respect to logits, from logits.
    pub logits_gradient_over_largest: Option<f64>,
    /// Of the loss, absolute.
    pub loss: f64,
    /// Of the log-probs that were read, in nats, from logits.
    pub log_prob: Option<f64>,
    /// Of their entropies, in nats, from logits.
    pub entropy: Option<f64>,
    /// Of the advantages, absolute; 0 where they were given.
    pub advantage: f64,
}

impl Difference {
    /// Between `output` and `reference`, which describe the same batch.
    pub(super) fn between(output: &LossOutput, reference: &LossOutput) -> Self {
        let advantages = output.advantage.as_ref().zip(reference.advantage.as_ref());
        Self {
            gradient_over_largest: over_largest(&output.d_log_prob, &reference.d_log_prob),
            logits_gradient_over_largest: None,
            loss: (output.metrics.loss - reference.metrics.loss).abs(),
            log_prob: None,
            entropy: None,
            advantage: advantages.map_or(0.0, |(a, b)| largest_difference(a, b)),
        }
    }

    /// Likewise, from logits.
    pub(super) fn between_logits(output: &LogitsOutput, reference: &LogitsOutput) -> Self {
        let gradient = over_largest(&output.d_logits, &reference.d_logits);
        Self {
            logits_gradient_over_largest: Some(gradient),
            log_prob: Some(largest_difference(&output.log_prob, &reference.log_prob)),
            entropy: Some(largest_difference(&output.entropy, &reference.entropy)),
            ..Self::between(&output.loss, &reference.loss)
        }
    }
}

fn over_largest(values: &[f64], reference: &[f64]) -> f64 {
    let largest = reference
        .iter()
        .fold(0.0, |m: f64, value| value.abs().max(m));
    let difference = largest_difference(values, reference);
    if largest > 0.0 {
        difference / largest
    } else {
        difference
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
