//! T4: on binary rewards one sign acts, and how many responses it has.

use crate::both_outcomes;
use qae::{
    AdvantageConfig, Advantages, Baseline, Config, Groups, Interpolation, Layout, Tensor,
    TokenBatch, cpu, reference,
};
use qae_test_support::Random;

fn config(k: f64) -> AdvantageConfig {
    AdvantageConfig {
        baseline: Baseline::Quantile {
            k,
            interpolation: Interpolation::InvertedCdf,
        },
        ..AdvantageConfig::default()
    }
}

/// Asserts T4 of a group at K = `per_mille` / 1000, compared in whole numbers.
fn check(advantage: &[f64], rewards: &[f32], per_mille: usize) {
    let size = rewards.len();
    let successes = rewards.iter().filter(|&&r| r == 1.0).count();
    let is_hard = (size - successes) * 1000 >= per_mille * size;
    let expected = if is_hard { successes } else { size - successes };
    let what = format!("K = 0.{per_mille:03}, {successes} of {size}");
    let positive = advantage.iter().filter(|&&a| a > 0.0).count();
    let negative = advantage.iter().filter(|&&a| a < 0.0).count();
    assert_eq!(
        (positive, negative),
        if is_hard {
            (expected, 0)
        } else {
            (0, expected)
        },
        "{what}"
    );
    for (a, reward) in advantage.iter().zip(rewards) {
        let acts = (*reward == 1.0) == is_hard;
        assert_eq!(*a != 0.0, acts, "{what}");
    }
}

#[test]
fn every_count_of_successes_at_every_level() {
    for size in 2..=32 {
        let groups = Groups::uniform(size, size).unwrap();
        for successes in 1..size {
            let rewards: Vec<f32> = (0..size)
                .map(|i| f32::from(u8::from(i < successes)))
                .collect();
            for per_mille in 1..1000 {
                let config = config(per_mille as f64 / 1000.0);
                let out = reference::advantages(&rewards, &groups, &config).unwrap();
                check(&out.advantage, &rewards, per_mille);
            }
        }
    }
}

#[test]
fn random_groups_of_any_size_in_any_order() {
    let mut random = Random(9);
    for _ in 0..300 {
        let per_mille = 1 + random.below(999);
        let mut ids = vec![];
        let mut rewards = vec![];
        for id in 0..1 + random.below(6) as i64 {
            let group = {
                let size = 2 + random.below(300);
                both_outcomes(&mut random, size)
            };
            ids.resize(ids.len() + group.len(), id);
            rewards.extend(group);
        }
        for last in (1..ids.len()).rev() {
            let other = random.below(last + 1);
            ids.swap(last, other);
            rewards.swap(last, other);
        }
        let groups = Groups::from_ids(&ids).unwrap();
        let config = config(per_mille as f64 / 1000.0);
        for run in [reference::advantages, cpu::advantages] {
            let out = run(&rewards, &groups, &config).unwrap();
            for group in 0..groups.num_groups() {
                let of_group = |i: usize| (out.advantage[i], rewards[i]);
                let (advantage, rewards): (Vec<_>, Vec<_>) =
                    groups.members(group).map(of_group).unzip();
                check(&advantage, &rewards, per_mille);
            }
        }
    }
}

#[test]
fn the_loss_acts_on_these_responses_and_no_others() {
    let mut random = Random(10);
    for _ in 0..100 {
        let size = 2 + random.below(30);
        let rewards = both_outcomes(&mut random, size);
        let per_mille = 1 + random.below(999);
        let log_prob: Vec<f32> = (0..size).map(|_| random.between(-1.0, 1.0) - 2.0).collect();
        let batch = TokenBatch {
            layout: Layout::padded(size, 1),
            mask: None,
            log_prob: Tensor::F32(&log_prob),
            old_log_prob: Some(Tensor::F32(&log_prob)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::FromRewards {
                rewards: &rewards,
                groups: &Groups::uniform(size, size).unwrap(),
                response_index: None,
            },
        };
        let config = Config {
            advantage: config(per_mille as f64 / 1000.0),
            ..Config::default()
        };
        let out = reference::loss_from_log_probs(&batch, &config).unwrap();
        // On policy the gradient is −A / tokens.
        let advantage: Vec<f64> = out.d_log_prob.iter().map(|g| -g).collect();
        check(&advantage, &rewards, per_mille);
        let active = (0..size as u32).filter(|&i| advantage[i as usize] != 0.0);
        assert_eq!(out.active_rows, active.collect::<Vec<_>>());
    }
}
