//! The tensors of the operations on logits, borrowed from host memory, and their checks.

use super::check::check_same_dtype;
use super::shape::{LayoutShape, RowGrid, TokenShape};
use super::{Advantages, ImportanceWeight, Layout, Tensor};
use crate::config::{Config, positive};
use crate::error::{Error, Result};

/// Rows of logits: one token's scores over the vocabulary.
///
/// Row r is `values[r · row_stride..][..vocab_size]`; in a padded layout, slot t of response i is
/// `values[i · response_stride + t · row_stride..][..vocab_size]`.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    /// Scores before the temperature, dimensionless.
    pub values: Tensor<'a>,
    /// Columns (V), at least 1.
    pub vocab_size: usize,
    /// Elements from one row (token) to the next, at least `vocab_size`.
    pub row_stride: usize,
    /// Padded layouts only: elements from one response to the next; `None`: as many rows as from
    /// one response to the next in the token tensors.
    pub response_stride: Option<usize>,
}

impl<'a> Logits<'a> {
    /// Rows of `vocab_size` elements back to back.
    pub fn contiguous(values: Tensor<'a>, vocab_size: usize) -> Self {
        Self {
            values,
            vocab_size,
            row_stride: vocab_size,
            response_stride: None,
        }
    }

    /// The row whose first element is `start`.
    pub(crate) fn row(&self, start: usize) -> Tensor<'a> {
        self.values.slice(start..start + self.vocab_size)
    }

    /// Where the rows of a layout lie, once it is known that they do.
    fn check(&self, layout: &LayoutShape) -> Result<RowGrid> {
        let grid = RowGrid::of_layout("logits", layout, self.row_stride, self.response_stride)?;
        grid.check("logits", self.vocab_size, self.values.len())?;
        Ok(grid)
    }

    fn check_token(&self, index: usize, token_id: i32) -> Result<()> {
        match usize::try_from(token_id) {
            Ok(id) if id < self.vocab_size => Ok(()),
            _ => Err(Error::invalid(
                format!("token_id[{index}]"),
                format!("at least 0 and less than {}", self.vocab_size),
                token_id,
            )),
        }
    }
}

/// Which response each row of logits belongs to.
#[derive(Debug, Clone, Copy)]
pub enum LogitsLayout<'a> {
    /// As log-probs are laid out.
    Responses(Layout<'a>),
    /// Slot s, a row of logits, belongs to local response `response[s]`, in any order; below 0: to
    /// none, so that it is not a token.
    Indexed {
        /// \[num_slots\], each below `num_responses`.
        response: &'a [i32],
        /// Number of local responses.
        num_responses: usize,
    },
}

impl<'a> From<Layout<'a>> for LogitsLayout<'a> {
    fn from(layout: Layout<'a>) -> Self {
        Self::Responses(layout)
    }
}

impl LogitsLayout<'_> {
    /// Number of local responses.
    pub fn num_responses(&self) -> usize {
        match self {
            Self::Responses(layout) => layout.num_rows(),
            Self::Indexed { num_responses, .. } => *num_responses,
        }
    }

    /// Number of slots, padding included.
    pub fn num_slots(&self) -> usize {
        match self {
            Self::Responses(Layout::Padded {
                num_rows, width, ..
            }) => num_rows.saturating_mul(*width),
            Self::Responses(packed) => packed.num_elements(),
            Self::Indexed { response, .. } => response.len(),
        }
    }

    pub(crate) fn shape(&self) -> LayoutShape {
        match self {
            Self::Responses(layout) => layout.shape(),
            Self::Indexed {
                response,
                num_responses,
            } => LayoutShape::Packed {
                num_rows: *num_responses,
                num_slots: response.len(),
            },
        }
    }

    fn check_indices(&self) -> Result<()> {
        let (response, num_responses) = match *self {
            Self::Responses(layout) => return layout.check_indices(),
            Self::Indexed {
                response,
                num_responses,
            } => (response, num_responses),
        };
        let is_bad = |&response: &i32| usize::try_from(response).is_ok_and(|r| r >= num_responses);
        match response.iter().position(is_bad) {
            None => Ok(()),
            Some(slot) => Err(Error::invalid(
                format!("response[{slot}]"),
                format!("less than {num_responses}, the number of responses"),
                response[slot],
            )),
        }
    }
}

/// The tensors of `loss_from_logits`, in host memory.
///
/// A slot's index, by which the gradient's rows are ordered, is row · width + t in a padded layout,
/// whatever the strides, else its position s.
#[derive(Debug, Clone, Copy)]
pub struct LogitsBatch<'a> {
    /// Where tokens stand in the token tensors and in the logits.
    pub layout: LogitsLayout<'a>,
    /// 1 where a slot is a token that counts, else 0; `None`: all of them.
    pub mask: Option<&'a [u8]>,
    /// The scores of every slot.
    pub logits: Logits<'a>,
    /// The token of each slot, laid out as a token tensor.
    pub token_id: &'a [i32],
    /// log π(token) of the policy that sampled; may be absent for [`crate::Objective::Reinforce`].
    pub old_log_prob: Option<Tensor<'a>>,
    /// The same of the reference policy; needed for a KL term.
    pub ref_log_prob: Option<Tensor<'a>>,
    /// Rollout correction.
    pub importance_weight: Option<ImportanceWeight<'a>>,
    /// Where advantages come from.
    pub advantages: Advantages<'a>,
}

/// A slot of a [`LogitsBatch`], by its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// In the order of slots.
    pub index: usize,
    /// In the token tensors.
    pub token: usize,
    /// First element of its row of logits.
    pub row: usize,
    /// Whether its token counts.
    pub is_valid: bool,
}

impl LogitsBatch<'_> {
    /// Whether `loss_from_logits` can run on this batch with `config`: the configuration itself,
    /// shapes, strides, indices, token ids, dtypes, and the tensors that the configuration needs.
    /// The other values are not looked at: what is not finite is counted, not refused.
    ///
    /// # Errors
    /// - [`Error::Invalid`] for a configuration out of range ([`Config::check`]), an index out of
    ///   range ([`crate::TokenBatch::check_indices`]), a valid token's id outside the vocabulary, a
    ///   stride below what it strides over, a shape that does not fit, or a dtype that differs
    ///   between `old_log_prob` and `ref_log_prob`.
    /// - [`Error::Missing`] for an objective without `old_log_prob` or a KL term without
    ///   `ref_log_prob`.
    pub fn check(&self, config: &Config) -> Result<()> {
        config.check()?;
        // The shapes below take the offsets at their word.
        self.layout.check_indices()?;
        self.advantages.check_indices()?;
        let layout = self.layout.shape();
        self.token_shape(layout).check_from_logits(config)?;
        let grid = self.logits.check(&layout)?;
        let old_log_prob = ("old_log_prob", self.old_log_prob);
        check_same_dtype(("ref_log_prob", self.ref_log_prob), old_log_prob)?;
        self.check_tokens(&grid)
    }

    fn token_shape(&self, layout: LayoutShape) -> TokenShape {
        TokenShape {
            layout,
            mask: self.mask.map(<[u8]>::len),
            log_prob: self.token_id.len(),
            old_log_prob: self.old_log_prob.map(|tensor| tensor.len()),
            ref_log_prob: self.ref_log_prob.map(|tensor| tensor.len()),
            importance_weight: self.importance_weight.map(|weight| weight.shape()),
            advantages: self.advantages.shape(),
        }
    }

    /// What stands where no token is, such as a label of −100, is not looked at.
    fn check_tokens(&self, grid: &RowGrid) -> Result<()> {
        (0..self.layout.num_slots())
            .map(|index| self.slot(grid, index))
            .filter(|slot| slot.is_valid)
            .try_for_each(|slot| (self.logits).check_token(slot.token, self.token_id[slot.token]))
    }

    /// Every slot, in the order of slots. The batch must have passed its check.
    pub(crate) fn slots(&self) -> Result<Vec<Slot>> {
        let grid = self.logits.check(&self.layout.shape())?;
        let slots = 0..self.layout.num_slots();
        Ok(slots.map(|index| self.slot(&grid, index)).collect())
    }

    fn slot(&self, grid: &RowGrid, index: usize) -> Slot {
        let is_unmasked = |place: usize| self.mask.is_none_or(|mask| mask[place] != 0);
        match self.layout {
            LogitsLayout::Responses(layout @ Layout::Padded { width, .. }) => {
                let (response, t) = (index / width, index % width);
                let place = layout.row(response);
                Slot {
                    index,
                    token: place.start + t,
                    row: response * grid.response_stride + t * grid.row_stride,
                    is_valid: t < place.length && is_unmasked(place.mask_start + t),
                }
            }
            LogitsLayout::Responses(Layout::Packed { .. }) => Slot {
                index,
                token: index,
                row: index * grid.row_stride,
                is_valid: is_unmasked(index),
            },
            LogitsLayout::Indexed { response, .. } => Slot {
                index,
                token: index,
                row: index * grid.row_stride,
                is_valid: response[index] >= 0 && is_unmasked(index),
            },
        }
    }
}

/// The tensors of `log_probs_from_logits` and its backward pass, in host memory.
#[derive(Debug, Clone, Copy)]
pub struct LogProbsInput<'a> {
    /// One row for each token; without a `response_stride`.
    pub logits: Logits<'a>,
    /// \[num_rows\], the token of each row.
    pub token_id: &'a [i32],
    /// \[num_rows\], 1 where a row counts, else 0; `None`: all of them.
    pub mask: Option<&'a [u8]>,
    /// Logits are divided by it; finite, above 0.
    pub temperature: f64,
}

impl<'a> LogProbsInput<'a> {
    /// Whether temperature, shapes, strides and the token ids of the rows that count are acceptable.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first that is not.
    pub fn check(&self) -> Result<()> {
        positive("temperature", self.temperature)?;
        let layout = LayoutShape::Packed {
            num_rows: 1,
            num_slots: self.num_rows(),
        };
        if let Some(mask) = self.mask {
            layout.expect_slots("mask", mask.len(), 0)?;
        }
        self.logits.check(&layout)?;
        (0..self.num_rows())
            .filter(|&row| self.counts(row))
            .try_for_each(|row| self.logits.check_token(row, self.token_id[row]))
    }

    /// Number of rows of logits.
    pub fn num_rows(&self) -> usize {
        self.token_id.len()
    }

    /// Whether row `row` is not masked.
    pub(crate) fn counts(&self, row: usize) -> bool {
        self.mask.is_none_or(|mask| mask[row] != 0)
    }

    /// The logits of row `row`.
    pub(crate) fn row(&self, row: usize) -> Tensor<'a> {
        self.logits.row(row * self.logits.row_stride)
    }
}
