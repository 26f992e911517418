//! From the JSON form to a checked [`Config`].

use super::ConfigFile;
use super::names::{
    AGGREGATIONS, AggregationKind, BASELINES, BaselineKind, GATES, GRADIENTS, INTERPOLATIONS,
    KL_KINDS, LOSSES, Loss, METRICS_SCOPES, SCALES, SINGLETONS, ScaleKind,
};
use crate::config::{
    AdvantageConfig, Aggregation, Baseline, Config, Kl, Normalizer, Objective, Scale,
};
use crate::error::{Error, Result};

/// verl's default.
const KL_COEF: f64 = 0.001;
/// The bounds of the GSPO paper (2507.18071, §5.1), three orders below those of a token ratio.
const GSPO_BOUNDS: (f64, f64) = (3e-4, 4e-4);
const TOKEN_BOUNDS: (f64, f64) = (0.2, 0.28);
const DUAL_CLIP: f64 = 3.0;
const SEQ_LOG_RATIO_MAX: f64 = 10.0;
const SAPO_TAUS: (f64, f64) = (1.0, 1.05);

impl ConfigFile {
    /// The configuration that the fields and the defaults of absent ones describe.
    ///
    /// `width` is the padded width of the batch, for `loss_scale_factor: null`; `None` where the
    /// batch is packed.
    ///
    /// # Errors
    /// - [`Error::Unsupported`]: a loss or an aggregation that exists elsewhere.
    /// - [`Error::Invalid`]: an unknown name, a number out of its range, or fields that contradict
    ///   each other.
    /// - [`Error::Missing`]: `seq-mean-token-sum-norm` of a packed batch without its constant.
    pub fn resolve(&self, width: Option<usize>) -> Result<Config> {
        let default = Config::default();
        let objective = self.objective()?;
        let (aggregation, normalizer) = self.aggregation(width)?;
        let dp_size = self.normalizer.dp_size;
        positive("normalizer.dp_size", dp_size)?;
        let config = Config {
            advantage: self.advantage()?,
            objective,
            log_ratio_clamp: self.log_ratio_clamp.unwrap_or(default.log_ratio_clamp),
            kl: self.kl_term()?,
            aggregation,
            normalizer,
            temperature: self.temperature.unwrap_or(default.temperature),
            entropy_coef: self.entropy_coef.unwrap_or(default.entropy_coef),
            loss_multiplier: dp_size.unwrap_or(default.loss_multiplier),
            grad_scale: self.grad_scale.unwrap_or(default.grad_scale),
            metrics_scope: METRICS_SCOPES
                .value(self.metrics_scope.as_deref(), default.metrics_scope)?,
            gradient: GRADIENTS.value(self.inactive_gradient.as_deref(), default.gradient)?,
        };
        config.check()?;
        Ok(config)
    }

    fn advantage(&self) -> Result<AdvantageConfig> {
        let default = AdvantageConfig::default();
        let epsilon = self.epsilon.unwrap_or(1e-6);
        let std = |unbiased| Scale::Std { unbiased, epsilon };
        Ok(AdvantageConfig {
            baseline: self.baseline()?,
            scale: match SCALES.value(self.scale.as_deref(), ScaleKind::Unbiased)? {
                ScaleKind::Unbiased => std(true),
                ScaleKind::Population => std(false),
                ScaleKind::None => Scale::None,
            },
            singleton: SINGLETONS.value(self.singleton.as_deref(), default.singleton)?,
            gate: GATES.value(self.gate.as_deref(), default.gate)?,
            success_threshold: self.success_threshold.unwrap_or(default.success_threshold),
        })
    }

    fn baseline(&self) -> Result<Baseline> {
        let given = &self.baseline;
        let kind = BASELINES.value(given.kind.as_deref(), BaselineKind::Quantile)?;
        if kind != BaselineKind::Quantile {
            let name = given.kind.as_deref().unwrap_or_default();
            let nothing = format!("nothing with baseline {name}");
            if let Some(k) = given.k {
                return Err(Error::invalid("baseline.k", nothing, k));
            }
            if let Some(interpolation) = &given.interpolation {
                return Err(Error::invalid(
                    "baseline.interpolation",
                    nothing,
                    interpolation,
                ));
            }
        }
        Ok(match kind {
            BaselineKind::Mean => Baseline::Mean,
            BaselineKind::LeaveOneOut => Baseline::LeaveOneOut,
            BaselineKind::Quantile => Baseline::Quantile {
                k: given.k.unwrap_or(0.4),
                interpolation: INTERPOLATIONS.value(
                    given.interpolation.as_deref(),
                    crate::config::Interpolation::InvertedCdf,
                )?,
            },
        })
    }

    fn objective(&self) -> Result<Objective> {
        let loss = LOSSES.value(self.loss.as_deref(), Loss::PpoClip)?;
        self.check_fields_of(loss)?;
        let (low, high) = match loss {
            Loss::Gspo => GSPO_BOUNDS,
            _ => TOKEN_BOUNDS,
        };
        let low = self.clip_low.unwrap_or(Some(low));
        let high = self.clip_high.unwrap_or(Some(high));
        let params = &self.loss_params;
        Ok(match loss {
            Loss::PpoClip => Objective::Clip {
                low,
                high,
                dual_clip: self.dual_clip.unwrap_or(Some(DUAL_CLIP)),
                ratio_cap: self.ratio_cap.flatten(),
            },
            Loss::Gspo => Objective::Gspo {
                low,
                high,
                log_ratio_max: params.seq_log_ratio_max.unwrap_or(Some(SEQ_LOG_RATIO_MAX)),
            },
            Loss::Cispo => Objective::Cispo { low, high },
            Loss::Sapo => Objective::Sapo {
                tau_positive: params.tau_pos.unwrap_or(SAPO_TAUS.0),
                tau_negative: params.tau_neg.unwrap_or(SAPO_TAUS.1),
            },
            Loss::Gpg => Objective::Reinforce,
        })
    }

    /// A field that the loss would not look at was set by mistake.
    fn check_fields_of(&self, loss: Loss) -> Result<()> {
        let name = LOSSES.name(loss).unwrap_or_default();
        let ratio = match loss {
            Loss::PpoClip | Loss::Cispo | Loss::Sapo => "token",
            Loss::Gspo => "sequence",
            Loss::Gpg => "none",
        };
        if let Some(given) = self.ratio.as_deref()
            && given != ratio
        {
            let expected = format!("{ratio} with loss {name}");
            return Err(Error::invalid("ratio", expected, given));
        }
        let params = &self.loss_params;
        if let Some(unknown) = params.other.keys().next() {
            return Err(Error::invalid(
                format!("loss_params.{unknown}"),
                "one of tau_pos, tau_neg, seq_log_ratio_max",
                "an unknown field",
            ));
        }
        let clips = matches!(loss, Loss::PpoClip | Loss::Gspo | Loss::Cispo);
        let seq_log_ratio_max = params.seq_log_ratio_max.flatten();
        for (field, value, used) in [
            ("clip_low", self.clip_low.flatten(), clips),
            ("clip_high", self.clip_high.flatten(), clips),
            ("dual_clip", self.dual_clip.flatten(), loss == Loss::PpoClip),
            ("ratio_cap", self.ratio_cap.flatten(), loss == Loss::PpoClip),
            ("loss_params.tau_pos", params.tau_pos, loss == Loss::Sapo),
            ("loss_params.tau_neg", params.tau_neg, loss == Loss::Sapo),
            (
                "loss_params.seq_log_ratio_max",
                seq_log_ratio_max,
                loss == Loss::Gspo,
            ),
        ] {
            if let (Some(value), false) = (value, used) {
                return Err(Error::invalid(
                    field,
                    format!("none with loss {name}"),
                    value,
                ));
            }
        }
        Ok(())
    }

    fn aggregation(&self, width: Option<usize>) -> Result<(Aggregation, Normalizer)> {
        let kind = AGGREGATIONS.value(self.aggregation.as_deref(), AggregationKind::TokenMean)?;
        let aggregation = match kind {
            AggregationKind::TokenMean => Aggregation::TokenMean,
            AggregationKind::SeqMeanTokenMean => Aggregation::SeqMeanTokenMean,
            AggregationKind::SeqMeanTokenSum => Aggregation::SeqMeanTokenSum,
            AggregationKind::SeqMeanTokenSumNorm => Aggregation::SeqMeanTokenSumNorm {
                scale: self.loss_scale_factor(width)?,
            },
        };
        let (field, count) = match kind {
            AggregationKind::TokenMean => (
                "normalizer.batch_num_tokens",
                self.normalizer.batch_num_tokens,
            ),
            _ => (
                "normalizer.global_batch_size",
                self.normalizer.global_batch_size,
            ),
        };
        let count = count.flatten();
        positive(field, count)?;
        Ok((
            aggregation,
            count.map_or(Normalizer::FromBatch, Normalizer::Value),
        ))
    }

    fn loss_scale_factor(&self, width: Option<usize>) -> Result<f64> {
        let given = self.normalizer.loss_scale_factor.flatten();
        given.or(width.map(|width| width as f64)).ok_or_else(|| {
            Error::missing(
                "normalizer.loss_scale_factor",
                "a number, since a packed batch has no padded width",
            )
        })
    }

    fn kl_term(&self) -> Result<Option<Kl>> {
        let kind = KL_KINDS.value(self.kl.kind.as_deref(), None)?;
        if let (None, Some(coef)) = (kind, self.kl.coef)
            && coef != 0.0
        {
            let expected = format!("k1, k2 or k3 with kl.coef {coef}");
            return Err(Error::invalid("kl.kind", expected, "none"));
        }
        Ok(kind.map(|estimator| Kl {
            estimator,
            coef: self.kl.coef.unwrap_or(KL_COEF),
            clamp: self.kl.clamp.unwrap_or(true),
        }))
    }
}

/// By the JSON form's own name, which [`Config::check`] does not know.
fn positive(field: &str, value: Option<f64>) -> Result<()> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(Error::invalid(field, "a finite number above 0", value))
        }
        _ => Ok(()),
    }
}
