//! Arguments of the kernels `log_probs_from_logits`, `merge_softmax_stats` and
//! `log_probs_from_logits_backward`.

use super::logits::{LogitsBuffers, checked_temperature};
use super::{Buffer, expect_len, optional, optional_mut};
use crate::batch::shape::{LayoutShape, RowGrid};
use crate::config::Gradient;
use crate::error::{Error, Result};
use crate::sys;

/// The rows that the operations on logits alone read.
#[derive(Debug, Clone, Copy)]
pub struct LogitsRows {
    /// The logits and the tokens.
    pub logits: LogitsBuffers,
    /// Number of rows.
    pub num_rows: usize,
    /// Rows of a response, where responses have a stride of their own; `None`: all rows are one
    /// row stride apart.
    pub width: Option<usize>,
    /// The token id of the first column, in a shard of a vocabulary; `None`: the whole vocabulary.
    pub shard_start: Option<usize>,
    /// Divides the logits.
    pub temperature: f64,
}

/// Where log-probs and what goes with them are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogProbsOutputs {
    /// \[num_rows\] f32.
    pub log_prob: Option<Buffer>,
    /// \[num_rows\] f32.
    pub entropy: Option<Buffer>,
    /// \[num_rows\] f32.
    pub log_sum_exp: Option<Buffer>,
    /// \[num_rows\] `qae_softmax_stats`.
    pub stats: Option<Buffer>,
}

/// What the backward pass reads besides the logits.
#[derive(Debug, Clone, Copy)]
pub struct LogProbsGradients {
    /// \[num_rows\] `qae_softmax_stats` of the whole vocabulary.
    pub stats: Buffer,
    /// \[num_rows\] f32.
    pub d_log_prob: Buffer,
    /// \[num_rows\] f32; `None`: 0.
    pub d_entropy: Option<Buffer>,
}

/// Where a gradient with respect to the logits is written, in the logits' dtype.
#[derive(Debug, Clone, Copy)]
pub struct LogitsGradient {
    /// One row for each row of logits; the logits themselves if in place.
    pub d_logits: Buffer,
    /// Elements from one row to the next; `None`: as the logits.
    pub row_stride: Option<usize>,
    /// Elements from one response to the next; `None`: as the logits where the row stride is
    /// theirs, else as many rows as from one response to the next in the token tensors.
    pub response_stride: Option<usize>,
}

/// The params of `qae_log_probs_from_logits`.
///
/// # Errors
/// - [`Error::Invalid`] for a temperature, a vocabulary, a stride or a shape that does not fit, or
///   log-probs of a shard, which only the merged statistics give.
/// - [`Error::Missing`] without any output.
pub fn log_probs_from_logits(
    rows: &LogitsRows,
    mask: Option<Buffer>,
    outputs: &LogProbsOutputs,
) -> Result<sys::qae_log_probs_from_logits_params> {
    let logits = rows.params(&rows.grid(&rows.layout()?)?)?;
    expect_some_len("mask", mask, rows.num_rows)?;
    outputs.check(rows.num_rows)?;
    if rows.shard_start.is_some() {
        outputs.expect_statistics_only()?;
    }
    Ok(sys::qae_log_probs_from_logits_params {
        logits,
        mask: optional(mask),
        log_prob: optional_mut(outputs.log_prob),
        entropy: optional_mut(outputs.entropy),
        log_sum_exp: optional_mut(outputs.log_sum_exp),
        stats: optional_mut(outputs.stats),
    })
}

/// The params of `qae_merge_softmax_stats`: `shards` is \[num_shards, num_rows\].
///
/// # Errors
/// - [`Error::Invalid`] for no shards, a temperature or a shape that does not fit.
/// - [`Error::Missing`] without any output.
pub fn merge_softmax_stats(
    shards: Buffer,
    num_shards: usize,
    num_rows: usize,
    mask: Option<Buffer>,
    temperature: f64,
    outputs: &LogProbsOutputs,
) -> Result<sys::qae_merge_softmax_stats_params> {
    let elements = num_shards
        .checked_mul(num_rows)
        .filter(|_| num_shards > 0 && i32::try_from(num_shards).is_ok());
    let Some(elements) = elements else {
        return Err(Error::invalid(
            "num_shards",
            "at least 1 and at most 2147483647",
            num_shards,
        ));
    };
    expect_len("shards", shards, elements)?;
    expect_some_len("mask", mask, num_rows)?;
    outputs.check(num_rows)?;
    Ok(sys::qae_merge_softmax_stats_params {
        shards: shards.as_ptr(),
        mask: optional(mask),
        num_rows: num_rows as i64,
        num_shards: num_shards as i32,
        temperature: checked_temperature(temperature)?,
        log_prob: optional_mut(outputs.log_prob),
        entropy: optional_mut(outputs.entropy),
        log_sum_exp: optional_mut(outputs.log_sum_exp),
        stats: optional_mut(outputs.stats),
    })
}

/// The params of `qae_log_probs_from_logits_backward`. Rows whose two gradients are 0 are written
/// as 0 or, with [`Gradient::Untouched`], not at all.
///
/// # Errors
/// [`Error::Invalid`] for a temperature, a vocabulary, a stride or a shape that does not fit, a
/// gradient that overlaps the logits without taking their place, or [`Gradient::Compact`].
pub fn log_probs_from_logits_backward(
    rows: &LogitsRows,
    gradients: &LogProbsGradients,
    output: &LogitsGradient,
    gradient: Gradient,
) -> Result<sys::qae_log_probs_from_logits_backward_params> {
    let layout = rows.layout()?;
    let grid = rows.grid(&layout)?;
    let logits = rows.params(&grid)?;
    expect_len("stats", gradients.stats, rows.num_rows)?;
    expect_len("d_log_prob", gradients.d_log_prob, rows.num_rows)?;
    expect_some_len("d_entropy", gradients.d_entropy, rows.num_rows)?;
    let inactive_gradient = match gradient {
        Gradient::ZeroFill => sys::QAE_INACTIVE_ZERO_FILL,
        Gradient::Untouched => sys::QAE_INACTIVE_UNTOUCHED,
        Gradient::Compact => {
            return Err(Error::invalid(
                "gradient",
                "zero fill or untouched, since only a loss knows which rows act",
                "Compact",
            ));
        }
    };
    let target = output.grid(&layout, &grid)?;
    rows.logits
        .check_gradient(&grid, output.d_logits, &target)?;
    Ok(sys::qae_log_probs_from_logits_backward_params {
        logits,
        stats: gradients.stats.as_ptr(),
        d_log_prob: gradients.d_log_prob.as_ptr(),
        d_entropy: optional(gradients.d_entropy),
        d_logits: output.d_logits.as_mut_ptr(),
        d_row_stride: target.row_stride as i64,
        d_response_stride: target.response_stride as i64,
        inactive_gradient: inactive_gradient as i32,
        ..Default::default()
    })
}

impl LogitsRows {
    fn layout(&self) -> Result<LayoutShape> {
        LayoutShape::of_rows(self.num_rows, self.width)
    }

    fn grid(&self, layout: &LayoutShape) -> Result<RowGrid> {
        let LogitsBuffers {
            row_stride,
            response_stride,
            ..
        } = self.logits;
        RowGrid::of_layout("logits", layout, row_stride, response_stride)
    }

    fn params(&self, grid: &RowGrid) -> Result<sys::qae_logits> {
        expect_len("token_id", self.logits.token_ids, self.num_rows)?;
        let start = self.shard_start.unwrap_or(0);
        let end = start.checked_add(self.logits.vocab_size);
        if end.is_none_or(|end| i32::try_from(end).is_err()) {
            return Err(Error::invalid(
                "vocab_start",
                "a shard that ends at most at 2147483647",
                start,
            ));
        }
        Ok(sys::qae_logits {
            num_rows: self.num_rows as i64,
            width: self.width.unwrap_or(0) as i64,
            vocab_start: start as i64,
            ..self.logits.params(grid, self.temperature)?
        })
    }
}

impl LogitsGradient {
    /// The rows of the gradient of the logits in `logits`.
    pub(super) fn grid(&self, layout: &LayoutShape, logits: &RowGrid) -> Result<RowGrid> {
        let row_stride = self.row_stride.unwrap_or(logits.row_stride);
        if row_stride == logits.row_stride && self.response_stride.is_none() {
            return Ok(*logits);
        }
        RowGrid::of_layout("d_logits", layout, row_stride, self.response_stride)
    }
}

impl LogProbsOutputs {
    fn check(&self, num_rows: usize) -> Result<()> {
        let mut is_any = false;
        for (field, buffer) in [
            ("log_prob", self.log_prob),
            ("entropy", self.entropy),
            ("log_sum_exp", self.log_sum_exp),
            ("stats", self.stats),
        ] {
            expect_some_len(field, buffer, num_rows)?;
            is_any |= buffer.is_some();
        }
        if is_any {
            return Ok(());
        }
        Err(Error::missing(
            "outputs",
            "log_prob, entropy, log_sum_exp or stats",
        ))
    }

    fn expect_statistics_only(&self) -> Result<()> {
        for (field, buffer) in [
            ("log_prob", self.log_prob),
            ("entropy", self.entropy),
            ("log_sum_exp", self.log_sum_exp),
        ] {
            if buffer.is_some() {
                return Err(Error::invalid(
                    field,
                    "none, as a shard of the vocabulary has statistics only",
                    "one",
                ));
            }
        }
        Ok(())
    }
}

fn expect_some_len(field: &str, buffer: Option<Buffer>, expected: usize) -> Result<()> {
    buffer.map_or(Ok(()), |buffer| expect_len(field, buffer, expected))
}
