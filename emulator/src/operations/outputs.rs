//! The output tensors of `loss_from_log_probs`, before and after a launch, and what every loss
//! writes for each response.

use bytemuck::Pod;
use qae::batch::{Advantages, DType, Layout, TokenBatch};
use qae::params::{self, LossOutputs};
use qae::{Config, Gradient, LossOutput, sys};

use super::memory::Memory;
use super::{EmulatorBackend, Result, failed, read_words, whole, widened};
use crate::Buffer;

const LOSS_METRICS_WORDS: usize = size_of::<sys::qae_loss_metrics>() / 8;

/// The output tensors, with a gradient of type `G`.
pub(super) struct OutputMemory<G> {
    gradient: Buffer<G>,
    responses: ResponseMemory,
    metrics: Buffer<u64>,
}

/// What a loss writes for each response.
pub(super) struct ResponseMemory {
    pub(super) baseline: Option<Buffer<f32>>,
    pub(super) advantage: Option<Buffer<f32>>,
    pub(super) active_rows: Buffer<i32>,
    pub(super) active_count: Buffer<i32>,
}

/// A [`ResponseMemory`] after a launch.
pub(super) struct ResponseOutput {
    pub(super) baseline: Option<Vec<f64>>,
    pub(super) advantage: Option<Vec<f64>>,
    pub(super) active_rows: Vec<u32>,
}

impl ResponseMemory {
    pub(super) fn new(
        memory: &Memory,
        advantages: Advantages<'_>,
        num_rows: usize,
    ) -> Result<Self> {
        let num_responses = match advantages {
            Advantages::FromRewards { rewards, .. } => Some(rewards.len()),
            Advantages::PerResponse(_) | Advantages::PerToken(_) => None,
        };
        let per_response = |label| num_responses.map(|len| memory.alloc::<f32>(len, label));
        Ok(Self {
            baseline: per_response("baseline").transpose()?,
            advantage: per_response("advantage").transpose()?,
            active_rows: memory.alloc(num_rows, "active_rows")?,
            active_count: memory.alloc(1, "active_count")?,
        })
    }

    pub(super) fn download(&self) -> Result<ResponseOutput> {
        let per_response = |buffer: &Option<Buffer<f32>>| {
            buffer
                .as_ref()
                .map(|buffer| buffer.download().map(|values| widened(&values)))
                .transpose()
                .map_err(failed)
        };
        let num_active = self.active_count.download().map_err(failed)?[0] as usize;
        Ok(ResponseOutput {
            baseline: per_response(&self.baseline)?,
            advantage: per_response(&self.advantage)?,
            active_rows: self.active_rows.download_raw()[..num_active]
                .iter()
                .map(|&row| row as u32)
                .collect(),
        })
    }
}

impl<G: Pod + Into<f64>> OutputMemory<G> {
    pub(super) fn new(
        memory: &Memory,
        backend: &EmulatorBackend,
        batch: &TokenBatch<'_>,
    ) -> Result<Self> {
        let num_rows = batch.layout.num_rows();
        Ok(Self {
            gradient: memory.alloc(
                gradient_layout(batch, backend).num_elements() + memory.misalignment,
                "d_log_prob",
            )?,
            responses: ResponseMemory::new(memory, batch.advantages, num_rows)?,
            metrics: memory.alloc(LOSS_METRICS_WORDS, "metrics")?,
        })
    }

    pub(super) fn buffers(&self, batch: &TokenBatch<'_>, backend: &EmulatorBackend) -> LossOutputs {
        let skipped = backend.misalignment;
        LossOutputs {
            gradient_dtype: match (backend.narrow_gradient, batch.log_prob.dtype()) {
                (true, dtype) => dtype,
                (false, _) => DType::F32,
            },
            d_log_prob: params::Buffer {
                address: self.gradient.address() + (skipped * size_of::<G>()) as u64,
                len: self.gradient.len() - skipped,
            },
            gradient_row_stride: backend.gradient_row_stride,
            baseline: self.responses.baseline.as_ref().map(whole),
            advantage: self.responses.advantage.as_ref().map(whole),
            active_rows: Some(whole(&self.responses.active_rows)),
            active_count: Some(whole(&self.responses.active_count)),
            metrics: whole(&self.metrics),
        }
    }

    pub(super) fn download(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        backend: &EmulatorBackend,
    ) -> Result<LossOutput> {
        // SAFETY: the buffer has the struct's words, all of them written and plain numbers.
        let metrics: sys::qae_loss_metrics =
            unsafe { read_words(&self.metrics.download().map_err(failed)?) };
        let responses = self.responses.download()?;
        Ok(LossOutput {
            metrics: params::loss_metrics(&metrics, config.metrics_scope),
            d_log_prob: self.download_gradient(batch, config, backend)?,
            baseline: responses.baseline,
            advantage: responses.advantage,
            active_rows: responses.active_rows,
        })
    }

    /// The gradient laid out as the log-probs, 0 where it may be and was left unwritten. A slot
    /// that should have been written and was not is an error: the poison must be gone.
    fn download_gradient(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        backend: &EmulatorBackend,
    ) -> Result<Vec<f64>> {
        let raw = self.gradient.download_raw();
        let source_layout = gradient_layout(batch, backend);
        let mut gradient = vec![0.0; batch.log_prob.len()];
        for row in 0..batch.layout.num_rows() {
            let target = batch.layout.row(row);
            let source = source_layout.row(row).start + backend.misalignment;
            for slot in 0..target.num_slots {
                if self.gradient.is_initialized(source + slot) {
                    gradient[target.start + slot] = raw[source + slot].into();
                } else if config.gradient == Gradient::ZeroFill {
                    return Err(qae::Error::Backend {
                        backend: "emulator",
                        message: format!("d_log_prob: slot {slot} of row {row} was not written"),
                    });
                }
            }
        }
        Ok(gradient)
    }
}

fn gradient_layout<'a>(batch: &TokenBatch<'a>, backend: &EmulatorBackend) -> Layout<'a> {
    match (batch.layout, backend.gradient_row_stride) {
        (
            Layout::Padded {
                num_rows,
                width,
                mask_row_stride,
                lengths,
                ..
            },
            Some(row_stride),
        ) => Layout::Padded {
            num_rows,
            width,
            row_stride,
            mask_row_stride,
            lengths,
        },
        (layout, _) => layout,
    }
}
