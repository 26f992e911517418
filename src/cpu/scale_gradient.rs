//! A gradient times the factor of a backward pass, by rows.

use super::rows::grid_rows;
use crate::batch::shape::RowGrid;
use crate::batch::{Element, Factor, GradientRows, Tensor, TensorMut, for_elements};
use crate::error::Result;
use rayon::prelude::*;

/// Elements that are widened together.
const CHUNK: usize = 1024;

/// [`crate::reference::scale_gradient`] on several threads, written to the caller's memory and
/// rounded once to its dtype. What lies between rows is not written.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `gradient`, `scaled` | \[num_rows, num_columns\] | f64, f32, bf16, f16 | loss |
/// | `factor.row_gradient` | \[num_rows\] | f64, f32, bf16, f16 | any |
///
/// # Errors
/// [`crate::Error::Invalid`] for rows that do not fit their tensor, a `scaled` of another shape, or
/// a `row_gradient` that has not one element for each row; nothing is written then.
///
/// ```
/// use qae::{GradientRows, Tensor, TensorMut, cpu};
///
/// let mut scaled = [0.0_f32; 2];
/// let gradient = GradientRows::contiguous(Tensor::F32(&[3.0, -1.0]), 1, 2);
/// let target = GradientRows::contiguous(TensorMut::F32(&mut scaled), 1, 2);
/// cpu::scale_gradient_into(&gradient, &0.5.into(), target)?;
/// assert_eq!(scaled, [1.5, -0.5]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn scale_gradient_into(
    gradient: &GradientRows<Tensor<'_>>,
    factor: &Factor<'_>,
    scaled: GradientRows<TensorMut<'_>>,
) -> Result<()> {
    gradient.expect_alike(&scaled)?;
    let from = gradient.grid("gradient", gradient.values.len())?;
    let to = scaled.grid("scaled", scaled.values.len())?;
    factor.check(gradient.num_rows)?;
    let num_columns = scaled.num_columns;
    if factor.row_gradient.is_none() && is_dense(num_columns, &from) && is_dense(num_columns, &to) {
        for_elements!(TensorMut: scaled.values, target => {
            target.par_chunks_mut(CHUNK).enumerate().for_each(|(index, target)| {
                let start = index * CHUNK;
                let source = gradient.values.slice(start..start + target.len());
                for_elements!(Tensor: source, source => scale(source, target, factor.value, true));
            });
        });
        return Ok(());
    }
    let start =
        |row: usize| row / from.width * from.response_stride + row % from.width * from.row_stride;
    for_elements!(TensorMut: scaled.values, target => {
        let rows = grid_rows(&to, num_columns, target).into_par_iter().enumerate();
        rows.for_each(|(row, target)| {
            if factor.skips(row) {
                return target.fill(Element::round(0.0));
            }
            let source = gradient.values.slice(start(row)..start(row) + num_columns);
            for_elements!(Tensor: source, source => {
                scale(source, target, factor.value, num_columns == 1);
            });
        });
    });
    Ok(())
}

/// The same in the gradient's own memory: rows that stay 0 are not touched, and with a factor of 1
/// nothing is.
///
/// # Errors
/// [`crate::Error::Invalid`] for rows that do not fit the tensor, or a `row_gradient` that has not
/// one element for each row; nothing is written then.
///
/// ```
/// use qae::{GradientRows, TensorMut, cpu};
///
/// let mut gradient = [3.0_f32, -1.0];
/// let rows = GradientRows::contiguous(TensorMut::F32(&mut gradient), 1, 2);
/// cpu::scale_gradient_in_place(rows, &0.5.into())?;
/// assert_eq!(gradient, [1.5, -0.5]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn scale_gradient_in_place(
    gradient: GradientRows<TensorMut<'_>>,
    factor: &Factor<'_>,
) -> Result<()> {
    let grid = gradient.grid("gradient", gradient.values.len())?;
    factor.check(gradient.num_rows)?;
    if factor.value == 1.0 {
        return Ok(());
    }
    let num_columns = gradient.num_columns;
    let is_dense = factor.row_gradient.is_none() && is_dense(num_columns, &grid);
    for_elements!(TensorMut: gradient.values, values => {
        if is_dense {
            let chunks = values.par_chunks_mut(CHUNK);
            chunks.for_each(|chunk| scale_own(chunk, factor.value, true));
            return Ok(());
        }
        let rows = grid_rows(&grid, num_columns, values).into_par_iter().enumerate();
        rows.filter(|(row, _)| !factor.skips(*row))
            .for_each(|(_, row)| scale_own(row, factor.value, num_columns == 1));
    });
    Ok(())
}

/// Whether the rows are elements without gaps.
fn is_dense(num_columns: usize, grid: &RowGrid) -> bool {
    num_columns == 1 && grid.row_stride == 1 && grid.num_responses == 1
}

/// `keeps_zeros`: an element is a row.
fn scale<S: Element, T: Element>(source: &[S], target: &mut [T], factor: f64, keeps_zeros: bool) {
    let mut wide = [0.0; CHUNK];
    for (source, target) in source.chunks(CHUNK).zip(target.chunks_mut(CHUNK)) {
        let wide = &mut wide[..source.len()];
        S::widen_all(source, wide);
        multiply(wide, factor, keeps_zeros);
        T::round_all(wide, target);
    }
}

fn scale_own<T: Element>(values: &mut [T], factor: f64, keeps_zeros: bool) {
    let mut wide = [0.0; CHUNK];
    for values in values.chunks_mut(CHUNK) {
        let wide = &mut wide[..values.len()];
        T::widen_all(values, wide);
        multiply(wide, factor, keeps_zeros);
        T::round_all(wide, values);
    }
}

fn multiply(wide: &mut [f64], factor: f64, keeps_zeros: bool) {
    for value in wide {
        let is_kept = keeps_zeros && *value == 0.0;
        *value = if is_kept { *value } else { *value * factor };
    }
}
