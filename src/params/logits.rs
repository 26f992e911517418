//! Rows of logits: what every operation on them checks.

use super::{Buffer, dtype_code};
use crate::batch::DType;
use crate::batch::shape::RowGrid;
use crate::error::{Error, Result};
use crate::sys;

/// Columns that the kernels count in 32 bits, with a block's worth to spare.
const MAX_VOCAB_SIZE: usize = 0x7fff_ff00;

/// Rows of logits and the token of each.
#[derive(Debug, Clone, Copy)]
pub struct LogitsBuffers {
    /// One row for each token.
    pub values: Buffer,
    /// Of the logits, and of their gradient.
    pub dtype: DType,
    /// Columns: the size of the vocabulary, or of a shard of it.
    pub vocab_size: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Where rows are those of responses of one width: elements from one response to the next;
    /// `None`: as many rows as from one response to the next in the token tensors.
    pub response_stride: Option<usize>,
    /// One for each row: i32 or i64.
    pub token_ids: Buffer,
    /// 4 or 8.
    pub token_id_bytes: usize,
}

impl LogitsBuffers {
    /// The params of rows that lie in `grid`. `num_rows` and `width` are the caller's to set, where
    /// the kernel uses them.
    pub(super) fn params(&self, grid: &RowGrid, temperature: f64) -> Result<sys::qae_logits> {
        if self.vocab_size > MAX_VOCAB_SIZE {
            return Err(Error::invalid(
                "vocab_size",
                format!("at most {MAX_VOCAB_SIZE}"),
                self.vocab_size,
            ));
        }
        if !matches!(self.token_id_bytes, 4 | 8) {
            return Err(Error::invalid(
                "token_id_bytes",
                "4 or 8",
                self.token_id_bytes,
            ));
        }
        grid.check("logits", self.vocab_size, self.values.len)?;
        Ok(sys::qae_logits {
            values: self.values.as_ptr(),
            token_ids: self.token_ids.as_ptr(),
            row_stride: grid.row_stride as i64,
            response_stride: grid.response_stride as i64,
            vocab_size: self.vocab_size as i64,
            dtype: dtype_code("logits", self.dtype)?,
            token_id_bytes: self.token_id_bytes as i32,
            temperature: checked_temperature(temperature)?,
            ..Default::default()
        })
    }

    /// Whether a gradient may be written to `d_logits`, laid out in `gradient`, while the logits,
    /// laid out in `logits`, are read: in place, where every row's gradient takes the row's own
    /// place, or apart.
    pub(super) fn check_gradient(
        &self,
        logits: &RowGrid,
        d_logits: Buffer,
        gradient: &RowGrid,
    ) -> Result<()> {
        gradient.check("d_logits", self.vocab_size, d_logits.len)?;
        let same_place = d_logits.address == self.values.address
            && gradient.row_stride == logits.row_stride
            && (logits.num_responses <= 1 || gradient.response_stride == logits.response_stride);
        if same_place || !self.overlaps(d_logits) {
            return Ok(());
        }
        Err(Error::invalid(
            "d_logits",
            "the logits' own memory with the logits' strides, or memory apart from it",
            "memory that overlaps the logits",
        ))
    }

    /// Whether a tensor of the logits' dtype shares memory with them.
    pub(super) fn overlaps(&self, other: Buffer) -> bool {
        let range = |buffer: Buffer| {
            let bytes = buffer.len.saturating_mul(self.dtype.size()) as u64;
            (buffer.address, buffer.address.saturating_add(bytes))
        };
        let ((start, end), (other_start, other_end)) = (range(self.values), range(other));
        start.max(other_start) < end.min(other_end)
    }
}

/// The temperature in the kernels' f32, which multiply by its inverse.
pub(super) fn checked_temperature(temperature: f64) -> Result<f32> {
    let rounded = temperature as f32;
    if (1e-30..=1e30).contains(&rounded) {
        return Ok(rounded);
    }
    Err(Error::invalid(
        "temperature",
        "at least 1e-30 and at most 1e30",
        temperature,
    ))
}
