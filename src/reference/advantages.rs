//! From rewards to baselines and advantages (docs/math.md §1; arXiv 2509.22611).

use super::quantile::{order_statistic, quantile, rank};
use crate::config::{AdvantageConfig, Baseline, Gate, Scale, Singleton};
use crate::error::{Error, Result};
use crate::groups::Groups;
use crate::metrics::GroupMetrics;

/// What [`advantages`] returns, one element for each response of the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct AdvantageOutput {
    /// What was subtracted from each response's reward.
    pub baseline: Vec<f64>,
    /// The advantages.
    pub advantage: Vec<f64>,
    /// Counts over groups and responses.
    pub metrics: GroupMetrics,
}

/// Group-relative advantages, A = (R − b) / (std + ε), in f64 from the rewards on.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `rewards` | \[num_responses\] | f32 | reward |
/// | `groups` | num_responses | | |
///
/// A reward that is not finite is left out of its group and counted; its advantage is 0. An empty
/// batch gives empty results. Serial, hence deterministic.
///
/// # Errors
/// [`Error::Invalid`] for a configuration out of range ([`AdvantageConfig::check`]) or rewards that
/// are not one for each response of `groups`.
///
/// ```
/// use qae::{AdvantageConfig, Groups, reference};
///
/// // One success in four at k = 0.4: the baseline is 0, so that only the success acts.
/// let groups = Groups::uniform(4, 4)?;
/// let out = reference::advantages(&[0.0, 1.0, 0.0, 0.0], &groups, &AdvantageConfig::default())?;
/// assert_eq!(out.baseline, [0.0; 4]);
/// assert!(out.advantage[1] > 0.0);
/// assert_eq!((out.metrics.positive, out.metrics.zero), (1, 3));
/// # Ok::<(), qae::Error>(())
/// ```
pub fn advantages(
    rewards: &[f32],
    groups: &Groups,
    config: &AdvantageConfig,
) -> Result<AdvantageOutput> {
    check(rewards, groups, config)?;
    let mut output = AdvantageOutput {
        baseline: vec![0.0; rewards.len()],
        advantage: vec![0.0; rewards.len()],
        metrics: GroupMetrics::default(),
    };
    for group in 0..groups.num_groups() {
        let members = groups.members(group);
        let group_rewards: Vec<f64> = members.clone().map(|i| f64::from(rewards[i])).collect();
        let mut baseline = vec![0.0; group_rewards.len()];
        let mut advantage = vec![0.0; group_rewards.len()];
        let counts = group_advantages(&group_rewards, config, &mut baseline, &mut advantage);
        add(&mut output.metrics, &counts);
        for (position, response) in members.enumerate() {
            output.baseline[response] = baseline[position];
            output.advantage[response] = advantage[position];
        }
    }
    Ok(output)
}

/// What [`advantages`] refuses.
pub(crate) fn check(rewards: &[f32], groups: &Groups, config: &AdvantageConfig) -> Result<()> {
    config.check()?;
    if rewards.len() == groups.num_responses() {
        return Ok(());
    }
    Err(Error::invalid(
        "rewards",
        format!("shape [{}], as the groups", groups.num_responses()),
        format!("[{}]", rewards.len()),
    ))
}

/// Adds the counts of other groups.
pub(crate) fn add(total: &mut GroupMetrics, part: &GroupMetrics) {
    total.num_groups += part.num_groups;
    total.hard_groups += part.hard_groups;
    total.easy_groups += part.easy_groups;
    total.zero_variance_groups += part.zero_variance_groups;
    total.positive += part.positive;
    total.zero += part.zero;
    total.negative += part.negative;
    total.nonfinite_rewards += part.nonfinite_rewards;
}

/// Baselines and advantages of one group, each as long as `rewards`, and its counts.
pub(crate) fn group_advantages(
    rewards: &[f64],
    config: &AdvantageConfig,
    baseline: &mut [f64],
    advantage: &mut [f64],
) -> GroupMetrics {
    let mut finite: Vec<f64> = rewards.iter().copied().filter(|r| r.is_finite()).collect();
    let mut metrics = GroupMetrics {
        num_groups: 1,
        nonfinite_rewards: (rewards.len() - finite.len()) as u64,
        ..GroupMetrics::default()
    };
    if finite.is_empty() {
        baseline.fill(0.0);
        advantage.fill(0.0);
        metrics.zero = rewards.len() as u64;
        return metrics;
    }
    let group = Group::new(&mut finite, config);
    metrics.hard_groups = u64::from(group.hard == Some(true));
    metrics.easy_groups = u64::from(group.hard == Some(false));
    metrics.zero_variance_groups = u64::from(group.n > 1 && group.all_equal);
    for (i, &reward) in rewards.iter().enumerate() {
        baseline[i] = group.baseline(reward);
        advantage[i] = if reward.is_finite() {
            group.advantage(reward)
        } else {
            0.0
        };
        metrics.positive += u64::from(advantage[i] > 0.0);
        metrics.zero += u64::from(advantage[i] == 0.0);
        metrics.negative += u64::from(advantage[i] < 0.0);
    }
    metrics
}

/// The statistics of the finite rewards of one group, of which there is at least one.
struct Group<'a> {
    config: &'a AdvantageConfig,
    n: usize,
    sum: f64,
    /// The k-quantile, where the baseline is one.
    quantile: f64,
    /// std + ε, or 1 without scaling.
    divisor: f64,
    all_equal: bool,
    /// Whether failures reach up to the k-quantile: p ≤ 1 − k. `None` without a k.
    hard: Option<bool>,
}

impl<'a> Group<'a> {
    fn new(rewards: &mut [f64], config: &'a AdvantageConfig) -> Self {
        let n = rewards.len();
        // Before the selection reorders the rewards, so that sums are taken in their order.
        let sum = rewards.iter().sum();
        let divisor = divisor(rewards, sum, config.scale);
        // On the rewards themselves: the standard deviation of equal rewards need not round to 0.
        let all_equal = rewards.iter().all(|&reward| reward == rewards[0]);
        // On ranks: `p <= 1.0 - k` is wrong for k = 0.8 at p = 1/5.
        let hard = config
            .k()
            .map(|k| order_statistic(rewards, rank(k, n)) <= config.rounded_threshold());
        let quantile = match config.baseline {
            Baseline::Quantile { k, interpolation } => quantile(rewards, k, interpolation),
            Baseline::Mean | Baseline::LeaveOneOut => 0.0,
        };
        Self {
            config,
            n,
            sum,
            quantile,
            divisor,
            all_equal,
            hard,
        }
    }

    /// b, of a response with this reward. The only response of a group has baseline 0.
    fn baseline(&self, reward: f64) -> f64 {
        let n = self.n as f64;
        match self.config.baseline {
            _ if self.n == 1 => 0.0,
            Baseline::Mean => self.sum / n,
            // A response that is left out leaves nothing more out.
            Baseline::LeaveOneOut if !reward.is_finite() => self.sum / n,
            Baseline::LeaveOneOut => (self.sum - reward) / (n - 1.0),
            Baseline::Quantile { .. } => self.quantile,
        }
    }

    /// A, of a response with this finite reward.
    fn advantage(&self, reward: f64) -> f64 {
        let nothing_to_learn = match self.config.singleton {
            _ if self.n > 1 => self.all_equal,
            Singleton::Reward => false,
            Singleton::Zero => true,
        };
        if nothing_to_learn {
            return 0.0;
        }
        // + 0.0 turns −0.0 into 0.0: an exact zero is one bit pattern.
        self.gated(reward) / self.divisor + 0.0
    }

    /// The numerator of A, after the gate.
    fn gated(&self, reward: f64) -> f64 {
        let distance = reward - self.baseline(reward);
        let hard = self.hard == Some(true);
        let success = reward > self.config.rounded_threshold();
        let (numerator, acts) = match self.config.gate {
            Gate::Off => (distance, true),
            Gate::TwoRegime => (distance, (distance > 0.0) == hard),
            // 2509.22611, Eq. 7
            Gate::PositiveMask => (if success { 1.0 } else { -1.0 }, !success || hard),
            // 2509.22611, Eq. 8
            Gate::NegativeMask => (if success { 1.0 } else { -1.0 }, success || !hard),
        };
        if acts { numerator } else { 0.0 }
    }
}

/// The unbiased standard deviation of at least two rewards.
#[cfg(feature = "analyze")]
pub(crate) fn standard_deviation(rewards: &[f64]) -> f64 {
    let scale = Scale::Std {
        unbiased: true,
        epsilon: 0.0,
    };
    divisor(rewards, rewards.iter().sum(), scale)
}

/// std + ε with the standard deviation about the mean, in two passes; 1 + ε for a single reward.
fn divisor(rewards: &[f64], sum: f64, scale: Scale) -> f64 {
    let Scale::Std { unbiased, epsilon } = scale else {
        return 1.0;
    };
    if rewards.len() == 1 {
        return 1.0 + epsilon;
    }
    let n = rewards.len() as f64;
    let mean = sum / n;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let degrees_of_freedom = if unbiased { n - 1.0 } else { n };
    (squares / degrees_of_freedom).sqrt() + epsilon
}
