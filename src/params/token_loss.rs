//! What the losses from log-probs and from logits have in common: everything that is neither.

use super::loss_from_log_probs::{AdvantageBuffers, NormalizerSource, WeightBuffer};
use super::{Buffer, advantages::options, dtype_code, expect_len, optional, optional_mut};
use crate::batch::DType;
use crate::batch::shape::{AdvantageShape, Extent, LayoutShape, TokenShape};
use crate::config::{
    Aggregation, Config, Gradient, KlEstimator, MetricsScope, Normalizer, Objective,
};
use crate::error::{Error, Result};
use crate::sys;

/// What a loss reads besides the policy's log-probs or logits.
pub(super) struct TokenLoss {
    pub layout: LayoutShape,
    pub mask: Option<Buffer>,
    /// Of the log-probs.
    pub dtype: DType,
    /// The tensor that the dtype is named after.
    pub dtype_of: &'static str,
    /// Elements of the tensor that has one for each slot whatever the configuration is.
    pub num_elements: usize,
    pub old_log_prob: Option<Buffer>,
    pub ref_log_prob: Option<Buffer>,
    pub importance_weight: Option<WeightBuffer>,
    pub advantages: AdvantageBuffers,
}

/// The gradient with respect to the log-probs, if it is wanted.
pub(super) struct TokenGradient {
    pub dtype: DType,
    pub d_log_prob: Option<Buffer>,
    pub row_stride: usize,
}

/// What a loss writes for each response.
pub(super) struct Results {
    pub baseline: Option<Buffer>,
    pub advantage: Option<Buffer>,
    pub active_rows: Option<Buffer>,
    pub active_count: Option<Buffer>,
}

impl TokenLoss {
    /// The shapes, for their check.
    pub fn shape(&self) -> TokenShape {
        TokenShape {
            layout: self.layout,
            mask: self.mask.map(|mask| mask.len),
            log_prob: self.num_elements,
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
                    num_responses: groups.num_responses,
                    response_index: response_index.map(|index| index.len),
                },
            },
        }
    }

    /// The params of a loss whose shapes were checked, without its layout, its log-probs and its
    /// outputs.
    pub fn params(
        &self,
        config: &Config,
        normalizer: NormalizerSource,
    ) -> Result<sys::qae_loss_from_log_probs_params> {
        let mut params = sys::qae_loss_from_log_probs_params {
            dtype: dtype_code(self.dtype_of, self.dtype)?,
            grad_scale: config.grad_scale,
            metrics_scope: match config.metrics_scope {
                MetricsScope::Active => sys::QAE_METRICS_ACTIVE,
                MetricsScope::All => sys::QAE_METRICS_ALL,
            } as i32,
            inactive_gradient: match config.gradient {
                Gradient::ZeroFill => sys::QAE_INACTIVE_ZERO_FILL,
                Gradient::Untouched => sys::QAE_INACTIVE_UNTOUCHED,
                Gradient::Compact => sys::QAE_INACTIVE_COMPACT,
            } as i32,
            old_log_prob: optional(self.old_log_prob),
            ref_log_prob: optional(self.ref_log_prob),
            ..Default::default()
        };
        set_advantages(&mut params, self.advantages, config)?;
        set_weights(&mut params, self.importance_weight);
        set_objective(&mut params, config);
        set_aggregation(&mut params, config, normalizer)?;
        Ok(params)
    }
}

impl TokenGradient {
    /// Checks and sets the gradient of log-probs of `log_prob_dtype`.
    pub fn set(
        &self,
        params: &mut sys::qae_loss_from_log_probs_params,
        layout: LayoutShape,
        log_prob_dtype: DType,
    ) -> Result<()> {
        if self.dtype != DType::F32 && self.dtype != log_prob_dtype {
            return Err(Error::invalid(
                "d_log_prob",
                format!("dtype F32 or {log_prob_dtype:?}"),
                format!("{:?}", self.dtype),
            ));
        }
        layout.check_stride("gradient_row_stride", self.row_stride)?;
        if let Some(d_log_prob) = self.d_log_prob {
            layout.expect_slots("d_log_prob", d_log_prob.len, self.row_stride)?;
        }
        params.gradient_dtype = dtype_code("d_log_prob", self.dtype)?;
        params.d_log_prob = optional_mut(self.d_log_prob);
        Ok(())
    }
}

impl Results {
    /// Checks and sets what is written for each response of `inputs`.
    pub fn set(
        &self,
        params: &mut sys::qae_loss_from_log_probs_params,
        inputs: &TokenLoss,
    ) -> Result<()> {
        for (field, buffer) in [("baseline", self.baseline), ("advantage", self.advantage)] {
            match (buffer, inputs.advantages) {
                (None, _) => {}
                (Some(buffer), AdvantageBuffers::FromRewards { groups, .. }) => {
                    expect_len(field, buffer, groups.num_responses)?;
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
        if let Some(active_rows) = self.active_rows {
            inputs.layout.expect_rows("active_rows", active_rows.len)?;
        }
        if let Some(count) = self.active_count {
            expect_len("active_count", count, 1)?;
        }
        params.baseline = optional_mut(self.baseline);
        params.advantage = optional_mut(self.advantage);
        params.active_rows = optional_mut(self.active_rows);
        params.active_count = optional_mut(self.active_count);
        Ok(())
    }
}

fn set_advantages(
    params: &mut sys::qae_loss_from_log_probs_params,
    advantages: AdvantageBuffers,
    config: &Config,
) -> Result<()> {
    let source = match advantages {
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

fn set_weights(
    params: &mut sys::qae_loss_from_log_probs_params,
    importance_weight: Option<WeightBuffer>,
) {
    match importance_weight {
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
