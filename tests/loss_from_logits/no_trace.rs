//! Rows that are not read leave no trace, and rows that do not act none in loss and gradient,
//! whatever they hold.

use crate::case::{Case, configs, is_gspo};
use crate::{assert_same_tensors, backends, run};
use qae::{Config, LogitsBatch, LogitsLayout, MetricsScope};
use qae_test_support::{Advantage, Weight, bits};

const POISONS: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30];
const SCOPES: [MetricsScope; 2] = [MetricsScope::All, MetricsScope::Active];

fn with_weights(seed: u64) -> Case {
    Case {
        weight: Weight::PerToken(vec![1.5; 24]),
        ..Case::random(seed, 6, 4, 5)
    }
}

/// The case with `value` in all tensors of the slots that are `chosen`.
fn poisoned(case: &Case, value: f32, chosen: impl Fn(usize) -> bool) -> Case {
    let mut case = case.clone();
    for slot in (0..case.num_slots()).filter(|&slot| chosen(slot)) {
        case.poison(slot, value);
    }
    case
}

/// Asserts that two batches have the same results under every configuration in `scope` that is
/// `chosen`.
fn assert_same(
    [found, expected]: [&LogitsBatch<'_>; 2],
    scopes: &[MetricsScope],
    chosen: impl Fn(&Config) -> bool,
) {
    for config in configs().into_iter().filter(chosen) {
        for &metrics_scope in scopes {
            let config = Config {
                metrics_scope,
                ..config
            };
            for backend in backends() {
                let found = run(&*backend, found, &config);
                let expected = run(&*backend, expected, &config);
                assert_same_tensors(&found, &expected, &format!("{config:?}"));
                assert_eq!(found.loss.metrics, expected.loss.metrics);
            }
        }
    }
}

fn acts_everywhere(config: &Config) -> bool {
    config.kl.is_some() || config.entropy_coef != 0.0
}

#[test]
fn masked_slots() {
    let clean = with_weights(41);
    for poison in POISONS {
        let mut poisoned = poisoned(&clean, poison, |slot| !clean.is_valid(slot));
        for slot in (0..24).filter(|&slot| !clean.is_valid(slot)) {
            // Such as the label of a token that does not count.
            poisoned.token_id[slot] = -100;
        }
        assert_same([&poisoned.batch(), &clean.batch()], &SCOPES, |_| true);
    }
}

#[test]
fn slots_of_no_response() {
    let clean = with_weights(42);
    let response: Vec<i32> = (0..24)
        .map(|slot| [slot / 4, -1, -7][slot as usize % 3])
        .collect();
    let indexed = |case: &Case| -> Case {
        let mut case = case.clone();
        case.mask = None;
        case
    };
    let is_none = |slot: usize| response[slot] < 0;
    for poison in POISONS {
        let (clean, mut poisoned) = (indexed(&clean), poisoned(&indexed(&clean), poison, is_none));
        for slot in (0..24).filter(|&slot| is_none(slot)) {
            poisoned.token_id[slot] = i32::MAX;
        }
        let layout = LogitsLayout::Indexed {
            response: &response,
            num_responses: 6,
        };
        let [poisoned, clean] = [&poisoned, &clean].map(|case| LogitsBatch {
            layout,
            ..case.batch()
        });
        assert_same([&poisoned, &clean], &SCOPES, |_| true);
    }
}

#[test]
fn responses_without_advantage() {
    let clean = with_weights(43);
    for poison in POISONS {
        let poisoned = poisoned(&clean, poison, |slot| clean.advantage_of(slot) == 0.0);
        let batches = [&poisoned.batch(), &clean.batch()];
        // With the metrics of all tokens they are read, but act on nothing.
        assert_same(batches, &[MetricsScope::Active], |config| {
            !acts_everywhere(config)
        });
        for config in configs().into_iter().filter(|c| !acts_everywhere(c)) {
            for backend in backends() {
                let [found, expected] = batches.map(|batch| run(&*backend, batch, &config));
                assert_eq!(bits(&found.d_logits), bits(&expected.d_logits));
                let losses = [found.loss.metrics.loss, expected.loss.metrics.loss];
                assert_eq!(losses[0].to_bits(), losses[1].to_bits());
                assert_eq!(found.loss.metrics.nonfinite_tokens, 0);
            }
        }
    }
}

/// Advantages of tokens: every third is 0.
fn with_token_advantages(seed: u64) -> Case {
    let advantage = |slot: usize| [1.0, 0.0, -1.0][slot % 3];
    Case {
        advantage: Advantage::PerToken((0..24).map(advantage).collect()),
        ..with_weights(seed)
    }
}

#[test]
fn tokens_without_advantage() {
    let clean = with_token_advantages(44);
    for poison in POISONS {
        let poisoned = poisoned(&clean, poison, |slot| clean.advantage_of(slot) == 0.0);
        // GSPO's mean is over all valid tokens of the response.
        let chosen = |config: &Config| !acts_everywhere(config) && !is_gspo(config.objective);
        let batches = [&poisoned.batch(), &clean.batch()];
        assert_same(batches, &[MetricsScope::Active], chosen);
    }
}

#[test]
fn a_token_without_advantage_is_read_for_the_mean_of_its_response() {
    let clean = with_token_advantages(45);
    for config in configs()
        .into_iter()
        .filter(|c| is_gspo(c.objective) && !acts_everywhere(c))
    {
        let active = Config {
            metrics_scope: MetricsScope::Active,
            ..config
        };
        for backend in backends() {
            let all = run(&*backend, &clean.batch(), &config);
            let found = run(&*backend, &clean.batch(), &active);
            assert_same_tensors(&found, &all, "scope");
            assert!(found.loss.metrics.tokens < all.loss.metrics.tokens);
            let slot = (0..24).find(|&s| clean.is_valid(s) && clean.advantage_of(s) == 0.0);
            let slot = slot.unwrap();
            assert!(found.log_prob[slot] != 0.0);
            assert_eq!(found.loss.d_log_prob[slot], 0.0);
        }
    }
}

#[test]
fn the_scope_of_the_metrics_changes_neither_loss_nor_gradient() {
    let case = with_weights(46);
    for config in configs() {
        let active = Config {
            metrics_scope: MetricsScope::Active,
            ..config
        };
        for backend in backends() {
            let all = run(&*backend, &case.batch(), &config);
            let active = run(&*backend, &case.batch(), &active);
            assert_eq!(bits(&active.d_logits), bits(&all.d_logits));
            assert_eq!(active.loss.metrics.loss, all.loss.metrics.loss);
        }
    }
}
