//! The tensors of one loss from logits in device memory: [`crate::LogitsBatch`] there.

use super::batch::{DeviceAdvantages, DeviceLayout, DeviceWeight, read_alike};
use super::groups::GroupViews;
use super::launch::Accesses;
use super::logits::DeviceTokenIds;
use super::memory::{DeviceSlice, DeviceTensor};
use crate::batch::DType;
use crate::error::Result;
use crate::params::{LogitsBuffers, LogitsInputs, LogitsLayoutBuffers};

/// Which response each row of logits belongs to (see [`crate::LogitsLayout`]).
#[derive(Debug)]
pub enum DeviceLogitsLayout<'a> {
    /// As log-probs are laid out. A slot of the layout is a row of logits: slot t of response i of a
    /// padded layout is the row at i · response_stride + t · row_stride, slot s of a packed one that
    /// at s · row_stride.
    Responses(DeviceLayout<'a>),
    /// Slot s, the row at s · row_stride, belongs to local response `response[s]`, in any order;
    /// below 0: to none, so that it is not a token. Not for what needs whole responses:
    /// [`crate::Objective::Gspo`], [`crate::Aggregation::SeqMeanTokenMean`] and
    /// [`crate::Gradient::Compact`].
    Indexed {
        /// \[num_slots\]; the host cannot see its values: one that no response has makes its slot
        /// no token and is counted in [`crate::Metrics::out_of_range`].
        response: DeviceSlice<'a, i32>,
        /// Number of local responses.
        num_responses: usize,
    },
}

impl<'a> From<DeviceLayout<'a>> for DeviceLogitsLayout<'a> {
    fn from(layout: DeviceLayout<'a>) -> Self {
        Self::Responses(layout)
    }
}

/// What [`super::loss_from_logits`] reads besides the logits.
#[derive(Debug)]
pub struct DeviceLogitsBatch<'a> {
    /// Where tokens stand in the token tensors and in the logits.
    pub layout: DeviceLogitsLayout<'a>,
    /// Not 0 where a slot is a token that counts; `None`: all of them.
    pub mask: Option<DeviceSlice<'a, u8>>,
    /// The token of each slot, laid out as a token tensor.
    pub token_id: DeviceTokenIds<'a>,
    /// log π(token) of the policy that sampled, in nats; may be absent for
    /// [`crate::Objective::Reinforce`].
    pub old_log_prob: Option<DeviceTensor<'a>>,
    /// The same of the reference policy; needed for a KL term.
    pub ref_log_prob: Option<DeviceTensor<'a>>,
    /// Rollout correction.
    pub importance_weight: Option<DeviceWeight<'a>>,
    /// Where advantages come from.
    pub advantages: DeviceAdvantages<'a>,
}

impl DeviceLogitsLayout<'_> {
    fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<LogitsLayoutBuffers> {
        Ok(match self {
            Self::Responses(layout) => LogitsLayoutBuffers::Responses(layout.read(accesses)?),
            Self::Indexed {
                response,
                num_responses,
            } => LogitsLayoutBuffers::Indexed {
                response: accesses.read("response", response)?,
                num_responses: *num_responses,
            },
        })
    }
}

impl DeviceLogitsBatch<'_> {
    pub(super) fn read<'s>(
        &'s self,
        logits: LogitsBuffers,
        groups: Option<&'s GroupViews<'s>>,
        accesses: &mut Accesses<'s>,
    ) -> Result<LogitsInputs> {
        let old_log_prob = self.old_log_prob.as_ref();
        let ref_log_prob = self.ref_log_prob.as_ref();
        let either = old_log_prob.or(ref_log_prob);
        let dtype = either.map_or(DType::F32, DeviceTensor::dtype);
        let weight = self.importance_weight.as_ref();
        let mut read = |field, tensor: Option<&'s DeviceTensor<'_>>| {
            let read = |tensor| read_alike(field, tensor, (dtype, "old_log_prob"), accesses);
            tensor.map(read).transpose()
        };
        let old_log_prob = read("old_log_prob", old_log_prob)?;
        let ref_log_prob = read("ref_log_prob", ref_log_prob)?;
        Ok(LogitsInputs {
            layout: self.layout.read(accesses)?,
            mask: accesses.read_some("mask", self.mask.as_ref())?,
            logits,
            dtype,
            old_log_prob,
            ref_log_prob,
            importance_weight: weight.map(|weight| weight.read(accesses)).transpose()?,
            advantages: self.advantages.read(groups, accesses)?,
        })
    }
}
