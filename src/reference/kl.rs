//! The KL term (k1, k2, k3: John Schulman, "Approximating KL divergence").

use crate::config::{Kl, KlEstimator};

/// Largest magnitude of verl's clamped exponent.
const EXPONENT_MAX: f64 = 20.0;
/// Largest magnitude of verl's clamped estimate.
const VALUE_MAX: f64 = 10.0;

/// The estimate of one token and its derivative with respect to log_prob.
pub(crate) fn kl_term(kl: Kl, log_prob: f64, ref_log_prob: f64) -> (f64, f64) {
    let difference = log_prob - ref_log_prob;
    match kl.estimator {
        // log_prob − ref
        KlEstimator::K1 => (difference, 1.0),
        // ½(log_prob − ref)²
        KlEstimator::K2 => (0.5 * difference * difference, difference),
        KlEstimator::K3 if kl.clamp => k3_clamped(-difference),
        KlEstimator::K3 => k3(-difference),
    }
}

/// e^x − x − 1 with x = ref − log_prob. `exp_m1` because e^x − 1 loses every digit near 0.
fn k3(x: f64) -> (f64, f64) {
    (x.exp_m1() - x, -x.exp_m1())
}

/// verl clamps x to ±20 and the estimate to ±10; no gradient comes from outside.
fn k3_clamped(x: f64) -> (f64, f64) {
    let (value, gradient) = k3(x.clamp(-EXPONENT_MAX, EXPONENT_MAX));
    let inside = x.abs() <= EXPONENT_MAX && value.abs() <= VALUE_MAX;
    (
        value.clamp(-VALUE_MAX, VALUE_MAX),
        if inside { gradient } else { 0.0 },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const K3: Kl = Kl {
        estimator: KlEstimator::K3,
        coef: 1.0,
        clamp: true,
    };

    #[test]
    fn every_estimator_is_zero_on_the_reference_policy() {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            let (value, _) = kl_term(Kl { estimator, ..K3 }, -1.5, -1.5);
            assert_eq!(value, 0.0);
        }
    }

    #[test]
    fn k3_keeps_its_digits_near_zero() {
        // e^x − x − 1 = x²/2 + x³/6 + …
        let x = 2f64.powi(-20);
        let (value, gradient) = kl_term(K3, 0.0, x);
        let series = x * x / 2.0 * (1.0 + x / 3.0);
        assert!((value / series - 1.0).abs() < 1e-9, "{value} {series}");
        assert!((gradient / -(x + x * x / 2.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_clamps_stop_value_and_gradient() {
        assert_eq!(kl_term(K3, 0.0, 3.0), (10.0, 0.0));
        assert_eq!(kl_term(K3, 0.0, 1e6), (10.0, 0.0));
        assert_eq!(kl_term(K3, 0.0, -30.0), (10.0, 0.0));
        let unclamped = Kl { clamp: false, ..K3 };
        let (value, gradient) = kl_term(unclamped, 0.0, -30.0);
        assert!((value - 29.0).abs() < 1e-9 && (gradient - 1.0).abs() < 1e-9);
    }
}
