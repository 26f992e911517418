//! What every way of running an operation (CPU, emulated kernels, CUDA) has in common.

use crate::batch::{LogProbsInput, LogitsBatch, TokenBatch};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// The result of a loss with respect to log-probs, on the host and widened to f64.
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

/// The result of `loss_from_logits`, on the host and widened to f64.
#[derive(Debug, Clone)]
pub struct LogitsOutput {
    /// Loss, metrics with their entropy, and d loss / d log_prob, laid out as a token tensor.
    pub loss: LossOutput,
    /// log π(token) in nats, laid out as a token tensor; 0 where a row of logits is not read.
    pub log_prob: Vec<f64>,
    /// Entropy of softmax(logits / temperature) in nats, likewise.
    pub entropy: Vec<f64>,
    /// d loss / d logits: [num_slots, vocab_size], rows that are not written 0; or, compact,
    /// [active_slots.len(), vocab_size].
    pub d_logits: Vec<f64>,
    /// The slot of each row of `d_logits`, ascending, where that is compact; else empty.
    pub active_slots: Vec<u64>,
}

/// The result of `log_probs_from_logits`, each \[num_rows\] in nats; 0 where a row is masked.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbsOutput {
    /// log π(token) = z\[token\] − logsumexp(z).
    pub log_prob: Vec<f64>,
    /// logsumexp(z) − Σ softmax(z)·z.
    pub entropy: Vec<f64>,
    /// logsumexp(z), z = logits / temperature.
    pub log_sum_exp: Vec<f64>,
}

/// The result of an operation and what it took.
#[derive(Debug, Clone)]
pub struct Run<T = LossOutput> {
    /// The result.
    pub output: T,
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

    /// Rewards or advantages and logits in; loss, metrics, log-probs, entropy and gradient out.
    ///
    /// # Errors
    /// Any [`crate::Error`] that the arguments deserve, [`Error::Unsupported`] if the backend lacks
    /// the operation; nothing is computed then.
    fn loss_from_logits(
        &self,
        _batch: &LogitsBatch<'_>,
        _config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        Err(lacks(self.name(), "loss_from_logits"))
    }

    /// Logits in; log-prob of each row's token, entropy and log-sum-exp out.
    ///
    /// # Errors
    /// As [`Self::loss_from_logits`].
    fn log_probs_from_logits(&self, _input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        Err(lacks(self.name(), "log_probs_from_logits"))
    }

    /// d loss / d logits, [num_rows, vocab_size], from the derivatives with respect to each row's
    /// log-prob and entropy, both \[num_rows\].
    ///
    /// # Errors
    /// As [`Self::loss_from_logits`].
    fn log_probs_from_logits_backward(
        &self,
        _input: &LogProbsInput<'_>,
        _d_log_prob: &[f32],
        _d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        Err(lacks(self.name(), "log_probs_from_logits_backward"))
    }
}

fn lacks(backend: String, operation: &str) -> Error {
    Error::unsupported(backend, "loss_from_log_probs", operation)
}
