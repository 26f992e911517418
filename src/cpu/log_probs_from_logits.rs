//! From logits to log-probs and entropy, and back: one row of logits is computed by one thread.

use super::{rows::grid_rows, softmax};
use crate::backend::{LogProbsOutput, Run};
use crate::batch::shape::LayoutShape;
use crate::batch::{Element, LogProbsInput, LogitsMut, Tensor, TensorMut, for_elements};
use crate::error::{Error, Result};
use crate::reference::{check_backward, columns, results, shard_of};
use rayon::prelude::*;
use std::time::Instant;

/// Where [`log_probs_from_logits_into`] writes, each \[num_rows\] in nats and in a dtype of its own;
/// `None`: nowhere.
#[derive(Debug, Default)]
pub struct LogProbsTargets<'a> {
    /// log π(token) = z\[token\] − logsumexp(z).
    pub log_prob: Option<TensorMut<'a>>,
    /// logsumexp(z) − Σ softmax(z)·z.
    pub entropy: Option<TensorMut<'a>>,
    /// logsumexp(z), z = logits / temperature.
    pub log_sum_exp: Option<TensorMut<'a>>,
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
    Ok(columns(forward(input)))
}

/// As [`log_probs_from_logits`], written to the caller's memory, rounded once to its dtype. Masked
/// rows are written as 0.
///
/// # Errors
/// Those of [`LogProbsInput::check`], and [`Error::Invalid`] for a target that has not one element
/// for each row; nothing is written then.
///
/// ```
/// use qae::cpu::{self, LogProbsTargets};
/// use qae::{LogProbsInput, Logits, Tensor, TensorMut};
///
/// let input = LogProbsInput {
///     logits: Logits::contiguous(Tensor::F32(&[0.0; 2]), 2),
///     token_id: &[1],
///     mask: None,
///     temperature: 1.0,
/// };
/// let mut entropy = [0.0];
/// let targets = LogProbsTargets {
///     entropy: Some(TensorMut::F32(&mut entropy)),
///     ..LogProbsTargets::default()
/// };
/// cpu::log_probs_from_logits_into(&input, targets)?;
/// assert_eq!(entropy, [2_f64.ln() as f32]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits_into(
    input: &LogProbsInput<'_>,
    targets: LogProbsTargets<'_>,
) -> Result<()> {
    input.check()?;
    let targets = [
        ("log_prob", targets.log_prob),
        ("entropy", targets.entropy),
        ("log_sum_exp", targets.log_sum_exp),
    ];
    for (field, target) in &targets {
        if let Some(target) = target
            && target.len() != input.num_rows()
        {
            let expected = format!("shape [{}], one for each row", input.num_rows());
            return Err(Error::invalid(
                field,
                expected,
                format!("[{}]", target.len()),
            ));
        }
    }
    let rows = forward(input);
    for (column, (_, target)) in targets.into_iter().enumerate() {
        if let Some(target) = target {
            for_elements!(TensorMut: target, values => store(&rows, column, values));
        }
    }
    Ok(())
}

fn store<D: Element>(rows: &[[f64; 3]], column: usize, target: &mut [D]) {
    for (element, row) in target.iter_mut().zip(rows) {
        *element = D::round(row[column]);
    }
}

/// Log-prob, entropy and log-sum-exp of each row.
fn forward(input: &LogProbsInput<'_>) -> Vec<[f64; 3]> {
    let rows = (0..input.num_rows()).into_par_iter();
    rows.map(|row| match input.counts(row) {
        true => results(input, &softmax::stats(&shard_of(input, row))),
        false => [0.0; 3],
    })
    .collect()
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
    let derivatives = Derivatives::of(d_log_prob, d_entropy);
    derivatives.check(input)?;
    Ok(backward(input, &derivatives))
}

/// As [`log_probs_from_logits_backward`], from derivatives in any dtype, with the gradient written
/// to the caller's memory, rounded once to its dtype. What lies between rows is not written.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `d_log_prob`, `d_entropy` | \[num_rows\] | f64, f32, bf16, f16 | loss / nat |
/// | `d_logits` | \[num_rows, vocab_size\] | f64, f32, bf16, f16 | loss |
///
/// # Errors
/// Those of [`log_probs_from_logits_backward`], and [`Error::Invalid`] for a `d_logits` that does
/// not hold the rows, or that has a `response_stride`; nothing is written then.
///
/// ```
/// use qae::{LogProbsInput, Logits, Tensor, TensorMut, cpu};
///
/// let input = LogProbsInput {
///     logits: Logits::contiguous(Tensor::F64(&[1.0, 1.0]), 2),
///     token_id: &[1],
///     mask: None,
///     temperature: 1.0,
/// };
/// let mut d_logits = [0.0; 2];
/// let target = TensorMut::F64(&mut d_logits).into();
/// cpu::log_probs_from_logits_backward_into(&input, Tensor::F64(&[2.0]), None, target)?;
/// assert_eq!(d_logits, [-1.0, 1.0]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits_backward_into(
    input: &LogProbsInput<'_>,
    d_log_prob: Tensor<'_>,
    d_entropy: Option<Tensor<'_>>,
    d_logits: LogitsMut<'_>,
) -> Result<()> {
    let derivatives = Derivatives {
        d_log_prob,
        d_entropy,
    };
    derivatives.check(input)?;
    let layout = LayoutShape::Packed {
        num_rows: 1,
        num_slots: input.num_rows(),
    };
    let vocab_size = input.logits.vocab_size;
    let grid = d_logits.grid(&layout, vocab_size)?;
    for_elements!(TensorMut: d_logits.values, values => {
        backward_rows(input, &derivatives, grid_rows(&grid, vocab_size, values));
    });
    Ok(())
}

/// dL/d log_prob and dL/d entropy, both \[num_rows\].
struct Derivatives<'a> {
    d_log_prob: Tensor<'a>,
    d_entropy: Option<Tensor<'a>>,
}

impl<'a> Derivatives<'a> {
    fn of(d_log_prob: &'a [f32], d_entropy: Option<&'a [f32]>) -> Self {
        Self {
            d_log_prob: Tensor::F32(d_log_prob),
            d_entropy: d_entropy.map(Tensor::F32),
        }
    }

    fn check(&self, input: &LogProbsInput<'_>) -> Result<()> {
        let d_entropy = self.d_entropy.map(|d_entropy| d_entropy.len());
        check_backward(input, self.d_log_prob.len(), d_entropy)
    }

    /// Of row `row`.
    fn get(&self, row: usize) -> (f64, f64) {
        let d_entropy = self.d_entropy.map_or(0.0, |d_entropy| d_entropy.get(row));
        (self.d_log_prob.get(row), d_entropy)
    }
}

fn backward(input: &LogProbsInput<'_>, derivatives: &Derivatives<'_>) -> Vec<f64> {
    let vocab_size = input.logits.vocab_size;
    let mut d_logits = vec![0.0; input.num_rows() * vocab_size];
    backward_rows(
        input,
        derivatives,
        d_logits.chunks_exact_mut(vocab_size).collect(),
    );
    d_logits
}

fn backward_rows<D: Element>(
    input: &LogProbsInput<'_>,
    derivatives: &Derivatives<'_>,
    d_logits: Vec<&mut [D]>,
) {
    (d_logits.into_par_iter().enumerate()).for_each(|(row, gradient)| {
        let (g, h) = derivatives.get(row);
        if input.counts(row) && (g != 0.0 || h != 0.0) {
            let shard = shard_of(input, row);
            softmax::backward(&softmax::stats(&shard), &shard, g, h, gradient);
        } else {
            gradient.fill(D::round(0.0));
        }
    });
}

/// [`log_probs_from_logits`], measured.
pub(super) fn measured(input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
    input.check()?;
    let start = Instant::now();
    let output = columns(forward(input));
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
    let derivatives = Derivatives::of(d_log_prob, d_entropy);
    derivatives.check(input)?;
    let start = Instant::now();
    let output = backward(input, &derivatives);
    let seconds = start.elapsed().as_secs_f64();
    let has_term = |row: usize| derivatives.get(row) != (0.0, 0.0);
    let rows_read = (0..input.num_rows()).filter(|&row| input.counts(row) && has_term(row));
    let read = 4 * input.num_rows() * (1 + usize::from(d_entropy.is_some()));
    Ok(Run {
        bytes_moved: input_bytes(input, rows_read.count()) + (read + output.len() * 8) as u64,
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
