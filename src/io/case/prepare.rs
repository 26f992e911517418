//! From a case and the layers above its configuration to the arguments of an operation.

use super::names::WEIGHTS;
use super::tokens::OwnedWeight;
use super::{Case, Policy};
use crate::batch::{Advantages, ImportanceWeight, LogProbsInput, LogitsBatch, Tensor, TokenBatch};
use crate::config::Config;
use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use crate::io::tensor_file::OwnedTensor;

/// The arguments of the operation that starts where the case does.
#[derive(Debug, Clone, Copy)]
pub enum Batch<'a> {
    /// Of `loss_from_log_probs`.
    LogProbs(TokenBatch<'a>),
    /// Of `loss_from_logits`.
    Logits(LogitsBatch<'a>),
}

impl Case {
    /// The file's configuration with `overrides` taken from it, checked, and the tensors that it
    /// needs.
    ///
    /// # Errors
    /// - Those of [`ConfigFile::resolve`], also for numbers that this configuration does not use.
    /// - [`Error::File`] names a tensor that the configuration needs and the file lacks.
    pub fn prepare_any(&self, overrides: &ConfigFile) -> Result<(Config, Batch<'_>)> {
        let merged = self.config.clone().overridden_by(overrides);
        check_unused(&merged)?;
        let config = merged.resolve(self.width())?;
        self.check_needs(&config, &merged)?;
        let mask = self.mask.as_deref();
        let old_log_prob = self.old_log_prob.as_ref().map(OwnedTensor::view);
        let ref_log_prob = self.reference(&config);
        let importance_weight = self.weight(&merged);
        let advantages = Advantages::FromRewards {
            rewards: &self.rewards,
            groups: &self.groups,
            response_index: None,
        };
        let batch = match &self.policy {
            Policy::LogProbs { layout, log_prob } => Batch::LogProbs(TokenBatch {
                layout: layout.view(),
                mask,
                log_prob: log_prob.view(),
                old_log_prob,
                ref_log_prob,
                importance_weight,
                advantages,
            }),
            Policy::Logits { layout, logits } => Batch::Logits(LogitsBatch {
                layout: layout.view(),
                mask,
                logits: logits.view(),
                token_id: &logits.token_id,
                old_log_prob,
                ref_log_prob,
                importance_weight,
                advantages,
            }),
        };
        Ok((config, batch))
    }

    /// [`Self::prepare_any`] of a case that starts from log-probs.
    ///
    /// # Errors
    /// Also [`Error::File`] for a case that starts from logits.
    pub fn prepare(&self, overrides: &ConfigFile) -> Result<(Config, TokenBatch<'_>)> {
        match self.prepare_any(overrides)? {
            (config, Batch::LogProbs(batch)) => Ok((config, batch)),
            (_, Batch::Logits(_)) => Err(self.other_level("log-probs", "logits")),
        }
    }

    /// [`Self::prepare_any`] of a case that starts from logits.
    ///
    /// # Errors
    /// Also [`Error::File`] for a case that starts from log-probs.
    pub fn prepare_logits(&self, overrides: &ConfigFile) -> Result<(Config, LogitsBatch<'_>)> {
        match self.prepare_any(overrides)? {
            (config, Batch::Logits(batch)) => Ok((config, batch)),
            (_, Batch::LogProbs(_)) => Err(self.other_level("logits", "log-probs")),
        }
    }

    /// All rows of logits, masked ones included; `None` for a case that starts from log-probs.
    pub fn log_probs_input(&self, config: &Config) -> Option<LogProbsInput<'_>> {
        let logits = self.logits()?;
        Some(LogProbsInput {
            logits: logits.view(),
            token_id: &logits.token_id,
            mask: None,
            temperature: config.temperature,
        })
    }

    fn reference(&self, config: &Config) -> Option<Tensor<'_>> {
        let used = self.ref_log_prob.as_ref().filter(|_| config.kl.is_some());
        used.map(OwnedTensor::view)
    }

    fn weight(&self, merged: &ConfigFile) -> Option<ImportanceWeight<'_>> {
        let weights = self.importance_weight.as_ref();
        let used = weights.filter(|_| merged.rollout_is_weights != Some(false));
        used.map(OwnedWeight::view)
    }

    fn check_needs(&self, config: &Config, merged: &ConfigFile) -> Result<()> {
        let names = self.names;
        for (name, lacks, why) in [
            (
                names.old_log_prob,
                config.objective.uses_ratio() && self.old_log_prob.is_none(),
                "which the importance ratio needs",
            ),
            (
                names.ref_log_prob,
                config.kl.is_some() && self.ref_log_prob.is_none(),
                "which the KL term needs",
            ),
            (
                WEIGHTS,
                merged.rollout_is_weights == Some(true) && self.importance_weight.is_none(),
                "since the config says rollout_is_weights",
            ),
        ] {
            if lacks {
                let shape = self.shape();
                let message =
                    format!("tensor `{name}`: expected {shape:?}, {why}, found no such tensor");
                return Err(Error::file(&self.path, message));
            }
        }
        Ok(())
    }

    fn other_level(&self, expected: &str, found: &str) -> Error {
        let message = format!("level: expected a case that starts from {expected}, found {found}");
        Error::file(&self.path, message)
    }
}

/// [`ConfigFile::resolve`] looks only at what the kinds of scale and aggregation use; a number
/// that none could use is a mistake all the same.
fn check_unused(merged: &ConfigFile) -> Result<()> {
    if let Some(epsilon) = merged.epsilon
        && !(epsilon.is_finite() && epsilon >= 0.0)
    {
        let expected = "a finite number, at least 0";
        return Err(Error::invalid("epsilon", expected, epsilon));
    }
    let normalizer = &merged.normalizer;
    for (field, value) in [
        ("batch_num_tokens", normalizer.batch_num_tokens),
        ("global_batch_size", normalizer.global_batch_size),
        ("loss_scale_factor", normalizer.loss_scale_factor),
    ] {
        if let Some(value) = value.flatten()
            && !(value.is_finite() && value > 0.0)
        {
            let field = format!("normalizer.{field}");
            return Err(Error::invalid(field, "a finite number above 0", value));
        }
    }
    Ok(())
}
