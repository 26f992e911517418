//! The operation is that on log-probs after that on logits, and its parts agree with each other.

use crate::case::{Case, config, configs};
use crate::{TOLERANCE, backends, run};
use qae::{
    Advantages, Config, Groups, Layout, LogProbsInput, LogitsBatch, LogitsOutput, Metrics,
    MetricsScope, Objective, Tensor, TokenBatch, reference,
};
use qae_test_support::{Weight, assert_close, bits};

/// Of log-probs rounded to f32, which the operation on log-probs takes.
const ROUNDING: f64 = 2e-6;

fn with_weights(seed: u64) -> Case {
    let case = Case::random(seed, 6, 4, 9);
    Case {
        weight: Weight::PerToken((0..24).map(|slot| 0.5 + slot as f32 / 16.0).collect()),
        ..case
    }
}

/// The loss of the log-probs of every slot.
fn from_log_probs(case: &Case, config: &Config) -> qae::LossOutput {
    let log_prob = case.log_probs(config.temperature);
    let log_prob: Vec<f32> = log_prob.iter().map(|&x| x as f32).collect();
    let from = case.batch();
    let batch = TokenBatch {
        layout: Layout::padded(case.num_rows, case.width),
        mask: from.mask,
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: from.old_log_prob,
        ref_log_prob: from.ref_log_prob,
        importance_weight: from.importance_weight,
        advantages: from.advantages,
    };
    let config = Config {
        entropy_coef: 0.0,
        ..*config
    };
    reference::loss_from_log_probs(&batch, &config).unwrap()
}

#[test]
fn the_loss_is_that_of_the_log_probs() {
    let case = with_weights(11);
    for config in configs() {
        for metrics_scope in [MetricsScope::All, MetricsScope::Active] {
            let config = Config {
                metrics_scope,
                ..config
            };
            let expected = from_log_probs(&case, &config);
            for backend in backends() {
                let found = run(&*backend, &case.batch(), &config).loss;
                let what = format!("{config:?}");
                assert_close(&found.d_log_prob, &expected.d_log_prob, ROUNDING, &what);
                let sums = |metrics: &Metrics| [metrics.pg_loss, metrics.kl_loss];
                let (of_found, of_expected) = (sums(&found.metrics), sums(&expected.metrics));
                assert_close(&of_found, &of_expected, ROUNDING, &what);
                assert_eq!(found.active_rows, expected.active_rows);
                assert_same_counts(&found.metrics, &expected.metrics);
            }
        }
    }
}

/// Of responses and tokens; sums and ratios are close at best.
fn assert_same_counts(found: &Metrics, expected: &Metrics) {
    let counts = Metrics {
        loss: expected.loss,
        pg_loss: expected.pg_loss,
        kl_loss: expected.kl_loss,
        neg_log_ratio_sum: expected.neg_log_ratio_sum,
        min_ratio: expected.min_ratio,
        max_ratio: expected.max_ratio,
        entropy: None,
        ..*found
    };
    assert_eq!(counts, *expected);
    let ratios = |metrics: &Metrics| [metrics.min_ratio, metrics.max_ratio];
    if expected.min_ratio.is_finite() {
        assert_close(&ratios(found), &ratios(expected), ROUNDING, "ratios");
    }
    let sum = [expected.neg_log_ratio_sum];
    assert_close(&[found.neg_log_ratio_sum], &sum, 1e-5, "log-ratios");
}

#[test]
fn the_loss_is_the_sum_of_its_terms() {
    let case = with_weights(12);
    for config in configs() {
        for backend in backends() {
            let metrics = run(&*backend, &case.batch(), &config).loss.metrics;
            let entropy = metrics.entropy.expect("logits have an entropy");
            let kl_coef = config.kl.map_or(0.0, |kl| kl.coef);
            let expected =
                metrics.pg_loss + kl_coef * metrics.kl_loss - config.entropy_coef * entropy.loss;
            assert_close(&[metrics.loss], &[expected], 1e-15, "loss");
            metrics.check().unwrap();
        }
    }
}

/// Log-prob and entropy of every slot.
fn all_rows(case: &Case) -> qae::LogProbsOutput {
    let batch = case.batch();
    let input = LogProbsInput {
        logits: batch.logits,
        token_id: batch.token_id,
        mask: None,
        temperature: config().temperature,
    };
    reference::log_probs_from_logits(&input).unwrap()
}

/// The rows of logits that must have been read.
fn is_read(case: &Case, config: &Config, slot: usize) -> bool {
    let everywhere = config.kl.is_some() || config.entropy_coef != 0.0;
    let is_in_scope = config.metrics_scope == MetricsScope::All;
    case.is_valid(slot) && (everywhere || is_in_scope || case.advantage_of(slot) != 0.0)
}

#[test]
fn log_probs_and_entropies_are_those_of_the_rows_that_are_read() {
    let case = with_weights(13);
    let all = all_rows(&case);
    for base in configs() {
        for metrics_scope in [MetricsScope::All, MetricsScope::Active] {
            let config = Config {
                metrics_scope,
                ..base
            };
            let selected = |values: &[f64]| -> Vec<f64> {
                let each = values.iter().enumerate();
                each.map(|(slot, &x)| {
                    if is_read(&case, &config, slot) {
                        x
                    } else {
                        0.0
                    }
                })
                .collect()
            };
            for backend in backends() {
                let found = run(&*backend, &case.batch(), &config);
                assert_eq!(bits(&found.log_prob), bits(&selected(&all.log_prob)));
                assert_eq!(bits(&found.entropy), bits(&selected(&all.entropy)));
            }
        }
    }
}

/// d_logits from the operation on logits alone, whose derivatives are f32.
fn chained(case: &Case, config: &Config, output: &LogitsOutput) -> Vec<f64> {
    let batch = case.batch();
    let input = LogProbsInput {
        logits: batch.logits,
        token_id: batch.token_id,
        mask: batch.mask,
        temperature: config.temperature,
    };
    let narrow = |values: &[f64]| -> Vec<f32> { values.iter().map(|&x| x as f32).collect() };
    let d_log_prob = narrow(&output.loss.d_log_prob);
    reference::log_probs_from_logits_backward(&input, &d_log_prob, None).unwrap()
}

#[test]
fn the_gradient_is_that_of_the_log_probs_carried_on() {
    let case = with_weights(14);
    for config in configs() {
        if config.entropy_coef != 0.0 {
            continue;
        }
        for backend in backends() {
            let output = run(&*backend, &case.batch(), &config);
            let expected = chained(&case, &config, &output);
            assert_close(&output.d_logits, &expected, 1e-6, &format!("{config:?}"));
        }
    }
}

#[test]
fn a_uniform_row_on_policy_in_closed_form() {
    // p = ¼: g = −A / 2 tokens, d_logits = g (1[token] − ¼) / T.
    let log_prob = [-(4_f32.ln()); 2];
    let batch = LogitsBatch {
        layout: Layout::Packed {
            offsets: &[0, 1, 2],
        }
        .into(),
        mask: None,
        logits: qae::Logits::contiguous(Tensor::F32(&[3.0; 8]), 4),
        token_id: &[1, 3],
        old_log_prob: Some(Tensor::F32(&log_prob)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::PerResponse(&[2.0, -1.0]),
    };
    let config = Config {
        objective: Objective::Reinforce,
        temperature: 0.5,
        ..Config::default()
    };
    for backend in backends() {
        let output = run(&*backend, &batch, &config);
        let (a, b) = (-2.0 * 0.25, 1.0 * 0.25);
        let expected = [-a, 3.0 * a, -a, -a, -b, -b, -b, 3.0 * b];
        assert_close(&output.d_logits, &expected, TOLERANCE, "d_logits");
        assert_close(
            &output.loss.d_log_prob,
            &[-1.0, 0.5],
            TOLERANCE,
            "d_log_prob",
        );
        let loss = 0.5 * 4_f64.ln();
        assert_close(&[output.loss.metrics.loss], &[loss], TOLERANCE, "loss");
        assert_close(&output.entropy, &[4_f64.ln(); 2], TOLERANCE, "entropy");
    }
}

#[test]
fn advantages_come_from_the_rewards_of_the_global_batch() {
    let case = Case::random(15, 3, 4, 9);
    let rewards = [0.0, 1.0, 0.0, 0.25, 1.0, 1.0];
    let groups = Groups::from_ids(&[0, 1, 0, 1, 0, 1]).unwrap();
    let index = [4, 0, 3];
    let global = reference::advantages(&rewards, &groups, &Config::default().advantage).unwrap();
    let local: Vec<f32> = index
        .iter()
        .map(|&i| global.advantage[i as usize] as f32)
        .collect();
    let from_rewards = LogitsBatch {
        advantages: Advantages::FromRewards {
            rewards: &rewards,
            groups: &groups,
            response_index: Some(&index),
        },
        ..case.batch()
    };
    let given = LogitsBatch {
        advantages: Advantages::PerResponse(&local),
        ..case.batch()
    };
    for backend in backends() {
        let found = run(&*backend, &from_rewards, &config());
        let expected = run(&*backend, &given, &config());
        assert_close(&found.d_logits, &expected.d_logits, 1e-6, "d_logits");
        assert_eq!(found.loss.advantage.as_deref(), Some(&global.advantage[..]));
        assert_eq!(found.loss.baseline.as_deref(), Some(&global.baseline[..]));
        assert_eq!(found.loss.metrics.groups, global.metrics);
        assert!(expected.loss.advantage.is_none());
    }
}
