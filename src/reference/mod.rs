//! The mathematics in f64, as plain loops to be read next to the papers.
//!
//! The oracle of every other backend: it shares no code with the kernels. One file a concept, the
//! equation above the lines that implement it. [`crate::cpu`] takes the same formulas on several
//! threads and several tokens at once.

mod advantages;
mod exp;
mod gathered;
mod kl;
mod log_probs_from_logits;
mod loss_from_log_probs;
mod loss_from_logits;
mod objective;
mod quantile;
mod response;
mod scale_gradient;
mod softmax_stats;
mod token;
mod tokens;

pub use advantages::{AdvantageOutput, advantages};
pub use log_probs_from_logits::{log_probs_from_logits, log_probs_from_logits_backward};
pub use loss_from_log_probs::loss_from_log_probs;
pub use loss_from_logits::loss_from_logits;
pub use quantile::{quantile, rank};
pub use scale_gradient::scale_gradient;
pub use softmax_stats::{RowShard, SoftmaxStats};

#[cfg(feature = "analyze")]
pub(crate) use advantages::standard_deviation;
pub(crate) use advantages::{add as add_groups, check as check_advantages, group_advantages};
pub(crate) use exp::exp;
pub(crate) use gathered::Gathered;
pub(crate) use kl::kl_term;
pub(crate) use log_probs_from_logits::{check_backward, columns, results, shard_of};
pub(crate) use loss_from_log_probs::{Call, normalizer, rows_of, sum};
pub(crate) use objective::{Clip, PolicyTerm, Ratio, reinforce, sapo};
pub(crate) use response::{Response, Use, begin, response, uses};
pub(crate) use softmax_stats::{RowGradient, exp_terms};
pub(crate) use token::{Derivatives, clamp_of, is_gspo};
pub(crate) use tokens::Tokens;
