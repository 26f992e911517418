//! Host batches in device memory.

mod logits;
mod owned;

pub(super) use logits::{GradientMemory, UploadedLogits, UploadedLogitsBatch};
pub(super) use owned::{Owned, OwnedTensor};

use super::batch::{DeviceAdvantages, DeviceBatch, DeviceLayout, DeviceWeight};
use super::groups::DeviceGroups;
use super::stream::Stream;
use crate::batch::{Advantages, ImportanceWeight, Layout, Tensor, TokenBatch};
use crate::error::Result;

/// A [`Layout`].
#[derive(Debug)]
struct OwnedLayout<'h> {
    host: Layout<'h>,
    lengths: Option<Owned<i32>>,
    offsets: Option<Owned<i64>>,
}

impl<'h> OwnedLayout<'h> {
    fn upload(stream: &Stream, host: Layout<'h>) -> Result<Self> {
        let (lengths, offsets) = match host {
            Layout::Padded { lengths, .. } => (lengths, None),
            Layout::Packed { offsets } => (None, Some(offsets)),
        };
        let lengths = lengths.map(|lengths| Owned::upload(stream, lengths));
        let offsets = offsets.map(|offsets| Owned::upload(stream, offsets));
        Ok(Self {
            host,
            lengths: lengths.transpose()?,
            offsets: offsets.transpose()?,
        })
    }

    fn as_layout(&self) -> DeviceLayout<'_> {
        match (self.host, &self.offsets) {
            (_, Some(offsets)) => DeviceLayout::Packed {
                offsets: offsets.as_slice(),
                num_slots: self.host.num_elements(),
            },
            (layout, None) => {
                let (width, row_stride, mask_row_stride) = padded_shape(layout);
                DeviceLayout::Padded {
                    num_rows: layout.num_rows(),
                    width,
                    row_stride,
                    mask_row_stride,
                    lengths: self.lengths.as_ref().map(Owned::as_slice),
                }
            }
        }
    }
}

fn padded_shape(layout: Layout<'_>) -> (usize, usize, usize) {
    match layout {
        Layout::Padded {
            width,
            row_stride,
            mask_row_stride,
            ..
        } => (width, row_stride, mask_row_stride),
        Layout::Packed { .. } => (0, 0, 0),
    }
}

#[derive(Debug)]
enum OwnedWeight {
    PerToken(Owned<f32>),
    PerResponse(Owned<f32>),
}

impl OwnedWeight {
    fn upload(stream: &Stream, weight: ImportanceWeight<'_>) -> Result<Self> {
        Ok(match weight {
            ImportanceWeight::PerToken(weight) => Self::PerToken(Owned::upload(stream, weight)?),
            ImportanceWeight::PerResponse(weight) => {
                Self::PerResponse(Owned::upload(stream, weight)?)
            }
        })
    }

    fn as_weight(&self) -> DeviceWeight<'_> {
        match self {
            Self::PerToken(weight) => DeviceWeight::PerToken(weight.as_slice()),
            Self::PerResponse(weight) => DeviceWeight::PerResponse(weight.as_slice()),
        }
    }
}

#[derive(Debug)]
enum OwnedAdvantages {
    Rewards {
        rewards: Owned<f32>,
        groups: Box<DeviceGroups>,
        response_index: Option<Owned<i32>>,
    },
    PerResponse(Owned<f32>),
    PerToken(Owned<f32>),
}

impl OwnedAdvantages {
    fn upload(stream: &Stream, advantages: Advantages<'_>) -> Result<Self> {
        Ok(match advantages {
            Advantages::FromRewards {
                rewards,
                groups,
                response_index,
            } => Self::Rewards {
                rewards: Owned::upload(stream, rewards)?,
                groups: Box::new(DeviceGroups::upload(stream, groups.clone())?),
                response_index: response_index
                    .map(|index| Owned::upload(stream, index))
                    .transpose()?,
            },
            Advantages::PerResponse(values) => Self::PerResponse(Owned::upload(stream, values)?),
            Advantages::PerToken(values) => Self::PerToken(Owned::upload(stream, values)?),
        })
    }

    fn as_advantages(&self) -> DeviceAdvantages<'_> {
        match self {
            Self::Rewards {
                rewards,
                groups,
                response_index,
            } => DeviceAdvantages::FromRewards {
                rewards: rewards.as_slice(),
                groups,
                response_index: response_index.as_ref().map(Owned::as_slice),
            },
            Self::PerResponse(values) => DeviceAdvantages::PerResponse(values.as_slice()),
            Self::PerToken(values) => DeviceAdvantages::PerToken(values.as_slice()),
        }
    }
}

/// What the losses have in common: everything but log-probs of the policy, or logits.
#[derive(Debug)]
struct UploadedTokens {
    mask: Option<Owned<u8>>,
    old_log_prob: Option<OwnedTensor>,
    ref_log_prob: Option<OwnedTensor>,
    importance_weight: Option<OwnedWeight>,
    advantages: OwnedAdvantages,
}

impl UploadedTokens {
    fn new(
        stream: &Stream,
        mask: Option<&[u8]>,
        [old_log_prob, ref_log_prob]: [Option<Tensor<'_>>; 2],
        weight: Option<ImportanceWeight<'_>>,
        advantages: Advantages<'_>,
    ) -> Result<Self> {
        let tensor = |field, tensor: Option<Tensor<'_>>| {
            let upload = |tensor| OwnedTensor::upload(stream, field, tensor);
            tensor.map(upload).transpose()
        };
        let mask = mask.map(|mask| Owned::upload(stream, mask));
        let weight = weight.map(|weight| OwnedWeight::upload(stream, weight));
        Ok(Self {
            mask: mask.transpose()?,
            old_log_prob: tensor("old_log_prob", old_log_prob)?,
            ref_log_prob: tensor("ref_log_prob", ref_log_prob)?,
            importance_weight: weight.transpose()?,
            advantages: OwnedAdvantages::upload(stream, advantages)?,
        })
    }
}

/// Everything of a [`TokenBatch`].
#[derive(Debug)]
pub(super) struct UploadedBatch<'h> {
    layout: OwnedLayout<'h>,
    log_prob: OwnedTensor,
    tokens: UploadedTokens,
}

impl<'h> UploadedBatch<'h> {
    pub(super) fn new(stream: &Stream, host: &TokenBatch<'h>) -> Result<Self> {
        Ok(Self {
            layout: OwnedLayout::upload(stream, host.layout)?,
            log_prob: OwnedTensor::upload(stream, "log_prob", host.log_prob)?,
            tokens: UploadedTokens::new(
                stream,
                host.mask,
                [host.old_log_prob, host.ref_log_prob],
                host.importance_weight,
                host.advantages,
            )?,
        })
    }

    pub(super) fn as_batch(&self) -> DeviceBatch<'_> {
        let tokens = &self.tokens;
        DeviceBatch {
            layout: self.layout.as_layout(),
            mask: tokens.mask.as_ref().map(Owned::as_slice),
            log_prob: self.log_prob.as_tensor(),
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
