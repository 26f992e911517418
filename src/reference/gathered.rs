//! The slots of a batch of logits, response after response.

use super::response::Use;
use super::tokens::Tokens;
use crate::batch::{Advantages, ImportanceWeight, Layout, LogitsBatch, LogitsLayout, Slot, Tensor};
use crate::config::Gradient;
use crate::error::Result;

/// Whatever the layout, responses become back to back here, their slots in the order of slots, so
/// that one loss serves all layouts. A *position* is a place in that order.
pub(crate) struct Gathered {
    /// Positions of response i: `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<i64>,
    pub slots: Vec<Slot>,
    mask: Vec<u8>,
    old_log_prob: Option<Vec<f64>>,
    ref_log_prob: Option<Vec<f64>>,
    importance_weight: Option<Vec<f32>>,
    advantage: Option<Vec<f32>>,
}

impl Gathered {
    /// Of a batch that passed its check.
    pub fn new(batch: &LogitsBatch<'_>) -> Result<Self> {
        let (slots, offsets) = by_response(batch.layout, batch.slots()?);
        let widened = |tensor: Option<Tensor<'_>>| {
            tensor.map(|tensor| slots.iter().map(|slot| tensor.get(slot.token)).collect())
        };
        let picked =
            |values: &[f32]| -> Vec<f32> { slots.iter().map(|slot| values[slot.token]).collect() };
        Ok(Self {
            mask: slots.iter().map(|slot| u8::from(slot.is_valid)).collect(),
            old_log_prob: widened(batch.old_log_prob),
            ref_log_prob: widened(batch.ref_log_prob),
            importance_weight: match batch.importance_weight {
                Some(ImportanceWeight::PerToken(weight)) => Some(picked(weight)),
                Some(ImportanceWeight::PerResponse(_)) | None => None,
            },
            advantage: match batch.advantages {
                Advantages::PerToken(advantage) => Some(picked(advantage)),
                Advantages::PerResponse(_) | Advantages::FromRewards { .. } => None,
            },
            offsets,
            slots,
        })
    }

    /// The token tensors at their positions, before there is a log-prob.
    pub fn tokens<'g>(&'g self, batch: &LogitsBatch<'g>) -> Tokens<'g> {
        let per_token = self.importance_weight.as_deref();
        Tokens {
            layout: Layout::Packed {
                offsets: &self.offsets,
            },
            mask: Some(&self.mask),
            log_prob: Tensor::F64(&[]),
            entropy: None,
            old_log_prob: self.old_log_prob.as_deref().map(Tensor::F64),
            ref_log_prob: self.ref_log_prob.as_deref().map(Tensor::F64),
            importance_weight: per_token
                .map(ImportanceWeight::PerToken)
                .or(batch.importance_weight),
            advantages: (self.advantage.as_deref()).map_or(batch.advantages, Advantages::PerToken),
        }
    }

    /// The slot index and, where its row is computed, the position of each row of the gradient.
    pub fn gradient_rows(
        &self,
        uses: &[Use],
        gradient: Gradient,
        num_slots: usize,
    ) -> GradientRows {
        let mut rows: GradientRows = (0..num_slots).map(|index| (index, None)).collect();
        for (position, (slot, used)) in self.slots.iter().zip(uses).enumerate() {
            if *used == Use::Acts {
                rows[slot.index].1 = Some(position);
            }
        }
        if gradient == Gradient::Compact {
            rows.retain(|(_, position)| position.is_some());
        }
        rows
    }

    /// Values at their positions as a token tensor of `len` elements, 0 where no slot is.
    pub fn scatter(&self, values: &[f64], len: usize) -> Vec<f64> {
        let mut tensor = vec![0.0; len];
        for (slot, value) in self.slots.iter().zip(values) {
            tensor[slot.token] = *value;
        }
        tensor
    }
}

/// See [`Gathered::gradient_rows`].
pub(crate) type GradientRows = Vec<(usize, Option<usize>)>;

/// Slots by response and in their order, and where each response begins.
fn by_response(layout: LogitsLayout<'_>, slots: Vec<Slot>) -> (Vec<Slot>, Vec<i64>) {
    match layout {
        LogitsLayout::Responses(Layout::Packed { offsets }) => (slots, offsets.to_vec()),
        LogitsLayout::Responses(Layout::Padded {
            num_rows, width, ..
        }) => {
            let starts = (0..=num_rows).map(|row| (row * width) as i64);
            (slots, starts.collect())
        }
        LogitsLayout::Indexed {
            response,
            num_responses,
        } => {
            let mut slots = slots;
            slots.retain(|slot| response[slot.index] >= 0);
            // Stable: the order of slots stays within a response.
            slots.sort_by_key(|slot| response[slot.index]);
            let mut offsets = vec![0; num_responses + 1];
            for slot in &slots {
                offsets[response[slot.index] as usize + 1] += 1;
            }
            for response in 0..num_responses {
                offsets[response + 1] += offsets[response];
            }
            (slots, offsets)
        }
    }
}
