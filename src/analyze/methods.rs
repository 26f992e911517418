//! The methods that are compared, and what they do to a group.
//!
//! All of it is the reference's own code; groups with the same rewards are computed once.

use crate::config::{AdvantageConfig, Baseline, Gate, Interpolation};
use crate::reference::{self, group_advantages};
use std::collections::HashMap;

/// Groups that are remembered; beyond them rewards are hardly ever the same.
const MAX_REMEMBERED: usize = 256;

/// A list of configurations, by index.
#[derive(Debug, Clone)]
pub(super) struct Methods {
    configs: Vec<AdvantageConfig>,
    /// Those that are compared with their neighbors: one for each K.
    pub(super) plain: Vec<usize>,
}

/// The three configurations of a K.
pub(super) const PER_K: usize = 3;

impl Methods {
    /// The mean, then for each K: as asked for, with the two-regime gate, and with linear
    /// interpolation.
    pub(super) fn of(base: AdvantageConfig, k: &[f64], interpolation: Interpolation) -> Self {
        let mean = AdvantageConfig {
            baseline: Baseline::Mean,
            gate: Gate::Off,
            ..base
        };
        let quantile = |k, interpolation, gate| AdvantageConfig {
            gate,
            ..quantile(base, k, interpolation)
        };
        let mut configs = vec![mean];
        for &k in k {
            configs.push(quantile(k, interpolation, Gate::Off));
            configs.push(quantile(k, interpolation, Gate::TwoRegime));
            configs.push(quantile(k, Interpolation::Linear, Gate::Off));
        }
        Self {
            configs,
            plain: (0..k.len()).map(Self::plain).collect(),
        }
    }

    /// Just the K, in this order.
    pub(super) fn only(base: AdvantageConfig, k: &[f64], interpolation: Interpolation) -> Self {
        let k = k.iter();
        let configs: Vec<_> = k.map(|&k| quantile(base, k, interpolation)).collect();
        Self {
            plain: (0..configs.len()).collect(),
            configs,
        }
    }

    /// The same with another K in the place of the first.
    pub(super) fn with_first_k(mut self, k: f64) -> Self {
        if let Some(&first) = self.plain.first()
            && let Baseline::Quantile { k: first, .. } = &mut self.configs[first].baseline
        {
            *first = k;
        }
        self
    }

    pub(super) const MEAN: usize = 0;

    pub(super) fn plain(k: usize) -> usize {
        1 + PER_K * k
    }

    pub(super) fn gated(k: usize) -> usize {
        2 + PER_K * k
    }

    pub(super) fn linear(k: usize) -> usize {
        3 + PER_K * k
    }
}

fn quantile(base: AdvantageConfig, k: f64, interpolation: Interpolation) -> AdvantageConfig {
    AdvantageConfig {
        baseline: Baseline::Quantile { k, interpolation },
        ..base
    }
}

/// What a method does to a group.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    /// `None` without a K, or without a finite reward.
    pub(super) hard: Option<bool>,
    pub(super) baseline: f64,
    /// Of a response with each of the group's distinct finite rewards.
    pub(super) advantage: Vec<f64>,
}

/// What the methods do to groups with certain rewards.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) has_zero_variance: bool,
    /// One for each method.
    pub(super) verdicts: Vec<Verdict>,
}

impl Outcome {
    /// 1 if the group changes its regime from one method to the other, else 0.
    pub(super) fn flips(&self, from: usize, to: usize) -> u64 {
        u64::from(self.verdicts[from].hard != self.verdicts[to].hard)
    }
}

/// A reward, and how many responses of the group have it.
pub(super) type Reward = (f32, u32);

/// Computes outcomes, and remembers them.
pub(super) struct Outcomes {
    methods: Methods,
    known: HashMap<Box<[(u32, u32)]>, Outcome>,
    latest: Option<Outcome>,
}

impl Outcomes {
    pub(super) fn new(methods: Methods) -> Self {
        Self {
            methods,
            known: HashMap::new(),
            latest: None,
        }
    }

    /// The outcome of a group whose finite rewards are these, ascending.
    pub(super) fn of(&mut self, rewards: &[Reward]) -> &Outcome {
        let key: Vec<_> = rewards.iter().map(|&(r, n)| (r.to_bits(), n)).collect();
        if self.known.len() >= MAX_REMEMBERED && !self.known.contains_key(&key[..]) {
            return self.latest.insert(outcome(&self.methods, rewards));
        }
        let known = self.known.entry(key.into_boxed_slice());
        known.or_insert_with(|| outcome(&self.methods, rewards))
    }
}

fn outcome(methods: &Methods, rewards: &[Reward]) -> Outcome {
    let mut all = vec![];
    let mut firsts = vec![];
    for &(reward, count) in rewards {
        firsts.push(all.len());
        all.extend(std::iter::repeat_n(f64::from(reward), count as usize));
    }
    let (mut baseline, mut advantage) = (vec![0.0; all.len()], vec![0.0; all.len()]);
    let mut has_zero_variance = false;
    let verdict = |config: &AdvantageConfig| {
        let counts = group_advantages(&all, config, &mut baseline, &mut advantage);
        has_zero_variance = counts.zero_variance_groups == 1;
        Verdict {
            hard: match (counts.hard_groups, counts.easy_groups) {
                (0, 0) => None,
                (hard, _) => Some(hard == 1),
            },
            baseline: baseline.first().copied().unwrap_or_default(),
            advantage: firsts.iter().map(|&first| advantage[first]).collect(),
        }
    };
    let verdicts = methods.configs.iter().map(verdict).collect();
    Outcome {
        has_zero_variance,
        verdicts,
    }
}

/// The unbiased standard deviation, exactly 0 where all rewards are equal.
pub(super) fn standard_deviation(rewards: &[Reward]) -> f64 {
    if rewards.len() < 2 {
        return 0.0;
    }
    let all = |&(reward, count): &Reward| std::iter::repeat_n(f64::from(reward), count as usize);
    reference::standard_deviation(&rewards.iter().flat_map(all).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_outcomes_are_those_of_the_rewards() {
        let base = AdvantageConfig::default();
        let methods = Methods::of(base, &[0.4, 0.8], Interpolation::InvertedCdf);
        let mut outcomes = Outcomes::new(methods.clone());
        // Far more groups than are remembered, each twice.
        for successes in (1..400).chain(1..400) {
            let rewards = [(0.0, 400 - successes), (1.0, successes)];
            let expected = outcome(&methods, &rewards);
            let found = outcomes.of(&rewards);
            assert_eq!(found.has_zero_variance, expected.has_zero_variance);
            for (found, expected) in found.verdicts.iter().zip(&expected.verdicts) {
                assert_eq!(found.hard, expected.hard);
                assert_eq!(found.advantage, expected.advantage);
            }
            let hard = f64::from(400 - successes) / 400.0 >= 0.4;
            assert_eq!(found.verdicts[Methods::plain(0)].hard, Some(hard));
        }
    }

    #[test]
    fn the_standard_deviation_is_unbiased() {
        assert_eq!(
            standard_deviation(&[(0.0, 4), (1.0, 12)]),
            (3.0_f64 / 15.0).sqrt()
        );
        assert_eq!(standard_deviation(&[(0.1, 7)]), 0.0);
        assert_eq!(standard_deviation(&[]), 0.0);
    }
}
