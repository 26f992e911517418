//! Values that are not finite, every form of groups, large groups, refusals, determinism.

use crate::{assert_close, assert_exact_zeros, quantile_config, runners, unscaled};
use qae::{AdvantageConfig, Baseline, Gate, GroupMetrics, Groups, Interpolation, cpu, reference};
use qae_test_support::Random;

fn every_baseline() -> [Baseline; 4] {
    let quantile = |interpolation| Baseline::Quantile {
        k: 0.4,
        interpolation,
    };
    [
        Baseline::Mean,
        Baseline::LeaveOneOut,
        quantile(Interpolation::InvertedCdf),
        quantile(Interpolation::Linear),
    ]
}

#[test]
fn rewards_that_are_not_finite_are_left_out_and_counted() {
    let all = [
        0.1,
        f32::NAN,
        0.9,
        f32::INFINITY,
        0.4,
        f32::NEG_INFINITY,
        0.2,
    ];
    let kept = [0.1, 0.9, 0.4, 0.2];
    for baseline in every_baseline() {
        let config = AdvantageConfig {
            baseline,
            ..AdvantageConfig::default()
        };
        for runner in runners() {
            let groups = Groups::uniform(7, 7).unwrap();
            let out = (runner.run)(&all, &groups, &config).unwrap();
            let groups = Groups::uniform(4, 4).unwrap();
            let expected = (runner.run)(&kept, &groups, &config).unwrap();
            assert_eq!(
                [0, 2, 4, 6].map(|i| out.advantage[i]),
                expected.advantage[..]
            );
            assert_exact_zeros(&[1, 3, 5].map(|i: usize| out.advantage[i]), runner.name);
            assert_eq!(out.metrics.nonfinite_rewards, 3);
            assert_eq!(out.metrics.zero, expected.metrics.zero + 3);
        }
    }
}

#[test]
fn leave_one_out_baseline_of_a_left_out_reward_is_the_mean_of_the_finite() {
    let groups = Groups::uniform(3, 3).unwrap();
    for runner in runners() {
        let config = unscaled(Baseline::LeaveOneOut);
        let out = (runner.run)(&[1.0, f32::NAN, 3.0], &groups, &config).unwrap();
        assert_close(
            &out.baseline,
            &[3.0, 2.0, 1.0],
            runner.tolerance,
            runner.name,
        );
    }
}

#[test]
fn one_finite_reward_is_a_singleton_and_none_is_nothing() {
    let rewards = [f32::NAN, 2.0, f32::NAN, f32::INFINITY];
    let groups = Groups::uniform(4, 2).unwrap();
    for baseline in every_baseline() {
        let out = (runners()[0].run)(&rewards, &groups, &unscaled(baseline)).unwrap();
        for runner in runners() {
            let found = (runner.run)(&rewards, &groups, &unscaled(baseline)).unwrap();
            assert_eq!(found, out, "{}", runner.name);
        }
        assert_eq!(out.advantage, [0.0, 2.0, 0.0, 0.0]);
        assert_exact_zeros(&out.baseline, "baseline");
        assert_eq!(out.metrics.num_groups, 2);
        // Only a group with a finite reward can be hard or easy.
        let regimes = out.metrics.hard_groups + out.metrics.easy_groups;
        assert_eq!(
            regimes,
            u64::from(matches!(baseline, Baseline::Quantile { .. }))
        );
        assert_eq!(out.metrics.zero_variance_groups, 0);
    }
}

#[test]
fn groups_in_any_order_and_of_any_size_are_independent() {
    let mut random = Random(2);
    for _ in 0..50 {
        let n = 1 + random.below(60);
        let ids: Vec<i64> = (0..n).map(|_| random.below(7) as i64 - 3).collect();
        let rewards: Vec<f32> = (0..n).map(|_| random.below(4) as f32 / 3.0).collect();
        let groups = Groups::from_ids(&ids).unwrap();
        for runner in runners() {
            let config = AdvantageConfig::default();
            let all = (runner.run)(&rewards, &groups, &config).unwrap();
            for id in -3..4 {
                let members: Vec<usize> = (0..n).filter(|&i| ids[i] == id).collect();
                let alone: Vec<f32> = members.iter().map(|&i| rewards[i]).collect();
                let one_group = Groups::from_ids(&vec![0; alone.len()]).unwrap();
                let expected = (runner.run)(&alone, &one_group, &config).unwrap();
                for (position, &i) in members.iter().enumerate() {
                    assert_eq!(all.advantage[i], expected.advantage[position]);
                    assert_eq!(all.baseline[i], expected.baseline[position]);
                }
            }
        }
    }
}

#[test]
fn a_group_may_hold_a_whole_batch() {
    // Quadratic time would take minutes here.
    let n = 1_000_003;
    let mut random = Random(3);
    let rewards: Vec<f32> = (0..n).map(|_| random.below(1000) as f32).collect();
    let groups = Groups::uniform(n, n).unwrap();
    let mut sorted = rewards.clone();
    sorted.sort_by(f32::total_cmp);
    let expected = f64::from(sorted[(n * 4).div_ceil(10) - 1]);
    let config = quantile_config(0.4, Interpolation::InvertedCdf);
    for runner in runners() {
        let out = (runner.run)(&rewards, &groups, &config).unwrap();
        assert!(
            out.baseline.iter().all(|&b| b == expected),
            "{}",
            runner.name
        );
    }
}

#[test]
fn an_empty_batch_has_no_advantages() {
    for groups in [
        Groups::uniform(0, 8).unwrap(),
        Groups::from_ids(&[]).unwrap(),
        Groups::from_offsets(&[0]).unwrap(),
    ] {
        for runner in runners() {
            let out = (runner.run)(&[], &groups, &AdvantageConfig::default()).unwrap();
            assert!(out.advantage.is_empty() && out.baseline.is_empty());
            assert_eq!(out.metrics, GroupMetrics::default());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let groups = Groups::uniform(4, 2).unwrap();
    let config = AdvantageConfig::default();
    let gate_without_k = AdvantageConfig {
        baseline: Baseline::Mean,
        gate: Gate::TwoRegime,
        ..config
    };
    for runner in runners() {
        for (rewards, config, field) in [
            (&[0.0; 3][..], config, "rewards: expected shape [4]"),
            (
                &[0.0; 4],
                quantile_config(1.0, Interpolation::Linear),
                "baseline.k",
            ),
            (
                &[0.0; 4],
                quantile_config(f64::NAN, Interpolation::Linear),
                "baseline.k",
            ),
            (&[0.0; 4], gate_without_k, "gate"),
        ] {
            let error = (runner.run)(rewards, &groups, &config).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut random = Random(4);
    let n = 5000;
    let ids: Vec<i64> = (0..n).map(|_| random.below(300) as i64).collect();
    let rewards: Vec<f32> = (0..n).map(|_| random.unit() as f32).collect();
    let groups = Groups::from_ids(&ids).unwrap();
    for baseline in every_baseline() {
        let config = AdvantageConfig {
            baseline,
            ..AdvantageConfig::default()
        };
        let expected = reference::advantages(&rewards, &groups, &config).unwrap();
        for threads in [1, 2, 7] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let found = pool.install(|| cpu::advantages(&rewards, &groups, &config).unwrap());
            assert_eq!(found, expected, "{threads} threads");
        }
    }
}
