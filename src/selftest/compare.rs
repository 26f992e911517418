//! Results against those of the reference.

use super::Outcome;
use crate::backend::{LogProbsOutput, LogitsOutput, LossOutput};
use crate::error::Error;
use crate::metrics::{EntropyMetrics, Metrics};
use crate::reference::AdvantageOutput;
use std::fmt::Debug;

/// The worst of the fields that were compared so far.
#[derive(Debug)]
pub(super) struct Comparison {
    tolerance: f64,
    worst: Field,
}

#[derive(Debug)]
struct Field {
    name: String,
    error: f64,
    tolerance: f64,
}

impl Field {
    fn is_ok(&self) -> bool {
        self.error <= self.tolerance // NaN is not
    }

    /// How bad it is; NaN is infinitely bad.
    fn badness(&self) -> f64 {
        match self.error {
            error if error.is_nan() => f64::INFINITY,
            0.0 => 0.0,
            error => error / self.tolerance,
        }
    }
}

impl Comparison {
    pub(super) fn new(tolerance: f64) -> Self {
        let worst = Field {
            name: "-".to_string(),
            error: 0.0,
            tolerance,
        };
        Self { tolerance, worst }
    }

    /// The call returned an error.
    pub(super) fn failed(&mut self, error: &Error) {
        self.record(error.to_string().replace('\n', "; "), f64::INFINITY, 0.0);
    }

    pub(super) fn into_outcome(self, case: &str) -> Outcome {
        Outcome {
            case: case.to_string(),
            is_ok: self.worst.is_ok(),
            field: self.worst.name,
            error: self.worst.error,
            tolerance: self.worst.tolerance,
        }
    }

    fn record(&mut self, name: impl Into<String>, error: f64, tolerance: f64) {
        let field = Field {
            name: name.into(),
            error,
            tolerance,
        };
        if field.badness() > self.worst.badness() {
            self.worst = field;
        }
    }

    /// A number that is the sum of terms as large as `scale`.
    fn number(&mut self, name: &str, found: f64, expected: f64, scale: f64) {
        // A sum of nothing is −0, and a negative infinity would pass for a small error.
        let scale = scale.max(expected.abs()).abs();
        // Equal infinities differ by nothing.
        if found != expected {
            self.record(name, (found - expected).abs() / scale, self.tolerance);
        }
    }

    fn tensor(&mut self, name: &str, found: &[f64], expected: &[f64], tolerance: f64) {
        self.zeros(name, found, expected);
        self.values(name, found, expected, tolerance, 0.0);
    }

    /// d loss / d logits, of tokens whose d loss / d log_prob is at most `largest`: what a
    /// probability is off by counts relative to that.
    pub(super) fn d_logits(
        &mut self,
        found: &[f64],
        expected: &[f64],
        largest: f64,
        rounding: f64,
    ) {
        let tolerance = self.tolerance + self.unless_exact(rounding);
        self.zeros("d_logits", found, expected);
        self.values("d_logits", found, expected, tolerance, largest);
    }

    /// A gradient times a factor.
    pub(super) fn scaled(&mut self, found: &[f64], expected: &[f64], rounding: f64) {
        let tolerance = self.tolerance + self.unless_exact(rounding);
        self.tensor("scaled", found, expected, tolerance);
    }

    /// What has to be exactly 0, as nothing acts there, may not be off at all.
    fn zeros(&mut self, name: &str, found: &[f64], expected: &[f64]) {
        let mut pairs = found.iter().zip(expected);
        if pairs.any(|(found, expected)| *expected == 0.0 && *found != 0.0) {
            self.record(name, f64::INFINITY, 0.0);
        }
    }

    /// A subject that must be exact keeps its results in f64.
    fn unless_exact(&self, rounding: f64) -> f64 {
        if self.tolerance > 0.0 { rounding } else { 0.0 }
    }

    /// Log-probs and entropies, which have absolute errors where they are near 0.
    fn nats(&mut self, name: &str, found: &[f64], expected: &[f64]) {
        self.values(name, found, expected, self.tolerance, 1.0);
    }

    /// Errors relative to the largest value, or to `least`.
    fn values(&mut self, name: &str, found: &[f64], expected: &[f64], tolerance: f64, least: f64) {
        if found.len() != expected.len() {
            let lengths = format!("{name}: {} of {} values", found.len(), expected.len());
            return self.record(lengths, f64::INFINITY, tolerance);
        }
        let finite = expected.iter().filter(|x| x.is_finite());
        let largest = finite.fold(least, |max: f64, x| max.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let is_nan = found.is_nan() && expected.is_nan();
            if found != expected && !is_nan {
                self.record(name, (found - expected).abs() / largest, tolerance);
            }
        }
    }

    /// What is counted or listed, where nothing but equality will do.
    pub(super) fn equal<T: PartialEq + Debug>(&mut self, name: &str, found: &T, expected: &T) {
        if found != expected {
            self.record(name, f64::INFINITY, 0.0);
        }
    }

    pub(super) fn advantages(&mut self, found: &AdvantageOutput, expected: &AdvantageOutput) {
        let tolerance = self.tolerance;
        self.tensor("baseline", &found.baseline, &expected.baseline, tolerance);
        self.tensor(
            "advantage",
            &found.advantage,
            &expected.advantage,
            tolerance,
        );
        self.equal("groups", &found.metrics, &expected.metrics);
    }

    pub(super) fn log_probs(&mut self, found: &LogProbsOutput, expected: &LogProbsOutput) {
        self.nats("log_prob", &found.log_prob, &expected.log_prob);
        self.nats("entropy", &found.entropy, &expected.entropy);
        self.nats("log_sum_exp", &found.log_sum_exp, &expected.log_sum_exp);
    }

    /// `rounding`: of a gradient in a narrow dtype; `log_prob` of an element of the token tensors.
    pub(super) fn loss(
        &mut self,
        log_prob: impl Fn(usize) -> f64,
        found: &LossOutput,
        expected: &LossOutput,
        rounding: Option<f64>,
    ) {
        let tolerance = self.tolerance;
        for (name, found, expected) in [
            ("baseline", &found.baseline, &expected.baseline),
            ("advantage", &found.advantage, &expected.advantage),
        ] {
            match (found, expected) {
                (Some(found), Some(expected)) => self.tensor(name, found, expected, tolerance),
                (found, expected) => self.equal(name, found, expected),
            }
        }
        self.equal("active_rows", &found.active_rows, &expected.active_rows);
        let gradient = &expected.d_log_prob;
        let tolerance = tolerance + self.unless_exact(rounding.unwrap_or(0.0));
        self.tensor("d_log_prob", &found.d_log_prob, gradient, tolerance);
        // The terms of the loss, some of which cancel: A·ρ, or A·log_prob.
        let term = |(slot, g): (usize, &f64)| match *g {
            0.0 => 0.0,
            g => g.abs() * log_prob(slot).abs().max(1.0),
        };
        let terms = gradient.iter().enumerate().map(term).sum();
        self.metrics(&found.metrics, &expected.metrics, terms);
    }

    /// `narrow`: rounding of the gradient with respect to log-probs; `rounding`: to logits.
    pub(super) fn loss_from_logits(
        &mut self,
        found: &LogitsOutput,
        expected: &LogitsOutput,
        narrow: Option<f64>,
        rounding: f64,
    ) {
        self.nats("log_prob", &found.log_prob, &expected.log_prob);
        self.nats("entropy", &found.entropy, &expected.entropy);
        self.equal("active_slots", &found.active_slots, &expected.active_slots);
        let of_tokens = expected.loss.d_log_prob.iter();
        let largest = of_tokens.fold(0.0, |max: f64, g| max.max(g.abs()));
        self.d_logits(&found.d_logits, &expected.d_logits, largest, rounding);
        let log_prob = |slot: usize| expected.log_prob[slot];
        self.loss(log_prob, &found.loss, &expected.loss, narrow);
        match (found.loss.metrics.entropy, expected.loss.metrics.entropy) {
            (Some(found), Some(expected)) => self.entropy(&found, &expected),
            (found, expected) => self.equal("entropy metrics", &found, &expected),
        }
    }

    fn entropy(&mut self, found: &EntropyMetrics, expected: &EntropyMetrics) {
        let tokens = |m: &EntropyMetrics| [m.positive_tokens, m.zero_tokens, m.negative_tokens];
        self.equal("entropy tokens", &tokens(found), &tokens(expected));
        // The loss of tokens of a nat each.
        let nat = expected.loss / expected.mean().abs().min(1.0);
        let [positive, zero, negative] = tokens(expected).map(|tokens| tokens as f64);
        for (name, found, expected, scale) in [
            ("entropy.loss", found.loss, expected.loss, nat),
            (
                "entropy.positive",
                found.positive,
                expected.positive,
                positive,
            ),
            ("entropy.zero", found.zero, expected.zero, zero),
            (
                "entropy.negative",
                found.negative,
                expected.negative,
                negative,
            ),
        ] {
            self.number(name, found, expected, scale);
        }
    }

    fn metrics(&mut self, found: &Metrics, expected: &Metrics, terms: f64) {
        let tokens = expected.tokens as f64; // of about a nat each
        for (name, value, scale) in [
            ("loss", (|m| m.loss) as fn(&Metrics) -> f64, terms),
            ("pg_loss", |m| m.pg_loss, terms),
            ("kl_loss", |m| m.kl_loss, 0.0),
            ("neg_log_ratio_sum", |m| m.neg_log_ratio_sum, tokens),
            ("min_ratio", |m| m.min_ratio, 0.0),
            ("max_ratio", |m| m.max_ratio, 0.0),
        ] {
            self.number(name, value(found), value(expected), scale);
        }
        for (name, count) in [
            ("positive", (|m| m.positive) as fn(&Metrics) -> u64),
            ("zero", |m| m.zero),
            ("negative", |m| m.negative),
            ("active", |m| m.active),
            ("tokens", |m| m.tokens),
            ("active_tokens", |m| m.active_tokens),
            ("clipped_above", |m| m.clipped_above),
            ("clipped_below", |m| m.clipped_below),
            ("dual_clipped", |m| m.dual_clipped),
            ("nonfinite_tokens", |m| m.nonfinite_tokens),
            ("out_of_range", |m| m.out_of_range),
        ] {
            self.equal(name, &count(found), &count(expected));
        }
        self.equal("groups", &found.groups, &expected.groups);
    }
}

#[cfg(test)]
mod tests {
    use super::Comparison;

    #[test]
    fn the_worst_field_is_reported_and_nan_is_the_worst() {
        let mut comparison = Comparison::new(1e-6);
        comparison.number("first", 1.0 + 1e-7, 1.0, 0.0);
        comparison.tensor("second", &[2.0, 4.0], &[2.0, 4.0 + 8e-7], 1e-6);
        let outcome = comparison.into_outcome("case");
        assert_eq!((outcome.field.as_str(), outcome.is_ok), ("second", true));

        let mut comparison = Comparison::new(1e-6);
        comparison.equal("count", &1, &2);
        comparison.number("later", f64::NAN, 1.0, 0.0);
        let outcome = comparison.into_outcome("case");
        assert_eq!((outcome.field.as_str(), outcome.is_ok), ("count", false));
    }

    #[test]
    fn a_zero_has_to_be_exact() {
        let mut comparison = Comparison::new(1e-6);
        comparison.tensor("gradient", &[1.0, 1e-12], &[1.0, 0.0], 1e-6);
        assert!(!comparison.into_outcome("case").is_ok);
    }

    #[test]
    fn nan_is_a_mismatch() {
        for found in [f64::NAN, f64::INFINITY] {
            let mut comparison = Comparison::new(1e-6);
            comparison.tensor("gradient", &[1.0, found], &[1.0, 0.5], 1e-6);
            assert!(!comparison.into_outcome("case").is_ok);
        }
    }
}
