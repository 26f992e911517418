//! Whether the tensors of a batch fit together and fit a configuration.

use super::shape::{AdvantageShape, Extent, TokenShape};
use super::{Advantages, ImportanceWeight, Layout, Tensor, TokenBatch};
use crate::config::Config;
use crate::error::{Error, Result};

impl TokenBatch<'_> {
    /// Whether `loss_from_log_probs` can run on this batch with `config`: the configuration itself,
    /// shapes, strides, indices, dtypes, and the tensors that the configuration needs. Values of
    /// the tensors are not looked at: what is not finite is counted, not refused.
    ///
    /// # Errors
    /// - [`Error::Invalid`] for a configuration out of range ([`Config::check`]) or that needs
    ///   logits, an index out of range ([`Self::check_indices`]), a stride below the width, a shape
    ///   or a dtype that differs from the log-probs'.
    /// - [`Error::Missing`] for an objective without `old_log_prob` or a KL term without
    ///   `ref_log_prob`.
    pub fn check(&self, config: &Config) -> Result<()> {
        config.check()?;
        // The shapes below take the offsets at their word.
        self.check_indices()?;
        self.shape().check(config)?;
        let log_prob = ("log_prob", Some(self.log_prob));
        check_same_dtype(("old_log_prob", self.old_log_prob), log_prob)?;
        check_same_dtype(("ref_log_prob", self.ref_log_prob), log_prob)
    }

    fn shape(&self) -> TokenShape {
        TokenShape {
            layout: self.layout.shape(),
            mask: self.mask.map(<[u8]>::len),
            log_prob: self.log_prob.len(),
            old_log_prob: self.old_log_prob.map(|tensor| tensor.len()),
            ref_log_prob: self.ref_log_prob.map(|tensor| tensor.len()),
            importance_weight: self.importance_weight.map(|weight| weight.shape()),
            advantages: self.advantages.shape(),
        }
    }

    /// Whether the values that describe the layout are acceptable, which only the host can see:
    /// lengths, offsets, response indices.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first element that is not.
    pub fn check_indices(&self) -> Result<()> {
        self.layout.check_indices()?;
        self.advantages.check_indices()
    }
}

impl Layout<'_> {
    /// Whether lengths and offsets are acceptable.
    pub(super) fn check_indices(&self) -> Result<()> {
        match *self {
            Self::Padded {
                width,
                lengths: Some(lengths),
                ..
            } => {
                self.shape().expect_rows("lengths", lengths.len())?;
                check_each("lengths", lengths, width.saturating_add(1))
            }
            Self::Padded { lengths: None, .. } => Ok(()),
            Self::Packed { offsets } => check_offsets(offsets),
        }
    }
}

impl ImportanceWeight<'_> {
    /// Its length.
    pub(super) fn shape(&self) -> Extent {
        match self {
            Self::PerToken(weight) => Extent::Slots(weight.len()),
            Self::PerResponse(weight) => Extent::Rows(weight.len()),
        }
    }
}

impl Advantages<'_> {
    /// Their lengths.
    pub(super) fn shape(&self) -> AdvantageShape {
        match self {
            Self::PerResponse(given) => AdvantageShape::Given(Extent::Rows(given.len())),
            Self::PerToken(given) => AdvantageShape::Given(Extent::Slots(given.len())),
            Self::FromRewards {
                rewards,
                groups,
                response_index,
            } => AdvantageShape::FromRewards {
                rewards: rewards.len(),
                num_responses: groups.num_responses(),
                response_index: response_index.map(<[i32]>::len),
            },
        }
    }

    /// Whether response indices are acceptable.
    pub(super) fn check_indices(&self) -> Result<()> {
        match *self {
            Self::FromRewards {
                rewards,
                response_index: Some(index),
                ..
            } => check_each("response_index", index, rewards.len()),
            _ => Ok(()),
        }
    }
}

/// Whether two tensors, where there are two, have one dtype.
pub(super) fn check_same_dtype(
    (field, tensor): (&str, Option<Tensor<'_>>),
    (other_field, other): (&str, Option<Tensor<'_>>),
) -> Result<()> {
    match (tensor, other) {
        (Some(tensor), Some(other)) if tensor.dtype() != other.dtype() => Err(Error::invalid(
            field,
            format!("dtype {:?} as {other_field}", other.dtype()),
            format!("{:?}", tensor.dtype()),
        )),
        _ => Ok(()),
    }
}

fn check_each(field: &str, values: &[i32], end: usize) -> Result<()> {
    let bad = values
        .iter()
        .position(|&value| usize::try_from(value).map_or(true, |value| value >= end));
    match bad {
        None => Ok(()),
        Some(row) => Err(Error::invalid(
            format!("{field}[{row}]"),
            format!("at least 0 and less than {end}"),
            values[row],
        )),
    }
}

fn check_offsets(offsets: &[i64]) -> Result<()> {
    match offsets.first() {
        None => return Err(Error::invalid("offsets", "at least one offset", "none")),
        Some(0) => {}
        Some(first) => return Err(Error::invalid("offsets[0]", 0, first)),
    }
    match offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        None => Ok(()),
        Some(row) => Err(Error::invalid(
            format!("offsets[{}]", row + 1),
            format!("at least {}", offsets[row]),
            offsets[row + 1],
        )),
    }
}
