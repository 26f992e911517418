//! Rows of logits, and of their gradient.

use crate::errors::{Failure, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::tensor::{Dtype, TensorView};
use std::borrow::Cow;

/// `[rows, width, vocab]` or `[slots, vocab]`.
pub(crate) struct LogitsView {
    pub(crate) tensor: TensorView,
    pub(crate) vocab_size: usize,
    /// Elements from one row (token) to the next.
    pub(crate) row_stride: usize,
    /// Elements from one response to the next, where there are three dimensions.
    pub(crate) response_stride: Option<usize>,
}

impl LogitsView {
    /// Rows for the slots of `layout`.
    pub(crate) fn of(tensor: TensorView, layout: &Layout) -> Result<Self> {
        let slots = layout.shape();
        let is_rows = tensor.shape.split_last().map(|(_, rows)| rows) == Some(&slots[..]);
        if !is_rows {
            let expected = format!("shape {slots:?} and the vocabulary");
            let found = format!("{:?}", tensor.shape);
            return Err(Failure::value(tensor.name, expected, found));
        }
        Self::of_rows(tensor)
    }

    /// Rows of two or three dimensions.
    pub(crate) fn of_rows(tensor: TensorView) -> Result<Self> {
        let dims = tensor.shape.len();
        if !matches!(dims, 2 | 3) {
            let expected = "shape [rows, width, vocab] or [slots, vocab]";
            let found = format!("{:?}", tensor.shape);
            return Err(Failure::value(tensor.name, expected, found));
        }
        tensor.expect_dense_rows()?;
        let vocab_size = tensor.shape[dims - 1];
        let row_stride = tensor.stride(dims - 2, vocab_size);
        let packed = tensor.shape[dims - 2].saturating_mul(row_stride);
        Ok(Self {
            vocab_size,
            row_stride,
            response_stride: (dims == 3).then(|| tensor.stride(0, packed)),
            tensor,
        })
    }

    /// Number of rows.
    pub(crate) fn num_rows(&self) -> usize {
        self.slots().iter().product()
    }

    /// The dimensions of the rows.
    pub(crate) fn slots(&self) -> &[usize] {
        self.tensor.shape.split_last().map_or(&[], |(_, rows)| rows)
    }

    /// Rows of a response; none: all rows are one row stride apart.
    pub(crate) fn width(&self) -> Option<usize> {
        match *self.slots() {
            [num_rows, width] => {
                let is_even = self.response_stride == Some(width * self.row_stride);
                (num_rows > 1 && width > 0 && !is_even).then_some(width)
            }
            _ => None,
        }
    }

    /// The first element of row `row`.
    pub(crate) fn start(&self, row: usize) -> usize {
        match (self.slots(), self.response_stride) {
            (&[_, width], Some(stride)) => row / width * stride + row % width * self.row_stride,
            _ => row * self.row_stride,
        }
    }

    /// Whether `gradient` has the dtype and the shape of these logits.
    pub(crate) fn expect_gradient(&self, gradient: &TensorView) -> Result<()> {
        gradient.expect_dtype_of(&self.tensor)?;
        gradient.expect_shape(&self.tensor.shape)
    }

    /// Whether no element belongs to two rows.
    pub(crate) fn expect_rows_apart(self) -> Result<Self> {
        let response = match *self.slots() {
            [_, width] if width > 0 => (width - 1).saturating_mul(self.row_stride),
            _ => 0,
        };
        let response = response.saturating_add(self.vocab_size);
        let are_apart = self.row_stride >= self.vocab_size
            && self.response_stride.is_none_or(|stride| stride >= response);
        if are_apart || self.tensor.numel() == 0 {
            return Ok(self);
        }
        let found = format!("strides {:?}", self.tensor.strides);
        Err(Failure::value(
            self.tensor.name,
            "rows that do not overlap, one after another",
            found,
        ))
    }

    /// Whether `other` has the same elements at the same places.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.tensor.address == other.tensor.address
            && self.row_stride == other.row_stride
            && self.response_stride == other.response_stride
    }
}

/// One token id for each row.
pub(crate) fn expect_token_ids(token_ids: &TensorView) -> Result<()> {
    token_ids.expect_dtype(&[Dtype::I64, Dtype::I32])
}

/// Token ids as the CPU operations take them; what no i32 holds is below 0, and refused as such.
pub(crate) fn token_ids<'a>(view: &TensorView, host: &Host<'a>) -> Cow<'a, [i32]> {
    if view.dtype == Dtype::I32 {
        return Cow::Borrowed(host.read(view));
    }
    let ids = host.read::<i64>(view).iter();
    Cow::Owned(ids.map(|&id| i32::try_from(id).unwrap_or(-1)).collect())
}
