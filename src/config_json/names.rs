//! The names of the values, in both directions.

use crate::config::{Gate, Gradient, Interpolation, KlEstimator, MetricsScope, Singleton};
use crate::error::{Error, Result};

/// A kind of baseline, without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BaselineKind {
    Mean,
    LeaveOneOut,
    Quantile,
}

/// A kind of scale, without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScaleKind {
    Unbiased,
    Population,
    None,
}

/// A kind of objective, without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    PpoClip,
    Gspo,
    Cispo,
    Sapo,
    Gpg,
}

/// A kind of aggregation, without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AggregationKind {
    TokenMean,
    SeqMeanTokenMean,
    SeqMeanTokenSum,
    SeqMeanTokenSumNorm,
}

/// The values of one field: those that are supported, and those that exist elsewhere.
pub(super) struct Names<T: 'static> {
    field: &'static str,
    supported: &'static [(&'static str, T)],
    unsupported: &'static [&'static str],
}

impl<T: Copy + PartialEq> Names<T> {
    /// The value called `name`, or `default` where there is no name.
    pub(super) fn value(&self, name: Option<&str>, default: T) -> Result<T> {
        let Some(name) = name else {
            return Ok(default);
        };
        if let Some((_, value)) = self.supported.iter().find(|(known, _)| *known == name) {
            return Ok(*value);
        }
        let known: Vec<_> = self.supported.iter().map(|(known, _)| *known).collect();
        let known = known.join(", ");
        Err(if self.unsupported.contains(&name) {
            Error::unsupported(self.field, known, name)
        } else {
            Error::invalid(self.field, format!("one of {known}"), format!("{name:?}"))
        })
    }

    /// The name of `value`.
    pub(super) fn name(&self, value: T) -> Option<String> {
        let found = self.supported.iter().find(|(_, known)| *known == value);
        found.map(|(name, _)| (*name).to_string())
    }
}

pub(super) const BASELINES: Names<BaselineKind> = Names {
    field: "baseline.kind",
    supported: &[
        ("mean", BaselineKind::Mean),
        ("leave_one_out", BaselineKind::LeaveOneOut),
        ("quantile", BaselineKind::Quantile),
    ],
    unsupported: &[],
};

pub(super) const INTERPOLATIONS: Names<Interpolation> = Names {
    field: "baseline.interpolation",
    supported: &[
        ("inverted_cdf", Interpolation::InvertedCdf),
        ("linear", Interpolation::Linear),
    ],
    unsupported: &[],
};

pub(super) const SCALES: Names<ScaleKind> = Names {
    field: "scale",
    supported: &[
        ("std_unbiased", ScaleKind::Unbiased),
        ("std_population", ScaleKind::Population),
        ("none", ScaleKind::None),
    ],
    unsupported: &[],
};

pub(super) const SINGLETONS: Names<Singleton> = Names {
    field: "singleton",
    supported: &[("reward", Singleton::Reward), ("zero", Singleton::Zero)],
    unsupported: &[],
};

pub(super) const GATES: Names<Gate> = Names {
    field: "gate",
    supported: &[
        ("none", Gate::Off),
        ("two_regime", Gate::TwoRegime),
        ("positive_mask", Gate::PositiveMask),
        ("negative_mask", Gate::NegativeMask),
    ],
    unsupported: &[],
};

pub(super) const LOSSES: Names<Loss> = Names {
    field: "loss",
    supported: &[
        ("ppo_clip", Loss::PpoClip),
        ("gspo", Loss::Gspo),
        ("cispo", Loss::Cispo),
        ("sapo", Loss::Sapo),
        ("gpg", Loss::Gpg),
    ],
    unsupported: &["clip_cov", "kl_cov", "geo_mean"],
};

pub(super) const AGGREGATIONS: Names<AggregationKind> = Names {
    field: "aggregation",
    supported: &[
        ("token-mean", AggregationKind::TokenMean),
        ("seq-mean-token-mean", AggregationKind::SeqMeanTokenMean),
        ("seq-mean-token-sum", AggregationKind::SeqMeanTokenSum),
        (
            "seq-mean-token-sum-norm",
            AggregationKind::SeqMeanTokenSumNorm,
        ),
    ],
    unsupported: &["row-mean"],
};

pub(super) const KL_KINDS: Names<Option<KlEstimator>> = Names {
    field: "kl.kind",
    supported: &[
        ("none", None),
        ("k1", Some(KlEstimator::K1)),
        ("k2", Some(KlEstimator::K2)),
        ("k3", Some(KlEstimator::K3)),
    ],
    unsupported: &[],
};

pub(super) const METRICS_SCOPES: Names<MetricsScope> = Names {
    field: "metrics_scope",
    supported: &[("all", MetricsScope::All), ("active", MetricsScope::Active)],
    unsupported: &[],
};

pub(super) const GRADIENTS: Names<Gradient> = Names {
    field: "inactive_gradient",
    supported: &[
        ("zero_fill", Gradient::ZeroFill),
        ("untouched", Gradient::Untouched),
        ("compact", Gradient::Compact),
    ],
    unsupported: &[],
};
