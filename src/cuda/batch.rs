//! The tensors of one launch in device memory: [`crate::TokenBatch`] there.

use super::groups::{DeviceGroups, GroupViews};
use super::launch::Accesses;
use super::memory::{DeviceSlice, DeviceTensor};
use crate::batch::DType;
use crate::error::{Error, Result};
use crate::params::{AdvantageBuffers, Buffer, LayoutBuffers, TokenBuffers, WeightBuffer};

/// Where the tokens of row i stand (see [`crate::Layout`]).
///
/// The host cannot see the values of `lengths` and `offsets`: a row that they place outside of its
/// tensor is inactive and counted in [`crate::Metrics::out_of_range`]. Offsets must not decrease from
/// row to row: nothing outside the tensors is accessed then either, but which rows count as active
/// is unspecified.
#[derive(Debug)]
pub enum DeviceLayout<'a> {
    /// \[num_rows, width\] with every slot a token, unless the mask says otherwise.
    Padded {
        /// Number of local responses.
        num_rows: usize,
        /// Slots per row (T).
        width: usize,
        /// Elements from one row to the next in the token tensors.
        row_stride: usize,
        /// The same for the mask.
        mask_row_stride: usize,
        /// \[num_rows\] valid leading slots of each row; `None`: `width`.
        lengths: Option<DeviceSlice<'a, i32>>,
    },
    /// Responses back to back: row i is slots `offsets[i]..offsets[i + 1]`.
    Packed {
        /// \[num_rows + 1\], from 0, non-decreasing; empty rows are allowed.
        offsets: DeviceSlice<'a, i64>,
        /// Slots in all rows: the length of the token tensors.
        num_slots: usize,
    },
}

impl DeviceLayout<'_> {
    /// \[num_rows, width\], contiguous, all slots tokens unless masked.
    pub fn padded(num_rows: usize, width: usize) -> DeviceLayout<'static> {
        DeviceLayout::Padded {
            num_rows,
            width,
            row_stride: width,
            mask_row_stride: width,
            lengths: None,
        }
    }

    pub(super) fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<LayoutBuffers> {
        Ok(match self {
            Self::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths,
            } => LayoutBuffers::Padded {
                num_rows: *num_rows,
                width: *width,
                row_stride: *row_stride,
                mask_row_stride: *mask_row_stride,
                lengths: accesses.read_some("lengths", lengths.as_ref())?,
            },
            Self::Packed { offsets, num_slots } => {
                if offsets.is_empty() {
                    return Err(Error::invalid("offsets", "at least one offset", "none"));
                }
                LayoutBuffers::Packed {
                    offsets: accesses.read("offsets", offsets)?,
                    num_slots: *num_slots,
                }
            }
        })
    }
}

/// Where advantages come from (see [`crate::Advantages`]).
#[derive(Debug)]
pub enum DeviceAdvantages<'a> {
    /// Computed from the rewards of the *global* batch, in the same launch.
    FromRewards {
        /// \[num_responses\], any unit.
        rewards: DeviceSlice<'a, f32>,
        /// The groups of the global batch.
        groups: &'a DeviceGroups,
        /// \[num_rows\], the global response of each local row; `None`: row i is response i.
        response_index: Option<DeviceSlice<'a, i32>>,
    },
    /// \[num_rows\], one for each local response.
    PerResponse(DeviceSlice<'a, f32>),
    /// One for each slot, laid out as the log-probs.
    PerToken(DeviceSlice<'a, f32>),
}

/// Rollout-correction weights that multiply the policy term; dimensionless.
#[derive(Debug)]
pub enum DeviceWeight<'a> {
    /// One for each slot, laid out as the log-probs.
    PerToken(DeviceSlice<'a, f32>),
    /// \[num_rows\].
    PerResponse(DeviceSlice<'a, f32>),
}

/// The tensors that [`super::loss_from_log_probs`] reads.
#[derive(Debug)]
pub struct DeviceBatch<'a> {
    /// Where tokens stand in every token tensor.
    pub layout: DeviceLayout<'a>,
    /// Not 0 where a slot is a token that counts; `None`: all of them.
    pub mask: Option<DeviceSlice<'a, u8>>,
    /// log π(token) of the policy that is trained, in nats.
    pub log_prob: DeviceTensor<'a>,
    /// The same of the policy that sampled; may be absent for [`crate::Objective::Reinforce`].
    pub old_log_prob: Option<DeviceTensor<'a>>,
    /// The same of the reference policy; needed for a KL term.
    pub ref_log_prob: Option<DeviceTensor<'a>>,
    /// Rollout correction.
    pub importance_weight: Option<DeviceWeight<'a>>,
    /// Where advantages come from.
    pub advantages: DeviceAdvantages<'a>,
}

impl DeviceAdvantages<'_> {
    /// The views of the uploaded groups, which the caller keeps for the launch.
    pub(super) fn group_views(&self) -> Option<GroupViews<'_>> {
        match self {
            Self::FromRewards { groups, .. } => Some(groups.views()),
            Self::PerResponse(_) | Self::PerToken(_) => None,
        }
    }

    pub(super) fn read<'s>(
        &'s self,
        groups: Option<&'s GroupViews<'s>>,
        accesses: &mut Accesses<'s>,
    ) -> Result<AdvantageBuffers> {
        let field = "advantages";
        Ok(match (self, groups) {
            (
                Self::FromRewards {
                    rewards,
                    response_index,
                    ..
                },
                Some(groups),
            ) => AdvantageBuffers::FromRewards {
                rewards: accesses.read("rewards", rewards)?,
                groups: groups.read(accesses)?,
                response_index: accesses.read_some("response_index", response_index.as_ref())?,
            },
            (Self::FromRewards { .. }, None) => {
                return Err(Error::missing("groups", "those of the rewards"));
            }
            (Self::PerResponse(values), _) => {
                AdvantageBuffers::PerResponse(accesses.read(field, values)?)
            }
            (Self::PerToken(values), _) => {
                AdvantageBuffers::PerToken(accesses.read(field, values)?)
            }
        })
    }
}

impl DeviceWeight<'_> {
    pub(super) fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<WeightBuffer> {
        let field = "importance_weight";
        Ok(match self {
            Self::PerToken(weight) => WeightBuffer::PerToken(accesses.read(field, weight)?),
            Self::PerResponse(weight) => WeightBuffer::PerResponse(accesses.read(field, weight)?),
        })
    }
}

impl DeviceBatch<'_> {
    pub(super) fn read<'s>(
        &'s self,
        groups: Option<&'s GroupViews<'s>>,
        accesses: &mut Accesses<'s>,
    ) -> Result<TokenBuffers> {
        let dtype = (self.log_prob.dtype(), "log_prob");
        let weight = self.importance_weight.as_ref();
        let mut read_alike = |field, tensor: &'s Option<DeviceTensor<'_>>| {
            let read = |tensor| read_alike(field, tensor, dtype, accesses);
            tensor.as_ref().map(read).transpose()
        };
        let old_log_prob = read_alike("old_log_prob", &self.old_log_prob)?;
        let ref_log_prob = read_alike("ref_log_prob", &self.ref_log_prob)?;
        Ok(TokenBuffers {
            layout: self.layout.read(accesses)?,
            mask: accesses.read_some("mask", self.mask.as_ref())?,
            dtype: dtype.0,
            log_prob: accesses.read_tensor("log_prob", &self.log_prob)?,
            old_log_prob,
            ref_log_prob,
            importance_weight: weight.map(|weight| weight.read(accesses)).transpose()?,
            advantages: self.advantages.read(groups, accesses)?,
        })
    }
}

/// Reads a tensor whose dtype is to be that of another, by name.
pub(super) fn read_alike<'s>(
    field: &str,
    tensor: &'s DeviceTensor<'_>,
    (dtype, other): (DType, &str),
    accesses: &mut Accesses<'s>,
) -> Result<Buffer> {
    if tensor.dtype() != dtype {
        return Err(Error::invalid(
            field,
            format!("dtype {dtype:?} as {other}"),
            format!("{:?}", tensor.dtype()),
        ));
    }
    accesses.read_tensor(field, tensor)
}
