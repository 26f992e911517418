//! Batches read from safetensors files, and results written to them.
//!
//! Two formats are read: golden cases (`logp`, `old_logp`, `rewards`, `group_id`, `mask`, …) and
//! captures of TRL's `_compute_loss` (`per_token_logps`, `completion_mask`, …). See [`Case`].

mod case;
mod output;
mod tensor_file;
mod trl_metrics;

pub use case::Case;
pub use output::{Precision, write_output};
pub use tensor_file::TensorFile;

use crate::batch::TokenBatch;

/// Number of tokens of the batch that count, whatever the scope of the metrics.
pub fn count_valid_tokens(batch: &TokenBatch<'_>) -> u64 {
    let rows = 0..batch.layout.num_rows();
    rows.map(|row| trl_metrics::valid_slots(batch, row).count() as u64)
        .sum()
}

#[cfg(test)]
mod tests;
