//! Values that are not finite in tokens that act: left out, counted, and nothing else changes.

use crate::case::{Case, config, configs, is_gspo};
use crate::{backends, run};
use qae::{Config, Error, LogitsOutput, Normalizer};
use qae_test_support::{Advantage, bits};

const VOCAB: usize = 5;
/// A slot of a response with an advantage.
const SLOT: usize = 9;

fn clean() -> Case {
    Case {
        mask: None,
        ..Case::random(61, 4, 4, VOCAB)
    }
}

/// Ways to spoil the row of logits of [`SLOT`].
fn spoiled() -> Vec<Case> {
    let spoil = |change: &dyn Fn(&mut [f32], usize)| {
        let mut case = clean();
        let token = case.token_id[SLOT] as usize;
        change(case.row_mut(SLOT), token);
        case
    };
    vec![
        spoil(&|row, _| row.fill(f32::NAN)),
        spoil(&|row, _| row.fill(f32::NEG_INFINITY)),
        spoil(&|row, token| row[(token + 1) % VOCAB] = f32::NAN),
        spoil(&|row, token| row[(token + 1) % VOCAB] = f32::INFINITY),
        spoil(&|row, token| row[token] = f32::INFINITY),
        spoil(&|row, token| row[token] = f32::NEG_INFINITY),
    ]
}

/// The output with nothing at [`SLOT`].
fn without_slot(mut output: LogitsOutput) -> LogitsOutput {
    output.loss.d_log_prob[SLOT] = 0.0;
    output.d_logits[SLOT * VOCAB..][..VOCAB].fill(0.0);
    output
}

#[test]
fn a_row_that_is_not_usable_is_left_out_alone() {
    for spoiled in spoiled() {
        for config in configs().iter().filter(|config| !is_gspo(config.objective)) {
            for backend in backends() {
                let expected = without_slot(run(&*backend, &clean().batch(), config));
                let found = run(&*backend, &spoiled.batch(), config);
                assert_eq!(bits(&found.d_logits), bits(&expected.d_logits));
                assert_eq!(
                    bits(&found.loss.d_log_prob),
                    bits(&expected.loss.d_log_prob)
                );
                let (found, expected) = (found.loss.metrics, expected.loss.metrics);
                assert!(found.loss.is_finite());
                assert_eq!(found.nonfinite_tokens, 1);
                // It still counts as a token: the denominators do not move.
                assert_eq!(found.tokens, expected.tokens);
                assert_eq!(found.active_tokens, expected.active_tokens);
                let error = found.check().unwrap_err();
                assert!(matches!(error, Error::LeftOut { count: 1, .. }), "{error}");
                let [found, expected] = [found, expected].map(|metrics| {
                    let entropy = metrics.entropy.unwrap();
                    entropy.positive_tokens + entropy.zero_tokens + entropy.negative_tokens
                });
                assert_eq!(found, expected - 1);
            }
        }
    }
}

#[test]
fn its_log_prob_and_entropy_say_what_happened() {
    for (spoiled, is_usable) in spoiled()
        .iter()
        .zip([false, false, false, false, false, true])
    {
        for backend in backends() {
            let output = run(&*backend, &spoiled.batch(), &config());
            if is_usable {
                assert_eq!(output.log_prob[SLOT], f64::NEG_INFINITY);
                assert!(output.entropy[SLOT] > 0.0);
            } else {
                assert!(output.log_prob[SLOT].is_nan() && output.entropy[SLOT].is_nan());
            }
        }
    }
}

#[test]
fn a_row_takes_the_policy_term_of_a_gspo_response_with_it() {
    for spoiled in spoiled() {
        for config in configs().iter().filter(|config| is_gspo(config.objective)) {
            for backend in backends() {
                let mut expected = run(&*backend, &clean().batch(), config).d_logits;
                let found = run(&*backend, &spoiled.batch(), config);
                assert_eq!(found.loss.metrics.nonfinite_tokens, 1);
                let response = 8 * VOCAB..12 * VOCAB;
                if config.kl.is_none() && config.entropy_coef == 0.0 {
                    expected[response].fill(0.0);
                    assert_eq!(bits(&found.d_logits), bits(&expected));
                } else {
                    // The other terms act on, except at the row itself.
                    assert_eq!(bits(&found.d_logits[SLOT * VOCAB..][..VOCAB]), [0; VOCAB]);
                    let others = &found.d_logits[response];
                    assert!(others.iter().filter(|&&g| g != 0.0).count() >= 3 * (VOCAB - 1));
                }
            }
        }
    }
}

#[test]
fn a_row_that_does_not_act_is_not_counted() {
    let mut case = clean();
    // Read for the metrics, in a response without advantage.
    case.row_mut(5).fill(f32::NAN);
    for backend in backends() {
        let metrics = run(&*backend, &case.batch(), &config()).loss.metrics;
        assert_eq!(metrics.nonfinite_tokens, 0);
        assert_eq!(metrics.entropy.unwrap().zero_tokens, 7);
        metrics.check().unwrap();
        // With an entropy term it acts.
        let bonus = Config {
            entropy_coef: 0.25,
            ..config()
        };
        let metrics = run(&*backend, &case.batch(), &bonus).loss.metrics;
        assert_eq!(metrics.nonfinite_tokens, 1);
    }
}

#[test]
fn a_log_prob_of_another_policy_that_is_not_finite_leaves_its_token_out() {
    let mut case = clean();
    case.old_log_prob.as_mut().unwrap()[SLOT] = f32::NEG_INFINITY;
    for backend in backends() {
        let expected = without_slot(run(&*backend, &clean().batch(), &config()));
        let found = run(&*backend, &case.batch(), &config());
        assert_eq!(bits(&found.d_logits), bits(&expected.d_logits));
        assert_eq!(found.loss.metrics.nonfinite_tokens, 1);
    }
}

#[test]
fn a_coefficient_that_overflows_leaves_its_tokens_out() {
    let case = Case {
        advantage: Advantage::PerResponse(vec![2.0, 0.0, 0.0, 0.0]),
        ..clean()
    };
    let base = Config {
        normalizer: Normalizer::Value(1.0),
        ..config()
    };
    let of_entropy = Case {
        advantage: Advantage::PerResponse(vec![0.0; 4]),
        ..clean()
    };
    for (case, config, left_out) in [
        // w · grad_scale.
        (
            &case,
            Config {
                loss_multiplier: 1e308,
                grad_scale: 1e308,
                ..base
            },
            4,
        ),
        // −entropy_coef · w · grad_scale, of every token.
        (
            &of_entropy,
            Config {
                entropy_coef: 1e308,
                grad_scale: -1e308,
                ..base
            },
            16,
        ),
        // As the logits have it: over the temperature.
        (
            &of_entropy,
            Config {
                entropy_coef: 1e200,
                temperature: 1e-200,
                ..base
            },
            16,
        ),
    ] {
        for backend in backends() {
            let output = run(&*backend, &case.batch(), &config);
            assert!(output.d_logits.iter().all(|&g| g.to_bits() == 0));
            assert!(output.loss.d_log_prob.iter().all(|&g| g.to_bits() == 0));
            let metrics = output.loss.metrics;
            assert_eq!(metrics.nonfinite_tokens, left_out, "{config:?}");
            assert_eq!(metrics.loss, 0.0);
        }
    }
}
