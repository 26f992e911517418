//! Arguments of the kernel `advantages`.

use super::{Buffer, GroupBuffers, expect_len, optional_mut};
use crate::config::{AdvantageConfig, Baseline, Gate, Interpolation, Scale, Singleton};
use crate::error::Result;
use crate::sys;

/// Where `advantages` writes.
#[derive(Debug, Clone, Copy)]
pub struct AdvantageOutputs {
    /// \[num_responses\] f32.
    pub baseline: Option<Buffer>,
    /// \[num_responses\] f32.
    pub advantage: Buffer,
    /// \[num_responses\] i32: the responses with an advantage other than 0, ascending.
    pub active: Option<Buffer>,
    /// \[1\] i32.
    pub active_count: Option<Buffer>,
    /// \[1\] `qae_group_metrics`.
    pub metrics: Buffer,
}

/// The params of `qae_advantages`, without workspace.
///
/// # Errors
/// [`crate::Error::Invalid`] for a configuration out of range or a tensor of another length than
/// the groups'.
pub fn advantages(
    rewards: Buffer,
    groups: &GroupBuffers,
    outputs: &AdvantageOutputs,
    config: &AdvantageConfig,
) -> Result<sys::qae_advantages_params> {
    config.check()?;
    let num_responses = groups.num_responses;
    for (field, buffer) in [
        ("baseline", outputs.baseline),
        ("advantage", Some(outputs.advantage)),
        ("active", outputs.active),
    ] {
        if let Some(buffer) = buffer {
            expect_len(field, buffer, num_responses)?;
        }
    }
    if let Some(count) = outputs.active_count {
        expect_len("active_count", count, 1)?;
    }
    Ok(sys::qae_advantages_params {
        groups: groups.params(rewards)?,
        options: options(config),
        baseline: optional_mut(outputs.baseline),
        advantage: outputs.advantage.as_mut_ptr(),
        active: optional_mut(outputs.active),
        active_count: optional_mut(outputs.active_count),
        metrics: outputs.metrics.as_mut_ptr(),
        ..Default::default()
    })
}

pub(super) fn options(config: &AdvantageConfig) -> sys::qae_advantage_options {
    let baseline = match config.baseline {
        Baseline::Mean => sys::QAE_BASELINE_MEAN,
        Baseline::LeaveOneOut => sys::QAE_BASELINE_LEAVE_ONE_OUT,
        Baseline::Quantile {
            interpolation: Interpolation::InvertedCdf,
            ..
        } => sys::QAE_BASELINE_QUANTILE_INVERTED_CDF,
        Baseline::Quantile {
            interpolation: Interpolation::Linear,
            ..
        } => sys::QAE_BASELINE_QUANTILE_LINEAR,
    };
    let (scale, epsilon) = match config.scale {
        Scale::None => (sys::QAE_SCALE_NONE, 0.0),
        Scale::Std {
            unbiased: true,
            epsilon,
        } => (sys::QAE_SCALE_STD_UNBIASED, epsilon),
        Scale::Std {
            unbiased: false,
            epsilon,
        } => (sys::QAE_SCALE_STD_POPULATION, epsilon),
    };
    let singleton = match config.singleton {
        Singleton::Reward => sys::QAE_SINGLETON_REWARD,
        Singleton::Zero => sys::QAE_SINGLETON_ZERO,
    };
    let gate = match config.gate {
        Gate::Off => sys::QAE_GATE_OFF,
        Gate::TwoRegime => sys::QAE_GATE_TWO_REGIME,
        Gate::PositiveMask => sys::QAE_GATE_POSITIVE_MASK,
        Gate::NegativeMask => sys::QAE_GATE_NEGATIVE_MASK,
    };
    sys::qae_advantage_options {
        k: config.k().unwrap_or(0.5),
        epsilon,
        success_threshold: config.rounded_threshold(),
        baseline: baseline as i32,
        scale: scale as i32,
        singleton: singleton as i32,
        gate: gate as i32,
    }
}
