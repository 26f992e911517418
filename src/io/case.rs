//! A batch of one file.

mod layout;
mod logits;
mod metadata;
mod names;
mod prepare;
mod tokens;

pub use self::prepare::Batch;

pub(super) use self::logits::OwnedLogits;

use self::layout::{Responses, Slots};
use self::names::{LOGITS, Names, REWARDS};
use self::tokens::{OwnedWeight, read_log_probs, read_mask, read_weights, valid_slots};
use super::tensor_file::{OwnedTensor, TensorFile};
use crate::batch::{DType, LogitsLayout};
use crate::config_json::ConfigFile;
use crate::error::Result;
use crate::groups::Groups;
use std::path::Path;

/// What a case starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Log-probs of the tokens, which contain the temperature already.
    LogProbs,
    /// Logits over the vocabulary.
    Logits,
}

/// The policy that is trained.
#[derive(Debug)]
enum Policy {
    LogProbs {
        layout: Responses,
        log_prob: OwnedTensor,
    },
    Logits {
        layout: Slots,
        logits: OwnedLogits,
    },
}

/// A batch of log-probs or logits and rewards with the configuration that its file carries.
///
/// | tensor (golden / TRL) | shape | dtype |
/// |---|---|---|
/// | `logp` / `per_token_logps` | \[N, T\], or \[tokens\] packed | F32, BF16, F16 |
/// | or `logits` | \[N, T, V\], or \[tokens, V\] packed | F32, BF16, F16 |
/// | with `token_id` / `completion_ids` | as `logits` without V | I32, I64, below V |
/// | `old_logp`, `ref_logp` / `old_per_token_logps`, `ref_per_token_logps` | a value a token | F32, BF16, F16, as `logp` or as each other |
/// | `mask` / `completion_mask` | a value a token | U8, BOOL |
/// | `lengths` (padded, beside or instead of the mask) | \[N\] | I32, I64 |
/// | `cu_seqlens` (packed) | \[N + 1\] | I32, I64 |
/// | or `slot_response` (packed logits in any order; below 0: no token) | \[tokens\] | I32, I64 |
/// | `rewards` | \[N\] | F32, finite |
/// | `group_id` / `group_index` | \[N\] | I32, I64 |
/// | `rollout_is_weights` | a value a token, or \[N\] | F32 |
/// | `dlogits_column_index` (columns of the gradient to write apart) | as `token_id`, and columns | I32, I64, below V |
///
/// A file that has log-probs and logits starts from its log-probs, unless told otherwise
/// ([`Self::at_level`]). Token ids of slots that do not count may lie outside the vocabulary.
///
/// The metadata entry `case`, a JSON object, may hold `name` and `config` / `plain_config`. Its
/// `temperature` is that of logits; log-probs contain it.
#[derive(Debug)]
pub struct Case {
    path: String,
    name: String,
    config: ConfigFile,
    names: &'static Names,
    policy: Policy,
    mask: Option<Vec<u8>>,
    old_log_prob: Option<OwnedTensor>,
    ref_log_prob: Option<OwnedTensor>,
    importance_weight: Option<OwnedWeight>,
    rewards: Vec<f32>,
    groups: Groups,
    not_read: Option<&'static str>,
}

impl Case {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// [`crate::Error::File`] names the file, what was expected and what was found: it is not a
    /// safetensors file, is truncated, lacks a tensor, has one of the wrong shape or dtype or one
    /// that contradicts another, a reward that is not finite, a length, offset, index or token id
    /// out of range, or broken metadata.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_file(&TensorFile::read(path)?)
    }

    /// Takes the batch out of a file that was read already.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_file(file: &TensorFile) -> Result<Self> {
        Self::at_level(file, None)
    }

    /// [`Self::from_file`], from the tensors of `level` where the file has both.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn at_level(file: &TensorFile, level: Option<Level>) -> Result<Self> {
        let names = names::names_of(file);
        let (policy, mask) = match level.unwrap_or_else(|| names::level_of(file, names)) {
            Level::LogProbs => read_policy_log_probs(file, names)?,
            Level::Logits => {
                let (layout, mask, logits) = logits::read(file, names)?;
                (Policy::Logits { layout, logits }, mask)
            }
        };
        let (level, layout) = (policy.level(), policy.layout());
        let (shape, num_responses) = (layout::shape(&layout), layout::num_responses(&layout));
        let (name, config) = metadata::read(file, names)?;
        let given = match &policy {
            Policy::LogProbs { log_prob, .. } => Some((names.log_prob, log_prob)),
            Policy::Logits { .. } => None,
        };
        let old_log_prob = read_log_probs(file, names.old_log_prob, &shape, given)?;
        let like = given.or(old_log_prob.as_ref().map(|old| (names.old_log_prob, old)));
        let ref_log_prob = read_log_probs(file, names.ref_log_prob, &shape, like)?;
        let other = match level {
            Level::LogProbs => LOGITS,
            Level::Logits => names.log_prob,
        };
        Ok(Self {
            path: file.path().to_string(),
            name,
            config,
            names,
            mask,
            old_log_prob,
            ref_log_prob,
            importance_weight: read_weights(file, &shape, num_responses)?,
            rewards: read_rewards(file, num_responses)?,
            groups: Groups::from_ids(&file.integers(names.group, &[num_responses])?)
                .map_err(|error| file.error(error))?,
            not_read: file.has(other).then_some(other),
            policy,
        })
    }

    /// The name in the metadata, or that of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it starts from.
    pub fn level(&self) -> Level {
        self.policy.level()
    }

    /// The tensor of the other level that the file has too.
    pub fn not_read(&self) -> Option<&'static str> {
        self.not_read
    }

    /// The shape of the token tensors.
    pub fn shape(&self) -> Vec<usize> {
        layout::shape(&self.policy.layout())
    }

    /// Columns of the logits.
    pub fn vocab_size(&self) -> Option<usize> {
        self.logits().map(|logits| logits.vocab_size)
    }

    /// The dtype of the log-probs or logits.
    pub fn dtype(&self) -> DType {
        match &self.policy {
            Policy::LogProbs { log_prob, .. } => log_prob.view().dtype(),
            Policy::Logits { logits, .. } => logits.view().values.dtype(),
        }
    }

    /// The groups of the batch.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The number of responses.
    pub fn num_responses(&self) -> usize {
        layout::num_responses(&self.policy.layout())
    }

    /// The slots of each response that hold tokens that count, whatever the scope of the metrics.
    pub fn valid_slots(&self) -> Vec<Vec<usize>> {
        valid_slots(&self.policy.layout(), self.mask.as_deref())
    }

    pub(super) fn logits(&self) -> Option<&OwnedLogits> {
        match &self.policy {
            Policy::LogProbs { .. } => None,
            Policy::Logits { logits, .. } => Some(logits),
        }
    }

    fn width(&self) -> Option<usize> {
        layout::width(&self.policy.layout())
    }
}

impl Policy {
    fn level(&self) -> Level {
        match self {
            Self::LogProbs { .. } => Level::LogProbs,
            Self::Logits { .. } => Level::Logits,
        }
    }

    fn layout(&self) -> LogitsLayout<'_> {
        match self {
            Self::LogProbs { layout, .. } => layout.view().into(),
            Self::Logits { layout, .. } => layout.view(),
        }
    }
}

fn read_policy_log_probs(file: &TensorFile, names: &Names) -> Result<(Policy, Option<Vec<u8>>)> {
    let expected = "F32, BF16 or F16 [N, T] or packed [tokens]";
    let shape = file.shape(names.log_prob, expected)?;
    let layout = layout::of_log_probs(file, names.log_prob, shape)?;
    let mask = read_mask(file, names, &layout.view().into())?;
    let log_prob = file.log_probs(names.log_prob, shape)?;
    Ok((Policy::LogProbs { layout, log_prob }, mask))
}

fn read_rewards(file: &TensorFile, num_responses: usize) -> Result<Vec<f32>> {
    let rewards = file.f32s(REWARDS, &[num_responses])?;
    match rewards.iter().position(|reward| !reward.is_finite()) {
        None => Ok(rewards),
        Some(response) => Err(file.error(format!(
            "{REWARDS}[{response}]: expected a finite number, found {}",
            rewards[response]
        ))),
    }
}
