//! The mathematics in f64, as plain loops to be read next to the papers.
//!
//! The oracle of every other backend: it shares no code with the kernels. One file a concept, the
//! equation above the lines that implement it. [`crate::cpu`] runs the same per-group and
//! per-response functions on several threads.

mod advantages;
mod kl;
mod loss_from_log_probs;
mod objective;
mod quantile;
mod response;

pub use advantages::{AdvantageOutput, advantages};
pub use loss_from_log_probs::loss_from_log_probs;
pub use quantile::{quantile, rank};

pub(crate) use advantages::{add as add_groups, check as check_advantages, group_advantages};
pub(crate) use loss_from_log_probs::{Call, count_valid, normalizer_of_counts, rows_of, sum};
pub(crate) use response::response;
