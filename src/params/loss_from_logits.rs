//! Arguments of the kernel `loss_from_logits`.

use super::log_probs_from_logits::LogitsGradient;
use super::logits::LogitsBuffers;
use super::loss_from_log_probs::{AdvantageBuffers, NormalizerSource, WeightBuffer};
use super::token_loss::{Results, TokenGradient, TokenLoss};
use super::{Buffer, LayoutBuffers, expect_len, optional_mut};
use crate::batch::DType;
use crate::batch::shape::{LayoutShape, RowGrid};
use crate::config::{Aggregation, Config, Gradient, Objective};
use crate::error::{Error, Result};
use crate::sys;

/// Where the rows of logits stand (see [`crate::LogitsLayout`]).
#[derive(Debug, Clone, Copy)]
pub enum LogitsLayoutBuffers {
    /// Responses, one after another.
    Responses(LayoutBuffers),
    /// In any order.
    Indexed {
        /// One i32 for each slot: its local response; below 0: none.
        response: Buffer,
        /// Number of local responses.
        num_responses: usize,
    },
}

/// The tensors that `loss_from_logits` reads. Each is laid out as token tensors are.
#[derive(Debug, Clone, Copy)]
pub struct LogitsInputs {
    /// Where rows stand.
    pub layout: LogitsLayoutBuffers,
    /// u8, one for each slot.
    pub mask: Option<Buffer>,
    /// The logits; the token ids are one for each slot.
    pub logits: LogitsBuffers,
    /// Of the log-probs.
    pub dtype: DType,
    /// One for each slot.
    pub old_log_prob: Option<Buffer>,
    /// The same.
    pub ref_log_prob: Option<Buffer>,
    /// Rollout correction.
    pub importance_weight: Option<WeightBuffer>,
    /// Where advantages come from.
    pub advantages: AdvantageBuffers,
}

/// Where `loss_from_logits` writes.
#[derive(Debug, Clone, Copy)]
pub struct LogitsOutputs {
    /// The gradient with respect to the logits; with [`Gradient::Compact`] as many rows as there
    /// is room for, which a response stride does not apply to.
    pub gradient: LogitsGradient,
    /// Of `d_log_prob`: f32 or that of the log-probs.
    pub gradient_dtype: DType,
    /// One for each slot.
    pub d_log_prob: Option<Buffer>,
    /// One f32 for each slot, in nats.
    pub log_prob: Option<Buffer>,
    /// The same.
    pub entropy: Option<Buffer>,
    /// Elements from row to row of the three; `None`: as the token tensors.
    pub token_row_stride: Option<usize>,
    /// \[num_slots\] i64; only with [`Gradient::Compact`].
    pub active_slots: Option<Buffer>,
    /// \[1\] i64; only with [`Gradient::Compact`].
    pub active_slot_count: Option<Buffer>,
    /// \[num_responses\] f32; only with rewards.
    pub baseline: Option<Buffer>,
    /// \[num_responses\] f32; only with rewards.
    pub advantage: Option<Buffer>,
    /// \[num_rows\] i32.
    pub active_rows: Option<Buffer>,
    /// \[1\] i32.
    pub active_count: Option<Buffer>,
    /// \[1\] `qae_logits_metrics`.
    pub metrics: Buffer,
}

/// Where the kernel keeps a row of logits between its two uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RowPolicy {
    /// What the device can do best.
    #[default]
    Auto,
    /// In the shared memory of a cluster; compute capability 9.0 or newer.
    Cluster,
    /// In the shared memory of a block; what does not fit is read twice.
    Block,
}

/// The params of `qae_loss_from_logits`, without workspace.
///
/// # Errors
/// - [`Error::Invalid`] for a configuration out of range, a shape, stride or dtype that does not
///   fit, a gradient that overlaps the logits without taking their place (or at all, if compact),
///   baseline and advantage outputs where advantages are given, lists of slots without
///   [`Gradient::Compact`], or an indexed layout with what needs whole responses.
/// - [`Error::Missing`] for an objective without `old_log_prob`, a KL term without `ref_log_prob`,
///   or [`crate::Normalizer::FromBatch`] without a scalar that was counted.
pub fn loss_from_logits(
    inputs: &LogitsInputs,
    outputs: &LogitsOutputs,
    config: &Config,
    normalizer: NormalizerSource,
    row_policy: RowPolicy,
) -> Result<sys::qae_loss_from_logits_params> {
    inputs.layout.check(config)?;
    let token_loss = inputs.token_loss();
    token_loss.shape().check_from_logits(config)?;
    let grid = inputs.grid()?;
    let mut params = sys::qae_loss_from_logits_params {
        loss: token_loss.params(config, normalizer)?,
        logits: inputs.logits.params(&grid, config.temperature)?,
        metrics: outputs.metrics.as_mut_ptr(),
        entropy_coef: checked_entropy_coef(config.entropy_coef)?,
        row_policy: row_policy.code(),
        ..Default::default()
    };
    if let LogitsLayoutBuffers::Indexed { response, .. } = inputs.layout {
        params.slot_response = response.as_ptr();
    }
    outputs.results().set(&mut params.loss, &token_loss)?;
    outputs.set_token_tensors(&mut params, inputs)?;
    outputs.set_gradient(&mut params, inputs, &grid, config.gradient)?;
    Ok(params)
}

/// The coefficient in the kernels' f32.
fn checked_entropy_coef(entropy_coef: f64) -> Result<f32> {
    let rounded = entropy_coef as f32;
    if rounded.is_finite() {
        return Ok(rounded);
    }
    Err(Error::invalid(
        "entropy_coef",
        "a number that float32 holds",
        entropy_coef,
    ))
}

impl LogitsLayoutBuffers {
    /// The shape of the token tensors.
    fn shape(&self) -> LayoutShape {
        match *self {
            Self::Responses(layout) => layout.shape(),
            Self::Indexed {
                response,
                num_responses,
            } => LayoutShape::Packed {
                num_rows: num_responses,
                num_slots: response.len,
            },
        }
    }

    fn params(&self, mask: Option<Buffer>, gradient_row_stride: usize) -> sys::qae_layout {
        match *self {
            Self::Responses(layout) => layout.params(mask, gradient_row_stride),
            Self::Indexed {
                response,
                num_responses,
            } => sys::qae_layout {
                num_rows: num_responses as i64,
                num_slots: response.len as i64,
                mask: super::optional(mask),
                ..Default::default()
            },
        }
    }

    /// Whether the layout can do what the configuration asks for.
    fn check(&self, config: &Config) -> Result<()> {
        if matches!(self, Self::Responses(_)) {
            return Ok(());
        }
        let (field, found) = if matches!(config.objective, Objective::Gspo { .. }) {
            ("objective", "Gspo")
        } else if config.aggregation == Aggregation::SeqMeanTokenMean {
            ("aggregation", "SeqMeanTokenMean")
        } else if config.gradient == Gradient::Compact {
            ("gradient", "Compact")
        } else {
            return Ok(());
        };
        Err(Error::invalid(
            field,
            "one that does not need whole responses, as an indexed layout has slots in any order",
            found,
        ))
    }
}

impl LogitsInputs {
    fn token_loss(&self) -> TokenLoss {
        TokenLoss {
            layout: self.layout.shape(),
            mask: self.mask,
            dtype: self.dtype,
            dtype_of: match self.old_log_prob {
                Some(_) => "old_log_prob",
                None => "ref_log_prob",
            },
            num_elements: self.logits.token_ids.len,
            old_log_prob: self.old_log_prob,
            ref_log_prob: self.ref_log_prob,
            importance_weight: self.importance_weight,
            advantages: self.advantages,
        }
    }

    fn grid(&self) -> Result<RowGrid> {
        let LogitsBuffers {
            row_stride,
            response_stride,
            ..
        } = self.logits;
        RowGrid::of_layout("logits", &self.layout.shape(), row_stride, response_stride)
    }
}

impl LogitsOutputs {
    fn results(&self) -> Results {
        Results {
            baseline: self.baseline,
            advantage: self.advantage,
            active_rows: self.active_rows,
            active_count: self.active_count,
        }
    }

    fn set_token_tensors(
        &self,
        params: &mut sys::qae_loss_from_logits_params,
        inputs: &LogitsInputs,
    ) -> Result<()> {
        let layout = inputs.layout.shape();
        let gradient = TokenGradient {
            dtype: self.gradient_dtype,
            d_log_prob: self.d_log_prob,
            row_stride: self.token_row_stride.unwrap_or(layout.row_stride()),
        };
        gradient.set(&mut params.loss, layout, inputs.dtype)?;
        for (field, buffer) in [("log_prob", self.log_prob), ("entropy", self.entropy)] {
            if let Some(buffer) = buffer {
                layout.expect_slots(field, buffer.len, gradient.row_stride)?;
            }
        }
        params.log_prob = optional_mut(self.log_prob);
        params.entropy = optional_mut(self.entropy);
        params.loss.layout = inputs.layout.params(inputs.mask, gradient.row_stride);
        Ok(())
    }

    fn set_gradient(
        &self,
        params: &mut sys::qae_loss_from_logits_params,
        inputs: &LogitsInputs,
        logits: &RowGrid,
        gradient: Gradient,
    ) -> Result<()> {
        params.d_logits = self.gradient.d_logits.as_mut_ptr();
        if gradient == Gradient::Compact {
            return self.set_compact_gradient(params, inputs, logits);
        }
        for (field, list) in [
            ("active_slots", self.active_slots),
            ("active_slot_count", self.active_slot_count),
        ] {
            if list.is_some() {
                return Err(Error::invalid(
                    field,
                    "none, as only a compact gradient has a list of its rows",
                    "one",
                ));
            }
        }
        let target = self.gradient.grid(&inputs.layout.shape(), logits)?;
        let d_logits = self.gradient.d_logits;
        inputs.logits.check_gradient(logits, d_logits, &target)?;
        params.d_row_stride = target.row_stride as i64;
        params.d_response_stride = target.response_stride as i64;
        Ok(())
    }

    /// Rows one after another, as many as the tensor has room for.
    fn set_compact_gradient(
        &self,
        params: &mut sys::qae_loss_from_logits_params,
        inputs: &LogitsInputs,
        logits: &RowGrid,
    ) -> Result<()> {
        let d_logits = self.gradient.d_logits;
        let vocab_size = inputs.logits.vocab_size;
        let row_stride = self.gradient.row_stride.unwrap_or(logits.row_stride);
        // One row says what a stride has to be; more do not change that.
        RowGrid::flat(1, row_stride).check("d_logits", vocab_size, vocab_size)?;
        let room = match d_logits.len.checked_sub(vocab_size) {
            Some(rest) => rest / row_stride + 1,
            None => 0,
        };
        if self.gradient.response_stride.is_some() {
            return Err(Error::invalid(
                "d_logits response stride",
                "none, as a compact gradient has one row after another",
                "one",
            ));
        }
        if inputs.logits.overlaps(d_logits) {
            return Err(Error::invalid(
                "d_logits",
                "memory apart from the logits, as a compact gradient takes other places",
                "memory that overlaps the logits",
            ));
        }
        if let Some(slots) = self.active_slots {
            expect_len("active_slots", slots, params.loss.layout.num_slots as usize)?;
        }
        if let Some(count) = self.active_slot_count {
            expect_len("active_slot_count", count, 1)?;
        }
        params.d_row_stride = row_stride as i64;
        params.compact_rows = room as i64;
        params.active_slots = optional_mut(self.active_slots);
        params.active_slot_count = optional_mut(self.active_slot_count);
        Ok(())
    }
}

impl RowPolicy {
    fn code(self) -> i32 {
        let code = match self {
            Self::Auto => sys::QAE_ROW_AUTO,
            Self::Cluster => sys::QAE_ROW_CLUSTER,
            Self::Block => sys::QAE_ROW_BLOCK,
        };
        code as i32
    }
}
