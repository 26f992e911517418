//! Rows of a gradient that exists already, and what it is multiplied by.

use super::Tensor;
use super::shape::{LayoutShape, RowGrid};
use crate::error::{Error, Result};

/// Rows of a gradient, each with respect to one token's logits, or to its log-prob.
///
/// `V` says whose memory it is and whether it is written: [`Tensor`] and [`super::TensorMut`] on the
/// host, `DeviceTensor` and `DeviceTensorMut` of `qae::cuda` on a GPU.
#[derive(Debug, Clone, Copy)]
pub struct GradientRows<V> {
    /// d loss / d logits, or d loss / d log_prob.
    pub values: V,
    /// Number of rows.
    pub num_rows: usize,
    /// Elements of a row, at least 1: the size of the vocabulary; 1 of log-probs.
    pub num_columns: usize,
    /// Elements from one row to the next, at least `num_columns`.
    pub row_stride: usize,
    /// Rows of a response, where responses have a stride of their own; `None`: all rows are one row
    /// stride apart.
    pub width: Option<usize>,
    /// With a width only: elements from one response to the next; `None`: as many rows as `width`.
    pub response_stride: Option<usize>,
}

impl<V> GradientRows<V> {
    /// Rows of `num_columns` elements back to back.
    pub fn contiguous(values: V, num_rows: usize, num_columns: usize) -> Self {
        Self {
            values,
            num_rows,
            num_columns,
            row_stride: num_columns,
            width: None,
            response_stride: None,
        }
    }

    /// The same rows in another description of their memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn with<W>(&self, values: W) -> GradientRows<W> {
        GradientRows {
            values,
            num_rows: self.num_rows,
            num_columns: self.num_columns,
            row_stride: self.row_stride,
            width: self.width,
            response_stride: self.response_stride,
        }
    }

    /// Where the rows lie, once it is known that a tensor of `len` elements holds them.
    pub(crate) fn grid(&self, field: &str, len: usize) -> Result<RowGrid> {
        let layout = LayoutShape::of_rows(self.num_rows, self.width)?;
        let grid = RowGrid::of_layout(field, &layout, self.row_stride, self.response_stride)?;
        grid.check(field, self.num_columns, len)?;
        Ok(grid)
    }

    /// Whether `scaled` has rows of the same number, length and width.
    pub(crate) fn expect_alike<W>(&self, scaled: &GradientRows<W>) -> Result<()> {
        for (field, expected, found) in [
            ("num_rows", self.num_rows, scaled.num_rows),
            ("num_columns", self.num_columns, scaled.num_columns),
            ("width", self.width.unwrap_or(0), scaled.width.unwrap_or(0)),
        ] {
            if found != expected {
                let expected = format!("{expected} as the gradient");
                return Err(Error::invalid(format!("scaled.{field}"), expected, found));
            }
        }
        Ok(())
    }
}

/// What a gradient is multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    /// d (what is differentiated) / d loss; may be anything.
    pub value: f64,
    /// \[num_rows\]: 0 where a row of the gradient is 0, which stays 0 whatever the factor. The
    /// gradient of a loss with respect to the log-probs says so of that with respect to the logits,
    /// unless there is an entropy term. `None`: nothing is known.
    pub row_gradient: Option<Tensor<'a>>,
}

impl From<f64> for Factor<'_> {
    /// For all rows.
    fn from(value: f64) -> Self {
        Self {
            value,
            row_gradient: None,
        }
    }
}

impl Factor<'_> {
    pub(crate) fn check(&self, num_rows: usize) -> Result<()> {
        match self.row_gradient {
            Some(given) if given.len() != num_rows => Err(Error::invalid(
                "row_gradient",
                format!("shape [{num_rows}], one for each row"),
                format!("[{}]", given.len()),
            )),
            _ => Ok(()),
        }
    }

    /// Whether row `row` is known to be 0.
    pub(crate) fn skips(&self, row: usize) -> bool {
        self.row_gradient.is_some_and(|given| given.get(row) == 0.0)
    }
}
