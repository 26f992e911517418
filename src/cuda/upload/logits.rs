//! Logits, their tokens and their gradient in device memory.

use super::{Owned, OwnedLayout, OwnedTensor, OwnedWeight, UploadedTokens};
use crate::batch::{Logits, LogitsBatch, LogitsLayout};
use crate::cuda::backend::LogitsPlacement;
use crate::cuda::logits::{DeviceLogits, DeviceTokenIds, LogitsGradient};
use crate::cuda::logits_batch::{DeviceLogitsBatch, DeviceLogitsLayout};
use crate::cuda::memory::DeviceTensor;
use crate::cuda::stream::Stream;
use crate::error::{Error, Result};

#[derive(Debug)]
enum OwnedTokenIds {
    I32(Owned<i32>),
    I64(Owned<i64>),
}

/// Logits and the token of each row.
#[derive(Debug)]
pub(in crate::cuda) struct UploadedLogits<'h> {
    host: Logits<'h>,
    values: OwnedTensor,
    token_id: OwnedTokenIds,
}

/// Where a gradient is written.
#[derive(Debug)]
pub(in crate::cuda) enum GradientMemory {
    /// Over a copy of the logits.
    InPlace(OwnedTensor),
    Apart(OwnedTensor),
}

impl<'h> UploadedLogits<'h> {
    pub(in crate::cuda) fn new(
        stream: &Stream,
        host: Logits<'h>,
        token_id: &[i32],
        placement: &LogitsPlacement,
    ) -> Result<Self> {
        let token_id = if placement.wide_token_ids {
            let wide: Vec<i64> = token_id.iter().map(|&id| id.into()).collect();
            OwnedTokenIds::I64(Owned::upload(stream, &wide)?)
        } else {
            OwnedTokenIds::I32(Owned::upload(stream, token_id)?)
        };
        Ok(Self {
            values: OwnedTensor::upload_behind(
                stream,
                "logits",
                host.values,
                placement.misalignment,
            )?,
            host,
            token_id,
        })
    }

    pub(in crate::cuda) fn token_id(&self) -> DeviceTokenIds<'_> {
        match &self.token_id {
            OwnedTokenIds::I32(ids) => ids.as_slice().into(),
            OwnedTokenIds::I64(ids) => ids.as_slice().into(),
        }
    }

    pub(in crate::cuda) fn as_logits(&self) -> DeviceLogits<DeviceTensor<'_>> {
        self.shaped(self.values.as_tensor())
    }

    pub(in crate::cuda) fn with_gradient<'a>(
        &'a self,
        memory: &'a mut GradientMemory,
    ) -> DeviceLogits<LogitsGradient<'a>> {
        self.shaped(match memory {
            GradientMemory::InPlace(values) => LogitsGradient::InPlace(values.as_tensor_mut()),
            GradientMemory::Apart(d_logits) => {
                LogitsGradient::apart(self.values.as_tensor(), d_logits.as_tensor_mut())
            }
        })
    }

    fn shaped<V>(&self, values: V) -> DeviceLogits<V> {
        DeviceLogits {
            values,
            vocab_size: self.host.vocab_size,
            row_stride: self.host.row_stride,
            response_stride: self.host.response_stride,
        }
    }
}

impl GradientMemory {
    /// As large as the logits. What has to be written, the rows at `poisoned`, starts as NaN, so
    /// that an element that a kernel forgot shows; all else as 0, unless in place.
    pub(in crate::cuda) fn new(
        stream: &Stream,
        logits: &UploadedLogits<'_>,
        placement: &LogitsPlacement,
        poisoned: &[usize],
    ) -> Result<Self> {
        if placement.in_place {
            return Ok(Self::InPlace(logits.values.try_clone()?));
        }
        let host = logits.host;
        let mut values = vec![0.0; host.values.len()];
        for &start in poisoned {
            values[start..start + host.vocab_size].fill(f32::NAN);
        }
        let skipped = placement.gradient_misalignment;
        let d_logits =
            OwnedTensor::rounded(stream, "d_logits", host.values.dtype(), &values, skipped)?;
        Ok(Self::Apart(d_logits))
    }

    /// Makes it ready for another launch: in place, the last one took the logits away.
    pub(in crate::cuda) fn restore(&mut self, logits: &UploadedLogits<'_>) -> Result<()> {
        if let Self::InPlace(values) = self {
            *values = logits.values.try_clone()?;
        }
        Ok(())
    }

    /// The rows at `starts`, one after another; 0 where one was not written, which in place is one
    /// that still holds its logits.
    ///
    /// # Errors
    /// [`Error::Backend`] if something else was written.
    pub(in crate::cuda) fn download(
        &self,
        stream: &Stream,
        logits: &UploadedLogits<'_>,
        starts: &[usize],
    ) -> Result<Vec<f64>> {
        let (tensor, in_place) = match self {
            Self::InPlace(tensor) => (tensor, true),
            Self::Apart(tensor) => (tensor, false),
        };
        let Logits {
            values: host,
            vocab_size,
            ..
        } = logits.host;
        let mut values = tensor.download(stream)?;
        let is_as_before = |index: usize, value: f64| match in_place {
            true => value.to_bits() == host.get(index).to_bits(),
            false => value == 0.0,
        };
        let mut rows = Vec::with_capacity(starts.len() * vocab_size);
        for &start in starts {
            let row = &mut values[start..start + vocab_size];
            let mut elements = row.iter().zip(start..);
            if elements.all(|(&value, index)| is_as_before(index, value)) {
                rows.resize(rows.len() + vocab_size, 0.0);
            } else {
                rows.extend_from_slice(row);
            }
            // What is left is no row's.
            for (value, index) in row.iter_mut().zip(start..) {
                *value = if in_place { host.get(index) } else { 0.0 };
            }
        }
        let mut rest = values.iter().enumerate();
        match rest.find(|&(index, &value)| !is_as_before(index, value)) {
            None => Ok(rows),
            Some((index, _)) => Err(Error::Backend {
                backend: "cuda",
                message: format!("d_logits[{index}]: no row's, but written"),
            }),
        }
    }
}

#[derive(Debug)]
enum OwnedLogitsLayout<'h> {
    Responses(OwnedLayout<'h>),
    Indexed {
        response: Owned<i32>,
        num_responses: usize,
    },
}

/// Everything of a [`LogitsBatch`].
#[derive(Debug)]
pub(in crate::cuda) struct UploadedLogitsBatch<'h> {
    layout: OwnedLogitsLayout<'h>,
    pub(in crate::cuda) logits: UploadedLogits<'h>,
    tokens: UploadedTokens,
}

impl<'h> UploadedLogitsBatch<'h> {
    pub(in crate::cuda) fn new(
        stream: &Stream,
        host: &LogitsBatch<'h>,
        placement: &LogitsPlacement,
    ) -> Result<Self> {
        let layout = match host.layout {
            LogitsLayout::Responses(layout) => {
                OwnedLogitsLayout::Responses(OwnedLayout::upload(stream, layout)?)
            }
            LogitsLayout::Indexed {
                response,
                num_responses,
            } => OwnedLogitsLayout::Indexed {
                response: Owned::upload(stream, response)?,
                num_responses,
            },
        };
        Ok(Self {
            layout,
            logits: UploadedLogits::new(stream, host.logits, host.token_id, placement)?,
            tokens: UploadedTokens::new(
                stream,
                host.mask,
                [host.old_log_prob, host.ref_log_prob],
                host.importance_weight,
                host.advantages,
            )?,
        })
    }

    pub(in crate::cuda) fn as_batch(&self) -> DeviceLogitsBatch<'_> {
        let tokens = &self.tokens;
        DeviceLogitsBatch {
            layout: match &self.layout {
                OwnedLogitsLayout::Responses(layout) => layout.as_layout().into(),
                OwnedLogitsLayout::Indexed {
                    response,
                    num_responses,
                } => DeviceLogitsLayout::Indexed {
                    response: response.as_slice(),
                    num_responses: *num_responses,
                },
            },
            mask: tokens.mask.as_ref().map(Owned::as_slice),
            token_id: self.logits.token_id(),
            old_log_prob: tokens.old_log_prob.as_ref().map(OwnedTensor::as_tensor),
            ref_log_prob: tokens.ref_log_prob.as_ref().map(OwnedTensor::as_tensor),
            importance_weight: tokens
                .importance_weight
                .as_ref()
                .map(OwnedWeight::as_weight),
            advantages: tokens.advantages.as_advantages(),
        }
    }
}
