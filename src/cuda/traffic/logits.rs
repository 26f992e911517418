//! Bytes of the operations on logits.

use super::{index_bytes, reward_bytes};
use crate::backend::LogitsOutput;
use crate::batch::{
    Advantages, DType, ImportanceWeight, Layout, LogProbsInput, LogitsBatch, LogitsLayout, Slot,
};
use crate::config::{Config, Gradient, MetricsScope, Normalizer, Objective};

/// Log-prob, entropy and log-sum-exp of a row, f32, and its statistics.
const FORWARD_RESULTS: usize = 3 * 4 + STATS;
const STATS: usize = 16;
const TOKEN_ID: usize = 4;

/// Bytes that `log_probs_from_logits` must read and write, all outputs included.
pub(in crate::cuda) fn forward_bytes(input: &LogProbsInput<'_>) -> u64 {
    let num_rows = input.num_rows();
    let read = (0..num_rows).filter(|&row| input.counts(row)).count();
    let per_row = FORWARD_RESULTS + usize::from(input.mask.is_some());
    (read * (row_bytes(input) + TOKEN_ID) + num_rows * per_row) as u64
}

/// Bytes that `log_probs_from_logits_backward` must read and write: rows without a derivative are
/// written only.
pub(in crate::cuda) fn backward_bytes(
    input: &LogProbsInput<'_>,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> u64 {
    let num_rows = input.num_rows();
    let is_read = |&row: &usize| {
        let has_entropy_term = d_entropy.is_some_and(|d_entropy| d_entropy[row] != 0.0);
        input.counts(row) && (d_log_prob[row] != 0.0 || has_entropy_term)
    };
    let read = (0..num_rows).filter(is_read).count();
    let derivatives = 4 + 4 * usize::from(d_entropy.is_some());
    let of_read = row_bytes(input) + TOKEN_ID + STATS;
    (read * of_read + num_rows * (row_bytes(input) + derivatives)) as u64
}

fn row_bytes(input: &LogProbsInput<'_>) -> usize {
    input.logits.vocab_size * input.logits.values.dtype().size()
}

/// Bytes that `token_counts` and `loss_from_logits` must read and write: every tensor element that
/// they need, once each, but for the logits under GSPO, which measures them first.
pub(in crate::cuda) fn logits_bytes_moved(
    batch: &LogitsBatch<'_>,
    config: &Config,
    output: &LogitsOutput,
    slots: &[Slot],
    d_log_prob: DType,
) -> u64 {
    let uses = Uses::new(batch, config, output);
    let row = batch.logits.vocab_size * batch.logits.values.dtype().size();
    let reads = 1 + usize::from(matches!(config.objective, Objective::Gspo { .. }));
    let results = d_log_prob.size() + 4 + 4;
    let per_slot = results + slot_bytes(batch, config);
    let of_slot = |slot: &Slot| {
        let logits = if uses.reads(slot) {
            reads * row + uses.token_bytes(slot)
        } else {
            0
        };
        per_slot + logits + usize::from(uses.writes(slot)) * row
    };
    let indices = match batch.layout {
        LogitsLayout::Responses(layout) => index_bytes(&layout, batch.importance_weight),
        LogitsLayout::Indexed {
            response,
            num_responses,
        } => 4 * (response.len() + num_responses),
    };
    let active_slots = 8 * output.active_slots.len();
    let rewards = reward_bytes(batch.advantages, &output.loss);
    let of_slots: usize = slots.iter().map(of_slot).sum();
    (of_slots + indices + active_slots + rewards) as u64
}

/// Of what decides for each slot what becomes of its row.
fn slot_bytes(batch: &LogitsBatch<'_>, config: &Config) -> usize {
    let mask = usize::from(batch.mask.is_some());
    let counted = usize::from(config.normalizer == Normalizer::FromBatch);
    let advantage = match batch.advantages {
        Advantages::PerToken(_) => 4,
        _ => 0,
    };
    mask * (1 + counted) + advantage
}

/// What becomes of each row of logits.
struct Uses<'a> {
    batch: &'a LogitsBatch<'a>,
    config: &'a Config,
    is_active: Vec<bool>,
}

impl<'a> Uses<'a> {
    fn new(batch: &'a LogitsBatch<'a>, config: &'a Config, output: &LogitsOutput) -> Self {
        let mut is_active = vec![false; batch.layout.num_responses()];
        for &response in &output.loss.active_rows {
            is_active[response as usize] = true;
        }
        Self {
            batch,
            config,
            is_active,
        }
    }

    /// Whether something acts on all tokens, advantage or not.
    fn has_other_terms(&self) -> bool {
        self.config.kl.is_some() || self.config.entropy_coef != 0.0
    }

    fn response(&self, slot: &Slot) -> Option<usize> {
        match self.batch.layout {
            LogitsLayout::Responses(Layout::Padded { width, .. }) => Some(slot.index / width),
            LogitsLayout::Responses(Layout::Packed { offsets }) => {
                let next = offsets.partition_point(|&offset| offset as usize <= slot.index);
                next.checked_sub(1)
            }
            LogitsLayout::Indexed { response, .. } => usize::try_from(response[slot.index]).ok(),
        }
    }

    fn acts(&self, slot: &Slot) -> bool {
        let has_advantage = || match self.batch.advantages {
            Advantages::PerToken(values) => {
                let advantage = values[slot.token];
                advantage.is_finite() && advantage != 0.0
            }
            _ => self
                .response(slot)
                .is_some_and(|response| self.is_active[response]),
        };
        slot.is_valid && (self.has_other_terms() || has_advantage())
    }

    fn reads(&self, slot: &Slot) -> bool {
        let in_scope = slot.is_valid && self.config.metrics_scope == MetricsScope::All;
        in_scope || self.acts(slot)
    }

    fn writes(&self, slot: &Slot) -> bool {
        match self.config.gradient {
            Gradient::ZeroFill => true,
            Gradient::Compact => self.acts(slot),
            // Masked slots of responses that act are written, too.
            Gradient::Untouched => {
                let is_per_token = matches!(self.batch.advantages, Advantages::PerToken(_));
                let active = |response: usize| self.is_active[response];
                is_per_token || self.has_other_terms() || self.response(slot).is_some_and(active)
            }
        }
    }

    /// Of the token tensors, where a row is read.
    fn token_bytes(&self, slot: &Slot) -> usize {
        let of = |tensor: Option<crate::batch::Tensor<'_>>| {
            tensor.map_or(0, |tensor| tensor.dtype().size())
        };
        let weight = match self.batch.importance_weight {
            Some(ImportanceWeight::PerToken(_)) if self.acts(slot) => 4,
            _ => 0,
        };
        let reference = self.batch.ref_log_prob.filter(|_| self.config.kl.is_some());
        TOKEN_ID + of(self.batch.old_log_prob) + of(reference) + weight
    }
}

#[cfg(test)]
mod tests {
    use super::{backward_bytes, forward_bytes, logits_bytes_moved};
    use crate::{
        Advantages, Config, DType, Gradient, Layout, LogProbsInput, Logits, LogitsBatch,
        MetricsScope, Normalizer, Tensor, reference,
    };

    const VOCAB_SIZE: usize = 1000;

    #[test]
    fn inactive_rows_cost_their_gradient_at_most() {
        let values = vec![0.0; 4 * VOCAB_SIZE];
        let batch = LogitsBatch {
            layout: Layout::padded(2, 2).into(),
            mask: None,
            logits: Logits::contiguous(Tensor::F32(&values), VOCAB_SIZE),
            token_id: &[0; 4],
            old_log_prob: Some(Tensor::F32(&[-7.0; 4])),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::PerResponse(&[1.0, 0.0]),
        };
        let row = 4 * VOCAB_SIZE as u64;
        let tokens = 4 * 12 + 2 * 8; // results of each slot; token and old log-prob of two
        let responses = 2 * (4 + 4); // an advantage and a place in the list of active rows
        for (gradient, rows) in [
            (Gradient::ZeroFill, 2 + 4),
            (Gradient::Untouched, 2 + 2),
            (Gradient::Compact, 2 + 2),
        ] {
            let config = Config {
                normalizer: Normalizer::Value(1.0),
                metrics_scope: MetricsScope::Active,
                gradient,
                ..Config::default()
            };
            let output = reference::loss_from_logits(&batch, &config).unwrap();
            let slots = batch.slots().unwrap();
            let bytes = logits_bytes_moved(&batch, &config, &output, &slots, DType::F32);
            let list = 8 * output.active_slots.len() as u64;
            assert_eq!(
                bytes,
                rows * row + tokens + responses + list,
                "{gradient:?}"
            );
        }
    }

    #[test]
    fn a_row_without_a_derivative_is_written_only() {
        let values = vec![0.0; 3 * VOCAB_SIZE];
        let input = LogProbsInput {
            logits: Logits::contiguous(Tensor::F32(&values), VOCAB_SIZE),
            token_id: &[0; 3],
            mask: Some(&[1, 1, 0]),
            temperature: 1.0,
        };
        let row = 4 * VOCAB_SIZE as u64;
        assert_eq!(forward_bytes(&input), 2 * (row + 4) + 3 * (28 + 1));
        let backward = backward_bytes(&input, &[1.0, 0.0, 0.0], None);
        assert_eq!(backward, row + 4 + 16 + 3 * (row + 4));
    }
}
