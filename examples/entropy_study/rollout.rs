//! Sampling a batch of responses.

use crate::policy::{POSITIONS, Policy, TokenDistribution};
use crate::random::Random;
use crate::setting::{GROUP_SIZE, Setting};
use crate::task::Task;
use std::ops::Range;

/// Groups of responses to the queries that were kept, back to back.
#[derive(Default)]
pub struct Rollout {
    /// [num_groups]
    pub query: Vec<usize>,
    /// [num_responses]
    pub reward: Vec<f32>,
    /// [num_responses + 1], in tokens.
    pub offset: Vec<i64>,
    /// [num_tokens]
    pub token: Vec<u8>,
    /// [num_tokens], in nats.
    pub old_log_prob: Vec<f32>,
    /// Mean of the policy over all sampled tokens, those of dropped groups too, in nats.
    pub entropy: f64,
}

impl Rollout {
    /// Samples queries in any order, each at most once, until a batch of them has responses of both
    /// outcomes; drops the others (DAPO's dynamic sampling).
    pub fn sample(policy: &Policy, task: &Task, setting: &Setting, random: &mut Random) -> Self {
        let mut rollout = Self {
            offset: vec![0],
            ..Self::default()
        };
        let (mut entropy, mut tokens) = (0.0, 0);
        for query in random.permutation(policy.num_queries()) {
            if rollout.query.len() == setting.batch {
                break;
            }
            let group_entropy = rollout.sample_group(policy, task, query, random);
            let responses = rollout.reward.len() - GROUP_SIZE..rollout.reward.len();
            entropy += group_entropy;
            tokens += rollout.slots(&responses).len();
            let rewards = &rollout.reward[responses.clone()];
            if rewards.iter().all(|&reward| reward == rewards[0]) {
                rollout.drop_from(responses.start);
            } else {
                rollout.query.push(query);
            }
        }
        rollout.entropy = entropy / tokens as f64;
        rollout
    }

    /// Adds a group and returns the sum of its tokens' entropies.
    fn sample_group(
        &mut self,
        policy: &Policy,
        task: &Task,
        query: usize,
        random: &mut Random,
    ) -> f64 {
        let distributions = distributions(policy, query);
        let mut entropy = 0.0;
        for _ in 0..GROUP_SIZE {
            let start = self.token.len();
            for distribution in &distributions[..task.lengths.draw(random)] {
                let token = distribution.token(random.unit());
                let log_prob = distribution.log_probability[usize::from(token)];
                self.token.push(token);
                self.old_log_prob.push(log_prob as f32);
                entropy += distribution.entropy;
            }
            self.reward.push(task.reward(&self.token[start..], random));
            self.offset.push(self.token.len() as i64);
        }
        entropy
    }

    fn drop_from(&mut self, response: usize) {
        self.reward.truncate(response);
        self.offset.truncate(response + 1);
        self.token.truncate(self.offset[response] as usize);
        self.old_log_prob.truncate(self.offset[response] as usize);
    }

    /// The tokens of some responses.
    pub fn slots(&self, responses: &Range<usize>) -> Range<usize> {
        self.offset[responses.start] as usize..self.offset[responses.end] as usize
    }
}

/// Of every position of a query.
pub fn distributions(policy: &Policy, query: usize) -> [TokenDistribution; POSITIONS] {
    std::array::from_fn(|position| policy.distribution(query, position))
}
