//! The operations on logits: one row of logits is computed by one thread.

use super::advantages;
use crate::backend::{LogProbsOutput, LogitsOutput, Run};
use crate::batch::{Advantages, LogProbsInput, LogitsBatch};
use crate::config::{Config, Gradient};
use crate::error::Result;
use crate::reference::{
    Computed, Execute, backward_of_row, check_backward, columns, of_row, run_from_logits,
};
use rayon::prelude::*;
use std::time::Instant;

/// On rayon's current thread pool.
struct Threads;

impl Execute for Threads {
    fn map<T: Send, R: Send>(&self, pieces: Vec<T>, each: impl Fn(T) -> R + Send + Sync) -> Vec<R> {
        pieces.into_par_iter().map(each).collect()
    }
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
    Ok(run(batch, config)?.output)
}

fn run(batch: &LogitsBatch<'_>, config: &Config) -> Result<Computed> {
    let from_rewards = match batch.advantages {
        Advantages::FromRewards {
            rewards, groups, ..
        } => Some(advantages(rewards, groups, &config.advantage)?),
        Advantages::PerResponse(_) | Advantages::PerToken(_) => None,
    };
    run_from_logits(batch, config, from_rewards, &Threads)
}

/// [`crate::reference::log_probs_from_logits`] on several threads: the same results, bit for bit.
///
/// # Errors
/// Those of [`LogProbsInput::check`]; nothing is computed then.
///
/// ```
/// use qae::{LogProbsInput, Logits, Tensor, cpu};
///
/// let input = LogProbsInput {
///     logits: Logits::contiguous(Tensor::F32(&[0.0, 0.0, 1.0, f32::NEG_INFINITY]), 2),
///     token_id: &[0, 0],
///     mask: None,
///     temperature: 1.0,
/// };
/// let out = cpu::log_probs_from_logits(&input)?;
/// assert_eq!(out.log_prob, [-2_f64.ln(), 0.0]);
/// assert_eq!(out.entropy, [2_f64.ln(), 0.0]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits(input: &LogProbsInput<'_>) -> Result<LogProbsOutput> {
    input.check()?;
    Ok(forward(input))
}

fn forward(input: &LogProbsInput<'_>) -> LogProbsOutput {
    let rows = (0..input.num_rows()).into_par_iter();
    columns(rows.map(|row| of_row(input, row)).collect())
}

/// [`crate::reference::log_probs_from_logits_backward`] on several threads: the same results, bit
/// for bit.
///
/// # Errors
/// Those of [`crate::reference::log_probs_from_logits_backward`]; nothing is computed then.
///
/// ```
/// use qae::{LogProbsInput, Logits, Tensor, cpu};
///
/// let input = LogProbsInput {
///     logits: Logits::contiguous(Tensor::F32(&[1.0, 1.0]), 2),
///     token_id: &[1],
///     mask: None,
///     temperature: 1.0,
/// };
/// let d_logits = cpu::log_probs_from_logits_backward(&input, &[2.0], None)?;
/// assert_eq!(d_logits, [-1.0, 1.0]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits_backward(
    input: &LogProbsInput<'_>,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> Result<Vec<f64>> {
    check_backward(input, d_log_prob, d_entropy)?;
    Ok(backward(input, d_log_prob, d_entropy))
}

fn backward(input: &LogProbsInput<'_>, d_log_prob: &[f32], d_entropy: Option<&[f32]>) -> Vec<f64> {
    let vocab_size = input.logits.vocab_size;
    let mut d_logits = vec![0.0; input.num_rows() * vocab_size];
    (d_logits.par_chunks_exact_mut(vocab_size).enumerate()).for_each(|(row, gradient)| {
        let d_entropy = entropy_term(d_entropy, row);
        backward_of_row(input, row, d_log_prob[row], d_entropy, gradient);
    });
    d_logits
}

fn entropy_term(d_entropy: Option<&[f32]>, row: usize) -> f32 {
    d_entropy.map_or(0.0, |d_entropy| d_entropy[row])
}

/// [`loss_from_logits`], measured.
pub(super) fn measured_loss(batch: &LogitsBatch<'_>, config: &Config) -> Result<Run<LogitsOutput>> {
    batch.check(config)?;
    let start = Instant::now();
    let computed = run(batch, config)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Run {
        bytes_moved: loss_bytes(batch, config, &computed),
        output: computed.output,
        seconds: Some(seconds),
    })
}

/// [`log_probs_from_logits`], measured.
pub(super) fn measured_forward(input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
    input.check()?;
    let start = Instant::now();
    let output = forward(input);
    let seconds = start.elapsed().as_secs_f64();
    let rows_read = (0..input.num_rows()).filter(|&row| input.counts(row));
    Ok(Run {
        output,
        bytes_moved: input_bytes(input, rows_read.count()) + (input.num_rows() * 3 * 8) as u64,
        seconds: Some(seconds),
    })
}

/// [`log_probs_from_logits_backward`], measured.
pub(super) fn measured_backward(
    input: &LogProbsInput<'_>,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> Result<Run<Vec<f64>>> {
    check_backward(input, d_log_prob, d_entropy)?;
    let start = Instant::now();
    let output = backward(input, d_log_prob, d_entropy);
    let seconds = start.elapsed().as_secs_f64();
    let has_term = |row: usize| d_log_prob[row] != 0.0 || entropy_term(d_entropy, row) != 0.0;
    let rows_read = (0..input.num_rows()).filter(|&row| input.counts(row) && has_term(row));
    let derivatives = 4 * input.num_rows() * (1 + usize::from(d_entropy.is_some()));
    Ok(Run {
        bytes_moved: input_bytes(input, rows_read.count())
            + (derivatives + output.len() * 8) as u64,
        output,
        seconds: Some(seconds),
    })
}

/// Bytes of the rows of logits that are read, each counted once: a row stays in the cache between
/// its passes. And of the tokens and the mask.
fn input_bytes(input: &LogProbsInput<'_>, rows_read: usize) -> u64 {
    let row = input.logits.vocab_size * input.logits.values.dtype().size();
    let per_row = 4 + usize::from(input.mask.is_some());
    (rows_read * row + input.num_rows() * per_row) as u64
}

/// Bytes of the tensors that a run reads and writes: rows that act are read once for their log-prob
/// and once more for their gradient, with all other rows between.
fn loss_bytes(batch: &LogitsBatch<'_>, config: &Config, computed: &Computed) -> u64 {
    let vocab_size = batch.logits.vocab_size;
    let read = computed.rows_read + computed.rows_acting;
    let written = match config.gradient {
        Gradient::ZeroFill => batch.layout.num_slots(),
        Gradient::Untouched | Gradient::Compact => computed.rows_acting,
    };
    let log_probs = [batch.old_log_prob, batch.ref_log_prob];
    let of_log_probs: usize = log_probs.iter().flatten().map(|t| t.dtype().size()).sum();
    let per_slot = 4 + usize::from(batch.mask.is_some()) + of_log_probs + 3 * 8;
    let rows = read * batch.logits.values.dtype().size() + written * 8;
    (rows * vocab_size + batch.layout.num_slots() * per_slot) as u64
}
