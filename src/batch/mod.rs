//! The tensors of one call, borrowed from host memory, and their layouts.

mod check;
mod element;
mod gradient;
mod logits;
#[doc(hidden)]
pub mod shape;
mod targets;
mod tensor;

pub(crate) use self::element::Element;
pub use self::gradient::{Factor, GradientRows};
pub(crate) use self::logits::Slot;
pub use self::logits::{LogProbsInput, Logits, LogitsBatch, LogitsLayout};
pub use self::targets::{LogitsMut, RowsMut};
pub(crate) use self::tensor::for_elements;
pub use self::tensor::{DType, Tensor, TensorMut};

use self::shape::LayoutShape;
use crate::groups::Groups;

/// Where the tokens of response i (one row) stand in the token tensors.
///
/// A *slot* is a place for a token. Strides are in elements and at least `width`.
#[derive(Debug, Clone, Copy)]
pub enum Layout<'a> {
    /// [num_rows, width] with every slot a token, unless the mask says otherwise.
    Padded {
        /// Number of local responses.
        num_rows: usize,
        /// Slots per row (T).
        width: usize,
        /// Elements from one row to the next in the token tensors.
        row_stride: usize,
        /// The same for the mask.
        mask_row_stride: usize,
        /// Valid tokens of each row, counted from its start; `None`: `width`.
        lengths: Option<&'a [i32]>,
    },
    /// Responses back to back: row i is slots `offsets[i]..offsets[i + 1]`.
    Packed {
        /// [num_rows + 1], from 0, non-decreasing; empty rows are allowed.
        offsets: &'a [i64],
    },
}

impl Layout<'_> {
    /// The layout without its tensors.
    pub(crate) fn shape(&self) -> LayoutShape {
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
                lengths: lengths.map(<[i32]>::len),
            },
            Self::Packed { .. } => LayoutShape::Packed {
                num_rows: self.num_rows(),
                num_slots: self.num_elements(),
            },
        }
    }

    /// [num_rows, width], contiguous, all slots tokens unless masked.
    pub fn padded(num_rows: usize, width: usize) -> Layout<'static> {
        Layout::Padded {
            num_rows,
            width,
            row_stride: width,
            mask_row_stride: width,
            lengths: None,
        }
    }

    /// The same slots in tensors with another `row_stride`; packed rows have none.
    pub(crate) fn with_row_stride(self, row_stride: usize) -> Self {
        match self {
            Self::Padded {
                num_rows,
                width,
                mask_row_stride,
                lengths,
                ..
            } => Self::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths,
            },
            Self::Packed { .. } => self,
        }
    }

    /// Number of local responses.
    pub fn num_rows(&self) -> usize {
        match self {
            Self::Padded { num_rows, .. } => *num_rows,
            Self::Packed { offsets } => offsets.len().saturating_sub(1),
        }
    }

    /// First slot and number of slots of row `row` in the token tensors, and its first in the mask.
    pub fn row(&self, row: usize) -> Row {
        match *self {
            Self::Padded {
                width,
                row_stride,
                mask_row_stride,
                lengths,
                ..
            } => Row {
                start: row * row_stride,
                mask_start: row * mask_row_stride,
                num_slots: width,
                length: lengths.map_or(width, |lengths| lengths[row] as usize),
            },
            Self::Packed { offsets } => {
                let start = offsets[row] as usize;
                let num_slots = (offsets[row + 1] - offsets[row]) as usize;
                Row {
                    start,
                    mask_start: start,
                    num_slots,
                    length: num_slots,
                }
            }
        }
    }

    /// Place of a slot, by its index in the order of slots, in tensors with this row stride.
    pub(crate) fn place(&self, index: usize, row_stride: usize) -> usize {
        match *self {
            Self::Padded { width, .. } => index / width * row_stride + index % width,
            Self::Packed { .. } => index,
        }
    }

    /// Elements that a token tensor must have.
    pub fn num_elements(&self) -> usize {
        match *self {
            Self::Padded { num_rows: 0, .. } => 0,
            Self::Padded {
                num_rows,
                width,
                row_stride,
                ..
            } => (num_rows - 1) * row_stride + width,
            Self::Packed { offsets } => offsets.last().map_or(0, |&end| end as usize),
        }
    }

    /// Elements that a mask must have.
    pub fn num_mask_elements(&self) -> usize {
        match *self {
            Self::Padded { num_rows: 0, .. } => 0,
            Self::Padded {
                num_rows,
                width,
                mask_row_stride,
                ..
            } => (num_rows - 1) * mask_row_stride + width,
            Self::Packed { .. } => self.num_elements(),
        }
    }
}

/// The slots of one row (see [`Layout::row`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// First slot in the token tensors.
    pub start: usize,
    /// First slot in the mask.
    pub mask_start: usize,
    /// Slots of the row, padding included.
    pub num_slots: usize,
    /// Leading slots that can be valid tokens.
    pub length: usize,
}

/// Where advantages come from.
#[derive(Debug, Clone, Copy)]
pub enum Advantages<'a> {
    /// Computed from the rewards of the *global* batch.
    FromRewards {
        /// \[num_responses\], any unit.
        rewards: &'a [f32],
        /// The groups of the global batch.
        groups: &'a Groups,
        /// \[num_rows\], the global response of each local row; `None`: row i is response i.
        response_index: Option<&'a [i32]>,
    },
    /// \[num_rows\], one for each local response.
    PerResponse(&'a [f32]),
    /// One for each slot, laid out as the log-probs.
    PerToken(&'a [f32]),
}

/// Rollout-correction weights that multiply the policy term; dimensionless.
#[derive(Debug, Clone, Copy)]
pub enum ImportanceWeight<'a> {
    /// One for each slot, laid out as the log-probs.
    PerToken(&'a [f32]),
    /// \[num_rows\].
    PerResponse(&'a [f32]),
}

/// The tensors of `loss_from_log_probs`, in host memory.
#[derive(Debug, Clone, Copy)]
pub struct TokenBatch<'a> {
    /// Where tokens stand in every token tensor.
    pub layout: Layout<'a>,
    /// 1 where a slot is a token that counts, else 0; `None`: all of them.
    pub mask: Option<&'a [u8]>,
    /// log π(token) of the policy that is trained.
    pub log_prob: Tensor<'a>,
    /// The same of the policy that sampled; may be absent for [`crate::Objective::Reinforce`].
    pub old_log_prob: Option<Tensor<'a>>,
    /// The same of the reference policy; needed for a KL term.
    pub ref_log_prob: Option<Tensor<'a>>,
    /// Rollout correction.
    pub importance_weight: Option<ImportanceWeight<'a>>,
    /// Where advantages come from.
    pub advantages: Advantages<'a>,
}
