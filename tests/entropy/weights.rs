//! Prop. 4.1 of 2509.22611: a group of success rate p has the weight √(p / (1 − p)) if it is hard,
//! √((1 − p) / p) if it is easy.

use crate::policy::Policy;
use crate::{assert_close, both_outcomes};
use qae::{
    AdvantageConfig, Advantages, Aggregation, Baseline, Config, Groups, Interpolation, Layout,
    Logits, LogitsBatch, Objective, Scale, Tensor, reference,
};
use qae_test_support::Random;

/// As in the proof: the standard deviation of the group itself, nothing added.
fn config(k: f64) -> AdvantageConfig {
    AdvantageConfig {
        baseline: Baseline::Quantile {
            k,
            interpolation: Interpolation::InvertedCdf,
        },
        scale: Scale::Std {
            unbiased: false,
            epsilon: 0.0,
        },
        ..AdvantageConfig::default()
    }
}

/// Success rate, and 1 where successes act, −1 where failures do; by whole numbers.
fn regime(rewards: &[f32], per_mille: usize) -> (f64, f64) {
    let (size, successes) = (rewards.len(), rewards.iter().filter(|&&r| r == 1.0).count());
    let is_hard = (size - successes) * 1000 >= per_mille * size;
    let sign = if is_hard { 1.0 } else { -1.0 };
    (successes as f64 / size as f64, sign)
}

fn weight(p: f64, sign: f64) -> f64 {
    if sign > 0.0 {
        (p / (1.0 - p)).sqrt()
    } else {
        ((1.0 - p) / p).sqrt()
    }
}

#[test]
fn the_mean_advantage_of_a_group_is_its_weight() {
    let mut random = Random(11);
    for _ in 0..2000 {
        let size = 2 + random.below(255);
        let rewards = both_outcomes(&mut random, size);
        let per_mille = 1 + random.below(999);
        let groups = Groups::uniform(size, size).unwrap();
        let out =
            reference::advantages(&rewards, &groups, &config(per_mille as f64 / 1000.0)).unwrap();
        let (p, sign) = regime(&rewards, per_mille);
        let mean = out.advantage.iter().sum::<f64>() / size as f64;
        let expected = sign * weight(p, sign);
        assert_close(mean, expected, 1e-12 * expected.abs(), "mean advantage");
    }
}

/// The crate's gradient of a group whose responses are one action each, summed over responses.
fn gradient(policy: &Policy, actions: &[i32], rewards: &[f32], k: f64) -> Vec<f64> {
    let (n, size) = (policy.len(), actions.len());
    let row: Vec<f32> = policy.logits.iter().map(|&z| z as f32).collect();
    let rows: Vec<f32> = row.iter().copied().cycle().take(n * size).collect();
    let batch = LogitsBatch {
        layout: Layout::padded(size, 1).into(),
        mask: None,
        logits: Logits::contiguous(Tensor::F32(&rows), n),
        token_id: actions,
        old_log_prob: None,
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::FromRewards {
            rewards,
            groups: &Groups::uniform(size, size).unwrap(),
            response_index: None,
        },
    };
    let config = Config {
        advantage: config(k),
        objective: Objective::Reinforce,
        aggregation: Aggregation::SeqMeanTokenSum,
        ..Config::default()
    };
    let out = reference::loss_from_logits(&batch, &config).unwrap();
    let column = |j: usize| out.d_logits.iter().skip(j).step_by(n).sum::<f64>();
    (0..n).map(column).collect()
}

/// Mean of ∇ log π over the responses whose reward is `outcome`.
fn mean_score(policy: &Policy, actions: &[i32], rewards: &[f32], outcome: f32) -> Vec<f64> {
    let acting: Vec<usize> = (actions.iter().zip(rewards))
        .filter(|(_, reward)| **reward == outcome)
        .map(|(&action, _)| action as usize)
        .collect();
    let count = acting.len() as f64;
    (0..policy.len())
        .map(|j| {
            let chosen = acting.iter().filter(|&&action| action == j).count() as f64;
            chosen / count - policy.probability[j]
        })
        .collect()
}

#[test]
fn the_gradient_of_a_group_is_its_weight_times_the_mean_score() {
    let mut random = Random(12);
    let mut regimes = [0, 0];
    for _ in 0..500 {
        let policy = Policy::random(&mut random);
        let size = 2 + random.below(31);
        let rewards = both_outcomes(&mut random, size);
        let actions: Vec<i32> = (0..size)
            .map(|_| random.below(policy.len()) as i32)
            .collect();
        let per_mille = 1 + random.below(999);
        let (p, sign) = regime(&rewards, per_mille);
        regimes[usize::from(sign > 0.0)] += 1;
        let acting = if sign > 0.0 { 1.0 } else { 0.0 };
        let score = mean_score(&policy, &actions, &rewards, acting);
        let found = gradient(&policy, &actions, &rewards, per_mille as f64 / 1000.0);
        let weight = weight(p, sign);
        for (found, score) in found.iter().zip(&score) {
            // The loss falls along it.
            assert_close(-found, sign * weight * score, 1e-12 * weight, "gradient");
        }
    }
    assert!(regimes.iter().all(|&count| count > 50), "{regimes:?}");
}

/// P(Bin(n, p) = k).
fn binomial(n: usize, k: usize, p: f64) -> f64 {
    let ways: f64 = (0..k).map(|i| (n - i) as f64 / (k - i) as f64).product();
    ways * p.powi(k as i32) * (1.0 - p).powi((n - k) as i32)
}

#[test]
fn a_threshold_set_by_the_group_itself_shortens_the_expected_step() {
    let mut random = Random(13);
    for _ in 0..300 {
        let size = 2 + random.below(31);
        let p = 0.02 + 0.96 * random.unit();
        let per_mille = 1 + random.below(999);
        let unscaled = AdvantageConfig {
            scale: Scale::None,
            ..config(per_mille as f64 / 1000.0)
        };
        // Along the mean score of successes; that of failures is −p / (1 − p) of it.
        let mut step = 0.0;
        for successes in 0..=size {
            let rewards: Vec<f32> = (0..size)
                .map(|i| f32::from(u8::from(i < successes)))
                .collect();
            let groups = Groups::uniform(size, size).unwrap();
            let out = reference::advantages(&rewards, &groups, &unscaled).unwrap();
            let along =
                |(a, &reward): (&f64, &f32)| a * if reward == 1.0 { 1.0 } else { -p / (1.0 - p) };
            let group: f64 = out.advantage.iter().zip(&rewards).map(along).sum();
            step += binomial(size, successes, p) * group;
        }
        // The most successes of a hard group: one response more or less would change the regime.
        let last_hard = size - (per_mille * size).div_ceil(1000);
        let expected = size as f64 * p * (1.0 - binomial(size - 1, last_hard, p));
        assert_close(step, expected, 1e-12 * size as f64, "expected step");
    }
}
