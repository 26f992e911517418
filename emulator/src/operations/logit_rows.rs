//! Rows of logits, whole or a shard of their columns, and the launches on them.

use qae::Gradient;
use qae::batch::{LogProbsInput, Logits, Tensor};
use qae::params::{
    self, LogProbsGradients, LogProbsOutputs, LogitsBuffers, LogitsGradient, LogitsRows,
};

use super::gradient::{GradientRows, changed_rows, written_rows};
use super::log_prob_outputs::upload_mask;
use super::log_probs_from_logits::LogitsGradientRun;
use super::loss_from_logits::{LogitsPlacement, upload_token_ids};
use super::memory::Memory;
use super::slots::SlotPlaces;
use super::tensor::TensorMemory;
use super::{EmulatorBackend, Result, failed};
use crate::{Trace, launchers};

/// Some consecutive columns of every row.
#[derive(Clone, Copy)]
pub(super) struct Shard {
    pub(super) start: usize,
    pub(super) columns: usize,
}

/// The rows of one call, or a shard of them.
pub(super) struct Rows {
    rows: LogitsRows,
    values: TensorMemory,
    gradient: GradientPlace,
}

/// Where their gradient is written.
struct GradientPlace {
    /// `None`: it takes the logits' place.
    apart: Option<TensorMemory>,
    row_stride: usize,
}

impl Rows {
    pub(super) fn upload(
        memory: &Memory,
        backend: &EmulatorBackend,
        input: &LogProbsInput<'_>,
        shard: Option<Shard>,
    ) -> Result<Self> {
        let placement = &backend.logits;
        let num_rows = input.token_id.len();
        let values = upload_columns(memory, placement, input, shard)?;
        let (vocab_size, row_stride) = match shard {
            None => (input.logits.vocab_size, input.logits.row_stride),
            Some(shard) => (shard.columns, shard.columns),
        };
        let gradient =
            GradientPlace::new(memory, placement, num_rows, vocab_size, row_stride, &values)?;
        let logits = LogitsBuffers {
            values: values.view(),
            dtype: values.dtype(),
            vocab_size,
            row_stride,
            response_stride: None,
            token_ids: upload_token_ids(memory, placement, input.token_id)?,
            token_id_bytes: if placement.wide_token_ids { 8 } else { 4 },
        };
        let rows = LogitsRows {
            logits,
            num_rows,
            width: None,
            shard_start: shard.map(|shard| shard.start),
            temperature: input.temperature,
        };
        Ok(Self {
            rows,
            values,
            gradient,
        })
    }

    pub(super) fn forward(
        &self,
        memory: &Memory,
        mask: Option<&[u8]>,
        outputs: &LogProbsOutputs,
    ) -> Result<Trace> {
        let mask = upload_mask(memory, mask)?;
        let params = params::log_probs_from_logits(&self.rows, mask, outputs)?;
        let trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_log_probs_from_logits(&params, std::ptr::null_mut()) }
        });
        trace.map_err(failed)
    }

    pub(super) fn backward(
        &self,
        memory: &Memory,
        gradients: &LogProbsGradients,
        gradient: Gradient,
    ) -> Result<LogitsGradientRun> {
        let before = self
            .gradient
            .apart
            .is_none()
            .then(|| self.values.download_raw());
        let target = LogitsGradient {
            d_logits: self.gradient.memory(self).view(),
            row_stride: Some(self.gradient.row_stride),
            response_stride: None,
        };
        let params =
            params::log_probs_from_logits_backward(&self.rows, gradients, &target, gradient)?;
        let trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe {
                launchers::qae_emu_log_probs_from_logits_backward(&params, std::ptr::null_mut())
            }
        });
        let trace = trace.map_err(failed)?;
        let places = SlotPlaces::flat(self.rows.num_rows, self.gradient.row_stride);
        let vocab_size = self.rows.logits.vocab_size;
        let may_be_absent = gradient == Gradient::Untouched;
        let tensor = self.gradient.memory(self);
        let GradientRows { values, written } = match before {
            Some(before) => changed_rows(tensor, &before, &places, vocab_size, may_be_absent)?,
            None => written_rows(tensor, &places, vocab_size, may_be_absent)?,
        };
        Ok(LogitsGradientRun {
            d_logits: values,
            written,
            trace,
        })
    }
}

impl GradientPlace {
    fn new(
        memory: &Memory,
        placement: &LogitsPlacement,
        num_rows: usize,
        vocab_size: usize,
        logits_stride: usize,
        values: &TensorMemory,
    ) -> Result<Self> {
        if placement.in_place {
            return Ok(Self {
                apart: None,
                row_stride: logits_stride,
            });
        }
        // A stride that a shard's fewer columns allow all the same.
        let row_stride = placement.gradient_row_stride.unwrap_or(logits_stride);
        let len = SlotPlaces::flat(num_rows, row_stride).num_elements(vocab_size);
        let skipped = placement.gradient_misalignment;
        let tensor = TensorMemory::alloc(memory, values.dtype(), len, "d_logits", skipped)?;
        Ok(Self {
            apart: Some(tensor),
            row_stride,
        })
    }

    fn memory<'a>(&'a self, rows: &'a Rows) -> &'a TensorMemory {
        self.apart.as_ref().unwrap_or(&rows.values)
    }
}

/// The logits as they are, or a shard's columns back to back.
fn upload_columns(
    memory: &Memory,
    placement: &LogitsPlacement,
    input: &LogProbsInput<'_>,
    shard: Option<Shard>,
) -> Result<TensorMemory> {
    let Logits {
        values, row_stride, ..
    } = input.logits;
    let upload = |tensor| TensorMemory::upload(memory, tensor, "logits", placement.misalignment);
    let Some(shard) = shard else {
        return upload(values);
    };
    let num_rows = input.token_id.len();
    match values {
        Tensor::F64(_) => upload(values),
        Tensor::F32(all) => upload(Tensor::F32(&shard.of(all, num_rows, row_stride))),
        Tensor::Bf16(all) => upload(Tensor::Bf16(&shard.of(all, num_rows, row_stride))),
        Tensor::F16(all) => upload(Tensor::F16(&shard.of(all, num_rows, row_stride))),
    }
}

impl Shard {
    /// One shard after another.
    pub(super) fn all(columns: &[usize], vocab_size: usize) -> Result<Vec<Self>> {
        let mut start = 0;
        let mut shards = vec![];
        for &columns in columns {
            shards.push(Self { start, columns });
            start += columns;
        }
        if start == vocab_size {
            return Ok(shards);
        }
        let expected = format!("{vocab_size} in all, as the logits");
        Err(qae::Error::invalid(
            "columns of the shards",
            expected,
            start,
        ))
    }

    fn of<T: Copy>(&self, values: &[T], num_rows: usize, row_stride: usize) -> Vec<T> {
        let row = |row: usize| &values[row * row_stride + self.start..][..self.columns];
        (0..num_rows).flat_map(row).copied().collect()
    }
}
