//! Where rows of logits lie in a tensor.

use super::LayoutShape;
use crate::error::{Error, Result};

/// Rows of logits, or of their gradient: `num_responses` times `width` of them, those of a response
/// `row_stride` elements apart, responses `response_stride`. Rows without responses are one
/// response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowGrid {
    /// Number of responses.
    pub num_responses: usize,
    /// Rows of each.
    pub width: usize,
    /// Elements from row to row.
    pub row_stride: usize,
    /// Elements from response to response; unused where there is only one.
    pub response_stride: usize,
}

impl RowGrid {
    /// Rows one after another.
    pub fn flat(num_rows: usize, row_stride: usize) -> Self {
        Self {
            num_responses: 1,
            width: num_rows,
            row_stride,
            response_stride: 0,
        }
    }

    /// The rows of a layout. Without a `response_stride`, a padded response takes as many rows as
    /// it takes elements in the token tensors.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a `response_stride` where responses have no common width, or strides
    /// whose product overflows.
    pub fn of_layout(
        field: &str,
        layout: &LayoutShape,
        row_stride: usize,
        response_stride: Option<usize>,
    ) -> Result<Self> {
        let (num_responses, width, default_rows) = match *layout {
            LayoutShape::Padded {
                num_rows,
                width,
                row_stride,
                ..
            } => (num_rows, width, row_stride),
            LayoutShape::Packed { num_slots, .. } => match response_stride {
                None => return Ok(Self::flat(num_slots, row_stride)),
                Some(stride) => {
                    return Err(Error::invalid(
                        format!("{field}.response_stride"),
                        "none, since only the responses of a padded layout have one",
                        stride,
                    ));
                }
            },
        };
        let by_default = || default_rows.checked_mul(row_stride);
        let response_stride = response_stride
            .or_else(by_default)
            .ok_or_else(|| too_far(field, format!("{default_rows} x {row_stride}")))?;
        Ok(Self {
            num_responses,
            width,
            row_stride,
            response_stride,
        })
    }

    /// Whether no element belongs to two rows of `vocab_size` elements, and whether a tensor of
    /// `len` elements holds all of them and no more, but for the gaps behind the last.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the stride, or the tensor, that does not fit.
    pub fn check(&self, field: &str, vocab_size: usize, len: usize) -> Result<()> {
        check_vocab_size(vocab_size)?;
        if self.row_stride < vocab_size {
            return Err(Error::invalid(
                format!("{field}.row_stride"),
                format!("at least the vocabulary of {vocab_size}"),
                self.row_stride,
            ));
        }
        let Some((response, least, most)) = self.extents(vocab_size) else {
            let strides = format!("{} and {}", self.row_stride, self.response_stride);
            return Err(too_far(field, strides));
        };
        if self.num_responses > 1 && self.response_stride < response {
            return Err(Error::invalid(
                format!("{field}.response_stride"),
                format!("at least the {response} elements of a response"),
                self.response_stride,
            ));
        }
        if (least..=most).contains(&len) {
            return Ok(());
        }
        let expected = if least == most {
            format!("{least} elements")
        } else {
            format!("{least} to {most} elements")
        };
        Err(Error::invalid(field, expected, len))
    }

    /// Elements from the first to the last of a response, from the first to the last of all rows,
    /// and the same with the gaps behind the last row and the last response; `None` where the
    /// kernels' i64 could not hold their bytes.
    fn extents(&self, vocab_size: usize) -> Option<(usize, usize, usize)> {
        if self.num_responses == 0 || self.width == 0 {
            return Some((0, 0, 0));
        }
        let rows = self.width.checked_mul(self.row_stride)?;
        let before = (self.num_responses - 1).checked_mul(self.response_stride)?;
        let most = before.checked_add(rows.max(self.response_stride))?;
        i64::try_from(most.checked_mul(size_of::<f32>())?).ok()?;
        let response = rows - self.row_stride + vocab_size;
        Some((response, before + response, most))
    }
}

/// Token ids have 32 bits.
fn check_vocab_size(vocab_size: usize) -> Result<()> {
    if vocab_size > 0 && i32::try_from(vocab_size).is_ok() {
        return Ok(());
    }
    Err(Error::invalid(
        "vocab_size",
        "at least 1 and at most 2147483647",
        vocab_size,
    ))
}

fn too_far(field: &str, strides: String) -> Error {
    Error::invalid(
        format!("{field} strides"),
        "offsets below 2^63 bytes",
        strides,
    )
}
