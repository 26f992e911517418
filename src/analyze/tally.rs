//! Sums over groups, which add up over parts of the data.

use super::methods::{Outcome, Reward, Verdict};
use std::collections::BTreeMap;

/// What a method does to many groups.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) hard: u64,
    pub(super) easy: u64,
    /// Groups that are hard where they were easy with the method before this one, or the reverse.
    pub(super) flips: u64,
    /// Groups with advantages of both signs.
    pub(super) both_signs: u64,
    pub(super) positive: u64,
    pub(super) zero: u64,
    pub(super) negative: u64,
    /// Length of the responses whose advantage is zero.
    pub(super) zero_length: u64,
    /// The same with their prompts.
    pub(super) zero_total_length: u64,
    pub(super) abs_advantage: f64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.hard += other.hard;
        self.easy += other.easy;
        self.flips += other.flips;
        self.both_signs += other.both_signs;
        self.positive += other.positive;
        self.zero += other.zero;
        self.negative += other.negative;
        self.zero_length += other.zero_length;
        self.zero_total_length += other.zero_total_length;
        self.abs_advantage += other.abs_advantage;
    }

    fn add_group(&mut self, verdict: &Verdict, group: &GroupView) {
        self.hard += u64::from(verdict.hard == Some(true));
        self.easy += u64::from(verdict.hard == Some(false));
        let (mut has_positive, mut has_negative) = (false, false);
        let rewards = group.rewards.iter().zip(&group.lengths);
        for (&advantage, (&(_, count), lengths)) in verdict.advantage.iter().zip(rewards) {
            let count = u64::from(count);
            if advantage > 0.0 {
                has_positive = true;
                self.positive += count;
            } else if advantage < 0.0 {
                has_negative = true;
                self.negative += count;
            } else {
                self.add_zero(count, lengths);
            }
            self.abs_advantage += advantage.abs() * count as f64;
        }
        self.both_signs += u64::from(has_positive && has_negative);
        self.add_zero(group.nonfinite.into(), &group.nonfinite_lengths);
    }

    fn add_zero(&mut self, count: u64, lengths: &Lengths) {
        self.zero += count;
        self.zero_length += lengths.responses;
        self.zero_total_length += lengths.responses + lengths.prompts;
    }
}

/// Summed over some responses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Lengths {
    pub(super) responses: u64,
    pub(super) prompts: u64,
}

impl Lengths {
    pub(super) fn add(&mut self, other: &Self) {
        self.responses += other.responses;
        self.prompts += other.prompts;
    }
}

/// Groups, and what each method does to them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Total {
    pub(super) sums: Sums,
    /// One for each method.
    pub(super) methods: Vec<Tally>,
}

/// Of some groups, whatever the method.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) responses: u64,
    pub(super) groups: u64,
    pub(super) finite_responses: u64,
    pub(super) successes: u64,
    pub(super) reward: f64,
    pub(super) lengths: Lengths,
    pub(super) zero_variance_groups: u64,
}

/// The groups of a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct StepTally {
    pub(super) sums: Sums,
    /// Number of groups by size and successes.
    pub(super) groups: BTreeMap<Kind, u64>,
    /// One for each K. There may be many steps, hence not for each method.
    pub(super) by_k: Vec<Tally>,
}

/// What the success histogram and the sizes of groups are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) size: u32,
    /// Responses with a finite reward.
    pub(super) finite: u32,
    pub(super) successes: u32,
}

impl Sums {
    pub(super) fn add_group(&mut self, group: &GroupView, has_zero_variance: bool) {
        self.responses += group.num_responses();
        self.groups += 1;
        self.finite_responses += group.num_finite();
        self.successes += group.successes;
        self.reward += group.reward_sum();
        self.zero_variance_groups += u64::from(has_zero_variance);
        for lengths in &group.lengths {
            self.lengths.add(lengths);
        }
        self.lengths.add(&group.nonfinite_lengths);
    }

    fn add(&mut self, other: &Self) {
        self.responses += other.responses;
        self.groups += other.groups;
        self.finite_responses += other.finite_responses;
        self.successes += other.successes;
        self.reward += other.reward;
        self.lengths.add(&other.lengths);
        self.zero_variance_groups += other.zero_variance_groups;
    }
}

/// A group as it is tallied: what responses with the same reward have in common.
#[derive(Debug, Default)]
pub(super) struct GroupView {
    /// Finite ones, ascending.
    pub(super) rewards: Vec<Reward>,
    /// Of the responses with each of them.
    pub(super) lengths: Vec<Lengths>,
    pub(super) nonfinite: u32,
    pub(super) nonfinite_lengths: Lengths,
    pub(super) successes: u64,
}

impl GroupView {
    pub(super) fn num_finite(&self) -> u64 {
        self.rewards
            .iter()
            .map(|&(_, count)| u64::from(count))
            .sum()
    }

    pub(super) fn num_responses(&self) -> u64 {
        self.num_finite() + u64::from(self.nonfinite)
    }

    pub(super) fn kind(&self) -> Kind {
        Kind {
            size: self.num_responses() as u32,
            finite: self.num_finite() as u32,
            successes: self.successes as u32,
        }
    }

    pub(super) fn reward_sum(&self) -> f64 {
        let rewards = self.rewards.iter();
        rewards
            .map(|&(reward, count)| f64::from(reward) * f64::from(count))
            .sum()
    }
}

impl Total {
    /// `plain` are the methods of the K, ascending.
    pub(super) fn add_group(&mut self, group: &GroupView, outcome: &Outcome, plain: &[usize]) {
        self.methods
            .resize(outcome.verdicts.len(), Tally::default());
        self.sums.add_group(group, outcome.has_zero_variance);
        for (tally, verdict) in self.methods.iter_mut().zip(&outcome.verdicts) {
            tally.add_group(verdict, group);
        }
        for pair in plain.windows(2) {
            self.methods[pair[1]].flips += outcome.flips(pair[0], pair[1]);
        }
    }

    fn add(&mut self, other: &Self) {
        self.sums.add(&other.sums);
        let num_methods = self.methods.len().max(other.methods.len());
        self.methods.resize(num_methods, Tally::default());
        for (tally, other) in self.methods.iter_mut().zip(&other.methods) {
            tally.add(other);
        }
    }
}

impl StepTally {
    pub(super) fn add_group(&mut self, group: &GroupView, outcome: &Outcome, plain: &[usize]) {
        self.by_k.resize(plain.len(), Tally::default());
        self.sums.add_group(group, outcome.has_zero_variance);
        *self.groups.entry(group.kind()).or_default() += 1;
        for (tally, &method) in self.by_k.iter_mut().zip(plain) {
            tally.add_group(&outcome.verdicts[method], group);
        }
        for (i, pair) in plain.windows(2).enumerate() {
            self.by_k[i + 1].flips += outcome.flips(pair[0], pair[1]);
        }
    }

    fn add(&mut self, other: &Self) {
        self.sums.add(&other.sums);
        for (kind, count) in &other.groups {
            *self.groups.entry(*kind).or_default() += count;
        }
        self.by_k
            .resize(self.by_k.len().max(other.by_k.len()), Tally::default());
        for (tally, other) in self.by_k.iter_mut().zip(&other.by_k) {
            tally.add(other);
        }
    }
}

/// Everything that is counted over the groups.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) total: Total,
    /// By index of the step.
    pub(super) steps: BTreeMap<u32, StepTally>,
    /// Number of groups by size and successes.
    pub(super) groups: BTreeMap<Kind, u64>,
    /// The distinct finite rewards, until there are more than two.
    pub(super) rewards: Vec<f32>,
    pub(super) smallest_reward: Option<f32>,
    pub(super) largest_reward: Option<f32>,
    /// Responses that are like an earlier one of their group.
    pub(super) duplicates: u64,
    /// What stands for the responses of each group that has several texts.
    pub(super) fingerprints: Vec<u64>,
    pub(super) split_over_files: u64,
    pub(super) split_over_steps: u64,
    pub(super) summaries: Vec<GroupSummary>,
}

/// A group, for those who want to see each.
#[derive(Debug, Clone)]
pub(super) struct GroupSummary {
    pub(super) step: u32,
    pub(super) size: u64,
    pub(super) mean: f64,
    pub(super) std: f64,
    pub(super) successes: u64,
    /// One for each K.
    pub(super) baselines: Vec<f64>,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.total.add(&other.total);
        for (step, tally) in other.steps {
            self.steps.entry(step).or_default().add(&tally);
        }
        for (kind, count) in other.groups {
            *self.groups.entry(kind).or_default() += count;
        }
        other.rewards.iter().for_each(|&reward| self.see(reward));
        for bound in [other.smallest_reward, other.largest_reward] {
            self.bound(bound);
        }
        self.duplicates += other.duplicates;
        self.fingerprints.extend(other.fingerprints);
        self.split_over_files += other.split_over_files;
        self.split_over_steps += other.split_over_steps;
        self.summaries.extend(other.summaries);
    }

    /// Takes note of a finite reward.
    pub(super) fn see(&mut self, reward: f32) {
        if self.rewards.len() <= 2 && !self.rewards.contains(&reward) {
            self.rewards.push(reward);
        }
        self.bound(Some(reward));
    }

    fn bound(&mut self, reward: Option<f32>) {
        let Some(reward) = reward else {
            return;
        };
        self.smallest_reward = Some(self.smallest_reward.map_or(reward, |r| r.min(reward)));
        self.largest_reward = Some(self.largest_reward.map_or(reward, |r| r.max(reward)));
    }
}
