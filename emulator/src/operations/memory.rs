//! The inputs of a call in the memory of a device.

use std::cell::RefCell;

use bytemuck::Pod;
use qae::batch::{Advantages, ImportanceWeight, Layout, Tensor, TokenBatch};
use qae::params::{
    self, AdvantageBuffers, GroupBuffers, LayoutBuffers, NormalizerSource, TokenBuffers,
    WeightBuffer,
};
use qae::{Aggregation, Config, Groups, Normalizer};

use super::{DeviceIndices, EmulatorBackend, Result, failed, whole};
use crate::launchers;
use crate::{Buffer, Device, Trace};

/// A device and the buffers whose only use is to stay alive during the launches.
pub(super) struct Memory {
    pub(super) device: Device,
    pub(super) misalignment: usize,
    indices: DeviceIndices,
    kept: RefCell<Vec<Box<dyn std::any::Any>>>,
}

impl Memory {
    pub(super) fn new(backend: &EmulatorBackend) -> Self {
        Self {
            device: Device::new(backend.options.clone()),
            misalignment: backend.misalignment,
            indices: backend.device_indices.clone(),
            kept: RefCell::default(),
        }
    }

    pub(super) fn alloc<T: Pod>(&self, len: usize, label: &str) -> Result<Buffer<T>> {
        self.device.alloc(len, label).map_err(failed)
    }

    /// Uploads behind `skipped` elements that nothing writes.
    pub(super) fn upload<T: Pod>(
        &self,
        values: &[T],
        label: &str,
        skipped: usize,
    ) -> Result<params::Buffer> {
        let mut padded = vec![T::zeroed(); skipped];
        padded.extend_from_slice(values);
        let buffer = self.device.upload(&padded, label).map_err(failed)?;
        let view = params::Buffer {
            address: buffer.address() + (skipped * size_of::<T>()) as u64,
            len: values.len(),
        };
        self.kept.borrow_mut().push(Box::new(buffer));
        Ok(view)
    }

    pub(super) fn upload_tensor(&self, tensor: Tensor<'_>, label: &str) -> Result<params::Buffer> {
        match tensor {
            Tensor::F64(_) => Err(params::no_f64(label)),
            Tensor::F32(values) => self.upload(values, label, self.misalignment),
            Tensor::Bf16(values) => self.upload(values, label, self.misalignment),
            Tensor::F16(values) => self.upload(values, label, self.misalignment),
        }
    }

    /// Zeroed in its head only: what lies behind must be written before it is read.
    pub(super) fn workspace(&self, bytes: u64) -> Result<u64> {
        let buffer = self.device.workspace(bytes).map_err(failed)?;
        let address = buffer.address();
        self.kept.borrow_mut().push(Box::new(buffer));
        Ok(address)
    }

    pub(super) fn upload_batch(
        &self,
        batch: &TokenBatch<'_>,
        groups: Option<&GroupMemory>,
    ) -> Result<TokenBuffers> {
        let optional =
            |tensor: Option<Tensor<'_>>, label| tensor.map(|t| self.upload_tensor(t, label));
        Ok(TokenBuffers {
            layout: self.upload_layout(batch.layout)?,
            mask: batch
                .mask
                .map(|mask| self.upload(mask, "mask", self.misalignment))
                .transpose()?,
            dtype: batch.log_prob.dtype(),
            log_prob: self.upload_tensor(batch.log_prob, "log_prob")?,
            old_log_prob: optional(batch.old_log_prob, "old_log_prob").transpose()?,
            ref_log_prob: optional(batch.ref_log_prob, "ref_log_prob").transpose()?,
            importance_weight: self.upload_weight(batch.importance_weight)?,
            advantages: self.upload_advantages(batch.advantages, groups)?,
        })
    }

    pub(super) fn upload_weight(
        &self,
        weight: Option<ImportanceWeight<'_>>,
    ) -> Result<Option<WeightBuffer>> {
        let label = "importance_weight";
        Ok(match weight {
            None => None,
            Some(ImportanceWeight::PerToken(weight)) => Some(WeightBuffer::PerToken(self.upload(
                weight,
                label,
                self.misalignment,
            )?)),
            Some(ImportanceWeight::PerResponse(weight)) => {
                Some(WeightBuffer::PerResponse(self.upload(weight, label, 0)?))
            }
        })
    }

    pub(super) fn upload_layout(&self, layout: Layout<'_>) -> Result<LayoutBuffers> {
        Ok(match layout {
            Layout::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths,
            } => LayoutBuffers::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths: lengths
                    .map(|lengths| self.indices.lengths.as_deref().unwrap_or(lengths))
                    .map(|lengths| self.upload(lengths, "lengths", 0))
                    .transpose()?,
            },
            Layout::Packed { offsets } => LayoutBuffers::Packed {
                offsets: self.upload(
                    self.indices.offsets.as_deref().unwrap_or(offsets),
                    "offsets",
                    0,
                )?,
                num_slots: layout.num_elements(),
            },
        })
    }

    pub(super) fn upload_slot_response(&self, response: &[i32]) -> Result<params::Buffer> {
        let seen = self.indices.slot_response.as_deref().unwrap_or(response);
        self.upload(seen, "slot_response", 0)
    }

    /// The tokens that the device sees.
    pub(super) fn device_token_ids(&self, token_id: &[i32]) -> Vec<i64> {
        let checked = || token_id.iter().map(|&id| i64::from(id)).collect();
        self.indices.token_id.clone().unwrap_or_else(checked)
    }

    pub(super) fn upload_advantages(
        &self,
        advantages: Advantages<'_>,
        groups_memory: Option<&GroupMemory>,
    ) -> Result<AdvantageBuffers> {
        Ok(match (advantages, groups_memory) {
            (
                Advantages::FromRewards {
                    rewards,
                    groups,
                    response_index,
                },
                Some(memory),
            ) => AdvantageBuffers::FromRewards {
                rewards: self.upload(rewards, "rewards", 0)?,
                groups: memory.buffers(groups),
                response_index: response_index
                    .map(|index| self.indices.response_index.as_deref().unwrap_or(index))
                    .map(|index| self.upload(index, "response_index", 0))
                    .transpose()?,
            },
            (Advantages::PerResponse(values), _) => {
                AdvantageBuffers::PerResponse(self.upload(values, "advantages", 0)?)
            }
            (Advantages::PerToken(values), _) => {
                AdvantageBuffers::PerToken(self.upload(values, "advantages", self.misalignment)?)
            }
            (Advantages::FromRewards { .. }, None) => {
                return Err(qae::Error::missing("groups", "uploaded groups"));
            }
        })
    }

    pub(super) fn count_normalizer(
        &self,
        layout: &LayoutBuffers,
        mask: Option<params::Buffer>,
        config: &Config,
    ) -> Result<(Option<Trace>, NormalizerSource)> {
        if let Normalizer::Value(_) = config.normalizer {
            return Ok((None, NormalizerSource::Config));
        }
        let tokens = self.alloc::<f64>(1, "num_tokens")?;
        let rows = self.alloc::<f64>(1, "num_rows")?;
        let mut params = params::token_counts(layout, mask, whole(&tokens), whole(&rows))?;
        // SAFETY: the query reads the params only.
        params.workspace_bytes =
            unsafe { launchers::qae_emu_token_counts_workspace_bytes(&params) };
        params.workspace = self.workspace(params.workspace_bytes)? as *mut _;
        let trace = self.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_token_counts(&params, std::ptr::null_mut()) }
        });
        let scalar = match config.aggregation {
            Aggregation::TokenMean => whole(&tokens),
            _ => whole(&rows),
        };
        let mut kept = self.kept.borrow_mut();
        kept.push(Box::new(tokens));
        kept.push(Box::new(rows));
        Ok((
            Some(trace.map_err(failed)?),
            NormalizerSource::Scalar(scalar),
        ))
    }
}

/// The index tensors of a partition, for advantages that come from rewards.
pub(super) struct GroupMemory {
    offsets: Option<params::Buffer>,
    order: Option<params::Buffer>,
    group_of_response: Option<params::Buffer>,
}

impl GroupMemory {
    pub(super) fn of_advantages(
        memory: &Memory,
        advantages: Advantages<'_>,
    ) -> Result<Option<Self>> {
        match advantages {
            Advantages::FromRewards { groups, .. } => Self::new(memory, groups).map(Some),
            Advantages::PerResponse(_) | Advantages::PerToken(_) => Ok(None),
        }
    }

    pub(super) fn new(memory: &Memory, groups: &Groups) -> Result<Self> {
        let upload = |values: Option<&[i32]>, label| {
            values
                .map(|values| memory.upload(values, label, 0))
                .transpose()
        };
        Ok(Self {
            offsets: upload(groups.offsets(), "group_offsets")?,
            order: upload(groups.order(), "group_order")?,
            group_of_response: upload(groups.group_of_response(), "group_of_response")?,
        })
    }

    pub(super) fn buffers(&self, groups: &Groups) -> GroupBuffers {
        GroupBuffers {
            offsets: self.offsets,
            order: self.order,
            group_of_response: self.group_of_response,
            ..GroupBuffers::counts(groups)
        }
    }
}
