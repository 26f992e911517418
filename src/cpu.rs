//! The reference on several threads: the same f64 functions per group and per response, run by
//! rayon's current thread pool.
//!
//! Every group, every response and every row of logits is computed by one thread, and results are
//! added in row order, so that the bits depend neither on the number of threads nor on their
//! schedule: they are those of [`crate::reference`].

mod logits;

pub use self::logits::{log_probs_from_logits, log_probs_from_logits_backward, loss_from_logits};

use crate::backend::{Backend, LogProbsOutput, LogitsOutput, LossOutput, Run};
use crate::batch::{Advantages, ImportanceWeight, LogProbsInput, LogitsBatch, TokenBatch};
use crate::config::{AdvantageConfig, Config, Gradient, MetricsScope, Normalizer};
use crate::error::{Error, Result};
use crate::groups::Groups;
use crate::metrics::{GroupMetrics, Metrics};
use crate::reference::{
    AdvantageOutput, Call, Tokens, add_groups, check_advantages, group_advantages, normalizer,
    response, rows_of, sum,
};
use rayon::prelude::*;
use std::time::Instant;

/// Rows or groups that one task takes at least: a task costs about a microsecond.
const MIN_ITEMS_PER_TASK: usize = 16;

/// Runs operations on the CPU, in f64, on rayon's current thread pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuBackend;

impl Backend for CpuBackend {
    fn name(&self) -> String {
        format!("cpu (f64, {} threads)", rayon::current_num_threads())
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
        batch.check(config)?;
        let start = Instant::now();
        let mut d_log_prob = vec![0.0; batch.log_prob.len()];
        let parts = run(batch, config, &mut d_log_prob)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Run {
            bytes_moved: bytes_moved(batch, config, &parts),
            output: parts.into_output(d_log_prob),
            seconds: Some(seconds),
        })
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        logits::measured_loss(batch, config)
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        logits::measured_forward(input)
    }

    fn log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        logits::measured_backward(input, d_log_prob, d_entropy)
    }
}

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

/// [`crate::reference::loss_from_log_probs`] on several threads: the same results, bit for bit.
///
/// # Errors
/// Those of [`TokenBatch::check`]; nothing is computed then.
///
/// ```
/// use qae::{Advantages, Config, Layout, Tensor, TokenBatch, cpu};
///
/// let log_prob = [-1.0, -2.0, -3.0];
/// let batch = TokenBatch {
///     layout: Layout::Packed { offsets: &[0, 1, 3] },
///     mask: None,
///     log_prob: Tensor::F32(&log_prob),
///     old_log_prob: Some(Tensor::F32(&log_prob)),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: Advantages::PerResponse(&[3.0, 0.0]),
/// };
/// let out = cpu::loss_from_log_probs(&batch, &Config::default())?;
/// assert_eq!(out.d_log_prob, [-1.0, 0.0, 0.0]);
/// assert_eq!(out.active_rows, [0]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_log_probs(batch: &TokenBatch<'_>, config: &Config) -> Result<LossOutput> {
    batch.check(config)?;
    let mut d_log_prob = vec![0.0; batch.log_prob.len()];
    Ok(run(batch, config, &mut d_log_prob)?.into_output(d_log_prob))
}

/// As [`loss_from_log_probs`], with the gradient written to the caller's `d_log_prob`, laid out as
/// `log_prob`. Gaps between rows are not written, nor, under [`Gradient::Untouched`], the
/// rows that do not act.
///
/// # Errors
/// Those of [`TokenBatch::check`], and [`Error::Invalid`] for a `d_log_prob` whose length is not
/// that of `log_prob`; nothing is written then.
pub fn loss_from_log_probs_into(
    batch: &TokenBatch<'_>,
    config: &Config,
    d_log_prob: &mut [f64],
) -> Result<Metrics> {
    batch.check(config)?;
    if d_log_prob.len() != batch.log_prob.len() {
        return Err(Error::invalid(
            "d_log_prob",
            format!("{} elements, as log_prob", batch.log_prob.len()),
            d_log_prob.len(),
        ));
    }
    Ok(run(batch, config, d_log_prob)?.metrics)
}

/// A [`LossOutput`] without the gradient.
struct Parts {
    metrics: Metrics,
    from_rewards: Option<AdvantageOutput>,
    active_rows: Vec<u32>,
}

impl Parts {
    fn into_output(self, d_log_prob: Vec<f64>) -> LossOutput {
        let (baseline, advantage) = self
            .from_rewards
            .map(|out| (out.baseline, out.advantage))
            .unzip();
        LossOutput {
            metrics: self.metrics,
            d_log_prob,
            baseline,
            advantage,
            active_rows: self.active_rows,
        }
    }
}

/// Computes a batch that passed its check.
fn run(batch: &TokenBatch<'_>, config: &Config, d_log_prob: &mut [f64]) -> Result<Parts> {
    let from_rewards = match batch.advantages {
        Advantages::FromRewards {
            rewards, groups, ..
        } => Some(advantages(rewards, groups, &config.advantage)?),
        Advantages::PerResponse(_) | Advantages::PerToken(_) => None,
    };
    let tokens = Tokens::from(batch);
    let counts = || {
        (0..batch.layout.num_rows())
            .into_par_iter()
            .with_min_len(MIN_ITEMS_PER_TASK)
            .map(|row| tokens.count_valid(row))
            .collect()
    };
    let call = Call {
        tokens,
        config,
        global_advantage: from_rewards.as_ref().map(|out| &out.advantage[..]),
        normalizer: normalizer(config, counts),
    };
    let rows: Vec<Metrics> = rows_of(batch.layout, d_log_prob)
        .into_par_iter()
        .enumerate()
        .map(|(row, gradient)| response(&call, row, gradient, &mut []))
        .collect();
    let (mut metrics, active_rows) = sum(&rows, config);
    if let Some(out) = &from_rewards {
        add_groups(&mut metrics.groups, &out.metrics);
    }
    Ok(Parts {
        metrics,
        from_rewards,
        active_rows,
    })
}

/// Bytes of the tensors that a run reads and writes, each counted once a pass. A masked slot of a
/// row that is read counts: it shares its cache line with its neighbors.
fn bytes_moved(batch: &TokenBatch<'_>, config: &Config, parts: &Parts) -> u64 {
    let call = Call {
        tokens: batch.into(),
        config,
        global_advantage: parts.from_rewards.as_ref().map(|out| &out.advantage[..]),
        normalizer: 1.0,
    };
    let rewards = parts
        .from_rewards
        .as_ref()
        .map_or(0, |out| out.advantage.len() * (4 + 8 + 8));
    let rows = (0..batch.layout.num_rows()).map(|row| row_bytes(batch, &call, row));
    (rewards + rows.sum::<usize>()) as u64
}

fn row_bytes(batch: &TokenBatch<'_>, call: &Call<'_>, row: usize) -> usize {
    let config = call.config;
    let slots = batch.layout.row(row);
    let mask = usize::from(batch.mask.is_some());
    let acts = call.acts(row);
    let active = call.advantage(row) != Some(0.0);
    let mut per_slot = 0;
    if config.normalizer == Normalizer::FromBatch {
        per_slot += mask;
    }
    if acts || config.metrics_scope == MetricsScope::All {
        let tensors = 1 + usize::from(batch.old_log_prob.is_some());
        per_slot += mask + tensors * batch.log_prob.dtype().size();
    }
    if config.kl.is_some() {
        per_slot += batch.log_prob.dtype().size();
    }
    if matches!(batch.advantages, Advantages::PerToken(_)) {
        per_slot += 4;
    }
    if active && matches!(batch.importance_weight, Some(ImportanceWeight::PerToken(_))) {
        per_slot += 4;
    }
    let written = acts || config.gradient == Gradient::ZeroFill;
    slots.length * per_slot + if written { slots.num_slots * 8 } else { 0 }
}
