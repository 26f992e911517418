//! What every way of running an operation (CPU, emulated kernels, CUDA) has in common.

use crate::batch::TokenBatch;
use crate::config::Config;
use crate::error::Result;
use crate::metrics::Metrics;

/// The result of `loss_from_log_probs`, on the host and widened to f64.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// Loss, counts and sums.
    pub metrics: Metrics,
    /// d loss / d log_prob, laid out as `log_prob`; slots that are not written hold 0.
    pub d_log_prob: Vec<f64>,
    /// The baseline of each response of the global batch; `None` where advantages were given.
    pub baseline: Option<Vec<f64>>,
    /// The advantage of each response of the global batch; `None` where advantages were given.
    pub advantage: Option<Vec<f64>>,
    /// The local rows with a non-zero advantage and at least one valid token, ascending.
    pub active_rows: Vec<u32>,
}

/// A [`LossOutput`] and what it took.
#[derive(Debug, Clone)]
pub struct Run {
    /// The result.
    pub output: LossOutput,
    /// Bytes of tensors read and written in memory by the operation.
    pub bytes_moved: u64,
    /// Duration of the operation alone, without transfers to and from a device; `None` where a
    /// duration would mean nothing (emulated kernels).
    pub seconds: Option<f64>,
}

/// One way of running the operations.
pub trait Backend {
    /// What ran, for a report: such as `cpu (f64, 2 threads)`.
    fn name(&self) -> String;

    /// Rewards or advantages and log-probs in; loss, gradient and metrics out.
    ///
    /// # Errors
    /// Any [`crate::Error`] that the arguments deserve; nothing is computed then.
    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run>;
}
