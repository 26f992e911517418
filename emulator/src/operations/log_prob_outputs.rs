//! The tensors that go with rows of logits: results of the forward pass, gradients of the backward
//! pass.

use qae::params::{self, LogProbsGradients, LogProbsOutputs};
use qae::{LogProbsOutput, sys};

use super::memory::Memory;
use super::{Result, failed, whole, widened};
use crate::Buffer;

/// f32 values of a `qae_softmax_stats`.
pub(super) const STATS_FIELDS: usize = size_of::<sys::qae_softmax_stats>() / 4;

/// The outputs of the forward pass, or of the merge.
pub(super) struct ForwardMemory {
    log_prob: Buffer<f32>,
    entropy: Buffer<f32>,
    log_sum_exp: Buffer<f32>,
    pub(super) stats: Buffer<f32>,
}

impl ForwardMemory {
    pub(super) fn new(memory: &Memory, num_rows: usize) -> Result<Self> {
        Ok(Self {
            log_prob: memory.alloc(num_rows, "log_prob")?,
            entropy: memory.alloc(num_rows, "entropy")?,
            log_sum_exp: memory.alloc(num_rows, "log_sum_exp")?,
            stats: memory.alloc(num_rows * STATS_FIELDS, "stats")?,
        })
    }

    pub(super) fn statistics(&self) -> params::Buffer {
        in_stats(whole(&self.stats))
    }

    pub(super) fn all(&self) -> LogProbsOutputs {
        LogProbsOutputs {
            log_prob: Some(whole(&self.log_prob)),
            entropy: Some(whole(&self.entropy)),
            log_sum_exp: Some(whole(&self.log_sum_exp)),
            ..self.statistics_only()
        }
    }

    pub(super) fn statistics_only(&self) -> LogProbsOutputs {
        LogProbsOutputs {
            stats: Some(self.statistics()),
            ..LogProbsOutputs::default()
        }
    }

    pub(super) fn download(&self) -> Result<LogProbsOutput> {
        let values = |buffer: &Buffer<f32>| {
            let values = buffer.download().map_err(failed)?;
            Ok::<_, qae::Error>(widened(&values))
        };
        Ok(LogProbsOutput {
            log_prob: values(&self.log_prob)?,
            entropy: values(&self.entropy)?,
            log_sum_exp: values(&self.log_sum_exp)?,
        })
    }
}

/// A buffer of f32 as one of `qae_softmax_stats`.
pub(super) fn in_stats(buffer: params::Buffer) -> params::Buffer {
    params::Buffer {
        len: buffer.len / STATS_FIELDS,
        ..buffer
    }
}

pub(super) fn upload_mask(memory: &Memory, mask: Option<&[u8]>) -> Result<Option<params::Buffer>> {
    let upload = |mask| memory.upload(mask, "mask", memory.misalignment);
    mask.map(upload).transpose()
}

pub(super) fn upload_gradients(
    memory: &Memory,
    forward: &ForwardMemory,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> Result<LogProbsGradients> {
    let upload = |d_entropy| memory.upload(d_entropy, "d_entropy", 0);
    Ok(LogProbsGradients {
        stats: forward.statistics(),
        d_log_prob: memory.upload(d_log_prob, "d_log_prob", 0)?,
        d_entropy: d_entropy.map(upload).transpose()?,
    })
}
