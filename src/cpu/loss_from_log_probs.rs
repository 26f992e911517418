//! From log-probs to the loss and its gradient: one response is computed by one thread.

use super::MIN_ITEMS_PER_TASK;
use super::advantages::from_rewards;
use super::block::Block;
use super::response::response;
use crate::backend::{LossOutput, Run};
use crate::batch::{
    Advantages, Element, ImportanceWeight, Layout, RowsMut, TokenBatch, for_elements,
};
use crate::config::{Config, Gradient, MetricsScope, Normalizer};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::reference::{AdvantageOutput, Call, Tokens, add_groups, normalizer, rows_of, sum};
use rayon::prelude::*;
use std::time::Instant;

/// A [`LossOutput`] without the gradient.
#[derive(Debug, Clone)]
pub struct LossResults {
    /// Loss, counts and sums.
    pub metrics: Metrics,
    /// The baseline of each response of the global batch; `None` where advantages were given.
    pub baseline: Option<Vec<f64>>,
    /// The advantage of each response of the global batch; `None` where advantages were given.
    pub advantage: Option<Vec<f64>>,
    /// The local rows with a non-zero advantage and at least one valid token, ascending.
    pub active_rows: Vec<u32>,
}

impl LossResults {
    /// Of the rows' metrics, and of the advantages where they come from rewards.
    pub(super) fn new(
        rows: &[Metrics],
        config: &Config,
        from_rewards: Option<AdvantageOutput>,
    ) -> Self {
        let (mut metrics, active_rows) = sum(rows, config);
        if let Some(out) = &from_rewards {
            add_groups(&mut metrics.groups, &out.metrics);
        }
        let (baseline, advantage) = from_rewards
            .map(|out| (out.baseline, out.advantage))
            .unzip();
        Self {
            metrics,
            baseline,
            advantage,
            active_rows,
        }
    }

    pub(super) fn into_output(self, d_log_prob: Vec<f64>) -> LossOutput {
        LossOutput {
            metrics: self.metrics,
            d_log_prob,
            baseline: self.baseline,
            advantage: self.advantage,
            active_rows: self.active_rows,
        }
    }
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
    compute(batch, config)
}

/// As [`loss_from_log_probs`], with the gradient written to the caller's memory, rounded once to
/// its dtype. Gaps between rows are not written, nor, under [`Gradient::Untouched`], the rows that
/// do not act.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `d_log_prob` | one for each slot, rows `row_stride` apart | f64, f32, bf16, f16 | loss / nat |
///
/// # Errors
/// Those of [`TokenBatch::check`], and [`crate::Error::Invalid`] for a `d_log_prob` that does not
/// fit the layout; nothing is written then.
///
/// ```
/// use qae::{Advantages, Config, Layout, RowsMut, Tensor, TensorMut, TokenBatch, cpu};
///
/// let batch = TokenBatch {
///     layout: Layout::padded(2, 1),
///     mask: None,
///     log_prob: Tensor::F32(&[-1.0, -2.0]),
///     old_log_prob: Some(Tensor::F32(&[-1.0, -2.0])),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: Advantages::PerResponse(&[1.0, -3.0]),
/// };
/// let mut gradient = [7.0; 3];
/// let d_log_prob = RowsMut { values: TensorMut::F32(&mut gradient), row_stride: Some(2) };
/// let results = cpu::loss_from_log_probs_into(&batch, &Config::default(), d_log_prob)?;
/// assert_eq!(results.metrics.loss, 1.0);
/// assert_eq!(gradient, [-0.5, 7.0, 1.5]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_log_probs_into(
    batch: &TokenBatch<'_>,
    config: &Config,
    d_log_prob: RowsMut<'_>,
) -> Result<LossResults> {
    batch.check(config)?;
    let layout = d_log_prob.layout("d_log_prob", batch.layout)?;
    for_elements!(TensorMut: d_log_prob.values, values => run(batch, config, layout, values))
}

/// Of a batch that passed its check.
fn compute(batch: &TokenBatch<'_>, config: &Config) -> Result<LossOutput> {
    let mut d_log_prob = vec![0.0; batch.log_prob.len()];
    let results = run(batch, config, batch.layout, &mut d_log_prob)?;
    Ok(results.into_output(d_log_prob))
}

/// [`loss_from_log_probs`], measured.
pub(super) fn measured(batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
    batch.check(config)?;
    let start = Instant::now();
    let output = compute(batch, config)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Run {
        bytes_moved: bytes_moved(batch, config, &output),
        output,
        seconds: Some(seconds),
    })
}

/// Computes a batch that passed its check, with its gradient laid out in `layout`.
fn run<D: Element>(
    batch: &TokenBatch<'_>,
    config: &Config,
    layout: Layout<'_>,
    d_log_prob: &mut [D],
) -> Result<LossResults> {
    let from_rewards = from_rewards(batch.advantages, &config.advantage)?;
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
    let rows: Vec<Metrics> = rows_of(layout, d_log_prob)
        .into_par_iter()
        .enumerate()
        .map_init(Block::default, |block, (row, gradient)| {
            response(&call, row, gradient, block)
        })
        .collect();
    Ok(LossResults::new(&rows, config, from_rewards))
}

/// Bytes of the tensors that a run reads and writes, each counted once a pass. A masked slot of a
/// row that is read counts: it shares its cache line with its neighbors.
fn bytes_moved(batch: &TokenBatch<'_>, config: &Config, output: &LossOutput) -> u64 {
    let call = Call {
        tokens: batch.into(),
        config,
        global_advantage: output.advantage.as_deref(),
        normalizer: 1.0,
    };
    let responses = output.advantage.as_ref().map_or(0, Vec::len);
    let rewards = responses * (4 + 8 + 8);
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
