//! The JSON form of a [`Config`](crate::Config): the `config` object of the golden cases, of a file's metadata and
//! of `--config`.
//!
//! Layers are merged (metadata, then a file, then flags), and only the result is checked, so that
//! a later layer can mend what an earlier one got wrong:
//!
//! ```
//! use qae::config_json::ConfigFile;
//!
//! let metadata = ConfigFile::from_json(r#"{"baseline": {"kind": "mean"}, "epsilon": 1e-4}"#)?;
//! let flags = ConfigFile::from_json(r#"{"baseline": {"kind": "quantile", "k": 0.4}}"#)?;
//! let config = metadata.overridden_by(&flags).resolve(None)?;
//! assert_eq!(config.advantage.k(), Some(0.4));
//! # Ok::<(), qae::Error>(())
//! ```

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

mod describe;
mod names;
mod resolve;
#[cfg(test)]
mod tests;

/// A number that `null` turns off, and that may be absent: then the default holds.
pub type Switch = Option<Option<f64>>;

/// Every field may be absent; the default is then that of [`crate::Config::default`], which the field
/// names here unless the name of the value says it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub struct ConfigFile {
    /// What is subtracted from a reward.
    #[serde(skip_serializing_if = "is_default")]
    pub baseline: BaselineFile,
    /// `std_unbiased` (default), `std_population` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<String>,
    /// Added to the standard deviation; default 1e-6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// Groups of one response: `reward` (verl, default) or `zero` (TRL).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub singleton: Option<String>,
    /// `none` (default), `two_regime`, `positive_mask` or `negative_mask`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// A reward above this is a success; default 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<f64>,
    /// `ppo_clip` (default), `gspo`, `cispo`, `sapo` or `gpg`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// `token`, `sequence` or `none`; follows from the loss and must agree with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<String>,
    /// Lower clip offset, `null`: no bound; default 0.2, `gspo` 3e-4.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub clip_low: Switch,
    /// Upper clip offset, `null`: no bound; default 0.28, `gspo` 4e-4.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub clip_high: Switch,
    /// `ppo_clip` only: for A < 0 the loss is at most −c·A; default 3.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub dual_clip: Switch,
    /// `ppo_clip` only: largest ratio of the unclipped branch; default `null`.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ratio_cap: Switch,
    /// Clamp of the log-ratio in nats; default 20. `gspo` and `gpg` do not look at it.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub log_ratio_clamp: Switch,
    /// `token-mean` (default), `seq-mean-token-mean`, `seq-mean-token-sum` or
    /// `seq-mean-token-sum-norm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    /// The denominators of the global batch.
    #[serde(skip_serializing_if = "is_default")]
    pub normalizer: NormalizerFile,
    /// The KL term.
    #[serde(skip_serializing_if = "is_default")]
    pub kl: KlFile,
    /// Whether the batch's `rollout_is_weights` are used; default: if it has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_is_weights: Option<bool>,
    /// What only some losses have.
    #[serde(skip_serializing_if = "is_default")]
    pub loss_params: LossParamsFile,
    /// Divides the logits before log-probs are taken, which, where given, contain it already;
    /// default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Coefficient of the entropy bonus, from logits only; default 0, off.
    #[serde(alias = "entropy_coeff", skip_serializing_if = "Option::is_none")]
    pub entropy_coef: Option<f64>,
    /// Multiplies the gradient only; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_scale: Option<f64>,
    /// Tokens that the metrics cover: `all` (default) or `active`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_scope: Option<String>,
    /// Gradient of inactive responses: `zero_fill` (default), `untouched`, or from logits `compact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_gradient: Option<String>,
}

/// The object `baseline`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub struct BaselineFile {
    /// `quantile` (default), `mean` or `leave_one_out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `quantile` only: the level, the decimal as written; default 0.4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<f64>,
    /// `quantile` only: `inverted_cdf` (default) or `linear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<String>,
}

/// The object `normalizer`. `null` (default): counted from the batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub struct NormalizerFile {
    /// Multiplies the loss; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dp_size: Option<f64>,
    /// Denominator of `token-mean`.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub batch_num_tokens: Switch,
    /// Denominator of the other aggregations, in responses.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub global_batch_size: Switch,
    /// Constant of `seq-mean-token-sum-norm`; `null`: the padded width.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub loss_scale_factor: Switch,
}

/// The object `kl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub struct KlFile {
    /// `none` (default), `k1`, `k2` or `k3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The coefficient; default 0.001, verl's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coef: Option<f64>,
    /// verl's clamps of `k3`; default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp: Option<bool>,
}

/// The object `loss_params`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct LossParamsFile {
    /// `sapo` only: τ where A > 0; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau_pos: Option<f64>,
    /// `sapo` only: τ elsewhere; default 1.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau_neg: Option<f64>,
    /// `gspo` only: upper clamp of the mean log-ratio, `null`: off; default 10.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub seq_log_ratio_max: Switch,
    /// Parameters of losses that are not supported: they are kept so that the error can name the
    /// loss, and refused where the loss is supported.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Takes the named fields that the second layer has.
macro_rules! take {
    ($below:ident, $over:ident, $($($part:ident).+),+ $(,)?) => {
        $(if $over.$($part).+.is_some() {
            $below.$($part).+.clone_from(&$over.$($part).+);
        })+
    };
}

impl ConfigFile {
    /// Reads the JSON text of a config object.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field that is unknown or of the wrong type, or says where the
    /// text stops being JSON.
    pub fn from_json(text: &str) -> Result<Self> {
        let value = serde_json::from_str(text)
            .map_err(|error| Error::invalid("config", "a JSON object", error))?;
        Self::from_value(&value)
    }

    /// Reads a config object that is part of a larger one.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field that is unknown or of the wrong type.
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let field = match error.path().to_string() {
                path if path == "." => "config".to_string(),
                path => path,
            };
            let message = error.into_inner().to_string();
            match message.split_once(", expected ") {
                Some((found, expected)) => {
                    let found = found.strip_prefix("invalid type: ").unwrap_or(found);
                    let expected = if expected == "f64" {
                        "a number"
                    } else {
                        expected
                    };
                    Error::invalid(field, expected, found)
                }
                None => Error::invalid(field, "a valid value", message),
            }
        })
    }

    /// The same with the fields that `over` has taken from it.
    ///
    /// A different `loss` or baseline kind brings its own defaults: the old one's parameters
    /// (clip bounds of a sequence ratio, say) would mean something else there.
    #[must_use]
    pub fn overridden_by(mut self, over: &Self) -> Self {
        if changes(&self.loss, &over.loss, "ppo_clip") {
            self.drop_loss();
        }
        if changes(&self.baseline.kind, &over.baseline.kind, "quantile") {
            self.baseline = BaselineFile::default();
        }
        take!(
            self,
            over,
            baseline.kind,
            baseline.k,
            baseline.interpolation,
            scale,
            epsilon,
            singleton,
            gate,
            success_threshold,
            loss,
            ratio,
            clip_low,
            clip_high,
            dual_clip,
            ratio_cap,
            log_ratio_clamp,
            aggregation,
            normalizer.dp_size,
            normalizer.batch_num_tokens,
            normalizer.global_batch_size,
            normalizer.loss_scale_factor,
            kl.kind,
            kl.coef,
            kl.clamp,
            rollout_is_weights,
            loss_params.tau_pos,
            loss_params.tau_neg,
            loss_params.seq_log_ratio_max,
            temperature,
            entropy_coef,
            grad_scale,
            metrics_scope,
            inactive_gradient,
        );
        self.loss_params
            .other
            .extend(over.loss_params.other.clone());
        self
    }

    fn drop_loss(&mut self) {
        self.ratio = None;
        self.clip_low = None;
        self.clip_high = None;
        self.dual_clip = None;
        self.ratio_cap = None;
        self.loss_params = LossParamsFile::default();
    }
}

fn changes(below: &Option<String>, over: &Option<String>, default: &str) -> bool {
    over.as_deref()
        .is_some_and(|over| over != below.as_deref().unwrap_or(default))
}

/// Tells `null` (`Some(None)`) from an absent field (`None`).
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Switch, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
