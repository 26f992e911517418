//! Whether the study simulates what it says.

use crate::method::Method;
use crate::optimizer::{Adam, Optimizer};
use crate::policy::{Policy, TokenDistribution, VOCABULARY};
use crate::random::Random;
use crate::rollout::Rollout;
use crate::setting::{GROUP_SIZE, NUM_QUERIES, Setting};
use crate::table;
use crate::task::{Lengths, Task};
use crate::training::{Run, gradient, train};
use qae::{
    Advantages, Groups, Layout, LogProbsInput, Logits, LogitsBatch, LogitsOutput, Tensor, reference,
};

/// Each logit somewhere else.
fn trained_policy(task: &Task, random: &mut Random) -> Policy {
    let mut policy = Policy::new(NUM_QUERIES, task.usual_logit);
    for logit in &mut policy.logits {
        *logit += random.unit() as f32 - 0.5;
    }
    policy
}

fn sample(setting: &Setting, seed: u64) -> (Policy, Rollout) {
    let task = Task::new(setting.lengths);
    let mut random = Random(seed);
    let policy = trained_policy(&task, &mut random);
    let rollout = Rollout::sample(&policy, &task, setting, &mut random);
    (policy, rollout)
}

#[test]
fn untrained_policies_start_where_the_design_says() {
    for lengths in [Lengths::Random, Lengths::Fixed] {
        let task = Task::new(lengths);
        let policy = Policy::new(3, task.usual_logit);
        assert!((task.entropy(&policy) - 0.45).abs() < 1e-6);
        assert!((task.success(&policy) - 0.39).abs() < 1e-6);
    }
}

#[test]
fn a_distribution_is_that_of_the_crate() {
    let logits = [0.5, -1.0, 3.0, 0.0, -30.0, 20.0, 19.7, -40.0];
    let rows: Vec<f32> = logits.repeat(VOCABULARY);
    let found = TokenDistribution::of(&logits);
    let expected = reference::log_probs_from_logits(&LogProbsInput {
        logits: Logits::contiguous(Tensor::F32(&rows), VOCABULARY),
        token_id: &[0, 1, 2, 3, 4, 5, 6, 7],
        mask: None,
        temperature: 1.0,
    })
    .unwrap();
    assert!((found.entropy - expected.entropy[0]).abs() < 1e-14);
    for (found, expected) in found.log_probability.iter().zip(&expected.log_prob) {
        assert!((found - expected).abs() < 1e-13);
    }
    // The cumulative sums, from either side.
    assert_eq!(found.token(0.0), 0);
    assert_eq!(found.token(0.5), 5);
    assert_eq!(found.token(1.0 - 1e-12), 6);
}

#[test]
fn exact_rates_are_those_of_samples() {
    let task = Task::new(Lengths::Random);
    let mut random = Random(3);
    let policy = trained_policy(&task, &mut random);
    let (mut successes, mut responses) = (0.0, 0.0);
    for _ in 0..200 {
        let distributions = crate::rollout::distributions(&policy, random.below(NUM_QUERIES));
        for _ in 0..100 {
            let tokens: Vec<u8> = distributions[..task.lengths.draw(&mut random)]
                .iter()
                .map(|distribution| distribution.token(random.unit()))
                .collect();
            successes += f64::from(task.reward(&tokens, &mut random));
            responses += 1.0;
        }
    }
    let exact = task.success(&policy);
    // Four standard deviations of queries that differ, and of responses that do.
    let deviation = (exact * (1.0 - exact) / responses + 0.02 / 200.0).sqrt();
    assert!((successes / responses - exact).abs() < 4.0 * deviation);
}

#[test]
fn rollouts_keep_whole_groups_with_both_outcomes() {
    for setting in Setting::all() {
        let (policy, rollout) = sample(&setting, 4);
        let mut queries = rollout.query.clone();
        queries.sort_unstable();
        queries.dedup();
        assert_eq!(queries.len(), rollout.query.len());
        assert!(queries.len() <= setting.batch && queries.len() > 32);
        for (group, rewards) in rollout.reward.chunks_exact(GROUP_SIZE).enumerate() {
            assert!(rewards.contains(&0.0) && rewards.contains(&1.0), "{group}");
        }
        assert_eq!(rollout.offset.len(), rollout.reward.len() + 1);
        assert_eq!(rollout.reward.len(), rollout.query.len() * GROUP_SIZE);
        let last = rollout.slots(&(rollout.reward.len() - 1..rollout.reward.len()));
        assert_eq!(last.end, rollout.token.len());
        let position = last.len() - 1;
        let query = rollout.query[rollout.query.len() - 1];
        let token = usize::from(rollout.token[last.end - 1]);
        let log_prob = policy.distribution(query, position).log_probability[token];
        assert_eq!(rollout.old_log_prob[last.end - 1], log_prob as f32);
    }
}

#[test]
fn failures_are_longer_exactly_where_lengths_differ() {
    for (setting, is_linked) in Setting::all().iter().zip([true, false, true]) {
        let (mut tokens, mut responses) = ([0.0; 2], [0.0; 2]);
        for seed in 0..8 {
            let (_, rollout) = sample(setting, seed);
            for (response, reward) in rollout.reward.iter().enumerate() {
                let outcome = *reward as usize;
                tokens[outcome] += rollout.slots(&(response..response + 1)).len() as f64;
                responses[outcome] += 1.0;
            }
        }
        let excess = tokens[0] / responses[0] - tokens[1] / responses[1];
        assert_eq!(excess > 5.0, is_linked, "{}: {excess}", setting.name);
        assert_eq!(excess == 0.0, !is_linked, "{}: {excess}", setting.name);
    }
}

/// The same gradient from logits, of a whole rollout.
fn from_logits(policy: &Policy, rollout: &Rollout, config: &qae::Config) -> LogitsOutput {
    let mut logits = vec![];
    for response in 0..rollout.reward.len() {
        let query = rollout.query[response / GROUP_SIZE];
        let start = Policy::row_start(query, 0);
        let length = rollout.slots(&(response..response + 1)).len();
        logits.extend_from_slice(&policy.logits[start..start + length * VOCABULARY]);
    }
    let token_id: Vec<i32> = rollout.token.iter().map(|&token| token.into()).collect();
    let batch = LogitsBatch {
        layout: Layout::Packed {
            offsets: &rollout.offset,
        }
        .into(),
        mask: None,
        logits: Logits::contiguous(Tensor::F32(&logits), VOCABULARY),
        token_id: &token_id,
        old_log_prob: Some(Tensor::F32(&rollout.old_log_prob)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::FromRewards {
            rewards: &rollout.reward,
            groups: &Groups::uniform(rollout.reward.len(), GROUP_SIZE).unwrap(),
            response_index: None,
        },
    };
    reference::loss_from_logits(&batch, config).unwrap()
}

#[test]
fn the_gradient_is_that_of_the_crate_from_logits() {
    let setting = &Setting::all()[0];
    for method in Method::all(&[0.1]) {
        let config = method.config(None);
        let (mut policy, rollout) = sample(setting, 5);
        let mut random = Random(6);
        // Off policy, on both sides of the clip.
        for logit in &mut policy.logits {
            *logit += 0.6 * (random.unit() as f32 - 0.5);
        }
        let (found, _) = gradient(&policy, &rollout, 0..rollout.query.len(), &config).unwrap();
        let rows = from_logits(&policy, &rollout, &config).d_logits;
        let mut expected = vec![0.0; found.len()];
        for response in 0..rollout.reward.len() {
            let start = Policy::row_start(rollout.query[response / GROUP_SIZE], 0);
            let slots = rollout.slots(&(response..response + 1));
            let rows = &rows[slots.start * VOCABULARY..slots.end * VOCABULARY];
            for (sum, row) in expected[start..].iter_mut().zip(rows) {
                *sum += row;
            }
        }
        let largest = expected.iter().fold(0.0, |max, g| f64::max(max, g.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-5 * largest, "{}: {error}", method.name);
        }
        assert!(largest > 0.0);
    }
}

#[test]
fn adam_follows_its_definition() {
    let gradients = [[0.3_f32, -2.0], [0.1, 0.0], [-0.4, 1.0]];
    let mut optimizer = Optimizer::Adam(Adam::new(0.01, 2));
    let mut found = [1.0_f32, -1.0];
    let mut expected = [1.0_f64, -1.0];
    let mut moments = [[0.0_f64; 2]; 2];
    for (step, gradient) in gradients.iter().enumerate() {
        optimizer.step(&mut found, gradient);
        for i in 0..2 {
            let g = f64::from(gradient[i]);
            moments[0][i] = 0.9 * moments[0][i] + 0.1 * g;
            moments[1][i] = 0.999 * moments[1][i] + 0.001 * g * g;
            let mean = moments[0][i] / (1.0 - 0.9_f64.powi(step as i32 + 1));
            let square = moments[1][i] / (1.0 - 0.999_f64.powi(step as i32 + 1));
            expected[i] -= 0.01 * mean / (square.sqrt() + 1e-8);
            assert!((f64::from(found[i]) - expected[i]).abs() < 1e-6);
        }
    }
}

#[test]
fn a_seed_is_a_run() {
    let setting = &Setting::all()[0];
    let automatic = &Method::all(&[0.1])[8];
    let run = |seed| train(setting, automatic, 3, seed).unwrap();
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!((&first.entropy, &first.k), (&again.entropy, &again.k));
    assert_ne!(first.entropy, other.entropy);
    assert_eq!((first.entropy.len(), first.k.len()), (4, 3));
    // The first measurement sets the target, 0.8 of it.
    let target = first.target_entropy.unwrap();
    assert!((target - 0.8 * 0.45).abs() < 0.01, "{target}");
}

#[test]
fn every_gain_is_a_method_and_has_its_line() {
    let names: Vec<_> = Method::all(&[0.1, 0.5])
        .into_iter()
        .map(|m| m.name)
        .collect();
    assert_eq!(names[8..], ["automatic K", "automatic K, gain 0.5"]);
    let run = |entropy: [f64; 5], k: [f64; 4], target_entropy| Run {
        entropy: entropy.to_vec(),
        success: vec![],
        k: k.to_vec(),
        target_entropy,
        zero_share: None,
    };
    let runs = |target| {
        [
            run([0.9, 0.8, 0.4, 0.3, 0.35], [0.1, 0.6, 0.25, 0.3], target),
            run([0.9, 0.8, 0.5, 0.3, 0.35], [0.1, 0.6, 0.25, 0.45], target),
        ]
    };
    assert_eq!(
        table::swing("it", &runs(Some(0.36))).unwrap(),
        "it, second half: K 0.25 to 0.45, entropy 0.30 to 0.50 about 0.36 nats\n"
    );
    assert!(table::swing("it", &runs(None)).is_none());
}
