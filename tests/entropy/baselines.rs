//! T2 and T3: where the baseline moves entropy, and where it cannot.

use crate::policy::{Policy, expectation};
use crate::{assert_close, both_outcomes};
use qae::{
    AdvantageConfig, Advantages, Aggregation, Baseline, Config, Groups, ImportanceWeight,
    Interpolation, Layout, Logits, LogitsBatch, Normalizer, Objective, Scale, Tensor, reference,
};
use qae_test_support::Random;

/// δ = η · π∘(r − b), the update of 2509.22611.
fn papers_update(policy: &Policy, rewards: &[f32], step: f64, baseline: f64) -> Vec<f64> {
    let terms = policy.probability.iter().zip(rewards);
    terms
        .map(|(p, &r)| step * p * (f64::from(r) - baseline))
        .collect()
}

/// Of the crate, for a group with these rewards at level `k`: the same for all of them.
fn quantile_baseline(rewards: &[f32], k: f64) -> f64 {
    let groups = Groups::uniform(rewards.len(), rewards.len()).unwrap();
    let config = AdvantageConfig {
        baseline: Baseline::Quantile {
            k,
            interpolation: Interpolation::InvertedCdf,
        },
        scale: Scale::None,
        ..AdvantageConfig::default()
    };
    reference::advantages(rewards, &groups, &config)
        .unwrap()
        .baseline[0]
}

#[test]
fn entropy_rises_with_the_baseline_to_first_order() {
    let mut random = Random(4);
    for _ in 0..1000 {
        let policy = Policy::random(&mut random);
        let rewards = both_outcomes(&mut random, policy.len());
        let step = 10_f64.powf(-3.0 * random.unit());
        let first_order = |baseline| {
            -policy.covariance_with_log(&papers_update(&policy, &rewards, step, baseline))
        };
        let slope = step * policy.covariance_with_log(&policy.probability);
        let is_uniform = policy.logits.iter().all(|&z| z == policy.logits[0]);
        assert!(slope > 0.0 || is_uniform, "{slope}");
        let between = random.unit();
        for baseline in [0.0, between, 1.0] {
            let expected = first_order(0.0) + slope * baseline;
            assert_close(first_order(baseline), expected, 1e-14, "linear in b");
        }
        // The crate's baselines on binary rewards are the two ends (Prop. 4.2).
        let group = both_outcomes(&mut random, 8);
        let k = random.pick(&[0.2, 0.4, 0.6, 0.8]);
        let found = first_order(quantile_baseline(&group, k));
        let successes = group.iter().filter(|&&r| r == 1.0).count() as f64;
        let is_hard = successes / 8.0 <= 1.0 - k;
        let of_mean = first_order(successes / 8.0);
        assert!(is_uniform || (found < of_mean) == is_hard, "{k} {group:?}");
    }
}

#[test]
fn on_a_uniform_support_no_baseline_moves_entropy() {
    let mut random = Random(5);
    for _ in 0..200 {
        let actions = 2 + random.below(30);
        let level = f64::from(random.between(-1.0, 1.0));
        let mut logits = vec![level; actions];
        // Support: at least one action, whatever the others are.
        for _ in 0..random.below(actions) {
            logits[random.below(actions)] = f64::NEG_INFINITY;
        }
        logits[random.below(actions)] = level;
        let policy = Policy::new(&logits);
        let slope = policy.covariance_with_log(&policy.probability);
        assert_close(slope, 0.0, 1e-15, "slope");
        for reward in [vec![1.0; actions], both_outcomes(&mut random, actions)] {
            for baseline in [0.0, 1.0] {
                let update = papers_update(&policy, &reward, 0.1, baseline);
                let first_order = policy.covariance_with_log(&update);
                assert_close(first_order, 0.0, 1e-14, "first order");
            }
        }
    }
}

#[test]
fn entropy_after_the_step_is_ordered_where_the_slope_exceeds_the_bound() {
    let mut random = Random(6);
    let (mut ordered, mut undecided) = (0, 0);
    for _ in 0..5000 {
        let policy = Policy::random(&mut random);
        let rewards = both_outcomes(&mut random, policy.len());
        let step = 10_f64.powf(-4.0 * random.unit());
        let updates = [0.0, 1.0].map(|b| papers_update(&policy, &rewards, step, b));
        let bounds = updates.each_ref().map(|u| policy.remainder_bound(u));
        let slope = step * policy.covariance_with_log(&policy.probability);
        if slope <= 2.0 * bounds[0].max(bounds[1]) + 1e-12 {
            undecided += 1;
            continue;
        }
        ordered += 1;
        let [hard, easy] = updates.map(|update| policy.moved_by(&update).entropy);
        assert!(hard < easy, "{hard} {easy}");
    }
    // Either kind, else the condition says nothing.
    assert!(ordered > 500 && undecided > 500, "{ordered} {undecided}");
}

#[test]
fn the_least_is_relative() {
    // The success is the rarer action: to reinforce it alone raises the entropy.
    let policy = Policy::new(&[2.0, 0.0]);
    let update = papers_update(&policy, &[0.0, 1.0], 0.1, 0.0);
    assert!(policy.moved_by(&update).entropy > policy.entropy);
}

#[test]
fn the_true_gradients_do_not_see_a_constant_baseline() {
    let mut random = Random(7);
    for _ in 0..1000 {
        let policy = Policy::random(&mut random);
        let rewards = both_outcomes(&mut random, policy.len());
        let step = 2.0 * random.unit();
        let advantage =
            |b: f64| -> Vec<f64> { rewards.iter().map(|&r| f64::from(r) - b).collect() };
        let gradient = |b: f64| -> Vec<f64> {
            let advantage = advantage(b);
            let mean = expectation(&policy.probability, &advantage);
            let terms = policy.probability.iter().zip(&advantage);
            terms.map(|(p, a)| step * p * (a - mean)).collect()
        };
        let natural = |b: f64| -> Vec<f64> { advantage(b).iter().map(|a| step * a).collect() };
        for baseline in [random.unit(), 1.0] {
            let after = |update: &[f64]| policy.moved_by(update).entropy;
            let (found, expected) = (after(&gradient(baseline)), after(&gradient(0.0)));
            assert_close(found, expected, 1e-12, "policy gradient");
            let (found, expected) = (after(&natural(baseline)), after(&natural(0.0)));
            assert_close(found, expected, 1e-12, "natural gradient");
        }
    }
}

/// The policy gradient of the crate: every action a response, weighted by its probability.
fn gradient_of_crate(policy: &Policy, rewards: &[f32], baseline: f32) -> Vec<f64> {
    let n = policy.len();
    let row: Vec<f32> = policy.logits.iter().map(|&z| z as f32).collect();
    let rows: Vec<f32> = row.iter().copied().cycle().take(n * n).collect();
    let token_id: Vec<i32> = (0..n as i32).collect();
    let weights: Vec<f32> = policy.probability.iter().map(|&p| p as f32).collect();
    let advantages: Vec<f32> = rewards.iter().map(|r| r - baseline).collect();
    let batch = LogitsBatch {
        layout: Layout::padded(n, 1).into(),
        mask: None,
        logits: Logits::contiguous(Tensor::F32(&rows), n),
        token_id: &token_id,
        old_log_prob: None,
        ref_log_prob: None,
        importance_weight: Some(ImportanceWeight::PerResponse(&weights)),
        advantages: Advantages::PerResponse(&advantages),
    };
    let config = Config {
        objective: Objective::Reinforce,
        aggregation: Aggregation::SeqMeanTokenSum,
        normalizer: Normalizer::Value(1.0),
        ..Config::default()
    };
    let out = reference::loss_from_logits(&batch, &config).unwrap();
    let column = |j: usize| out.d_logits.iter().skip(j).step_by(n).sum::<f64>();
    (0..n).map(column).collect()
}

#[test]
fn nor_does_the_gradient_of_the_crate() {
    let mut random = Random(8);
    for _ in 0..200 {
        let policy = Policy::random(&mut random);
        let rewards = both_outcomes(&mut random, policy.len());
        let step = 2.0 * random.unit();
        let after = |baseline: f32| {
            let gradient = gradient_of_crate(&policy, &rewards, baseline);
            let update: Vec<f64> = gradient.iter().map(|g| -step * g).collect();
            policy.moved_by(&update).entropy
        };
        // Half a unit of the last place of f32 in each of the weights.
        let tolerance = 1e-6;
        for baseline in [0.25, 1.0] {
            assert_close(after(baseline), after(0.0), tolerance, "entropy");
        }
    }
}
