//! Losses and gradients that can be written down.

use crate::case::{Case, plain_clip};
use crate::{Runner, runners};
use qae::{Advantages, Config, Groups, Kl, KlEstimator, Objective};
use qae_test_support::{Advantage, Reference, Weight, kls, objectives};

/// Asserts mean loss and gradient of a case of one row, the gradient given before the mean.
fn assert_row(runner: &Runner, case: &Case, config: &Config, loss: f64, gradient: &[f64]) {
    let output = runner.run(&case.batch(), config);
    let tokens = case.log_prob.len() as f64;
    let expected: Vec<f64> = gradient.iter().map(|g| g / tokens).collect();
    runner.assert_close(&output.d_log_prob, &expected, "gradient");
    runner.assert_close(&[output.metrics.loss], &[loss / tokens], "loss");
}

#[test]
fn on_policy_the_gradient_is_minus_the_advantage() {
    let case = Case::row(&[0.0; 4], 1.5);
    for objective in objectives() {
        let config = Config {
            objective,
            ..Config::default()
        };
        for runner in runners() {
            let loss = match objective {
                // −A·log_prob with log_prob = −2
                Objective::Cispo { .. } | Objective::Reinforce => 4.0 * 1.5 * 2.0,
                // −(4/τ)·½·A
                Objective::Sapo { tau_positive, .. } => -4.0 * 1.5 * 2.0 / tau_positive,
                Objective::Clip { .. } | Objective::Gspo { .. } => -4.0 * 1.5,
            };
            assert_row(&runner, &case, &config, loss, &[-1.5; 4]);
        }
    }
}

#[test]
fn clipping_follows_the_sign_of_the_advantage() {
    // e^−0.5 < 0.8 and e^0.5 > 1.28.
    let (low, high) = ((-0.5_f64).exp(), 0.5_f64.exp());
    for runner in runners() {
        for (advantage, loss, gradient) in [
            (1.0, -(low + 1.0 + 1.28), [-low, -1.0, 0.0]),
            (-1.0, 0.8 + 1.0 + high, [0.0, 1.0, high]),
        ] {
            let case = Case::row(&[-0.5, 0.0, 0.5], advantage);
            assert_row(&runner, &case, &plain_clip(), loss, &gradient);
            let metrics = runner.run(&case.batch(), &plain_clip()).metrics;
            let clipped = (metrics.clipped_above, metrics.clipped_below);
            assert_eq!(clipped, if advantage > 0.0 { (1, 0) } else { (0, 1) });
        }
    }
}

#[test]
fn a_ratio_exactly_at_a_bound_is_not_clipped() {
    // Bounds 1 − 0 and 1 + 0 at ratio 1, which no precision moves.
    for advantage in [1.0, -1.0] {
        let case = Case::row(&[0.0; 3], advantage);
        let (low, high) = (Some(0.0), Some(0.0));
        for objective in [
            Objective::Clip {
                low,
                high,
                dual_clip: None,
                ratio_cap: Some(1.0),
            },
            Objective::Gspo {
                low,
                high,
                log_ratio_max: None,
            },
            Objective::Cispo { low, high },
        ] {
            let config = Config {
                objective,
                ..Config::default()
            };
            for runner in runners() {
                let output = runner.run(&case.batch(), &config);
                let expected = [-f64::from(advantage) / 3.0; 3];
                runner.assert_close(&output.d_log_prob, &expected, "gradient");
                assert_eq!(output.metrics.clip_fraction(), 0.0);
            }
        }
    }
}

#[test]
fn in_f64_a_ratio_exactly_at_any_bound_is_not_clipped() {
    // Differences of numbers this close are exact, so that 1 ± offset is e^δ to the last bit.
    for (delta, advantage) in [(0.25_f32, 1.0), (-0.25, -1.0)] {
        let ratio = f64::from(delta).exp();
        let config = Config {
            objective: Objective::Clip {
                low: Some((1.0 - ratio).max(0.0)),
                high: Some((ratio - 1.0).max(0.0)),
                dual_clip: None,
                ratio_cap: None,
            },
            ..Config::default()
        };
        let runner = Runner {
            backend: Box::new(Reference),
            tolerance: 0.0,
        };
        let case = Case::row(&[delta], advantage);
        let gradient = -f64::from(advantage) * ratio;
        assert_row(&runner, &case, &config, gradient, &[gradient]);
    }
}

#[test]
fn the_dual_clip_bounds_the_loss_of_negative_advantages() {
    // e² > 3.
    let ratio = 2_f64.exp();
    let bounded = Config::default();
    for runner in runners() {
        let case = Case::row(&[2.0, 0.0], -1.0);
        assert_row(&runner, &case, &bounded, 3.0 + 1.0, &[0.0, 1.0]);
        let metrics = runner.run(&case.batch(), &bounded).metrics;
        assert_eq!((metrics.dual_clipped, metrics.clipped_below), (1, 0));
        assert_row(&runner, &case, &plain_clip(), ratio + 1.0, &[ratio, 1.0]);
        // A positive advantage knows only the other bound.
        let case = Case::row(&[2.0, 0.0], 1.0);
        assert_row(&runner, &case, &bounded, -1.28 - 1.0, &[0.0, -1.0]);
    }
}

#[test]
fn the_ratio_cap_bounds_the_unclipped_branch() {
    let config = Config {
        objective: Objective::Clip {
            low: Some(0.2),
            high: Some(0.28),
            dual_clip: None,
            ratio_cap: Some(2.0),
        },
        ..Config::default()
    };
    for runner in runners() {
        let case = Case::row(&[2.0, 0.5], -1.0);
        let below = 0.5_f64.exp();
        assert_row(&runner, &case, &config, 2.0 + below, &[0.0, below]);
    }
}

#[test]
fn the_response_ratio_is_the_exponential_of_the_mean() {
    let gspo = |log_ratio_max| Config {
        objective: Objective::Gspo {
            low: Some(0.2),
            high: Some(0.28),
            log_ratio_max,
        },
        ..Config::default()
    };
    // Mean ⅛, then mean 1.
    let near = Case::row(&[-1.0, 1.25, 0.0, 0.25], 2.0);
    let far = Case::row(&[0.0, 2.0], -1.0);
    for runner in runners() {
        let ratio = 0.125_f64.exp();
        assert_row(
            &runner,
            &near,
            &gspo(None),
            -8.0 * ratio,
            &[-2.0 * ratio; 4],
        );
        let ratio = 1_f64.exp();
        assert_row(&runner, &far, &gspo(None), 2.0 * ratio, &[ratio; 2]);
        // Held by the clamp: a constant.
        let ratio = 0.5_f64.exp();
        assert_row(&runner, &far, &gspo(Some(0.5)), 2.0 * ratio, &[0.0; 2]);
        // The bound 1.28 holds every token.
        let clipped = Case::row(&[0.0, 2.0], 1.0);
        assert_row(&runner, &clipped, &gspo(None), -2.56, &[0.0; 2]);
        let metrics = runner.run(&clipped.batch(), &gspo(None)).metrics;
        assert_eq!((metrics.clipped_above, metrics.clipped_below), (2, 0));
    }
}

#[test]
fn the_kl_term_also_acts_without_advantage() {
    let mut case = Case::row(&[0.0, 0.5], 0.0);
    // Differences to the reference 0.25 and −0.5.
    case.ref_log_prob = Some(vec![-2.25, -1.0]);
    let coef = 0.5;
    for (estimator, value, gradient) in [
        (KlEstimator::K1, 0.25 - 0.5, [1.0, 1.0]),
        (KlEstimator::K2, 0.5 * (0.0625 + 0.25), [0.25, -0.5]),
        (
            KlEstimator::K3,
            (-0.25_f64).exp() - 0.75 + 0.5_f64.exp() - 1.5,
            [1.0 - (-0.25_f64).exp(), 1.0 - 0.5_f64.exp()],
        ),
    ] {
        let config = Config {
            kl: Some(Kl {
                estimator,
                coef,
                clamp: true,
            }),
            ..Config::default()
        };
        for runner in runners() {
            let gradient = gradient.map(|g| coef * g);
            assert_row(&runner, &case, &config, coef * value, &gradient);
            let metrics = runner.run(&case.batch(), &config).metrics;
            runner.assert_close(&[metrics.kl_loss], &[value / 2.0], "kl_loss");
            assert_eq!((metrics.pg_loss, metrics.active_tokens), (0.0, 0));
        }
    }
}

#[test]
fn importance_weights_multiply_the_policy_term_only() {
    let base = Case::random(21, 6, 7);
    let kl = kls()[3];
    let with_kl = Config {
        kl,
        ..Config::default()
    };
    for runner in runners() {
        let plain = runner.run(&base.batch(), &Config::default());
        let full = runner.run(&base.batch(), &with_kl);
        for weight in [
            Weight::PerToken(vec![3.0; 42]),
            Weight::PerResponse(vec![3.0; 6]),
        ] {
            let case = Case {
                weight,
                ..base.clone()
            };
            let output = runner.run(&case.batch(), &with_kl);
            let expected: Vec<f64> = (full.d_log_prob.iter().zip(&plain.d_log_prob))
                .map(|(full, policy)| full + 2.0 * policy)
                .collect();
            runner.assert_close(&output.d_log_prob, &expected, "gradient");
            let expected = [3.0 * plain.metrics.pg_loss, full.metrics.kl_loss];
            let found = [output.metrics.pg_loss, output.metrics.kl_loss];
            runner.assert_close(&found, &expected, "losses");
            assert_eq!(output.metrics.clip_fraction(), full.metrics.clip_fraction());
        }
    }
}

#[test]
fn every_source_of_advantages_gives_the_same() {
    let base = Case::random(22, 8, 5);
    let rewards = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0];
    let groups = Groups::uniform(8, 4).unwrap();
    // Local rows in another order than the global responses.
    let response_index = [3, 0, 7, 1, 1, 4, 2, 6];
    for runner in runners() {
        let batch = qae::TokenBatch {
            advantages: Advantages::FromRewards {
                rewards: &rewards,
                groups: &groups,
                response_index: Some(&response_index),
            },
            ..base.batch()
        };
        let from_rewards = runner.run(&batch, &Config::default());
        let global = from_rewards.advantage.clone().unwrap();
        assert_eq!(global.len(), 8);
        let rows: Vec<f32> = response_index
            .iter()
            .map(|&i| global[i as usize] as f32)
            .collect();
        let tokens = rows.iter().flat_map(|&a| [a; 5]).collect();
        for advantage in [
            Advantage::PerResponse(rows.clone()),
            Advantage::PerToken(tokens),
        ] {
            let case = Case {
                advantage,
                ..base.clone()
            };
            let given = runner.run(&case.batch(), &Config::default());
            // The given advantages are rounded to f32.
            let tolerance = runner.tolerance.max(1e-6);
            let (found, expected) = (&given.d_log_prob, &from_rewards.d_log_prob);
            crate::assert_close(found, expected, tolerance, "gradient");
            assert_eq!(given.active_rows, from_rewards.active_rows);
            assert!(given.advantage.is_none() && given.baseline.is_none());
        }
    }
}
