//! From checked arguments to the params structs of `kernels/qae.h`.
//!
//! Knows addresses and lengths, not whose memory they point into: the CUDA launch API passes device
//! memory, the emulator its own. All that the host can see is checked here, before any launch.

mod advantages;
mod log_probs_from_logits;
mod logits;
mod loss_from_log_probs;
mod loss_from_logits;
mod metrics;
mod scale_gradient;
mod token_counts;
mod token_loss;

pub use advantages::{AdvantageOutputs, advantages};
pub use log_probs_from_logits::{
    LogProbsGradients, LogProbsOutputs, LogitsGradient, LogitsRows, log_probs_from_logits,
    log_probs_from_logits_backward, merge_softmax_stats,
};
pub use logits::LogitsBuffers;
pub use loss_from_log_probs::{
    AdvantageBuffers, LossOutputs, NormalizerSource, TokenBuffers, WeightBuffer,
    loss_from_log_probs,
};
pub use loss_from_logits::{
    LogitsInputs, LogitsLayoutBuffers, LogitsOutputs, RowPolicy, loss_from_logits,
};
pub use metrics::{
    group_metrics, group_metrics_struct, logits_metrics, logits_metrics_struct, loss_metrics,
    loss_metrics_struct,
};
pub use scale_gradient::{FactorBuffers, TypedBuffer, scale_gradient};
pub use token_counts::token_counts;

use crate::batch::DType;
use crate::batch::shape::LayoutShape;
use crate::error::{Error, Result};
use crate::groups::Groups;
use crate::sys;

/// Where a tensor starts, and how many elements it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Address of the first element, in the memory of whatever runs the kernels.
    pub address: u64,
    /// Number of elements.
    pub len: usize,
}

impl Buffer {
    fn as_ptr<T>(self) -> *const T {
        self.address as *const T
    }

    fn as_mut_ptr<T>(self) -> *mut T {
        self.address as *mut T
    }
}

/// The address of an optional buffer, or null.
fn optional<T>(buffer: Option<Buffer>) -> *const T {
    buffer.map_or(std::ptr::null(), Buffer::as_ptr)
}

fn optional_mut<T>(buffer: Option<Buffer>) -> *mut T {
    buffer.map_or(std::ptr::null_mut(), Buffer::as_mut_ptr)
}

/// A partition into groups: its counts, and its index tensors, which uniform groups have none of.
#[derive(Debug, Clone, Copy)]
pub struct GroupBuffers {
    /// [`Groups::num_responses`].
    pub num_responses: usize,
    /// [`Groups::num_groups`].
    pub num_groups: usize,
    /// [`Groups::uniform_size`]; 0 without one.
    pub group_size: usize,
    /// [`Groups::max_size`].
    pub max_group_size: usize,
    /// [`Groups::offsets`], i32.
    pub offsets: Option<Buffer>,
    /// [`Groups::order`], i32.
    pub order: Option<Buffer>,
    /// [`Groups::group_of_response`], i32.
    pub group_of_response: Option<Buffer>,
}

impl GroupBuffers {
    /// The counts of `groups`, whose index tensors, where there are any, are the caller's to set.
    pub fn counts(groups: &Groups) -> Self {
        Self {
            num_responses: groups.num_responses(),
            num_groups: groups.num_groups(),
            group_size: groups.uniform_size().unwrap_or(0),
            max_group_size: groups.max_size(),
            offsets: None,
            order: None,
            group_of_response: None,
        }
    }

    /// Counts that were not made from [`Groups`] may be anything: the kernels index with them.
    fn check(&self) -> Result<()> {
        let sizes = (self.num_groups, self.group_size, self.max_group_size);
        let is_whole = if self.group_size > 0 {
            self.num_groups.checked_mul(self.group_size) == Some(self.num_responses)
        } else {
            self.num_groups <= self.num_responses
        };
        let largest = match (self.group_size, self.num_responses) {
            (0, responses) => responses,
            (size, responses) => size.min(responses),
        };
        if i32::try_from(self.num_responses).is_err() {
            let expected = "at most 2147483647";
            return Err(Error::invalid(
                "num_responses",
                expected,
                self.num_responses,
            ));
        }
        if !is_whole || self.max_group_size > largest {
            return Err(Error::invalid(
                "num_groups, group_size and max_group_size",
                format!("those of {} responses", self.num_responses),
                format!("{sizes:?}"),
            ));
        }
        let index = |field: &str, tensor: Option<Buffer>, len: usize| match tensor {
            Some(tensor) => expect_len(field, tensor, len),
            None => Ok(()),
        };
        index("group_offsets", self.offsets, self.num_groups + 1)?;
        index("group_order", self.order, self.num_responses)?;
        index(
            "group_of_response",
            self.group_of_response,
            self.num_responses,
        )
    }

    fn params(&self, rewards: Buffer) -> Result<sys::qae_groups> {
        self.check()?;
        expect_len("rewards", rewards, self.num_responses)?;
        Ok(sys::qae_groups {
            rewards: rewards.as_ptr(),
            num_responses: self.num_responses as i32,
            num_groups: self.num_groups as i32,
            group_size: self.group_size as i32,
            max_group_size: self.max_group_size as i32,
            offsets: optional(self.offsets),
            order: optional(self.order),
            group_of_response: optional(self.group_of_response),
        })
    }
}

/// Where the tokens of each row stand (see [`crate::Layout`]).
#[derive(Debug, Clone, Copy)]
pub enum LayoutBuffers {
    /// \[num_rows, width\].
    Padded {
        /// Number of local responses.
        num_rows: usize,
        /// Slots per row.
        width: usize,
        /// Elements from row to row of the token tensors.
        row_stride: usize,
        /// The same of the mask.
        mask_row_stride: usize,
        /// \[num_rows\] i32.
        lengths: Option<Buffer>,
    },
    /// Back to back.
    Packed {
        /// \[num_rows + 1\] i64.
        offsets: Buffer,
        /// Slots in all rows: the length of the token tensors.
        num_slots: usize,
    },
}

impl LayoutBuffers {
    /// Number of local responses.
    pub fn num_rows(&self) -> usize {
        match *self {
            Self::Padded { num_rows, .. } => num_rows,
            Self::Packed { offsets, .. } => offsets.len.saturating_sub(1),
        }
    }

    /// The layout without its tensors.
    fn shape(&self) -> LayoutShape {
        match *self {
            Self::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths,
            } => LayoutShape::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths: lengths.map(|lengths| lengths.len),
            },
            Self::Packed { num_slots, .. } => LayoutShape::Packed {
                num_rows: self.num_rows(),
                num_slots,
            },
        }
    }

    fn params(&self, mask: Option<Buffer>, gradient_row_stride: usize) -> sys::qae_layout {
        let shape = self.shape();
        let (width, lengths, offsets, num_slots) = match *self {
            Self::Padded {
                num_rows,
                width,
                lengths,
                ..
            } => (width, lengths, None, num_rows * width),
            Self::Packed { offsets, num_slots } => (0, None, Some(offsets), num_slots),
        };
        sys::qae_layout {
            num_rows: shape.num_rows() as i64,
            width: width as i64,
            num_slots: num_slots as i64,
            row_stride: shape.row_stride() as i64,
            mask_row_stride: shape.mask_row_stride() as i64,
            gradient_row_stride: gradient_row_stride as i64,
            offsets: optional(offsets),
            lengths: optional(lengths),
            mask: optional(mask),
        }
    }
}

fn expect_len(field: &str, buffer: Buffer, expected: usize) -> Result<()> {
    if buffer.len == expected {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("shape [{expected}]"),
        format!("[{}]", buffer.len),
    ))
}

/// The refusal of an f64 tensor: the kernels neither read nor write any.
pub fn no_f64(field: &str) -> Error {
    Error::unsupported(field, "F32, Bf16, F16", "F64")
}

fn dtype_code(field: &str, dtype: DType) -> Result<i32> {
    let code = match dtype {
        DType::F64 => return Err(no_f64(field)),
        DType::F32 => sys::QAE_F32,
        DType::Bf16 => sys::QAE_BF16,
        DType::F16 => sys::QAE_F16,
    };
    Ok(code as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(len: usize) -> Buffer {
        Buffer { address: 256, len }
    }

    #[test]
    fn groups_that_do_not_fit_their_responses_are_refused() {
        let uniform = GroupBuffers::counts(&Groups::uniform(6, 3).unwrap());
        let ragged = GroupBuffers {
            offsets: Some(buffer(4)),
            group_of_response: Some(buffer(6)),
            ..GroupBuffers::counts(&Groups::from_offsets(&[0, 1, 3, 6]).unwrap())
        };
        uniform.params(buffer(6)).unwrap();
        ragged.params(buffer(6)).unwrap();
        let too_many = i32::MAX as usize + 1;
        for (groups, rewards, field) in [
            (uniform, 5, "rewards"),
            (
                GroupBuffers {
                    num_groups: 3,
                    ..uniform
                },
                6,
                "num_groups",
            ),
            (
                GroupBuffers {
                    num_groups: usize::MAX,
                    ..uniform
                },
                6,
                "num_groups",
            ),
            (
                GroupBuffers {
                    max_group_size: 4,
                    ..uniform
                },
                6,
                "num_groups",
            ),
            (
                GroupBuffers {
                    num_responses: too_many,
                    ..uniform
                },
                too_many,
                "num_responses",
            ),
            (
                GroupBuffers {
                    num_groups: 7,
                    ..ragged
                },
                6,
                "num_groups",
            ),
            (
                GroupBuffers {
                    max_group_size: 7,
                    ..ragged
                },
                6,
                "num_groups",
            ),
            (
                GroupBuffers {
                    num_groups: 2,
                    ..ragged
                },
                6,
                "group_offsets",
            ),
            (
                GroupBuffers {
                    order: Some(buffer(5)),
                    ..ragged
                },
                6,
                "group_order",
            ),
            (
                GroupBuffers {
                    group_of_response: Some(buffer(7)),
                    ..ragged
                },
                6,
                "group_of_response",
            ),
        ] {
            let message = groups.params(buffer(rewards)).unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        }
    }
}
