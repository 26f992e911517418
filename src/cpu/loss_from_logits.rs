//! From logits to the loss and its gradient: one row of logits is computed by one thread, which
//! writes its gradient while the row is in the cache, unless GSPO needs the whole response first.

mod plan;
mod targets;

use self::plan::Plan;
pub use self::targets::LogitsTargets;
use self::targets::{Checked, DLogits};
use super::loss_from_log_probs::LossResults;
use crate::backend::{LogitsOutput, Run};
use crate::batch::{LogitsBatch, TensorMut};
use crate::config::{Config, Gradient};
use crate::error::Result;
use std::time::Instant;

/// What [`loss_from_logits_into`] returns besides what it writes.
#[derive(Debug, Clone)]
pub struct LogitsResults {
    /// Loss, metrics with their entropy, and what is known of each response.
    pub loss: LossResults,
    /// The slot of each row of `d_logits`, ascending, where that is compact, also of rows that it
    /// had no room for; else empty.
    pub active_slots: Vec<u64>,
}

/// [`crate::reference::loss_from_logits`] on several threads: the same results, bit for bit.
///
/// # Errors
/// Those of [`LogitsBatch::check`]; nothing is computed then.
///
/// ```
/// use qae::{Advantages, Config, Gradient, Logits, LogitsBatch, LogitsLayout, Tensor, cpu};
///
/// let batch = LogitsBatch {
///     layout: LogitsLayout::Indexed { response: &[1, 0], num_responses: 2 },
///     mask: None,
///     logits: Logits::contiguous(Tensor::F32(&[0.0; 4]), 2),
///     token_id: &[0, 1],
///     old_log_prob: Some(Tensor::F32(&[-0.69314718; 2])),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: Advantages::PerResponse(&[2.0, 0.0]),
/// };
/// let config = Config { gradient: Gradient::Compact, ..Config::default() };
/// let out = cpu::loss_from_logits(&batch, &config)?;
/// // Slot 1 belongs to response 0, the only one with an advantage.
/// assert_eq!(out.active_slots, [1]);
/// assert!((out.d_logits[0] - 0.5).abs() < 1e-7 && (out.d_logits[1] + 0.5).abs() < 1e-7);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_logits(batch: &LogitsBatch<'_>, config: &Config) -> Result<LogitsOutput> {
    batch.check(config)?;
    compute(&Plan::new(batch, config)?)
}

/// As [`loss_from_logits`], with gradients, log-probs and entropy written to the caller's memory,
/// rounded once to its dtype. What lies between rows is not written, nor, under
/// [`Gradient::Untouched`], are the gradients of responses that do not act. Rows of a compact
/// gradient that `d_logits` has no room for are not written, though listed.
///
/// Without `d_logits`, nothing of the size of the logits is allocated or written.
///
/// # Errors
/// Those of [`LogitsBatch::check`], and [`crate::Error::Invalid`] for a target that does not fit
/// the layout; nothing is written then.
///
/// ```
/// use qae::cpu::{self, LogitsTargets};
/// use qae::{Advantages, Config, Layout, Logits, LogitsBatch, Tensor, TensorMut};
///
/// let batch = LogitsBatch {
///     layout: Layout::padded(1, 1).into(),
///     mask: None,
///     logits: Logits::contiguous(Tensor::F32(&[3.0, 3.0]), 2),
///     token_id: &[1],
///     old_log_prob: Some(Tensor::F64(&[0.5_f64.ln()])),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: Advantages::PerResponse(&[0.5]),
/// };
/// let mut d_logits = [0.0; 2];
/// let targets = LogitsTargets {
///     d_logits: Some(TensorMut::F32(&mut d_logits).into()),
///     ..LogitsTargets::default()
/// };
/// let results = cpu::loss_from_logits_into(&batch, &Config::default(), targets)?;
/// assert_eq!(d_logits, [0.25, -0.25]);
/// assert_eq!(results.loss.metrics.loss, -0.5);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_logits_into(
    batch: &LogitsBatch<'_>,
    config: &Config,
    targets: LogitsTargets<'_>,
) -> Result<LogitsResults> {
    batch.check(config)?;
    let plan = Plan::new(batch, config)?;
    let targets = Checked::new(targets, &plan)?;
    Ok(run(&plan, targets))
}

/// Computes a planned batch into targets that fit.
fn run(plan: &Plan<'_>, targets: Checked<'_>) -> LogitsResults {
    let Checked { d_logits, tokens } = targets;
    let (losses, loss) = match d_logits {
        None => plan.run::<f64>(vec![]),
        Some(DLogits::F64(rows)) => plan.run(rows),
        Some(DLogits::F32(rows)) => plan.run(rows),
        Some(DLogits::Bf16(rows)) => plan.run(rows),
        Some(DLogits::F16(rows)) => plan.run(rows),
    };
    tokens.write(plan, &losses);
    LogitsResults {
        loss,
        active_slots: match plan.config.gradient {
            Gradient::Compact => plan.active_slots(),
            Gradient::ZeroFill | Gradient::Untouched => vec![],
        },
    }
}

fn compute(plan: &Plan<'_>) -> Result<LogitsOutput> {
    let num_rows = match plan.config.gradient {
        Gradient::Compact => plan.active_slots().len(),
        Gradient::ZeroFill | Gradient::Untouched => plan.batch.layout.num_slots(),
    };
    let tokens = plan.batch.token_id.len();
    let mut d_logits = vec![0.0; num_rows * plan.batch.logits.vocab_size];
    let [mut d_log_prob, mut log_prob, mut entropy] = [(); 3].map(|()| vec![0.0; tokens]);
    let targets = LogitsTargets {
        d_logits: Some(TensorMut::F64(&mut d_logits).into()),
        d_log_prob: Some(TensorMut::F64(&mut d_log_prob).into()),
        log_prob: Some(TensorMut::F64(&mut log_prob).into()),
        entropy: Some(TensorMut::F64(&mut entropy).into()),
    };
    let results = run(plan, Checked::new(targets, plan)?);
    Ok(LogitsOutput {
        loss: results.loss.into_output(d_log_prob),
        log_prob,
        entropy,
        d_logits,
        active_slots: results.active_slots,
    })
}

/// [`loss_from_logits`], measured.
pub(super) fn measured(batch: &LogitsBatch<'_>, config: &Config) -> Result<Run<LogitsOutput>> {
    batch.check(config)?;
    let start = Instant::now();
    let plan = Plan::new(batch, config)?;
    let output = compute(&plan)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Run {
        bytes_moved: bytes_moved(&plan),
        output,
        seconds: Some(seconds),
    })
}

/// Bytes of the tensors that a run reads and writes: rows that are read count once, since a row
/// stays in the cache between its passes, and once more under GSPO, which has all other rows between
/// the passes of those that act.
fn bytes_moved(plan: &Plan<'_>) -> u64 {
    let (batch, config) = (plan.batch, plan.config);
    let (mut read, acting) = (plan.rows_read(), plan.rows_acting());
    if plan.is_gspo() {
        read += acting;
    }
    let written = match config.gradient {
        Gradient::ZeroFill => batch.layout.num_slots(),
        Gradient::Untouched | Gradient::Compact => acting,
    };
    let log_probs = [batch.old_log_prob, batch.ref_log_prob];
    let of_log_probs: usize = log_probs.iter().flatten().map(|t| t.dtype().size()).sum();
    let per_slot = 4 + usize::from(batch.mask.is_some()) + of_log_probs + 3 * 8;
    let rows = read * batch.logits.values.dtype().size() + written * 8;
    (rows * batch.logits.vocab_size + batch.layout.num_slots() * per_slot) as u64
}
