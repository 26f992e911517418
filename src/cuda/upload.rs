//! A host batch in device memory.

use super::batch::{DeviceAdvantages, DeviceBatch, DeviceLayout, DeviceWeight};
use super::groups::DeviceGroups;
use super::launch::driver_error;
use super::memory::{DeviceSlice, DeviceSliceMut, DeviceTensor};
use super::stream::Stream;
use crate::batch::{Advantages, ImportanceWeight, Layout, Tensor, TokenBatch};
use crate::error::Result;
use cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

/// A tensor of this program on the device. An empty one has memory, too: CUDA allocates no 0 bytes.
#[derive(Debug)]
pub(super) struct Owned<T> {
    memory: CudaSlice<T>,
    len: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits> Owned<T> {
    pub(super) fn zeros(stream: &Stream, len: usize) -> Result<Self> {
        let memory = stream.cudarc().alloc_zeros(len.max(1));
        let memory = memory.map_err(|error| driver_error("cuMemAllocAsync", error))?;
        Ok(Self { memory, len })
    }

    pub(super) fn upload(stream: &Stream, values: &[T]) -> Result<Self> {
        if values.is_empty() {
            return Self::zeros(stream, 0);
        }
        let memory = stream.cudarc().clone_htod(values);
        Ok(Self {
            memory: memory.map_err(|error| driver_error("cuMemcpyHtoDAsync", error))?,
            len: values.len(),
        })
    }

    /// Waits for the stream.
    pub(super) fn download(&self, stream: &Stream) -> Result<Vec<T>> {
        let values = stream
            .cudarc()
            .clone_dtoh(&self.memory.slice(..self.len.max(1)));
        let mut values = values.map_err(|error| driver_error("cuMemcpyDtoHAsync", error))?;
        stream.synchronize()?;
        values.truncate(self.len);
        Ok(values)
    }

    pub(super) fn as_slice(&self) -> DeviceSlice<'_, T> {
        self.memory.slice(..self.len).into()
    }

    pub(super) fn as_slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        self.memory.slice_mut(..self.len).into()
    }
}

#[derive(Debug)]
enum OwnedTensor {
    F32(Owned<f32>),
    Bf16(Owned<bf16>),
    F16(Owned<f16>),
}

impl OwnedTensor {
    fn upload(stream: &Stream, tensor: Tensor<'_>) -> Result<Self> {
        Ok(match tensor {
            Tensor::F32(values) => Self::F32(Owned::upload(stream, values)?),
            Tensor::Bf16(values) => Self::Bf16(Owned::upload(stream, values)?),
            Tensor::F16(values) => Self::F16(Owned::upload(stream, values)?),
        })
    }

    fn as_tensor(&self) -> DeviceTensor<'_> {
        match self {
            Self::F32(values) => DeviceTensor::F32(values.as_slice()),
            Self::Bf16(values) => DeviceTensor::Bf16(values.as_slice()),
            Self::F16(values) => DeviceTensor::F16(values.as_slice()),
        }
    }
}

#[derive(Debug)]
enum OwnedIndices {
    Lengths(Owned<i32>),
    Offsets(Owned<i64>),
    None,
}

#[derive(Debug)]
enum OwnedAdvantages {
    Rewards {
        rewards: Owned<f32>,
        groups: Box<DeviceGroups>,
        response_index: Option<Owned<i32>>,
    },
    Given(Owned<f32>),
}

/// Everything of a [`TokenBatch`].
#[derive(Debug)]
pub(super) struct UploadedBatch<'h> {
    host: &'h TokenBatch<'h>,
    indices: OwnedIndices,
    mask: Option<Owned<u8>>,
    log_prob: OwnedTensor,
    old_log_prob: Option<OwnedTensor>,
    ref_log_prob: Option<OwnedTensor>,
    importance_weight: Option<Owned<f32>>,
    advantages: OwnedAdvantages,
}

impl<'h> UploadedBatch<'h> {
    pub(super) fn new(stream: &Stream, host: &'h TokenBatch<'h>) -> Result<Self> {
        let tensor = |tensor: Option<Tensor<'_>>| {
            tensor
                .map(|tensor| OwnedTensor::upload(stream, tensor))
                .transpose()
        };
        let indices = match host.layout {
            Layout::Padded {
                lengths: Some(lengths),
                ..
            } => OwnedIndices::Lengths(Owned::upload(stream, lengths)?),
            Layout::Padded { lengths: None, .. } => OwnedIndices::None,
            Layout::Packed { offsets } => OwnedIndices::Offsets(Owned::upload(stream, offsets)?),
        };
        let weight = host.importance_weight.map(|weight| match weight {
            ImportanceWeight::PerToken(values) | ImportanceWeight::PerResponse(values) => values,
        });
        Ok(Self {
            host,
            indices,
            mask: host
                .mask
                .map(|mask| Owned::upload(stream, mask))
                .transpose()?,
            log_prob: OwnedTensor::upload(stream, host.log_prob)?,
            old_log_prob: tensor(host.old_log_prob)?,
            ref_log_prob: tensor(host.ref_log_prob)?,
            importance_weight: weight
                .map(|weight| Owned::upload(stream, weight))
                .transpose()?,
            advantages: upload_advantages(stream, host.advantages)?,
        })
    }

    pub(super) fn as_batch(&self) -> DeviceBatch<'_> {
        let weight = self.importance_weight.as_ref().map(Owned::as_slice);
        DeviceBatch {
            layout: self.layout(),
            mask: self.mask.as_ref().map(Owned::as_slice),
            log_prob: self.log_prob.as_tensor(),
            old_log_prob: self.old_log_prob.as_ref().map(OwnedTensor::as_tensor),
            ref_log_prob: self.ref_log_prob.as_ref().map(OwnedTensor::as_tensor),
            importance_weight: weight.map(|weight| match self.host.importance_weight {
                Some(ImportanceWeight::PerResponse(_)) => DeviceWeight::PerResponse(weight),
                _ => DeviceWeight::PerToken(weight),
            }),
            advantages: self.advantages(),
        }
    }

    fn layout(&self) -> DeviceLayout<'_> {
        match (self.host.layout, &self.indices) {
            (_, OwnedIndices::Offsets(offsets)) => DeviceLayout::Packed {
                offsets: offsets.as_slice(),
                num_slots: self.host.log_prob.len(),
            },
            (layout, indices) => {
                let (width, row_stride, mask_row_stride) = padded_shape(layout);
                DeviceLayout::Padded {
                    num_rows: layout.num_rows(),
                    width,
                    row_stride,
                    mask_row_stride,
                    lengths: match indices {
                        OwnedIndices::Lengths(lengths) => Some(lengths.as_slice()),
                        _ => None,
                    },
                }
            }
        }
    }

    fn advantages(&self) -> DeviceAdvantages<'_> {
        match &self.advantages {
            OwnedAdvantages::Rewards {
                rewards,
                groups,
                response_index,
            } => DeviceAdvantages::FromRewards {
                rewards: rewards.as_slice(),
                groups,
                response_index: response_index.as_ref().map(Owned::as_slice),
            },
            OwnedAdvantages::Given(values) => match self.host.advantages {
                Advantages::PerToken(_) => DeviceAdvantages::PerToken(values.as_slice()),
                _ => DeviceAdvantages::PerResponse(values.as_slice()),
            },
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

fn upload_advantages(stream: &Stream, advantages: Advantages<'_>) -> Result<OwnedAdvantages> {
    Ok(match advantages {
        Advantages::FromRewards {
            rewards,
            groups,
            response_index,
        } => OwnedAdvantages::Rewards {
            rewards: Owned::upload(stream, rewards)?,
            groups: Box::new(DeviceGroups::upload(stream, groups.clone())?),
            response_index: response_index
                .map(|index| Owned::upload(stream, index))
                .transpose()?,
        },
        Advantages::PerResponse(values) | Advantages::PerToken(values) => {
            OwnedAdvantages::Given(Owned::upload(stream, values)?)
        }
    })
}
