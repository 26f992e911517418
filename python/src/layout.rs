//! Where tokens stand, read from the shapes and strides of torch tensors.

use crate::arguments::Arguments;
use crate::errors::{Failure, Result};
use crate::tensor::{Dtype, TensorView};

/// The layout of the token tensors of a call.
pub(crate) enum Layout {
    /// `[num_rows, width]`.
    Padded {
        num_rows: usize,
        width: usize,
        /// Elements from row to row of every token tensor that is read, but the mask.
        row_stride: usize,
        mask_row_stride: usize,
        lengths: Option<TensorView>,
    },
    /// `[num_slots]`, one response after another.
    Packed {
        offsets: TensorView,
        num_slots: usize,
    },
    /// `[num_slots]` in any order.
    Indexed {
        response: TensorView,
        num_rows: usize,
    },
}

impl Layout {
    /// The layout of `tokens`, which has an element for each slot.
    pub(crate) fn of(tokens: &TensorView, arguments: &mut Arguments<'_, '_>) -> Result<Self> {
        let lengths = arguments.tensor("lengths")?;
        let offsets = arguments.tensor("offsets")?;
        match (tokens.shape[..].as_ref(), offsets) {
            (&[num_rows, width], None) => {
                tokens.expect_dense_rows()?;
                if let Some(lengths) = &lengths {
                    lengths.expect(Dtype::I32, &[num_rows])?;
                }
                Ok(Self::Padded {
                    num_rows,
                    width,
                    row_stride: tokens.stride(0, width),
                    mask_row_stride: width,
                    lengths,
                })
            }
            (&[num_slots], Some(offsets)) => {
                tokens.expect_contiguous()?;
                if lengths.is_some() {
                    let expected = "none beside offsets, which say it";
                    return Err(Failure::value("lengths", expected, "a tensor"));
                }
                check_offsets(&offsets)?;
                Ok(Self::Packed { offsets, num_slots })
            }
            (found, offsets) => Err(Failure::value(
                tokens.name,
                match offsets {
                    None => "shape [rows, width], or offsets beside shape [slots]",
                    Some(_) => "shape [slots] beside offsets",
                },
                format!("shape {found:?}"),
            )),
        }
    }

    /// Slots in any order, where the call says so.
    pub(crate) fn of_indexed(
        tokens: &TensorView,
        arguments: &mut Arguments<'_, '_>,
    ) -> Result<Self> {
        let Some(response) = arguments.tensor("slot_response")? else {
            if arguments.count("num_local_responses")?.is_some() {
                let expected = "none without slot_response";
                return Err(Failure::value("num_local_responses", expected, "an int"));
            }
            return Self::of(tokens, arguments);
        };
        let num_rows = arguments.needed_count("num_local_responses")?;
        for name in ["lengths", "offsets"] {
            if arguments.tensor(name)?.is_some() {
                let expected = "none beside slot_response, which says it";
                return Err(Failure::value(name, expected, "a tensor"));
            }
        }
        let &[num_slots] = &tokens.shape[..] else {
            let found = format!("shape {:?}", tokens.shape);
            let expected = "shape [slots] beside slot_response";
            return Err(Failure::value(tokens.name, expected, found));
        };
        tokens.expect_contiguous()?;
        response.expect(Dtype::I32, &[num_slots])?;
        Ok(Self::Indexed { response, num_rows })
    }

    /// The layout of a call that only counts.
    pub(crate) fn of_counts(arguments: &mut Arguments<'_, '_>) -> Result<Self> {
        let [num_rows, width, num_slots] =
            ["rows", "width", "slots"].map(|name| arguments.count(name));
        let lengths = arguments.tensor("lengths")?;
        match (num_rows?, width?, num_slots?, arguments.tensor("offsets")?) {
            (Some(num_rows), Some(width), None, None) => {
                if let Some(lengths) = &lengths {
                    lengths.expect(Dtype::I32, &[num_rows])?;
                }
                Ok(Self::Padded {
                    num_rows,
                    width,
                    row_stride: width,
                    mask_row_stride: width,
                    lengths,
                })
            }
            (None, None, Some(num_slots), Some(offsets)) if lengths.is_none() => {
                check_offsets(&offsets)?;
                Ok(Self::Packed { offsets, num_slots })
            }
            _ => Err(Failure::value(
                "layout",
                "rows and width, with lengths or without, or slots and offsets",
                "another combination",
            )),
        }
    }

    /// Number of local responses.
    pub(crate) fn num_rows(&self) -> usize {
        match self {
            Self::Padded { num_rows, .. } | Self::Indexed { num_rows, .. } => *num_rows,
            Self::Packed { offsets, .. } => offsets.numel().saturating_sub(1),
        }
    }

    /// Number of slots, padding included.
    pub(crate) fn num_slots(&self) -> usize {
        match self {
            Self::Padded {
                num_rows, width, ..
            } => num_rows * width,
            Self::Packed { num_slots, .. } => *num_slots,
            Self::Indexed { response, .. } => response.numel(),
        }
    }

    /// The padded width.
    pub(crate) fn width(&self) -> Option<usize> {
        match self {
            Self::Padded { width, .. } => Some(*width),
            Self::Packed { .. } | Self::Indexed { .. } => None,
        }
    }

    /// The dimensions of the token tensors.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match self {
            Self::Padded {
                num_rows, width, ..
            } => vec![*num_rows, *width],
            Self::Packed { .. } | Self::Indexed { .. } => vec![self.num_slots()],
        }
    }

    /// Whether `view` has an element for each slot. Elements from row to row of it, if padded.
    pub(crate) fn rows_of(&self, view: &TensorView) -> Result<Option<usize>> {
        view.expect_shape(&self.shape())?;
        match self {
            Self::Padded { width, .. } => {
                view.expect_dense_rows()?;
                Ok(Some(view.stride(0, *width)))
            }
            Self::Packed { .. } | Self::Indexed { .. } => {
                view.expect_contiguous()?;
                Ok(None)
            }
        }
    }

    /// Whether `view` has an element for each slot where the other token tensors have theirs.
    pub(crate) fn expect_slots(&self, view: &TensorView) -> Result<()> {
        let found = self.rows_of(view)?;
        match *self {
            Self::Padded { row_stride, .. } if found != Some(row_stride) => Err(Failure::value(
                view.name,
                format!("row stride {row_stride} as the other token tensors"),
                found.unwrap_or_default(),
            )),
            _ => Ok(()),
        }
    }

    /// Takes the mask, whose rows may lie otherwise.
    pub(crate) fn take_mask(
        &mut self,
        arguments: &mut Arguments<'_, '_>,
    ) -> Result<Option<TensorView>> {
        let Some(mask) = arguments.tensor("mask")? else {
            return Ok(None);
        };
        mask.expect_dtype(&[Dtype::Bool, Dtype::U8])?;
        let found = self.rows_of(&mask)?;
        if let (
            Self::Padded {
                mask_row_stride, ..
            },
            Some(stride),
        ) = (self, found)
        {
            *mask_row_stride = stride;
        }
        Ok(Some(mask))
    }
}

fn check_offsets(offsets: &TensorView) -> Result<()> {
    offsets.expect_dtype(&[Dtype::I64])?;
    if offsets.shape.len() != 1 || offsets.shape[0] == 0 {
        let found = format!("{:?}", offsets.shape);
        return Err(Failure::value("offsets", "shape [rows + 1]", found));
    }
    offsets.expect_contiguous()
}
