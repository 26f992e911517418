//! Responses and tokens that do not act leave no trace, whatever they hold.

use crate::case::Case;
use crate::runners;
use qae::{Config, Gradient, Metrics, MetricsScope, TensorMut, cpu};
use qae_test_support::{Advantage, Weight, bits, kls, objectives};

const POISONS: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30];

fn with_token_weights(seed: u64) -> Case {
    let case = Case::random(seed, 6, 7);
    Case {
        weight: Weight::PerToken(vec![1.5; 42]),
        ..case
    }
}

/// Every objective, with the metrics of active tokens and of all tokens.
fn configs() -> Vec<Config> {
    let mut configs = vec![];
    for objective in objectives() {
        for metrics_scope in [MetricsScope::Active, MetricsScope::All] {
            configs.push(Config {
                objective,
                metrics_scope,
                ..Config::default()
            });
        }
    }
    configs
}

#[test]
fn masked_slots_leave_no_trace() {
    let clean = with_token_weights(41);
    for poison in POISONS {
        let mut poisoned = clean.clone();
        for slot in (0..42).filter(|&slot| !clean.is_valid(slot)) {
            poisoned.poison(slot, poison);
        }
        for base in configs() {
            for kl in kls() {
                let config = Config { kl, ..base };
                for runner in runners() {
                    let expected = runner.run(&clean.batch(), &config);
                    let found = runner.run(&poisoned.batch(), &config);
                    assert_eq!(found.metrics, expected.metrics);
                    assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
                }
            }
        }
    }
}

#[test]
fn responses_without_advantage_leave_no_trace_in_loss_and_gradient() {
    let clean = with_token_weights(42);
    for poison in POISONS {
        let mut poisoned = clean.clone();
        for slot in (0..42).filter(|slot| clean.row_advantage(slot / 7) == 0.0) {
            poisoned.poison(slot, poison);
        }
        for config in configs() {
            for runner in runners() {
                let expected = runner.run(&clean.batch(), &config);
                let found = runner.run(&poisoned.batch(), &config);
                assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
                let loss = expected.metrics.loss.to_bits();
                assert_eq!(found.metrics.loss.to_bits(), loss);
                assert_eq!(found.metrics.nonfinite_tokens, 0);
                if config.metrics_scope == MetricsScope::Active {
                    assert_eq!(found.metrics, expected.metrics);
                }
            }
        }
    }
}

#[test]
fn tokens_without_advantage_leave_no_trace() {
    let base = with_token_weights(43);
    let advantage: Vec<f32> = (0..42).map(|slot| [1.0, 0.0, -1.0][slot % 3]).collect();
    let clean = Case {
        advantage: Advantage::PerToken(advantage.clone()),
        ..base
    };
    for poison in POISONS {
        let mut poisoned = clean.clone();
        for slot in (1..42).step_by(3) {
            poisoned.poison(slot, poison);
        }
        poisoned.advantage = Advantage::PerToken(advantage.clone());
        for config in configs() {
            if matches!(config.objective, qae::Objective::Gspo { .. }) {
                // The mean of the response is over all its valid tokens.
                continue;
            }
            for runner in runners() {
                let expected = runner.run(&clean.batch(), &config);
                let found = runner.run(&poisoned.batch(), &config);
                assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
                assert_eq!(found.metrics.loss, expected.metrics.loss);
                assert_eq!(found.metrics.nonfinite_tokens, 0);
            }
        }
    }
}

#[test]
fn the_scope_of_the_metrics_changes_neither_loss_nor_gradient() {
    let case = Case::random(44, 6, 7);
    for objective in objectives() {
        for kl in kls() {
            let all = Config {
                objective,
                kl,
                ..Config::default()
            };
            let active = Config {
                metrics_scope: MetricsScope::Active,
                ..all
            };
            for runner in runners() {
                let all = runner.run(&case.batch(), &all);
                let active = runner.run(&case.batch(), &active);
                assert_eq!(bits(&active.d_log_prob), bits(&all.d_log_prob));
                assert_eq!(active.metrics.loss, all.metrics.loss);
                assert_eq!(active.metrics.kl_loss, all.metrics.kl_loss);
                assert_eq!(active.metrics.tokens, all.metrics.active_tokens);
                assert!(all.metrics.tokens > all.metrics.active_tokens);
            }
        }
    }
}

#[test]
fn a_kl_term_brings_no_token_into_the_active_scope() {
    let case = Case::random(47, 6, 7);
    for objective in objectives() {
        let without = Config {
            objective,
            metrics_scope: MetricsScope::Active,
            ..Config::default()
        };
        let with_kl = Config {
            kl: kls()[3],
            ..without
        };
        for runner in runners() {
            let expected = runner.run(&case.batch(), &without).metrics;
            let found = runner.run(&case.batch(), &with_kl).metrics;
            assert!(found.kl_loss > 0.0);
            let same = Metrics {
                loss: expected.loss,
                kl_loss: 0.0,
                ..found
            };
            assert_eq!(same, expected, "{objective:?}");
        }
    }
}

#[test]
fn untouched_rows_keep_what_they_held() {
    let case = Case::random(45, 6, 7);
    let filled = Config::default();
    let untouched = Config {
        gradient: Gradient::Untouched,
        ..filled
    };
    let poison = 12345.0;
    let run = |config: &Config| {
        let mut gradient = vec![poison; 42];
        let target = TensorMut::F64(&mut gradient).into();
        let results = cpu::loss_from_log_probs_into(&case.batch(), config, target).unwrap();
        (results.metrics, gradient)
    };
    let (filled_metrics, filled_gradient) = run(&filled);
    let (metrics, gradient) = run(&untouched);
    assert_eq!(metrics, filled_metrics);
    for slot in 0..42 {
        if case.row_advantage(slot / 7) == 0.0 {
            assert_eq!(gradient[slot], poison);
            assert_eq!(filled_gradient[slot].to_bits(), 0);
        } else {
            // Masked slots of a row that acts are written, too.
            assert_eq!(gradient[slot].to_bits(), filled_gradient[slot].to_bits());
        }
    }
    // With a KL term every row acts.
    let with_kl = Config {
        kl: kls()[1],
        ..untouched
    };
    assert!(run(&with_kl).1.iter().all(|&g| g != poison));
}

#[test]
fn what_is_not_written_reads_as_zero_in_an_output() {
    let case = Case::random(46, 6, 7);
    for runner in runners() {
        let filled = runner.run(&case.batch(), &Config::default());
        let untouched = Config {
            gradient: Gradient::Untouched,
            ..Config::default()
        };
        let output = runner.run(&case.batch(), &untouched);
        assert_eq!(bits(&output.d_log_prob), bits(&filled.d_log_prob));
    }
}
