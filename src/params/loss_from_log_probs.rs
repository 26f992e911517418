//! Arguments of the kernel `loss_from_log_probs`.

use super::token_loss::{Results, TokenGradient, TokenLoss};
use super::{Buffer, GroupBuffers, LayoutBuffers};
use crate::batch::DType;
use crate::config::Config;
use crate::error::Result;
use crate::sys;

/// Where advantages come from (see [`crate::Advantages`]).
#[derive(Debug, Clone, Copy)]
pub enum AdvantageBuffers {
    /// The rewards of the global batch.
    FromRewards {
        /// \[num_responses\] f32.
        rewards: Buffer,
        /// The groups of the global batch.
        groups: GroupBuffers,
        /// \[num_rows\] i32.
        response_index: Option<Buffer>,
    },
    /// \[num_rows\] f32.
    PerResponse(Buffer),
    /// f32, one for each slot.
    PerToken(Buffer),
}

/// Importance weights, f32.
#[derive(Debug, Clone, Copy)]
pub enum WeightBuffer {
    /// One for each slot.
    PerToken(Buffer),
    /// \[num_rows\].
    PerResponse(Buffer),
}

/// The tensors that `loss_from_log_probs` reads.
#[derive(Debug, Clone, Copy)]
pub struct TokenBuffers {
    /// Where tokens stand.
    pub layout: LayoutBuffers,
    /// u8, one for each slot.
    pub mask: Option<Buffer>,
    /// Of the three log-prob tensors.
    pub dtype: DType,
    /// One for each slot.
    pub log_prob: Buffer,
    /// The same.
    pub old_log_prob: Option<Buffer>,
    /// The same.
    pub ref_log_prob: Option<Buffer>,
    /// Rollout correction.
    pub importance_weight: Option<WeightBuffer>,
    /// Where advantages come from.
    pub advantages: AdvantageBuffers,
}

/// Where `loss_from_log_probs` writes.
#[derive(Debug, Clone, Copy)]
pub struct LossOutputs {
    /// Of the gradient: f32 or that of the log-probs.
    pub gradient_dtype: DType,
    /// One for each slot.
    pub d_log_prob: Buffer,
    /// Elements from row to row of the gradient; `None`: as the log-probs.
    pub gradient_row_stride: Option<usize>,
    /// \[num_responses\] f32; only with rewards.
    pub baseline: Option<Buffer>,
    /// \[num_responses\] f32; only with rewards.
    pub advantage: Option<Buffer>,
    /// \[num_rows\] i32.
    pub active_rows: Option<Buffer>,
    /// \[1\] i32.
    pub active_count: Option<Buffer>,
    /// \[1\] `qae_loss_metrics`.
    pub metrics: Buffer,
}

/// The aggregation's denominator.
#[derive(Debug, Clone, Copy)]
pub enum NormalizerSource {
    /// [`crate::Normalizer::Value`] of the configuration.
    Config,
    /// \[1\] f64 in the memory of whatever runs the kernels.
    Scalar(Buffer),
}

/// The params of `qae_loss_from_log_probs`, without workspace.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a configuration out of range, a shape, stride or dtype that does
///   not fit, or baseline and advantage outputs where advantages are given.
/// - [`crate::Error::Missing`] for an objective without `old_log_prob`, a KL term without
///   `ref_log_prob`, or [`crate::Normalizer::FromBatch`] without a scalar that was counted.
pub fn loss_from_log_probs(
    inputs: &TokenBuffers,
    outputs: &LossOutputs,
    config: &Config,
    normalizer: NormalizerSource,
) -> Result<sys::qae_loss_from_log_probs_params> {
    let layout = inputs.layout.shape();
    let token_loss = TokenLoss {
        layout,
        mask: inputs.mask,
        dtype: inputs.dtype,
        dtype_of: "log_prob",
        num_elements: inputs.log_prob.len,
        old_log_prob: inputs.old_log_prob,
        ref_log_prob: inputs.ref_log_prob,
        importance_weight: inputs.importance_weight,
        advantages: inputs.advantages,
    };
    token_loss.shape().check(config)?;
    let gradient = TokenGradient {
        dtype: outputs.gradient_dtype,
        d_log_prob: Some(outputs.d_log_prob),
        row_stride: outputs.gradient_row_stride.unwrap_or(layout.row_stride()),
    };
    let results = Results {
        baseline: outputs.baseline,
        advantage: outputs.advantage,
        active_rows: outputs.active_rows,
        active_count: outputs.active_count,
    };
    let mut params = token_loss.params(config, normalizer)?;
    gradient.set(&mut params, layout, inputs.dtype)?;
    results.set(&mut params, &token_loss)?;
    params.layout = inputs.layout.params(inputs.mask, gradient.row_stride);
    params.log_prob = inputs.log_prob.as_ptr();
    params.metrics = outputs.metrics.as_mut_ptr();
    Ok(params)
}
