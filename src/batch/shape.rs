//! Shapes alone: whether tensors of these lengths fit a layout and a configuration, wherever their
//! memory is. One check for host tensors, the emulated kernels and a GPU.

mod rows;

pub use self::rows::RowGrid;

use crate::config::{Config, Gradient};
use crate::error::{Error, Result};

/// A [`super::Layout`] without its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutShape {
    /// [`super::Layout::Padded`].
    Padded {
        /// Number of local responses.
        num_rows: usize,
        /// Slots per row.
        width: usize,
        /// Elements from row to row of the token tensors.
        row_stride: usize,
        /// The same of the mask.
        mask_row_stride: usize,
        /// Length of `lengths`, if there is one.
        lengths: Option<usize>,
    },
    /// [`super::Layout::Packed`].
    Packed {
        /// Number of local responses.
        num_rows: usize,
        /// Slots in all rows.
        num_slots: usize,
    },
}

/// Length of a tensor that has an element for each row, or for each slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// \[num_rows\].
    Rows(usize),
    /// Laid out as the log-probs.
    Slots(usize),
}

/// Where advantages come from, as lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdvantageShape {
    /// [`super::Advantages::FromRewards`].
    FromRewards {
        /// Length of the rewards.
        rewards: usize,
        /// Responses in the groups.
        num_responses: usize,
        /// Length of the response index.
        response_index: Option<usize>,
    },
    /// Given advantages.
    Given(Extent),
}

/// The lengths of the tensors of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenShape {
    /// The layout.
    pub layout: LayoutShape,
    /// Of the mask.
    pub mask: Option<usize>,
    /// Of `log_prob`, or of what stands for it: `token_id`.
    pub log_prob: usize,
    /// Of `old_log_prob`.
    pub old_log_prob: Option<usize>,
    /// Of `ref_log_prob`.
    pub ref_log_prob: Option<usize>,
    /// Of `importance_weight`.
    pub importance_weight: Option<Extent>,
    /// Where advantages come from.
    pub advantages: AdvantageShape,
}

impl LayoutShape {
    /// Of rows that belong to responses of one width, or to none.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a width that does not divide them.
    pub fn of_rows(num_rows: usize, width: Option<usize>) -> Result<Self> {
        match width {
            None => Ok(Self::Packed {
                num_rows: 1,
                num_slots: num_rows,
            }),
            Some(width) if width > 0 && num_rows.is_multiple_of(width) => Ok(Self::Padded {
                num_rows: num_rows / width,
                width,
                row_stride: width,
                mask_row_stride: width,
                lengths: None,
            }),
            Some(width) => {
                let expected = format!("a divisor of the {num_rows} rows");
                Err(Error::invalid("width", expected, width))
            }
        }
    }

    /// Number of local responses.
    pub fn num_rows(&self) -> usize {
        match *self {
            Self::Padded { num_rows, .. } | Self::Packed { num_rows, .. } => num_rows,
        }
    }

    /// Elements from row to row of the token tensors; 0 if packed.
    pub fn row_stride(&self) -> usize {
        match *self {
            Self::Padded { row_stride, .. } => row_stride,
            Self::Packed { .. } => 0,
        }
    }

    /// Elements from row to row of the mask; 0 if packed.
    pub fn mask_row_stride(&self) -> usize {
        match *self {
            Self::Padded {
                mask_row_stride, ..
            } => mask_row_stride,
            Self::Packed { .. } => 0,
        }
    }

    /// Elements that a tensor with this row stride has.
    pub fn num_elements(&self, row_stride: usize) -> usize {
        match *self {
            Self::Padded { num_rows: 0, .. } => 0,
            Self::Padded {
                num_rows, width, ..
            } => (num_rows - 1) * row_stride + width,
            Self::Packed { num_slots, .. } => num_slots,
        }
    }

    /// Whether counts, strides and the length of `lengths` are acceptable.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first that is not.
    pub fn check(&self) -> Result<()> {
        at_most_i32("num_rows", self.num_rows())?;
        self.check_slots()?;
        let Self::Padded {
            width,
            row_stride,
            mask_row_stride,
            lengths,
            ..
        } = *self
        else {
            return Ok(());
        };
        at_most_i32("width", width)?;
        self.check_stride("row_stride", row_stride)?;
        self.check_stride("mask_row_stride", mask_row_stride)?;
        lengths.map_or(Ok(()), |lengths| self.expect_rows("lengths", lengths))
    }

    /// Counts of tokens within a launch have 32 bits.
    fn check_slots(&self) -> Result<()> {
        let num_slots = match *self {
            Self::Padded {
                num_rows, width, ..
            } => num_rows.checked_mul(width),
            Self::Packed { num_slots, .. } => Some(num_slots),
        };
        match num_slots {
            Some(slots) if u32::try_from(slots).is_ok() => Ok(()),
            _ => Err(Error::invalid(
                "num_rows x width, or the last offset",
                "at most 4294967295 slots",
                num_slots.map_or("more than 2^64".to_string(), |slots| slots.to_string()),
            )),
        }
    }

    /// Whether rows of a padded tensor with this stride neither overlap nor reach too far.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do.
    pub fn check_stride(&self, field: &str, stride: usize) -> Result<()> {
        let Self::Padded {
            num_rows, width, ..
        } = *self
        else {
            return Ok(());
        };
        if stride < width {
            let expected = format!("at least the width of {width}");
            return Err(Error::invalid(field, expected, stride));
        }
        // The end of the last row must be an offset that the kernels' i64 can hold.
        let end = num_rows.checked_mul(stride);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            let expected = format!("less than 2^63 / {num_rows} rows");
            return Err(Error::invalid(field, expected, stride));
        }
        Ok(())
    }

    /// Whether a tensor has an element for each row.
    ///
    /// # Errors
    /// [`Error::Invalid`] if not.
    pub fn expect_rows(&self, field: &str, found: usize) -> Result<()> {
        let expected = self.num_rows();
        if found == expected {
            return Ok(());
        }
        Err(Error::invalid(
            field,
            format!("shape [{expected}], one for each row"),
            format!("[{found}]"),
        ))
    }

    /// Whether a tensor has an element for each slot. A padded tensor may or may not include the
    /// gap after its last row.
    ///
    /// # Errors
    /// [`Error::Invalid`] if not.
    pub fn expect_slots(&self, field: &str, found: usize, row_stride: usize) -> Result<()> {
        let least = self.num_elements(row_stride);
        let most = least.max(self.num_rows() * row_stride);
        if (least..=most).contains(&found) {
            return Ok(());
        }
        let expected = if least == most {
            format!("{least} elements")
        } else {
            format!("{least} to {most} elements")
        };
        Err(Error::invalid(field, expected, found))
    }

    fn expect(&self, field: &str, extent: Extent) -> Result<()> {
        match extent {
            Extent::Rows(found) => self.expect_rows(field, found),
            Extent::Slots(found) => self.expect_slots(field, found, self.row_stride()),
        }
    }
}

impl TokenShape {
    /// Whether everything fits the layout, and what the configuration needs is there.
    ///
    /// # Errors
    /// - [`Error::Invalid`] for a configuration out of range, one that needs logits, or a shape that
    ///   does not fit.
    /// - [`Error::Missing`] for an objective without `old_log_prob` or a KL term without
    ///   `ref_log_prob`.
    pub fn check(&self, config: &Config) -> Result<()> {
        if config.entropy_coef != 0.0 {
            return Err(Error::invalid(
                "entropy_coef",
                "0, since log-probs carry no entropy",
                config.entropy_coef,
            ));
        }
        if config.gradient == Gradient::Compact {
            return Err(Error::invalid(
                "gradient",
                "zero fill or untouched, since compact rows are rows of logits",
                "compact",
            ));
        }
        self.check_tensors("log_prob", config)
    }

    /// The same where log-probs come from logits, whose tokens are in `token_id`. The logits
    /// themselves are a [`RowGrid`]'s to check.
    ///
    /// # Errors
    /// As [`Self::check`], but for what needs logits.
    pub fn check_from_logits(&self, config: &Config) -> Result<()> {
        self.check_tensors("token_id", config)
    }

    fn check_tensors(&self, tokens: &str, config: &Config) -> Result<()> {
        config.check()?;
        self.layout.check()?;
        let needs_old = config.objective.uses_ratio();
        for (field, found, is_needed, what) in [
            (tokens, Some(self.log_prob), true, "one for each slot"),
            (
                "old_log_prob",
                self.old_log_prob,
                needs_old,
                "the log-probs of the policy that sampled",
            ),
            (
                "ref_log_prob",
                self.ref_log_prob,
                config.kl.is_some(),
                "the log-probs of the reference policy, for the KL term",
            ),
        ] {
            match found {
                Some(found) => self.layout.expect(field, Extent::Slots(found))?,
                None if is_needed => return Err(Error::missing(field, what)),
                None => {}
            }
        }
        if let Some(mask) = self.mask {
            let stride = self.layout.mask_row_stride();
            self.layout.expect_slots("mask", mask, stride)?;
        }
        if let Some(weight) = self.importance_weight {
            self.layout.expect("importance_weight", weight)?;
        }
        self.check_advantages()
    }

    fn check_advantages(&self) -> Result<()> {
        match self.advantages {
            AdvantageShape::Given(extent) => self.layout.expect("advantages", extent),
            AdvantageShape::FromRewards {
                rewards,
                num_responses,
                response_index,
            } => {
                if rewards != num_responses {
                    return Err(Error::invalid(
                        "rewards",
                        format!("shape [{num_responses}], as the groups"),
                        format!("[{rewards}]"),
                    ));
                }
                match response_index {
                    Some(index) => self.layout.expect_rows("response_index", index),
                    None => self
                        .layout
                        .expect_rows("rewards (without response_index)", rewards),
                }
            }
        }
    }
}

fn at_most_i32(field: &str, count: usize) -> Result<()> {
    if i32::try_from(count).is_ok() {
        Ok(())
    } else {
        Err(Error::invalid(field, "at most 2147483647", count))
    }
}
