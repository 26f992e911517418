//! The gradient against central differences of the loss, away from the kinks.

use crate::case::Case;
use crate::runners;
use qae::{Config, Normalizer, Objective, reference};
use qae_test_support::{Advantage, Random, Weight, aggregations, assert_close, kls, objectives};

/// A power of two that keeps the perturbed f32 inputs exact.
const STEP: f32 = 1.0 / 8192.0;
/// STEP² / 6 · the third derivative, which e³ dominates, over the largest gradient.
const TOLERANCE: f64 = 3e-7;

fn loss(case: &Case, config: &Config) -> f64 {
    let output = reference::loss_from_log_probs(&case.batch(), config).unwrap();
    output.metrics.loss
}

/// d loss / d log_prob of one slot.
fn difference(case: &Case, config: &Config, slot: usize) -> f64 {
    let side = |step: f32| {
        let mut moved = case.clone();
        moved.log_prob[slot] += step;
        // CISPO's ratio is a constant: moving both log-probs keeps it where it is.
        if let (Objective::Cispo { .. }, Some(old)) = (config.objective, &mut moved.old_log_prob) {
            old[slot] += step;
        }
        loss(&moved, config)
    };
    (side(STEP) - side(-STEP)) / (2.0 * f64::from(STEP))
}

fn check(case: &Case, config: &Config) {
    let slots = case.log_prob.len();
    let mut expected: Vec<f64> = (0..slots).map(|i| difference(case, config, i)).collect();
    // The ratio of a response: the gradient through each token is as verl's, whose sum over the
    // response is the derivative.
    let is_gspo = matches!(config.objective, Objective::Gspo { .. });
    let row_sums = |values: &[f64]| -> Vec<f64> {
        let rows = values.chunks(case.width);
        rows.map(|row| row.iter().sum()).collect()
    };
    if is_gspo {
        expected = row_sums(&expected);
    }
    let what = format!("{config:?}");
    for runner in runners() {
        let output = runner.run(&case.batch(), config);
        let mut found: Vec<f64> = output.d_log_prob;
        found.iter_mut().for_each(|g| *g /= config.grad_scale);
        if is_gspo {
            found = row_sums(&found);
        }
        assert_close(&found, &expected, TOLERANCE.max(runner.tolerance), &what);
        assert_eq!(output.metrics.nonfinite_tokens, 0);
    }
}

/// No GSPO mean of the case may stand within reach of a bound.
fn assert_no_response_is_near_a_bound(case: &Case) {
    let old = case.old_log_prob.as_ref().unwrap();
    for row in 0..case.num_rows {
        let slots = (row * case.width..(row + 1) * case.width).filter(|&i| case.is_valid(i));
        let log_ratios: Vec<f32> = slots.map(|i| case.log_prob[i] - old[i]).collect();
        if log_ratios.is_empty() {
            continue;
        }
        let mean = log_ratios.iter().sum::<f32>() / log_ratios.len() as f32;
        for bound in [0.8_f32.ln(), 1.28_f32.ln(), 0.25] {
            let distance = (mean - bound).abs();
            assert!(distance >= 2.0 * STEP, "row {row} is at a kink");
        }
    }
}

fn weights(case: &Case) -> [Weight; 3] {
    let mut random = Random(77);
    let mut several = |n| (0..n).map(|_| random.grid(2.0)).collect();
    [
        Weight::None,
        Weight::PerToken(several(case.log_prob.len())),
        Weight::PerResponse(several(case.num_rows)),
    ]
}

fn check_objectives(cases: &[Case], log_ratio_clamp: Option<f64>) {
    for case in cases {
        for (objective, kl, aggregation) in combinations() {
            let config = Config {
                objective,
                kl,
                aggregation,
                log_ratio_clamp,
                loss_multiplier: 2.0,
                grad_scale: 0.5,
                ..Config::default()
            };
            check(case, &config);
        }
    }
}

fn combinations() -> Vec<(Objective, Option<qae::Kl>, qae::Aggregation)> {
    let mut all = vec![];
    for objective in objectives() {
        for kl in kls() {
            for aggregation in aggregations() {
                all.push((objective, kl, aggregation));
            }
        }
    }
    all
}

#[test]
fn every_objective_with_every_option() {
    let base = Case::random(11, 4, 5);
    assert_no_response_is_near_a_bound(&base);
    for mask in [base.mask.clone(), None] {
        let masked = Case {
            mask,
            ..base.clone()
        };
        assert_no_response_is_near_a_bound(&masked);
        let cases = weights(&masked).map(|weight| Case {
            weight,
            ..masked.clone()
        });
        check_objectives(&cases, None);
    }
}

#[test]
fn log_ratios_beyond_the_clamp_have_no_gradient_through_the_ratio() {
    let case = Case {
        mask: None,
        ..Case::random(12, 14, 6)
    };
    let old = case.old_log_prob.as_ref().unwrap();
    for beyond in [-3.0, 3.0] {
        for sign in [-1.0, 1.0] {
            let is_covered = |slot: usize| {
                case.log_prob[slot] - old[slot] == beyond
                    && case.row_advantage(slot / 6) * sign > 0.0
            };
            assert!((0..84).any(is_covered), "{beyond} {sign}");
        }
    }
    check_objectives(&[case], Some(2.0));
}

#[test]
fn advantages_of_tokens() {
    let base = Case::random(13, 3, 6);
    let mut random = Random(14);
    let advantage = (0..18)
        .map(|i| (random.grid(4.0) - 2.0) * f32::from(u8::from(i % 3 > 0)))
        .collect();
    let case = Case {
        advantage: Advantage::PerToken(advantage),
        ..base
    };
    check_objectives(&[case], None);
}

#[test]
fn many_random_batches_of_the_default_configuration() {
    for seed in 100..140 {
        let case = Case::random(seed, 5, 4);
        for normalizer in [Normalizer::FromBatch, Normalizer::Value(3.0)] {
            let config = Config {
                normalizer,
                ..Config::default()
            };
            check(&case, &config);
        }
    }
}
