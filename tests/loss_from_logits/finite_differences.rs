//! The gradient with respect to the logits against differences of the loss, away from the kinks.

use crate::case::{Case, TEMPERATURE, configs, is_gspo};
use crate::{backends, run};
use qae::{Config, Objective, reference};
use qae_test_support::{Advantage, Random, Weight, assert_close};

/// A power of two that keeps the perturbed f32 logits exact.
const STEP: f32 = 1.0 / 512.0;
/// Beyond the fourth power of the step over the temperature, which the extrapolation leaves.
const TOLERANCE: f64 = 1e-7;

/// Central differences of two steps, extrapolated (Richardson).
fn difference(case: &Case, config: &Config, element: usize) -> f64 {
    let of_step = |step: f32| {
        let side = |step: f32| {
            let mut moved = case.clone();
            moved.logits[element] += step;
            let output = reference::loss_from_logits(&moved.batch(), config).unwrap();
            output.loss.metrics.loss
        };
        (side(step) - side(-step)) / (2.0 * f64::from(step))
    };
    (4.0 * of_step(STEP / 2.0) - of_step(STEP)) / 3.0
}

fn check(case: &Case, config: &Config) {
    let elements = 0..case.logits.len();
    let expected: Vec<f64> = elements.map(|i| difference(case, config, i)).collect();
    let what = format!("{config:?}");
    for backend in backends() {
        let output = run(&*backend, &case.batch(), config);
        let unscaled: Vec<f64> = output
            .d_logits
            .iter()
            .map(|g| g / config.grad_scale)
            .collect();
        assert_close(&unscaled, &expected, TOLERANCE, &what);
        assert_eq!(output.loss.metrics.nonfinite_tokens, 0);
    }
}

/// The objective where its loss has the gradient that it is given: CISPO's clipped ratio is a
/// constant, here 1.
fn differentiable(config: Config) -> Config {
    let objective = match config.objective {
        Objective::Cispo { .. } => Objective::Cispo {
            low: Some(0.0),
            high: Some(0.0),
        },
        // No mean stands at a bound, as there is none.
        Objective::Gspo { .. } => Objective::Gspo {
            low: None,
            high: None,
            log_ratio_max: None,
        },
        other => other,
    };
    Config {
        objective,
        loss_multiplier: 2.0,
        grad_scale: 0.5,
        ..config
    }
}

#[test]
fn every_objective_with_every_option() {
    let case = Case::random(21, 3, 3, 4);
    for config in configs() {
        check(&case, &differentiable(config));
    }
}

#[test]
fn weights_and_advantages_of_tokens() {
    let mut random = Random(22);
    let base = Case::random(23, 2, 4, 3);
    let mut several = |n, low| -> Vec<f32> { (0..n).map(|_| random.grid(2.0) + low).collect() };
    let mut advantage = several(8, -1.0);
    (advantage[1], advantage[6]) = (0.0, 0.0);
    let cases = [
        Case {
            weight: Weight::PerToken(several(8, 0.0)),
            ..base.clone()
        },
        Case {
            weight: Weight::PerResponse(several(2, 0.0)),
            ..base.clone()
        },
        Case {
            mask: None,
            advantage: Advantage::PerToken(advantage),
            ..base
        },
    ];
    for case in &cases {
        for config in configs() {
            // Through each token GSPO's gradient is verl's, whose sum alone is the derivative where
            // tokens differ.
            if !is_gspo(config.objective) || matches!(case.weight, Weight::PerResponse(_)) {
                check(case, &differentiable(config));
            }
        }
    }
}

#[test]
fn temperatures() {
    let case = Case::random(24, 2, 3, 5);
    for temperature in [0.5, TEMPERATURE, 1.5] {
        for entropy_coef in [0.0, 0.25] {
            let config = Config {
                objective: Objective::Reinforce,
                temperature,
                entropy_coef,
                ..Config::default()
            };
            check(&case, &config);
        }
    }
}
