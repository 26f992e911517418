//! The reference on several threads of rayon's current pool, and on several tokens or columns in
//! one instruction.
//!
//! Every group, every response and every row of logits is computed by one thread, with the scalar
//! formulas of [`crate::reference`] and sums in its order, so that the bits are the reference's,
//! whatever the number of threads, their schedule and the width of vectors.

//!
//! The functions that end in `_into` write to the caller's memory, in its dtype and with its
//! strides: the reference's f64 results, rounded once.

mod advantages;
mod block;
mod log_probs_from_logits;
mod loss_from_log_probs;
mod loss_from_logits;
mod policy;
mod response;
mod rows;
mod scale_gradient;
mod simd;
mod softmax;

pub use self::advantages::advantages;
pub use self::log_probs_from_logits::{
    LogProbsTargets, log_probs_from_logits, log_probs_from_logits_backward,
    log_probs_from_logits_backward_into, log_probs_from_logits_into,
};
pub use self::loss_from_log_probs::{LossResults, loss_from_log_probs, loss_from_log_probs_into};
pub use self::loss_from_logits::{
    LogitsResults, LogitsTargets, loss_from_logits, loss_from_logits_into,
};
pub use self::scale_gradient::{scale_gradient_in_place, scale_gradient_into};

use crate::backend::{Backend, LogProbsOutput, LogitsOutput, Run};
use crate::batch::{LogProbsInput, LogitsBatch, TokenBatch};
use crate::config::Config;
use crate::error::Result;

/// Rows or groups that one task takes at least: a task costs about a microsecond.
const MIN_ITEMS_PER_TASK: usize = 16;

/// Runs operations on the CPU, in f64, on rayon's current thread pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuBackend;

impl Backend for CpuBackend {
    fn name(&self) -> String {
        format!("cpu (f64, {} threads)", rayon::current_num_threads())
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
        loss_from_log_probs::measured(batch, config)
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        loss_from_logits::measured(batch, config)
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        log_probs_from_logits::measured(input)
    }

    fn log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        log_probs_from_logits::measured_backward(input, d_log_prob, d_entropy)
    }
}
