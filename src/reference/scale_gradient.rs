//! A gradient times the factor of a backward pass.
//!
//! scaled_ij = gradient_ij · factor: the loss's gradient is there before anything is known of what
//! comes after the loss; the chain rule multiplies it by f = d (what is differentiated) / d loss.
//!
//! Edge cases: a row that is known to be 0 (`row_gradient` says so, or it has one column, which is
//! 0) stays 0: no loss depends on its token, whatever f, and ±∞ · 0 would make it NaN. Everything
//! else is multiplied, so that f = 0, ±∞ and NaN do as IEEE 754 says. No rows: nothing.

use crate::batch::{Factor, GradientRows, Tensor};
use crate::error::Result;

/// The gradient times the factor, [num_rows, num_columns] one row after another.
///
/// # Errors
/// [`crate::Error::Invalid`] for a `width` that does not divide the rows, strides that do not fit,
/// or a `row_gradient` that has not one element for each row.
///
/// ```
/// use qae::{Factor, GradientRows, Tensor, reference};
///
/// let gradient = GradientRows::contiguous(Tensor::F32(&[3.0, 0.0, 0.0, 0.0]), 2, 2);
/// let factor = Factor { value: f64::INFINITY, row_gradient: Some(Tensor::F32(&[1.0, 0.0])) };
/// let scaled = reference::scale_gradient(&gradient, &factor)?;
/// assert_eq!(scaled[0], f64::INFINITY);
/// assert!(scaled[1].is_nan());
/// assert_eq!(scaled[2..], [0.0, 0.0]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn scale_gradient(
    gradient: &GradientRows<Tensor<'_>>,
    factor: &Factor<'_>,
) -> Result<Vec<f64>> {
    let grid = gradient.grid("gradient", gradient.values.len())?;
    factor.check(gradient.num_rows)?;
    let mut scaled = Vec::with_capacity(gradient.num_rows * gradient.num_columns);
    for row in 0..gradient.num_rows {
        let response = row / grid.width * grid.response_stride;
        let start = response + row % grid.width * grid.row_stride;
        for column in 0..gradient.num_columns {
            let value = gradient.values.get(start + column);
            let is_zero_row = factor.skips(row) || (gradient.num_columns == 1 && value == 0.0);
            scaled.push(if is_zero_row {
                0.0
            } else {
                value * factor.value
            });
        }
    }
    Ok(scaled)
}
