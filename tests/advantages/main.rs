//! Rewards to advantages: the reference and its parallel form against closed forms, exact
//! arithmetic and naive re-statements.

mod baselines;
mod gates;
mod quantiles;
mod robustness;

use qae::reference::AdvantageOutput;
use qae::{AdvantageConfig, Baseline, Groups, Interpolation, Scale, cpu, reference};

/// One way of computing advantages.
struct Runner {
    name: &'static str,
    run: fn(&[f32], &Groups, &AdvantageConfig) -> qae::Result<AdvantageOutput>,
    /// Largest accepted error, relative to the largest expected value.
    tolerance: f64,
}

/// Every way; each must give the same.
fn runners() -> Vec<Runner> {
    vec![
        Runner {
            name: "reference",
            run: reference::advantages,
            tolerance: 1e-14,
        },
        Runner {
            name: "cpu",
            run: cpu::advantages,
            tolerance: 1e-14,
        },
    ]
}

fn quantile_config(k: f64, interpolation: Interpolation) -> AdvantageConfig {
    AdvantageConfig {
        baseline: Baseline::Quantile { k, interpolation },
        ..AdvantageConfig::default()
    }
}

/// Without scaling, so that an advantage is a difference of rewards.
fn unscaled(baseline: Baseline) -> AdvantageConfig {
    AdvantageConfig {
        baseline,
        scale: Scale::None,
        ..AdvantageConfig::default()
    }
}

/// Asserts that `found` is `expected` within `tolerance` of the largest expected magnitude.
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0, |max, x| f64::max(max, x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * largest,
            "{what}[{i}]: {found} instead of {expected}"
        );
    }
}

/// Asserts that advantages are exactly 0, positive, with the one bit pattern that kernels compare.
fn assert_exact_zeros(advantage: &[f64], what: &str) {
    assert!(
        advantage.iter().all(|a| a.to_bits() == 0),
        "{what}: {advantage:?}"
    );
}
