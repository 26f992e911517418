//! Values that are not finite in tokens that act: left out, counted, and nothing else changes.

use crate::case::{Case, plain_clip};
use crate::runners;
use qae::{
    Advantages, Config, Error, Groups, Layout, Metrics, MetricsScope, Normalizer, Objective,
    Tensor, TokenBatch,
};
use qae_test_support::{Advantage, Weight, bits, kls, objectives};

fn is_gspo(objective: Objective) -> bool {
    matches!(objective, Objective::Gspo { .. })
}

#[test]
fn a_token_that_is_not_finite_is_left_out_alone() {
    let clean = Case {
        mask: None,
        ..Case::random(51, 4, 6)
    };
    let slot = 14;
    assert!(clean.row_advantage(slot / 6) != 0.0);
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut poisoned = clean.clone();
        poisoned.log_prob[slot] = poison;
        for objective in objectives().into_iter().filter(|&o| !is_gspo(o)) {
            for kl in kls() {
                let config = Config {
                    objective,
                    kl,
                    ..Config::default()
                };
                for runner in runners() {
                    let mut expected = runner.run(&clean.batch(), &config);
                    let found = runner.run(&poisoned.batch(), &config);
                    expected.d_log_prob[slot] = 0.0;
                    assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
                    assert!(found.metrics.loss.is_finite());
                    assert_eq!(found.metrics.nonfinite_tokens, 1);
                    // It still counts as a token: the denominators do not move.
                    assert_eq!(found.metrics.tokens, expected.metrics.tokens);
                    assert_eq!(found.metrics.active_tokens, expected.metrics.active_tokens);
                    let error = found.metrics.check().unwrap_err();
                    let is_left_out = matches!(error, Error::LeftOut { count: 1, .. });
                    assert!(is_left_out, "{error}");
                }
            }
        }
    }
}

#[test]
fn a_weight_or_a_reference_that_is_not_finite_leaves_its_token_out() {
    let clean = Case {
        mask: None,
        weight: Weight::PerToken(vec![1.0; 24]),
        ..Case::random(52, 4, 6)
    };
    let config = Config {
        kl: kls()[2],
        ..Config::default()
    };
    let mut weight = vec![1.0; 24];
    // Slot 8 has no advantage: its weight is not looked at.
    (weight[1], weight[8]) = (f32::NAN, f32::NAN);
    let bad_weight = Case {
        weight: Weight::PerToken(weight),
        ..clean.clone()
    };
    let mut bad_reference = clean.clone();
    bad_reference.ref_log_prob.as_mut().unwrap()[1] = f32::INFINITY;
    for runner in runners() {
        let mut expected = runner.run(&clean.batch(), &config);
        expected.d_log_prob[1] = 0.0;
        for case in [&bad_weight, &bad_reference] {
            let found = runner.run(&case.batch(), &config);
            assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
            assert_eq!(found.metrics.nonfinite_tokens, 1);
        }
    }
}

#[test]
fn one_token_takes_the_policy_term_of_a_gspo_response_with_it() {
    let clean = Case {
        mask: None,
        ..Case::random(53, 4, 6)
    };
    let mut poisoned = clean.clone();
    poisoned.log_prob[14] = f32::NAN;
    for objective in objectives().into_iter().filter(|&o| is_gspo(o)) {
        let config = Config {
            objective,
            ..Config::default()
        };
        let kl = Config {
            kl: kls()[2],
            ..config
        };
        for runner in runners() {
            let mut expected = runner.run(&clean.batch(), &config).d_log_prob;
            expected[12..18].fill(0.0);
            let found = runner.run(&poisoned.batch(), &config);
            assert_eq!(bits(&found.d_log_prob), bits(&expected));
            assert_eq!(found.metrics.nonfinite_tokens, 1);
            // Its KL term acts on, except at the token itself.
            let found = runner.run(&poisoned.batch(), &kl).d_log_prob;
            assert_eq!(found[14], 0.0);
            assert!(found[12] != 0.0 && found[17] != 0.0);
        }
    }
}

#[test]
fn a_token_without_advantage_that_spoils_a_gspo_mean_is_counted() {
    let gspo = |objective| Config {
        objective,
        ..Config::default()
    };
    let mut case = Case::row(&[0.0, 0.1, 0.1], 1.0);
    case.log_prob[0] = f32::NAN;
    case.advantage = Advantage::PerToken(vec![0.0, 1.0, 1.0]);
    for objective in objectives().into_iter().filter(|&o| is_gspo(o)) {
        for runner in runners() {
            let output = runner.run(&case.batch(), &gspo(objective));
            assert_eq!(output.d_log_prob, [0.0; 3]);
            assert_eq!(output.metrics.nonfinite_tokens, 1);
            // Where nothing acts, nothing was left out.
            let idle = Case {
                advantage: Advantage::PerToken(vec![0.0; 3]),
                ..case.clone()
            };
            let output = runner.run(&idle.batch(), &gspo(objective));
            assert_eq!(output.metrics.nonfinite_tokens, 0);
        }
    }
}

#[test]
fn advantages_that_are_not_finite_act_as_zero_and_are_counted() {
    let clean = Case {
        mask: Some([[1; 5], [1; 5], [1, 1, 0, 1, 1]].concat()),
        advantage: Advantage::PerResponse(vec![1.0, 0.0, -1.0]),
        ..Case::random(54, 3, 5)
    };
    let rows = Case {
        advantage: Advantage::PerResponse(vec![1.0, f32::NAN, -1.0]),
        ..clean.clone()
    };
    let mut tokens = [[1.0; 5], [0.0; 5], [-1.0; 5]].concat();
    tokens[6] = f32::INFINITY;
    // A masked slot is not looked at.
    tokens[12] = f32::NAN;
    let tokens = Case {
        advantage: Advantage::PerToken(tokens),
        ..clean.clone()
    };
    for runner in runners() {
        let expected = runner.run(&clean.batch(), &Config::default());
        for case in [&rows, &tokens] {
            let found = runner.run(&case.batch(), &Config::default());
            assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
            assert_eq!(found.metrics.loss, expected.metrics.loss);
            assert_eq!(found.metrics.groups.nonfinite_rewards, 1);
            assert_eq!(found.metrics.zero, 1);
            let error = found.metrics.check().unwrap_err().to_string();
            assert!(error.starts_with("rewards"), "{error}");
        }
    }
}

#[test]
fn rewards_that_are_not_finite_reach_the_check() {
    let groups = Groups::uniform(2, 2).unwrap();
    let log_prob = [-1.0; 4];
    let batch = TokenBatch {
        layout: Layout::padded(2, 2),
        mask: None,
        log_prob: Tensor::F32(&log_prob),
        old_log_prob: Some(Tensor::F32(&log_prob)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::FromRewards {
            rewards: &[f32::NAN, 1.0],
            groups: &groups,
            response_index: None,
        },
    };
    for runner in runners() {
        let output = runner.run(&batch, &Config::default());
        assert_eq!(output.metrics.groups.nonfinite_rewards, 1);
        assert_eq!(output.d_log_prob[..2], [0.0; 2]);
        assert!(output.metrics.check().is_err());
    }
}

#[test]
fn log_ratios_of_a_thousand_stay_finite_under_the_clamp() {
    for advantage in [1.0, -1.0] {
        let case = Case::row(&[1000.0, -1000.0, 0.0], advantage);
        for objective in objectives() {
            let config = Config {
                objective,
                ..Config::default()
            };
            for runner in runners() {
                let output = runner.run(&case.batch(), &config);
                assert!(output.d_log_prob.iter().all(|g| g.is_finite()));
                assert!(output.metrics.loss.is_finite());
                assert!(output.d_log_prob[2] != 0.0, "{objective:?}");
                assert_eq!(output.metrics.nonfinite_tokens, 0);
            }
        }
    }
}

#[test]
fn log_ratios_of_a_thousand_without_a_clamp_are_left_out_where_they_are_infinite() {
    for (advantage, left_out) in [(1.0, 0), (-1.0, 1)] {
        let case = Case::row(&[1000.0, -1000.0, 0.0], advantage);
        let config = Config {
            log_ratio_clamp: None,
            ..plain_clip()
        };
        for runner in runners() {
            let output = runner.run(&case.batch(), &config);
            // A > 0: the upper bound holds. A < 0: −ρA is infinite. The other is 0 or held.
            assert_eq!(output.metrics.nonfinite_tokens, left_out);
            let expected = [0.0, 0.0, -f64::from(advantage) / 3.0];
            runner.assert_close(&output.d_log_prob, &expected, "gradient");
            assert!(output.metrics.loss.is_finite());
        }
    }
}

#[test]
fn exact_zeros_are_positive() {
    // Ratio 0, weight 0 and a masked slot, each of which a sign would turn into −0.
    let mut case = Case::row(&[-1000.0, 0.0, 0.0], 1.0);
    case.weight = Weight::PerToken(vec![1.0, 0.0, 1.0]);
    case.mask = Some(vec![1, 1, 0]);
    for grad_scale in [1.0, -1.0] {
        let config = Config {
            log_ratio_clamp: None,
            grad_scale,
            ..plain_clip()
        };
        for runner in runners() {
            let output = runner.run(&case.batch(), &config);
            assert_eq!(bits(&output.d_log_prob), [0, 0, 0]);
        }
    }
}

#[test]
fn a_coefficient_or_a_loss_that_overflows_leaves_its_token_out() {
    // Loss and gradient, the gradient alone, the loss alone: ρ = e is clipped, so has no gradient.
    for (log_ratio, loss_multiplier, grad_scale, left_out) in [
        (0.0, 1e308, 1e308, 1),
        (0.0, 1e200, -1e200, 1),
        (1.0, 1e308, 1e-308, 1),
        (0.0, 1e200, 1e-200, 0),
    ] {
        let case = Case::row(&[log_ratio], 3.0);
        let config = Config {
            loss_multiplier,
            grad_scale,
            normalizer: Normalizer::Value(1.0),
            ..plain_clip()
        };
        for runner in runners() {
            let output = runner.run(&case.batch(), &config);
            assert_eq!(output.metrics.nonfinite_tokens, left_out, "{config:?}");
            assert!(output.metrics.loss.is_finite());
            assert!(output.d_log_prob[0].is_finite());
            assert_eq!(output.d_log_prob[0] == 0.0, left_out == 1);
        }
    }
}

#[test]
fn a_sum_that_overflows_does_not_pass_the_check() {
    let case = Case::row(&[0.0; 2], 1.0);
    let config = Config {
        loss_multiplier: 1e308,
        normalizer: Normalizer::Value(1.0),
        ..plain_clip()
    };
    for runner in runners() {
        let metrics = runner.run(&case.batch(), &config).metrics;
        assert_eq!(metrics.nonfinite_tokens, 0);
        let error = metrics.check().unwrap_err().to_string();
        assert_eq!(error, "loss: expected a finite number, found -inf");
    }
    let metrics = Metrics {
        loss: f64::NAN,
        ..Metrics::empty(MetricsScope::All)
    };
    assert!(metrics.check().is_err());
}
