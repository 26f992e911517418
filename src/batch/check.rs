//! Whether the tensors of a batch fit together and fit a configuration.

use super::{Advantages, ImportanceWeight, Layout, Tensor, TokenBatch};
use crate::config::Config;
use crate::error::{Error, Result};

impl TokenBatch<'_> {
    /// Whether `loss_from_log_probs` can run on this batch with `config`: the configuration itself,
    /// shapes, strides, indices, dtypes, and the tensors that the configuration needs. Values of
    /// the tensors are not looked at: what is not finite is counted, not refused.
    ///
    /// # Errors
    /// - [`Error::Invalid`] for a configuration out of range ([`Config::check`]), an index out of
    ///   range ([`Self::check_indices`]), a stride below the width, a shape or a dtype that differs
    ///   from the log-probs'.
    /// - [`Error::Missing`] for an objective without `old_log_prob` or a KL term without
    ///   `ref_log_prob`.
    pub fn check(&self, config: &Config) -> Result<()> {
        config.check()?;
        self.check_strides()?;
        self.check_indices()?;
        self.check_token_tensors(config)?;
        if let Some(mask) = self.mask {
            let stride = match self.layout {
                Layout::Padded {
                    mask_row_stride, ..
                } => mask_row_stride,
                Layout::Packed { .. } => 0,
            };
            self.check_len("mask", mask.len(), self.layout.num_mask_elements(), stride)?;
        }
        match self.importance_weight {
            Some(ImportanceWeight::PerToken(weight)) => {
                self.check_slots("importance_weight", weight.len())?;
            }
            Some(ImportanceWeight::PerResponse(weight)) => {
                self.check_rows("importance_weight", weight.len())?;
            }
            None => {}
        }
        self.check_advantages()
    }

    /// Whether the values that describe the layout are acceptable, which only the host can see:
    /// lengths, offsets, response indices.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first element that is not.
    pub fn check_indices(&self) -> Result<()> {
        match self.layout {
            Layout::Padded {
                width,
                lengths: Some(lengths),
                ..
            } => {
                self.check_rows("lengths", lengths.len())?;
                check_each("lengths", lengths, width.saturating_add(1))?;
            }
            Layout::Padded { lengths: None, .. } => {}
            Layout::Packed { offsets } => check_offsets(offsets)?,
        }
        match self.advantages {
            Advantages::FromRewards {
                rewards,
                response_index: Some(index),
                ..
            } => check_each("response_index", index, rewards.len()),
            _ => Ok(()),
        }
    }

    fn check_strides(&self) -> Result<()> {
        let Layout::Padded {
            num_rows,
            width,
            row_stride,
            mask_row_stride,
            ..
        } = self.layout
        else {
            return Ok(());
        };
        for (field, stride) in [
            ("row_stride", row_stride),
            ("mask_row_stride", mask_row_stride),
        ] {
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
        }
        Ok(())
    }

    fn check_token_tensors(&self, config: &Config) -> Result<()> {
        if i32::try_from(self.layout.num_rows()).is_err() {
            return Err(Error::invalid(
                "num_rows",
                "at most 2147483647",
                self.layout.num_rows(),
            ));
        }
        self.check_slots("log_prob", self.log_prob.len())?;
        self.check_like_log_prob(
            "old_log_prob",
            self.old_log_prob,
            config
                .objective
                .uses_ratio()
                .then_some("the log-probs of the policy that sampled"),
        )?;
        self.check_like_log_prob(
            "ref_log_prob",
            self.ref_log_prob,
            config
                .kl
                .map(|_| "the log-probs of the reference policy, for the KL term"),
        )
    }

    fn check_like_log_prob(
        &self,
        field: &str,
        tensor: Option<Tensor<'_>>,
        needed: Option<&str>,
    ) -> Result<()> {
        match (tensor, needed) {
            (None, None) => Ok(()),
            (None, Some(what)) => Err(Error::missing(field, what)),
            (Some(tensor), _) if tensor.dtype() != self.log_prob.dtype() => Err(Error::invalid(
                field,
                format!("dtype {:?} as log_prob", self.log_prob.dtype()),
                format!("{:?}", tensor.dtype()),
            )),
            (Some(tensor), _) => self.check_slots(field, tensor.len()),
        }
    }

    fn check_advantages(&self) -> Result<()> {
        match self.advantages {
            Advantages::PerResponse(advantage) => self.check_rows("advantages", advantage.len()),
            Advantages::PerToken(advantage) => self.check_slots("advantages", advantage.len()),
            Advantages::FromRewards {
                rewards,
                groups,
                response_index,
            } => {
                if rewards.len() != groups.num_responses() {
                    return Err(Error::invalid(
                        "rewards",
                        format!("shape [{}], as the groups", groups.num_responses()),
                        format!("[{}]", rewards.len()),
                    ));
                }
                match response_index {
                    Some(index) => self.check_rows("response_index", index.len()),
                    None => self.check_rows("rewards (without response_index)", rewards.len()),
                }
            }
        }
    }

    fn check_rows(&self, field: &str, found: usize) -> Result<()> {
        let expected = self.layout.num_rows();
        if found == expected {
            Ok(())
        } else {
            Err(Error::invalid(
                field,
                format!("shape [{expected}], one for each row"),
                format!("[{found}]"),
            ))
        }
    }

    fn check_slots(&self, field: &str, found: usize) -> Result<()> {
        let stride = match self.layout {
            Layout::Padded { row_stride, .. } => row_stride,
            Layout::Packed { .. } => 0,
        };
        self.check_len(field, found, self.layout.num_elements(), stride)
    }

    /// A padded tensor may or may not include the gap after its last row.
    fn check_len(&self, field: &str, found: usize, least: usize, stride: usize) -> Result<()> {
        let most = least.max(self.layout.num_rows() * stride);
        if (least..=most).contains(&found) {
            Ok(())
        } else {
            let expected = if least == most {
                format!("{least} elements")
            } else {
                format!("{least} to {most} elements")
            };
            Err(Error::invalid(field, expected, found))
        }
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
