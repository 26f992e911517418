//! Batches read from safetensors files, and results written to them.
//!
//! Two formats are read: golden cases (`logp` or `logits`, `old_logp`, `rewards`, `group_id`,
//! `mask`, …) and captures of TRL's `_compute_loss` (`per_token_logps` or `logits`,
//! `completion_mask`, …). See [`Case`].

mod case;
mod output;
mod strict_json;
mod tensor_file;
mod trl_metrics;

pub use case::{Batch, Case, Level};
pub use output::{Precision, Provenance, Results, write_output};
pub use tensor_file::TensorFile;

#[cfg(feature = "analyze")]
pub(crate) use output::{check_place, write_whole};
pub(crate) use strict_json::config as read_config;

#[cfg(test)]
mod tests;
