//! Arguments of the kernel `loss_from_log_probs`.

use super::{
    Buffer, GroupBuffers, LayoutBuffers, advantages::options, dtype_code, expect_len, optional,
    optional_mut,
};
use crate::batch::DType;
use crate::batch::shape::{AdvantageShape, Extent, TokenShape};
use crate::config::{
    Aggregation, Config, InactiveGradient, KlEstimator, MetricsScope, Normalizer, Objective,
};
use crate::error::{Error, Result};
use crate::sys;

/// Where advantages come from (see [`crate::Advantages`]).
#[derive(Debug, Clone, Copy)]
pub enum AdvantageBuffers<'a> {
    /// The rewards of the global batch.
    FromRewards {
        /// \[num_responses\] f32.
        rewards: Buffer,
        /// The groups of the global batch.
        groups: GroupBuffers<'a>,
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
pub struct TokenBuffers<'a> {
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
    pub advantages: AdvantageBuffers<'a>,
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
    /// [`Normalizer::Value`] of the configuration.
    Config,
    /// \[1\] f64 in the memory of whatever runs the kernels.
    Scalar(Buffer),
}

/// The params of `qae_loss_from_log_probs`, without workspace.
///
/// # Errors
/// - [`Error::Invalid`] for a configuration out of range, a shape, stride or dtype that does not
///   fit, or baseline and advantage outputs where advantages are given.
/// - [`Error::Missing`] for an objective without `old_log_prob`, a KL term without `ref_log_prob`,
///   or [`Normalizer::FromBatch`] without a scalar that was counted.
pub fn loss_from_log_probs(
    inputs: &TokenBuffers<'_>,
    outputs: &LossOutputs,
    config: &Config,
    normalizer: NormalizerSource,
) -> Result<sys::qae_loss_from_log_probs_params> {
    let layout = inputs.layout.shape();
    inputs.shape().check(config)?;
    let gradient_row_stride = outputs.gradient_row_stride.unwrap_or(layout.row_stride());
    let mut params = sys::qae_loss_from_log_probs_params {
        layout: inputs.layout.params(inputs.mask, gradient_row_stride),
        dtype: dtype_code(inputs.dtype),
        grad_scale: config.grad_scale,
        metrics_scope: match config.metrics_scope {
            MetricsScope::Active => sys::QAE_METRICS_ACTIVE,
            MetricsScope::All => sys::QAE_METRICS_ALL,
        } as i32,
        inactive_gradient: match config.inactive_gradient {
            InactiveGradient::ZeroFill => sys::QAE_INACTIVE_ZERO_FILL,
            InactiveGradient::Untouched => sys::QAE_INACTIVE_UNTOUCHED,
        } as i32,
        ..Default::default()
    };
    params.log_prob = inputs.log_prob.as_ptr();
    params.old_log_prob = optional(inputs.old_log_prob);
    params.ref_log_prob = optional(inputs.ref_log_prob);
    set_advantages(&mut params, inputs, config)?;
    set_weights(&mut params, inputs);
    set_objective(&mut params, config);
    set_aggregation(&mut params, config, normalizer)?;
    set_outputs(&mut params, inputs, outputs, gradient_row_stride)?;
    Ok(params)
}

impl TokenBuffers<'_> {
    fn shape(&self) -> TokenShape {
        TokenShape {
            layout: self.layout.shape(),
            mask: self.mask.map(|mask| mask.len),
            log_prob: self.log_prob.len,
            old_log_prob: self.old_log_prob.map(|tensor| tensor.len),
            ref_log_prob: self.ref_log_prob.map(|tensor| tensor.len),
            importance_weight: self.importance_weight.map(|weight| match weight {
                WeightBuffer::PerToken(weight) => Extent::Slots(weight.len),
                WeightBuffer::PerResponse(weight) => Extent::Rows(weight.len),
            }),
            advantages: match self.advantages {
                AdvantageBuffers::PerResponse(given) => {
                    AdvantageShape::Given(Extent::Rows(given.len))
                }
                AdvantageBuffers::PerToken(given) => {
                    AdvantageShape::Given(Extent::Slots(given.len))
                }
                AdvantageBuffers::FromRewards {
                    rewards,
                    groups,
                    response_index,
                } => AdvantageShape::FromRewards {
                    rewards: rewards.len,
                    num_responses: groups.groups.num_responses(),
                    response_index: response_index.map(|index| index.len),
                },
            },
        }
    }
}

fn set_advantages(
    params: &mut sys::qae_loss_from_log_probs_params,
    inputs: &TokenBuffers<'_>,
    config: &Config,
) -> Result<()> {
    let source = match inputs.advantages {
        AdvantageBuffers::FromRewards {
            rewards,
            groups,
            response_index,
        } => {
            params.groups = groups.params(rewards)?;
            params.advantage_options = options(&config.advantage);
            params.response_index = optional(response_index);
            sys::QAE_ADVANTAGE_FROM_REWARDS
        }
        AdvantageBuffers::PerResponse(advantages) => {
            params.advantages = advantages.as_ptr();
            sys::QAE_ADVANTAGE_PER_RESPONSE
        }
        AdvantageBuffers::PerToken(advantages) => {
            params.advantages = advantages.as_ptr();
            sys::QAE_ADVANTAGE_PER_TOKEN
        }
    };
    params.advantage_source = source as i32;
    Ok(())
}

fn set_weights(params: &mut sys::qae_loss_from_log_probs_params, inputs: &TokenBuffers<'_>) {
    match inputs.importance_weight {
        None => {}
        Some(WeightBuffer::PerToken(weight)) => params.importance_weight = weight.as_ptr(),
        Some(WeightBuffer::PerResponse(weight)) => {
            params.importance_weight = weight.as_ptr();
            params.weight_per_response = 1;
        }
    }
}

fn set_objective(params: &mut sys::qae_loss_from_log_probs_params, config: &Config) {
    let off = f32::INFINITY;
    params.dual_clip = off;
    params.ratio_cap = off;
    params.seq_log_ratio_max = off;
    params.log_ratio_clamp = config.log_ratio_clamp.map_or(off, |clamp| clamp as f32);
    params.tau_positive = 1.0;
    params.tau_negative = 1.0;
    let (code, low, high) = match config.objective {
        Objective::Clip {
            low,
            high,
            dual_clip,
            ratio_cap,
        } => {
            params.dual_clip = dual_clip.map_or(off, |bound| bound as f32);
            params.ratio_cap = ratio_cap.map_or(off, |cap| cap as f32);
            (sys::QAE_OBJECTIVE_CLIP, low, high)
        }
        Objective::Gspo {
            low,
            high,
            log_ratio_max,
        } => {
            params.seq_log_ratio_max = log_ratio_max.map_or(off, |max| max as f32);
            (sys::QAE_OBJECTIVE_GSPO, low, high)
        }
        Objective::Cispo { low, high } => (sys::QAE_OBJECTIVE_CISPO, low, high),
        Objective::Sapo {
            tau_positive,
            tau_negative,
        } => {
            params.tau_positive = tau_positive as f32;
            params.tau_negative = tau_negative as f32;
            (sys::QAE_OBJECTIVE_SAPO, None, None)
        }
        Objective::Reinforce => (sys::QAE_OBJECTIVE_REINFORCE, None, None),
    };
    params.objective = code as i32;
    params.clip_min = low.map_or(-off, |low| (1.0 - low) as f32);
    params.clip_max = high.map_or(off, |high| (1.0 + high) as f32);
    if let Some(kl) = config.kl {
        params.kl = match kl.estimator {
            KlEstimator::K1 => sys::QAE_KL_K1,
            KlEstimator::K2 => sys::QAE_KL_K2,
            KlEstimator::K3 => sys::QAE_KL_K3,
        } as i32;
        params.kl_clamp = i32::from(kl.clamp);
        params.kl_coef = kl.coef as f32;
    }
}

fn set_aggregation(
    params: &mut sys::qae_loss_from_log_probs_params,
    config: &Config,
    normalizer: NormalizerSource,
) -> Result<()> {
    params.loss_multiplier = config.loss_multiplier;
    let code = match config.aggregation {
        Aggregation::TokenMean => sys::QAE_TOKEN_MEAN,
        Aggregation::SeqMeanTokenMean => sys::QAE_SEQ_MEAN_TOKEN_MEAN,
        Aggregation::SeqMeanTokenSum => sys::QAE_SEQ_MEAN_TOKEN_SUM,
        Aggregation::SeqMeanTokenSumNorm { scale } => {
            params.loss_multiplier /= scale;
            sys::QAE_SEQ_MEAN_TOKEN_SUM
        }
    };
    params.aggregation = code as i32;
    match (normalizer, config.normalizer) {
        (NormalizerSource::Scalar(scalar), _) => {
            expect_len("normalizer", scalar, 1)?;
            params.device_normalizer = scalar.as_ptr();
        }
        (NormalizerSource::Config, Normalizer::Value(value)) => params.normalizer = value,
        (NormalizerSource::Config, Normalizer::FromBatch) => {
            return Err(Error::missing(
                "normalizer",
                "a number, or a scalar that token_counts wrote",
            ));
        }
    }
    Ok(())
}

fn set_outputs(
    params: &mut sys::qae_loss_from_log_probs_params,
    inputs: &TokenBuffers<'_>,
    outputs: &LossOutputs,
    gradient_row_stride: usize,
) -> Result<()> {
    let layout = inputs.layout.shape();
    if outputs.gradient_dtype != DType::F32 && outputs.gradient_dtype != inputs.dtype {
        return Err(Error::invalid(
            "d_log_prob",
            format!("dtype F32 or {:?}", inputs.dtype),
            format!("{:?}", outputs.gradient_dtype),
        ));
    }
    layout.check_stride("gradient_row_stride", gradient_row_stride)?;
    layout.expect_slots("d_log_prob", outputs.d_log_prob.len, gradient_row_stride)?;
    for (field, buffer) in [
        ("baseline", outputs.baseline),
        ("advantage", outputs.advantage),
    ] {
        match (buffer, inputs.advantages) {
            (None, _) => {}
            (Some(buffer), AdvantageBuffers::FromRewards { groups, .. }) => {
                expect_len(field, buffer, groups.groups.num_responses())?;
            }
            (Some(_), _) => {
                return Err(Error::invalid(
                    field,
                    "no output, as advantages are given",
                    "one",
                ));
            }
        }
    }
    if let Some(active_rows) = outputs.active_rows {
        layout.expect_rows("active_rows", active_rows.len)?;
    }
    if let Some(count) = outputs.active_count {
        expect_len("active_count", count, 1)?;
    }
    params.gradient_dtype = dtype_code(outputs.gradient_dtype);
    params.d_log_prob = outputs.d_log_prob.as_mut_ptr();
    params.baseline = optional_mut(outputs.baseline);
    params.advantage = optional_mut(outputs.advantage);
    params.active_rows = optional_mut(outputs.active_rows);
    params.active_count = optional_mut(outputs.active_count);
    params.metrics = outputs.metrics.as_mut_ptr();
    Ok(())
}
