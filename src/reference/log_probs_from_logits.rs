//! From logits to log-probs and entropy, and back to the logits' gradient (docs/math.md §4).

use super::softmax_stats::{RowShard, SoftmaxStats};
use crate::backend::LogProbsOutput;
use crate::batch::LogProbsInput;
use crate::error::{Error, Result};

/// log_prob = z\[token\] − logsumexp(z), entropy = logsumexp(z) − Σ p z and logsumexp(z) of each
/// row, with z = x / temperature and p = softmax(z), in f64 and one thread.
///
/// | tensor of `input` | shape | dtype | unit |
/// |---|---|---|---|
/// | `logits` | \[num_rows, vocab_size\] | f64, f32, bf16, f16 | dimensionless |
/// | `token_id` | \[num_rows\] | i32 | index |
/// | `mask` | \[num_rows\] | u8 | dimensionless |
///
/// Masked rows have 0 in every result and are not read. A logit of −∞ has p = 0; a token whose own
/// logit is −∞ has log-prob −∞. A row with a NaN, with +∞, or with −∞ alone has NaN in every
/// result. Sums are taken in the order of the columns.
///
/// # Errors
/// Those of [`LogProbsInput::check`]; nothing is computed then.
///
/// ```
/// use qae::{LogProbsInput, Logits, Tensor, reference};
///
/// let input = LogProbsInput {
///     logits: Logits::contiguous(Tensor::F32(&[7.0; 4]), 4),
///     token_id: &[2],
///     mask: None,
///     temperature: 0.7,
/// };
/// let out = reference::log_probs_from_logits(&input)?;
/// // Uniform: ln 4 nats of entropy.
/// assert_eq!((out.log_prob[0], out.entropy[0]), (-4_f64.ln(), 4_f64.ln()));
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits(input: &LogProbsInput<'_>) -> Result<LogProbsOutput> {
    input.check()?;
    let rows = (0..input.num_rows()).map(|row| of_row(input, row));
    Ok(columns(rows.collect()))
}

fn of_row(input: &LogProbsInput<'_>, row: usize) -> [f64; 3] {
    match input.counts(row) {
        true => results(input, &SoftmaxStats::of_row(&shard_of(input, row))),
        false => [0.0; 3],
    }
}

/// Log-prob, entropy and log-sum-exp of a row.
pub(crate) fn results(input: &LogProbsInput<'_>, stats: &SoftmaxStats) -> [f64; 3] {
    let temperature = input.temperature;
    [
        stats.log_prob(temperature),
        stats.entropy(),
        stats.log_sum_exp(temperature),
    ]
}

/// The three tensors from their rows.
pub(crate) fn columns(rows: Vec<[f64; 3]>) -> LogProbsOutput {
    let column = |i: usize| rows.iter().map(|row| row[i]).collect();
    LogProbsOutput {
        log_prob: column(0),
        entropy: column(1),
        log_sum_exp: column(2),
    }
}

/// d_logits = (g (1\[token\] − p) − h p (z − Σ p z)) / temperature with g = d_log_prob and
/// h = d_entropy: \[num_rows, vocab_size\], in f64 and one thread.
///
/// | tensor | shape | dtype | unit |
/// |---|---|---|---|
/// | those of `input` | as [`log_probs_from_logits`] | | |
/// | `d_log_prob`, `d_entropy` | \[num_rows\] | f32 | loss / nat |
///
/// Rows that are masked, or whose g and h are 0, have gradient 0 and are not read. g or h that is
/// not finite, g of a token whose own logit is −∞, and rows of which nothing finite can be said
/// count as 0. Sums are taken in the order of the columns.
///
/// # Errors
/// Those of [`LogProbsInput::check`], and [`Error::Invalid`] for a derivative that has not one
/// element for each row; nothing is computed then.
///
/// ```
/// use qae::{LogProbsInput, Logits, Tensor, reference};
///
/// let input = LogProbsInput {
///     logits: Logits::contiguous(Tensor::F32(&[1.0, 1.0]), 2),
///     token_id: &[0],
///     mask: None,
///     temperature: 0.5,
/// };
/// let d_logits = reference::log_probs_from_logits_backward(&input, &[1.0], None)?;
/// assert_eq!(d_logits, [1.0, -1.0]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits_backward(
    input: &LogProbsInput<'_>,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> Result<Vec<f64>> {
    let d_entropy_len = d_entropy.map(<[f32]>::len);
    check_backward(input, d_log_prob.len(), d_entropy_len)?;
    let vocab_size = input.logits.vocab_size;
    let mut d_logits = vec![0.0; input.num_rows() * vocab_size];
    for (row, gradient) in d_logits.chunks_exact_mut(vocab_size).enumerate() {
        let g = f64::from(d_log_prob[row]);
        let h = d_entropy.map_or(0.0, |d_entropy| f64::from(d_entropy[row]));
        if input.counts(row) && (g != 0.0 || h != 0.0) {
            let shard = shard_of(input, row);
            SoftmaxStats::of_row(&shard).backward(&shard, g, h, gradient);
        }
    }
    Ok(d_logits)
}

/// Whether the backward pass accepts its input, and derivatives of these lengths.
pub(crate) fn check_backward(
    input: &LogProbsInput<'_>,
    d_log_prob: usize,
    d_entropy: Option<usize>,
) -> Result<()> {
    input.check()?;
    for (field, found) in [("d_log_prob", Some(d_log_prob)), ("d_entropy", d_entropy)] {
        if let Some(found) = found
            && found != input.num_rows()
        {
            let expected = format!("shape [{}], one for each row", input.num_rows());
            return Err(Error::invalid(field, expected, format!("[{found}]")));
        }
    }
    Ok(())
}

pub(crate) fn shard_of<'a>(input: &LogProbsInput<'a>, row: usize) -> RowShard<'a> {
    RowShard {
        logits: input.row(row),
        vocab_start: 0,
        token_id: input.token_id[row] as usize,
        temperature: input.temperature,
    }
}
