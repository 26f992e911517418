//! Baselines and advantages: one group is computed by one thread.

use super::MIN_ITEMS_PER_TASK;
use crate::batch::Advantages;
use crate::config::AdvantageConfig;
use crate::error::Result;
use crate::groups::Groups;
use crate::metrics::GroupMetrics;
use crate::reference::{AdvantageOutput, add_groups, check_advantages, group_advantages};
use rayon::prelude::*;

/// [`crate::reference::advantages`] on several threads: the same results, bit for bit.
///
/// # Errors
/// Those of [`crate::reference::advantages`].
///
/// ```
/// use qae::{AdvantageConfig, Groups, cpu};
///
/// let groups = Groups::uniform(4, 4)?;
/// let out = cpu::advantages(&[0.0, 1.0, 0.0, 0.0], &groups, &AdvantageConfig::default())?;
/// assert_eq!((out.metrics.positive, out.metrics.zero), (1, 3));
/// # Ok::<(), qae::Error>(())
/// ```
pub fn advantages(
    rewards: &[f32],
    groups: &Groups,
    config: &AdvantageConfig,
) -> Result<AdvantageOutput> {
    check_advantages(rewards, groups, config)?;
    // Sorted by group, so that a group's results are one slice that one thread can own.
    let sorted: Vec<f64> = match groups.order() {
        None => rewards.iter().map(|&reward| f64::from(reward)).collect(),
        Some(order) => order
            .iter()
            .map(|&i| f64::from(rewards[i as usize]))
            .collect(),
    };
    let mut baseline = vec![0.0; rewards.len()];
    let mut advantage = vec![0.0; rewards.len()];
    let counts: Vec<GroupMetrics> = (slices(groups, &mut baseline).into_par_iter())
        .zip(slices(groups, &mut advantage))
        .zip(starts(groups))
        .with_min_len(MIN_ITEMS_PER_TASK)
        .map(|((baseline, advantage), start)| {
            let rewards = &sorted[start..start + baseline.len()];
            group_advantages(rewards, config, baseline, advantage)
        })
        .collect();
    let mut metrics = GroupMetrics::default();
    for part in &counts {
        add_groups(&mut metrics, part);
    }
    Ok(AdvantageOutput {
        baseline: in_response_order(groups, baseline),
        advantage: in_response_order(groups, advantage),
        metrics,
    })
}

/// Position of each group's first response in sorted order.
fn starts(groups: &Groups) -> Vec<usize> {
    (0..groups.num_groups())
        .scan(0, |next, group| {
            let start = *next;
            *next += groups.members(group).len();
            Some(start)
        })
        .collect()
}

/// The part of each group in a tensor sorted by group.
fn slices<'t>(groups: &Groups, mut tensor: &'t mut [f64]) -> Vec<&'t mut [f64]> {
    (0..groups.num_groups())
        .map(|group| {
            let (slice, rest) =
                std::mem::take(&mut tensor).split_at_mut(groups.members(group).len());
            tensor = rest;
            slice
        })
        .collect()
}

fn in_response_order(groups: &Groups, sorted: Vec<f64>) -> Vec<f64> {
    let Some(order) = groups.order() else {
        return sorted;
    };
    let mut values = vec![0.0; sorted.len()];
    for (&response, value) in order.iter().zip(sorted) {
        values[response as usize] = value;
    }
    values
}

/// The advantages of the global batch, where they come from rewards.
pub(super) fn from_rewards(
    advantages: Advantages<'_>,
    config: &AdvantageConfig,
) -> Result<Option<AdvantageOutput>> {
    match advantages {
        Advantages::FromRewards {
            rewards, groups, ..
        } => self::advantages(rewards, groups, config).map(Some),
        Advantages::PerResponse(_) | Advantages::PerToken(_) => Ok(None),
    }
}
