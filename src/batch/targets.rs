//! Where the operations write in the caller's memory, and the checks.

use super::shape::{LayoutShape, RowGrid};
use super::{Layout, TensorMut};
use crate::error::{Error, Result};

/// A token tensor that is written: one element for each slot, in a dtype of its own.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// The elements. Gaps between rows are not written.
    pub values: TensorMut<'a>,
    /// Padded layouts only: elements from one row to the next, at least `width`; `None`: as the
    /// token tensors that are read.
    pub row_stride: Option<usize>,
}

impl<'a> From<TensorMut<'a>> for RowsMut<'a> {
    /// Laid out as the token tensors that are read.
    fn from(values: TensorMut<'a>) -> Self {
        Self {
            values,
            row_stride: None,
        }
    }
}

/// Rows of a gradient with respect to logits, in a dtype of its own. What lies between rows is not
/// written.
#[derive(Debug)]
pub struct LogitsMut<'a> {
    /// d loss / d logits, apart from the logits.
    pub values: TensorMut<'a>,
    /// Elements from one row (token) to the next, at least `vocab_size`; `None`: `vocab_size`.
    pub row_stride: Option<usize>,
    /// Padded layouts only: elements from one response to the next; `None`: as many rows as the
    /// layout's width.
    pub response_stride: Option<usize>,
}

impl<'a> From<TensorMut<'a>> for LogitsMut<'a> {
    /// Rows of `vocab_size` elements back to back.
    fn from(values: TensorMut<'a>) -> Self {
        Self {
            values,
            row_stride: None,
            response_stride: None,
        }
    }
}

impl RowsMut<'_> {
    /// Elements from row to row, once it is known that the slots of `layout` fit; 0 if packed.
    pub(crate) fn check(&self, field: &str, layout: &LayoutShape) -> Result<usize> {
        let stride = match (layout, self.row_stride) {
            (_, None) => layout.row_stride(),
            (LayoutShape::Padded { .. }, Some(stride)) => stride,
            (LayoutShape::Packed { .. }, Some(stride)) => {
                return Err(Error::invalid(
                    format!("{field}.row_stride"),
                    "none, since only the rows of a padded layout have one",
                    stride,
                ));
            }
        };
        layout.check_stride(&format!("{field}.row_stride"), stride)?;
        layout.expect_slots(field, self.values.len(), stride)?;
        Ok(stride)
    }

    /// Where the rows of `layout`, which was checked, lie in this tensor.
    pub(crate) fn layout<'l>(&self, field: &str, layout: Layout<'l>) -> Result<Layout<'l>> {
        let stride = self.check(field, &layout.shape())?;
        Ok(layout.with_row_stride(stride))
    }
}

impl LogitsMut<'_> {
    /// Where the rows of `layout`, which was checked, lie, once it is known that they fit.
    pub(crate) fn grid(&self, layout: &LayoutShape, vocab_size: usize) -> Result<RowGrid> {
        let stride = self.row_stride.unwrap_or(vocab_size);
        let response_stride = match (layout, self.response_stride) {
            (LayoutShape::Padded { width, .. }, None) => width.checked_mul(stride),
            (_, given) => given,
        };
        let grid = RowGrid::of_layout("d_logits", layout, stride, response_stride)?;
        grid.check("d_logits", vocab_size, self.values.len())?;
        Ok(grid)
    }

    /// The rows of a compact gradient, one after another: as many as there is room for, at most
    /// `num_rows`.
    pub(crate) fn compact_grid(&self, num_rows: usize, vocab_size: usize) -> Result<RowGrid> {
        if let Some(stride) = self.response_stride {
            return Err(Error::invalid(
                "d_logits.response_stride",
                "none, as a compact gradient has one row after another",
                stride,
            ));
        }
        let stride = self.row_stride.unwrap_or(vocab_size);
        // One row says what a stride has to be; more do not change that.
        RowGrid::flat(1, stride).check("d_logits", vocab_size, vocab_size)?;
        let room = match self.values.len().checked_sub(vocab_size) {
            Some(rest) => rest / stride + 1,
            None => 0,
        };
        Ok(RowGrid::flat(room.min(num_rows), stride))
    }
}
