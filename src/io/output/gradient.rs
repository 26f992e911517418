//! What is written of the gradient of logits: itself, and what a checker needs where a vocabulary
//! is too large to keep it.

use crate::backend::LogitsOutput;
use crate::io::case::OwnedLogits;

/// Sums over the vocabulary, \[num_slots\] each; 0 for slots without a gradient row.
pub(super) struct RowSums {
    pub(super) l1: Vec<f64>,
    pub(super) l2: Vec<f64>,
    pub(super) sum: Vec<f64>,
}

/// The slots that have a row of the gradient, each with it.
fn rows(
    output: &LogitsOutput,
    vocab_size: usize,
    compact: bool,
) -> impl Iterator<Item = (usize, &[f64])> {
    let slots = &output.active_slots;
    let rows = output.d_logits.chunks_exact(vocab_size).enumerate();
    rows.map(move |(row, gradient)| {
        let slot = if compact { slots[row] as usize } else { row };
        (slot, gradient)
    })
}

pub(super) fn row_sums(
    output: &LogitsOutput,
    num_slots: usize,
    vocab_size: usize,
    compact: bool,
) -> RowSums {
    let zeros = || vec![0.0; num_slots];
    let mut sums = RowSums {
        l1: zeros(),
        l2: zeros(),
        sum: zeros(),
    };
    for (slot, gradient) in rows(output, vocab_size, compact) {
        sums.l1[slot] = gradient.iter().map(|value| value.abs()).sum();
        let squares: f64 = gradient.iter().map(|value| value * value).sum();
        sums.l2[slot] = squares.sqrt();
        sums.sum[slot] = gradient.iter().sum();
    }
    sums
}

/// The columns that the file asks for, \[num_slots, per_slot\], and their number.
pub(super) fn columns(
    output: &LogitsOutput,
    logits: &OwnedLogits,
    vocab_size: usize,
    compact: bool,
) -> Option<(usize, Vec<f64>)> {
    let columns = logits.columns.as_ref()?;
    let per_slot = columns.per_slot;
    let mut values = vec![0.0; columns.index.len()];
    for (slot, gradient) in rows(output, vocab_size, compact) {
        let places = slot * per_slot..(slot + 1) * per_slot;
        for (value, &column) in values[places.clone()]
            .iter_mut()
            .zip(&columns.index[places])
        {
            *value = gradient[column];
        }
    }
    Some((per_slot, values))
}
