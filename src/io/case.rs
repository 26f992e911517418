//! A batch of one file.

use super::tensor_file::{OwnedTensor, TensorFile};
use crate::batch::{Advantages, ImportanceWeight, Layout, TokenBatch};
use crate::config::Config;
use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use crate::groups::Groups;
use serde_json::{Map, Value};
use std::path::Path;

/// What a format calls the tensors that differ between the two.
#[derive(Debug)]
struct Names {
    log_prob: &'static str,
    old_log_prob: &'static str,
    ref_log_prob: &'static str,
    mask: &'static str,
    group: &'static str,
    /// The config object in the metadata entry `case`.
    config: &'static str,
}

const GOLDEN: Names = Names {
    log_prob: "logp",
    old_log_prob: "old_logp",
    ref_log_prob: "ref_logp",
    mask: "mask",
    group: "group_id",
    config: "config",
};

const TRL: Names = Names {
    log_prob: "per_token_logps",
    old_log_prob: "old_per_token_logps",
    ref_log_prob: "ref_per_token_logps",
    mask: "completion_mask",
    group: "group_index",
    config: "plain_config",
};

const WEIGHTS: &str = "rollout_is_weights";
const OFFSETS: &str = "cu_seqlens";
const LENGTHS: &str = "lengths";
const NUM_ITEMS: &str = "num_items_in_batch";

#[derive(Debug)]
enum OwnedLayout {
    Padded {
        num_rows: usize,
        width: usize,
        lengths: Option<Vec<i32>>,
    },
    Packed {
        offsets: Vec<i64>,
    },
}

#[derive(Debug)]
enum OwnedWeight {
    PerToken(Vec<f32>),
    PerResponse(Vec<f32>),
}

/// A batch of log-probs and rewards with the configuration that its file carries.
///
/// | tensor (golden / TRL) | shape | dtype |
/// |---|---|---|
/// | `logp` / `per_token_logps` | \[N, T\], or \[tokens\] packed | F32, BF16, F16 |
/// | `old_logp`, `ref_logp` / `old_per_token_logps`, `ref_per_token_logps` | the same | the same |
/// | `mask` / `completion_mask` | the same | U8, BOOL |
/// | `lengths` (padded, beside or instead of the mask) | \[N\] | I32, I64 |
/// | `cu_seqlens` (packed) | \[N + 1\] | I32, I64 |
/// | `rewards` | \[N\] | F32, finite |
/// | `group_id` / `group_index` | \[N\] | I32, I64 |
/// | `rollout_is_weights` | as `logp`, or \[N\] | F32 |
///
/// The metadata entry `case`, a JSON object, may hold `name` and `config` / `plain_config`.
#[derive(Debug)]
pub struct Case {
    path: String,
    name: String,
    config: ConfigFile,
    names: &'static Names,
    layout: OwnedLayout,
    mask: Option<Vec<u8>>,
    log_prob: OwnedTensor,
    old_log_prob: Option<OwnedTensor>,
    ref_log_prob: Option<OwnedTensor>,
    importance_weight: Option<OwnedWeight>,
    rewards: Vec<f32>,
    groups: Groups,
}

impl Case {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// - [`Error::File`] names the file, what was expected and what was found: it is not a
    ///   safetensors file, is truncated, lacks a tensor, or has one of the wrong shape or dtype, a
    ///   reward that is not finite, a length or offset out of range, or broken metadata.
    /// - The same for a logits-level case, which is not supported yet.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_file(&TensorFile::read(path)?)
    }

    /// Takes the batch out of a file that was read already.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_file(file: &TensorFile) -> Result<Self> {
        let names = if file.has(TRL.log_prob) {
            &TRL
        } else {
            &GOLDEN
        };
        if file.has("logits") && !file.has(names.log_prob) {
            return Err(file.error(
                "logits-level cases are not supported yet: expected a tensor `logp` or \
                 `per_token_logps`, found `logits`",
            ));
        }
        let expected = "F32, BF16 or F16 [N, T] or packed [tokens]";
        let shape = file.shape(names.log_prob, expected)?;
        let layout = read_layout(file, names, shape)?;
        let num_rows = layout.view().num_rows();
        let (name, config) = read_metadata(file, names)?;
        let optional = |name| {
            let present = file.has(name);
            present.then(|| file.log_probs(name, shape)).transpose()
        };
        Ok(Self {
            path: file.path().to_string(),
            name,
            config,
            names,
            mask: read_mask(file, names, &layout, shape)?,
            log_prob: file.log_probs(names.log_prob, shape)?,
            old_log_prob: optional(names.old_log_prob)?,
            ref_log_prob: optional(names.ref_log_prob)?,
            importance_weight: read_weights(file, shape, num_rows)?,
            rewards: read_rewards(file, num_rows)?,
            groups: Groups::from_ids(&file.integers(names.group, &[num_rows])?)
                .map_err(|error| file.error(error))?,
            layout,
        })
    }

    /// The name in the metadata, or that of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape of the token tensors.
    pub fn shape(&self) -> Vec<usize> {
        match self.layout {
            OwnedLayout::Padded {
                num_rows, width, ..
            } => vec![num_rows, width],
            OwnedLayout::Packed { .. } => vec![self.log_prob.view().len()],
        }
    }

    /// The groups of the batch.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The file's configuration with `overrides` taken from it, checked, and the tensors that it
    /// needs.
    ///
    /// # Errors
    /// - Those of [`ConfigFile::resolve`].
    /// - [`Error::File`] names a tensor that the configuration needs and the file lacks.
    pub fn prepare(&self, overrides: &ConfigFile) -> Result<(Config, TokenBatch<'_>)> {
        let merged = self.config.clone().overridden_by(overrides);
        let width = match self.layout {
            OwnedLayout::Padded { width, .. } => Some(width),
            OwnedLayout::Packed { .. } => None,
        };
        let config = merged.resolve(width)?;
        if config.objective.uses_ratio() && self.old_log_prob.is_none() {
            return Err(self.lacks(self.names.old_log_prob, "which the importance ratio needs"));
        }
        if config.kl.is_some() && self.ref_log_prob.is_none() {
            return Err(self.lacks(self.names.ref_log_prob, "which the KL term needs"));
        }
        if merged.rollout_is_weights == Some(true) && self.importance_weight.is_none() {
            return Err(self.lacks(WEIGHTS, "since the config says rollout_is_weights"));
        }
        let weights = self.importance_weight.as_ref();
        let batch = TokenBatch {
            layout: self.layout.view(),
            mask: self.mask.as_deref(),
            log_prob: self.log_prob.view(),
            old_log_prob: self.old_log_prob.as_ref().map(OwnedTensor::view),
            ref_log_prob: self
                .ref_log_prob
                .as_ref()
                .filter(|_| config.kl.is_some())
                .map(OwnedTensor::view),
            importance_weight: weights
                .filter(|_| merged.rollout_is_weights != Some(false))
                .map(OwnedWeight::view),
            advantages: Advantages::FromRewards {
                rewards: &self.rewards,
                groups: &self.groups,
                response_index: None,
            },
        };
        Ok((config, batch))
    }

    fn lacks(&self, name: &str, why: &str) -> Error {
        let shape = self.shape();
        let message = format!("tensor `{name}`: expected {shape:?}, {why}, found no such tensor");
        Error::file(&self.path, message)
    }
}

impl OwnedLayout {
    fn view(&self) -> Layout<'_> {
        match self {
            Self::Padded {
                num_rows,
                width,
                lengths,
            } => Layout::Padded {
                num_rows: *num_rows,
                width: *width,
                row_stride: *width,
                mask_row_stride: *width,
                lengths: lengths.as_deref(),
            },
            Self::Packed { offsets } => Layout::Packed { offsets },
        }
    }
}

impl OwnedWeight {
    fn view(&self) -> ImportanceWeight<'_> {
        match self {
            Self::PerToken(weights) => ImportanceWeight::PerToken(weights),
            Self::PerResponse(weights) => ImportanceWeight::PerResponse(weights),
        }
    }
}

fn read_layout(file: &TensorFile, names: &Names, shape: &[usize]) -> Result<OwnedLayout> {
    match *shape {
        [num_rows, width] => Ok(OwnedLayout::Padded {
            num_rows,
            width,
            lengths: read_lengths(file, num_rows, width)?,
        }),
        [num_tokens] => Ok(OwnedLayout::Packed {
            offsets: read_offsets(file, num_tokens)?,
        }),
        _ => Err(file.error(format!(
            "tensor `{}`: expected [N, T] or packed [tokens], found {shape:?}",
            names.log_prob
        ))),
    }
}

fn read_lengths(file: &TensorFile, num_rows: usize, width: usize) -> Result<Option<Vec<i32>>> {
    if !file.has(LENGTHS) {
        return Ok(None);
    }
    let lengths = file.integers(LENGTHS, &[num_rows])?;
    let narrow = |(row, &length): (usize, &i64)| {
        let in_range = usize::try_from(length).is_ok_and(|length| length <= width);
        let narrowed = i32::try_from(length).ok().filter(|_| in_range);
        narrowed.ok_or_else(|| {
            file.error(format!(
                "{LENGTHS}[{row}]: expected 0..={width}, found {length}"
            ))
        })
    };
    lengths
        .iter()
        .enumerate()
        .map(narrow)
        .collect::<Result<_>>()
        .map(Some)
}

fn read_offsets(file: &TensorFile, num_tokens: usize) -> Result<Vec<i64>> {
    let expected = "I32 or I64 [N + 1], since the log-probs are packed";
    let offsets = file.integers(OFFSETS, &[file.shape(OFFSETS, expected)?.iter().product()])?;
    let refuse = |index: usize, expected: String| {
        let found = offsets[index];
        Err(file.error(format!(
            "{OFFSETS}[{index}]: expected {expected}, found {found}"
        )))
    };
    let Some(last) = offsets.len().checked_sub(1) else {
        return Err(file.error(format!(
            "tensor `{OFFSETS}`: expected {expected}, found [0]"
        )));
    };
    if offsets[0] != 0 {
        return refuse(0, "0".to_string());
    }
    if let Some(row) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return refuse(row + 1, format!("at least {}", offsets[row]));
    }
    if offsets[last] != num_tokens as i64 {
        return refuse(last, format!("{num_tokens}, the number of tokens"));
    }
    Ok(offsets)
}

/// Only a padded batch without lengths cannot do without a mask.
fn read_mask(
    file: &TensorFile,
    names: &Names,
    layout: &OwnedLayout,
    shape: &[usize],
) -> Result<Option<Vec<u8>>> {
    let lengths = match layout {
        OwnedLayout::Padded { lengths, .. } => lengths.is_some(),
        OwnedLayout::Packed { .. } => true,
    };
    if lengths && !file.has(names.mask) {
        return Ok(None);
    }
    file.flags(names.mask, shape).map(Some)
}

fn read_weights(
    file: &TensorFile,
    shape: &[usize],
    num_rows: usize,
) -> Result<Option<OwnedWeight>> {
    if !file.has(WEIGHTS) {
        return Ok(None);
    }
    let given = file.shape(WEIGHTS, "F32")?;
    let per_response = given.len() == 1 && given != shape;
    Ok(Some(if per_response {
        OwnedWeight::PerResponse(file.f32s(WEIGHTS, &[num_rows])?)
    } else {
        OwnedWeight::PerToken(file.f32s(WEIGHTS, shape)?)
    }))
}

fn read_rewards(file: &TensorFile, num_rows: usize) -> Result<Vec<f32>> {
    let rewards = file.f32s("rewards", &[num_rows])?;
    match rewards.iter().position(|reward| !reward.is_finite()) {
        None => Ok(rewards),
        Some(response) => Err(file.error(format!(
            "rewards[{response}]: expected a finite number, found {}",
            rewards[response]
        ))),
    }
}

fn read_metadata(file: &TensorFile, names: &Names) -> Result<(String, ConfigFile)> {
    let case: Map<String, Value> = match file.metadata("case") {
        None => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            file.error(format!(
                "metadata `case`: expected a JSON object, found {error}"
            ))
        })?,
    };
    let name = match case.get("name").and_then(Value::as_str) {
        Some(name) => name.to_string(),
        None => Path::new(file.path())
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
    };
    let mut config = match case.get(names.config) {
        None => ConfigFile::default(),
        Some(config) => ConfigFile::from_value(config)
            .map_err(|error| file.error(format!("metadata `case`.{}: {error}", names.config)))?,
    };
    if config.normalizer.batch_num_tokens.is_none() && file.has(NUM_ITEMS) {
        // TRL divides by the tokens of the whole generation, of which this batch may be a part.
        config.normalizer.batch_num_tokens = Some(file.f64s(NUM_ITEMS)?.first().copied());
    }
    Ok((name, config))
}
