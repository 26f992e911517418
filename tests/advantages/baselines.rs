//! Baselines and scales in closed form.

use crate::{assert_close, assert_exact_zeros, quantile_config, runners, unscaled};
use qae::{AdvantageConfig, Baseline, Groups, Interpolation, Scale, Singleton};

#[test]
fn mean_baseline_and_both_standard_deviations() {
    // Mean 2.5, squared deviations 1.5² + 0.5² + 0.5² + 1.5² = 5.
    let rewards = [1.0, 2.0, 3.0, 4.0];
    let groups = Groups::uniform(4, 4).unwrap();
    for runner in runners() {
        for (unbiased, variance) in [(true, 5.0 / 3.0), (false, 5.0 / 4.0)] {
            let epsilon = 0.25;
            let config = AdvantageConfig {
                baseline: Baseline::Mean,
                scale: Scale::Std { unbiased, epsilon },
                ..AdvantageConfig::default()
            };
            let out = (runner.run)(&rewards, &groups, &config).unwrap();
            let expected = [-1.5, -0.5, 0.5, 1.5].map(|d| d / (f64::sqrt(variance) + epsilon));
            assert_close(&out.advantage, &expected, runner.tolerance, runner.name);
            assert_close(&out.baseline, &[2.5; 4], runner.tolerance, runner.name);
        }
    }
}

#[test]
fn leave_one_out_is_the_mean_of_the_others() {
    let rewards = [1.0, 2.0, 6.0];
    let groups = Groups::uniform(3, 3).unwrap();
    for runner in runners() {
        let out = (runner.run)(&rewards, &groups, &unscaled(Baseline::LeaveOneOut)).unwrap();
        let name = runner.name;
        assert_close(&out.baseline, &[4.0, 3.5, 1.5], runner.tolerance, name);
        assert_close(&out.advantage, &[-3.0, -1.5, 4.5], runner.tolerance, name);
    }
}

#[test]
fn rewards_tied_with_the_quantile_do_not_act() {
    // The 4th smallest of 8 (⌈0.4·8⌉) is 0.3, three times.
    let rewards = [0.9, 0.3, 0.1, 0.3, 0.7, 0.3, 0.2, 0.8];
    let groups = Groups::uniform(8, 8).unwrap();
    let config = quantile_config(0.4, Interpolation::InvertedCdf);
    for runner in runners() {
        let out = (runner.run)(&rewards, &groups, &config).unwrap();
        assert_exact_zeros(
            &[1, 3, 5].map(|i: usize| out.advantage[i]),
            "tied advantages",
        );
        assert!(
            out.baseline.iter().all(|&b| b == f64::from(0.3_f32)),
            "{}",
            runner.name
        );
        let counts = (out.metrics.positive, out.metrics.zero, out.metrics.negative);
        assert_eq!(counts, (3, 3, 2));
    }
}

#[test]
fn equal_rewards_have_advantage_zero_whatever_the_mean_rounds_to() {
    let groups = Groups::uniform(7, 7).unwrap();
    for value in [0.7_f32, 0.1, -0.3, 1e30, -0.0] {
        for baseline in [
            Baseline::Mean,
            Baseline::LeaveOneOut,
            Baseline::Quantile {
                k: 0.4,
                interpolation: Interpolation::Linear,
            },
        ] {
            let config = AdvantageConfig {
                baseline,
                ..AdvantageConfig::default()
            };
            for runner in runners() {
                let out = (runner.run)(&[value; 7], &groups, &config).unwrap();
                assert_exact_zeros(&out.advantage, runner.name);
                assert_eq!(out.metrics.zero_variance_groups, 1);
                assert_eq!(out.metrics.zero, 7);
            }
        }
    }
}

#[test]
fn the_only_response_of_a_group() {
    let groups = Groups::uniform(2, 1).unwrap();
    let quantile = quantile_config(0.4, Interpolation::InvertedCdf);
    let mean = AdvantageConfig {
        baseline: Baseline::Mean,
        ..quantile
    };
    for runner in runners() {
        for config in [quantile, mean] {
            let out = (runner.run)(&[1.0, -2.0], &groups, &config).unwrap();
            let expected = [1.0, -2.0].map(|reward| reward / (1.0 + 1e-6));
            assert_close(&out.advantage, &expected, runner.tolerance, runner.name);
            assert_exact_zeros(&out.baseline, runner.name);
            assert_eq!(out.metrics.zero_variance_groups, 0);
            let zero = AdvantageConfig {
                singleton: Singleton::Zero,
                ..config
            };
            let out = (runner.run)(&[1.0, -2.0], &groups, &zero).unwrap();
            assert_exact_zeros(&out.advantage, runner.name);
        }
    }
}

#[test]
fn unscaled_singleton_is_the_reward() {
    let groups = Groups::uniform(1, 1).unwrap();
    for runner in runners() {
        let out = (runner.run)(&[-0.0], &groups, &unscaled(Baseline::Mean)).unwrap();
        assert_exact_zeros(&out.advantage, runner.name);
        let out = (runner.run)(&[3.5], &groups, &unscaled(Baseline::Mean)).unwrap();
        assert_eq!(out.advantage, [3.5]);
    }
}

#[test]
fn negative_zero_tied_with_zero_has_advantage_positive_zero() {
    let groups = Groups::uniform(4, 4).unwrap();
    let config = quantile_config(0.4, Interpolation::InvertedCdf);
    for runner in runners() {
        let out = (runner.run)(&[-0.0, 0.0, -0.0, 1.0], &groups, &config).unwrap();
        assert_exact_zeros(&out.advantage[..3], runner.name);
    }
}
