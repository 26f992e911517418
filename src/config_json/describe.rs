//! From a [`Config`] to its JSON form, with every default spelled out.

use super::names::{
    AGGREGATIONS, AggregationKind, BASELINES, BaselineKind, GATES, GRADIENTS, INTERPOLATIONS,
    KL_KINDS, LOSSES, Loss, METRICS_SCOPES, SCALES, SINGLETONS, ScaleKind,
};
use super::{BaselineFile, ConfigFile, KlFile, NormalizerFile};
use crate::config::{Aggregation, Baseline, Config, Kl, Normalizer, Objective, Scale};

impl From<&Config> for ConfigFile {
    fn from(config: &Config) -> Self {
        let advantage = &config.advantage;
        let (scale, epsilon) = match advantage.scale {
            Scale::None => (ScaleKind::None, None),
            Scale::Std {
                unbiased: true,
                epsilon,
            } => (ScaleKind::Unbiased, Some(epsilon)),
            Scale::Std {
                unbiased: false,
                epsilon,
            } => (ScaleKind::Population, Some(epsilon)),
        };
        let (aggregation, normalizer) = aggregation(config);
        let mut file = Self {
            baseline: baseline(advantage.baseline),
            scale: SCALES.name(scale),
            epsilon,
            singleton: SINGLETONS.name(advantage.singleton),
            gate: GATES.name(advantage.gate),
            success_threshold: Some(advantage.success_threshold),
            log_ratio_clamp: Some(config.log_ratio_clamp),
            aggregation: AGGREGATIONS.name(aggregation),
            normalizer,
            kl: kl(config.kl),
            temperature: Some(config.temperature),
            entropy_coef: Some(config.entropy_coef),
            grad_scale: Some(config.grad_scale),
            metrics_scope: METRICS_SCOPES.name(config.metrics_scope),
            inactive_gradient: GRADIENTS.name(config.gradient),
            ..Self::default()
        };
        file.set_objective(config.objective);
        file
    }
}

impl ConfigFile {
    fn set_objective(&mut self, objective: Objective) {
        let bounds = |file: &mut Self, low, high| {
            file.clip_low = Some(low);
            file.clip_high = Some(high);
        };
        let (loss, ratio) = match objective {
            Objective::Clip {
                low,
                high,
                dual_clip,
                ratio_cap,
            } => {
                bounds(self, low, high);
                self.dual_clip = Some(dual_clip);
                self.ratio_cap = Some(ratio_cap);
                (Loss::PpoClip, "token")
            }
            Objective::Gspo {
                low,
                high,
                log_ratio_max,
            } => {
                bounds(self, low, high);
                self.loss_params.seq_log_ratio_max = Some(log_ratio_max);
                (Loss::Gspo, "sequence")
            }
            Objective::Cispo { low, high } => {
                bounds(self, low, high);
                (Loss::Cispo, "token")
            }
            Objective::Sapo {
                tau_positive,
                tau_negative,
            } => {
                self.loss_params.tau_pos = Some(tau_positive);
                self.loss_params.tau_neg = Some(tau_negative);
                (Loss::Sapo, "token")
            }
            Objective::Reinforce => (Loss::Gpg, "none"),
        };
        self.loss = LOSSES.name(loss);
        self.ratio = Some(ratio.to_string());
    }
}

fn baseline(baseline: Baseline) -> BaselineFile {
    let kind = |kind| BaselineFile {
        kind: BASELINES.name(kind),
        ..BaselineFile::default()
    };
    match baseline {
        Baseline::Mean => kind(BaselineKind::Mean),
        Baseline::LeaveOneOut => kind(BaselineKind::LeaveOneOut),
        Baseline::Quantile { k, interpolation } => BaselineFile {
            k: Some(k),
            interpolation: INTERPOLATIONS.name(interpolation),
            ..kind(BaselineKind::Quantile)
        },
    }
}

fn aggregation(config: &Config) -> (AggregationKind, NormalizerFile) {
    let count = match config.normalizer {
        Normalizer::Value(count) => Some(count),
        Normalizer::FromBatch => None,
    };
    let mut normalizer = NormalizerFile {
        dp_size: Some(config.loss_multiplier),
        ..NormalizerFile::default()
    };
    let kind = match config.aggregation {
        Aggregation::TokenMean => {
            normalizer.batch_num_tokens = Some(count);
            return (AggregationKind::TokenMean, normalizer);
        }
        Aggregation::SeqMeanTokenMean => AggregationKind::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum => AggregationKind::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm { scale } => {
            normalizer.loss_scale_factor = Some(Some(scale));
            AggregationKind::SeqMeanTokenSumNorm
        }
    };
    normalizer.global_batch_size = Some(count);
    (kind, normalizer)
}

fn kl(term: Option<Kl>) -> KlFile {
    KlFile {
        kind: KL_KINDS.name(term.map(|kl| kl.estimator)),
        coef: term.map(|kl| kl.coef),
        clamp: term.map(|kl| kl.clamp),
    }
}
