//! Hard and easy groups, and what the gates let act.

use crate::{assert_close, assert_exact_zeros, quantile_config, runners};
use qae::{AdvantageConfig, Gate, Groups, Interpolation, Scale, Singleton};

/// `failures` zeros, then ones up to `n`.
fn binary(n: usize, failures: usize) -> Vec<f32> {
    (0..n).map(|i| f32::from(u8::from(i >= failures))).collect()
}

#[test]
fn binary_rewards_with_both_outcomes_act_with_exactly_one_sign() {
    // T4: with s successes of G, s act where (G − s)/G ≥ K, else the G − s failures.
    for g in 2..=33 {
        for successes in 1..g {
            for thousandths in [100, 200, 280, 400, 500, 600, 800, 900] {
                let config =
                    quantile_config(f64::from(thousandths) / 1000.0, Interpolation::InvertedCdf);
                let rewards = binary(g, g - successes);
                let groups = Groups::uniform(g, g).unwrap();
                let hard = (g - successes) * 1000 >= thousandths as usize * g;
                for runner in runners() {
                    let metrics = (runner.run)(&rewards, &groups, &config).unwrap().metrics;
                    let active = if hard {
                        (successes as u64, 0)
                    } else {
                        (0, (g - successes) as u64)
                    };
                    assert_eq!((metrics.positive, metrics.negative), active);
                    assert_eq!(metrics.hard_groups, u64::from(hard), "G {g} s {successes}");
                    assert_eq!(metrics.easy_groups, u64::from(!hard));
                }
            }
        }
    }
}

#[test]
fn two_regimes_change_nothing_on_binary_rewards() {
    let rewards: Vec<f32> = [binary(8, 3), binary(8, 4), binary(8, 0), binary(8, 8)].concat();
    let groups = Groups::uniform(32, 8).unwrap();
    let off = quantile_config(0.4, Interpolation::InvertedCdf);
    let gated = AdvantageConfig {
        gate: Gate::TwoRegime,
        ..off
    };
    for runner in runners() {
        let expected = (runner.run)(&rewards, &groups, &off).unwrap();
        let found = (runner.run)(&rewards, &groups, &gated).unwrap();
        assert_eq!(found, expected, "{}", runner.name);
    }
}

#[test]
fn two_regimes_on_continuous_rewards() {
    // Rank ⌈0.4·5⌉ = 2. Hard: the 2nd smallest is at most 0.5; easy: above.
    let rewards = [0.1, 0.3, 0.4, 0.9, 0.8, 0.2, 0.6, 0.7, 0.9, 1.0];
    let groups = Groups::uniform(10, 5).unwrap();
    let config = AdvantageConfig {
        gate: Gate::TwoRegime,
        scale: Scale::None,
        ..quantile_config(0.4, Interpolation::InvertedCdf)
    };
    for runner in runners() {
        let out = (runner.run)(&rewards, &groups, &config).unwrap();
        let expected = [0.0, 0.0, 0.1, 0.6, 0.5, -0.4, 0.0, 0.0, 0.0, 0.0];
        // The rewards are f32.
        assert_close(&out.advantage, &expected, 1e-7, runner.name);
        assert_exact_zeros(&out.advantage[..2], runner.name);
        assert_exact_zeros(&out.advantage[6..], runner.name);
    }
}

#[test]
fn masks_follow_equations_7_and_8() {
    // At k = 0.4 the group with 4 failures of 8 is hard, that with 3 is easy.
    let rewards: Vec<f32> = [binary(8, 4), binary(8, 3)].concat();
    let groups = Groups::uniform(16, 8).unwrap();
    for (gate, hard, easy) in [
        (Gate::PositiveMask, (-1.0, 1.0), (-1.0, 0.0)),
        (Gate::NegativeMask, (0.0, 1.0), (-1.0, 1.0)),
    ] {
        let config = AdvantageConfig {
            gate,
            ..quantile_config(0.4, Interpolation::InvertedCdf)
        };
        let unscaled = AdvantageConfig {
            scale: Scale::None,
            ..config
        };
        let std = |failures: f64| (failures * (8.0 - failures) / 8.0 / 7.0).sqrt() + 1e-6;
        let expected = |hard_divisor: f64, easy_divisor: f64| -> Vec<f64> {
            let of = |reward: f32, (failure, success): (f64, f64), divisor: f64| {
                (if reward > 0.5 { success } else { failure }) / divisor
            };
            (0..16)
                .map(|i| match i {
                    0..8 => of(rewards[i], hard, hard_divisor),
                    _ => of(rewards[i], easy, easy_divisor),
                })
                .collect()
        };
        for runner in runners() {
            let name = runner.name;
            let out = (runner.run)(&rewards, &groups, &config).unwrap();
            let scaled = expected(std(4.0), std(3.0));
            assert_close(&out.advantage, &scaled, runner.tolerance, name);
            let out = (runner.run)(&rewards, &groups, &unscaled).unwrap();
            assert_close(&out.advantage, &expected(1.0, 1.0), runner.tolerance, name);
        }
    }
}

#[test]
fn masks_leave_groups_without_variance_alone() {
    let rewards: Vec<f32> = [binary(4, 0), binary(4, 4)].concat();
    let groups = Groups::uniform(8, 4).unwrap();
    for gate in [Gate::PositiveMask, Gate::NegativeMask] {
        let config = AdvantageConfig {
            gate,
            ..AdvantageConfig::default()
        };
        for runner in runners() {
            let out = (runner.run)(&rewards, &groups, &config).unwrap();
            assert_exact_zeros(&out.advantage, runner.name);
        }
    }
}

#[test]
fn gates_judge_a_singleton_by_its_one_reward() {
    let groups = Groups::uniform(2, 1).unwrap();
    let scaled = 1.0 / (1.0 + 1e-6);
    for (gate, expected) in [
        // A failure alone is hard, a success alone easy: with baseline 0 neither sign remains.
        (Gate::TwoRegime, [0.0, 0.0]),
        (Gate::PositiveMask, [-scaled, 0.0]),
        (Gate::NegativeMask, [0.0, scaled]),
    ] {
        let config = AdvantageConfig {
            gate,
            ..AdvantageConfig::default()
        };
        for runner in runners() {
            let out = (runner.run)(&[-1.0, 1.0], &groups, &config).unwrap();
            assert_close(&out.advantage, &expected, runner.tolerance, runner.name);
            let zero = AdvantageConfig {
                singleton: Singleton::Zero,
                ..config
            };
            let out = (runner.run)(&[-1.0, 1.0], &groups, &zero).unwrap();
            assert_exact_zeros(&out.advantage, runner.name);
        }
    }
}

#[test]
fn the_threshold_decides_what_a_success_is() {
    let groups = Groups::uniform(4, 4).unwrap();
    for (threshold, hard) in [(-0.5, 0), (0.0, 1), (2.0, 1)] {
        let config = AdvantageConfig {
            success_threshold: threshold,
            ..quantile_config(0.5, Interpolation::InvertedCdf)
        };
        for runner in runners() {
            let out = (runner.run)(&[0.0, 0.0, 1.0, 1.0], &groups, &config).unwrap();
            assert_eq!(out.metrics.hard_groups, hard, "{threshold}");
        }
    }
}

#[test]
fn a_reward_equal_to_the_threshold_is_no_success() {
    // In f64 the f32 of each of them is above or below what was written.
    for threshold in [0.1, 0.3, 0.7, 0.8] {
        let reward = threshold as f32;
        let groups = Groups::uniform(4, 4).unwrap();
        for gate in [Gate::Off, Gate::PositiveMask] {
            let config = AdvantageConfig {
                success_threshold: threshold,
                gate,
                ..quantile_config(0.5, Interpolation::InvertedCdf)
            };
            let above = reward.next_up();
            for (rewards, hard, masked) in [
                ([0.0, reward, reward, above], 1, (1, 3)),
                ([0.0, above, above, above], 0, (0, 1)),
            ] {
                for runner in runners() {
                    let metrics = (runner.run)(&rewards, &groups, &config).unwrap().metrics;
                    assert_eq!(metrics.hard_groups, hard, "{threshold} {gate:?}");
                    if gate == Gate::PositiveMask {
                        assert_eq!((metrics.positive, metrics.negative), masked, "{threshold}");
                    }
                }
            }
        }
    }
}
