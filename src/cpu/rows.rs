//! Rows of the caller's tensors, as slices that different threads can own.

use crate::batch::shape::RowGrid;

/// The `vocab_size` columns of each row of `grid`, which was checked against the tensor, without
/// the gaps between rows.
pub(super) fn grid_rows<'t, T>(
    grid: &RowGrid,
    vocab_size: usize,
    mut tensor: &'t mut [T],
) -> Vec<&'t mut [T]> {
    let mut next = 0;
    let mut rows = Vec::with_capacity(grid.num_responses * grid.width);
    for response in 0..grid.num_responses {
        for t in 0..grid.width {
            let start = response * grid.response_stride + t * grid.row_stride;
            let (_, rest) = tensor.split_at_mut(start - next);
            let (row, rest) = rest.split_at_mut(vocab_size);
            rows.push(row);
            next = start + vocab_size;
            tensor = rest;
        }
    }
    rows
}
