//! How many bytes a run moves: counted from shapes, configuration and result, not measured.

mod logits;

pub(super) use logits::{backward_bytes, forward_bytes, logits_bytes_moved};

use crate::backend::LossOutput;
use crate::batch::{Advantages, DType, ImportanceWeight, Layout, TokenBatch};
use crate::config::{Config, Gradient, MetricsScope, Normalizer};

/// Bytes that `token_counts` and `loss_from_log_probs` must read and write: every tensor element
/// that they need, once each. Masked slots of a row that is read count, as they share its sectors;
/// caches and the workspace do not.
pub(super) fn bytes_moved(
    batch: &TokenBatch<'_>,
    config: &Config,
    output: &LossOutput,
    gradient: DType,
) -> u64 {
    let rows = batch.layout.num_rows();
    let mut is_active = vec![false; rows];
    for &row in &output.active_rows {
        is_active[row as usize] = true;
    }
    let row_bytes = |row: usize| row_bytes(batch, config, gradient, row, is_active[row]);
    let tokens: usize = (0..rows).map(row_bytes).sum();
    let indices = index_bytes(&batch.layout, batch.importance_weight);
    (tokens + indices + reward_bytes(batch.advantages, output)) as u64
}

fn row_bytes(
    batch: &TokenBatch<'_>,
    config: &Config,
    gradient: DType,
    row: usize,
    is_active: bool,
) -> usize {
    let slots = batch.layout.row(row);
    let log_prob = batch.log_prob.dtype().size();
    let mask = usize::from(batch.mask.is_some());
    let acts = is_active || config.kl.is_some();
    let mut per_slot = 0;
    if config.normalizer == Normalizer::FromBatch {
        per_slot += mask;
    }
    if acts || config.metrics_scope == MetricsScope::All {
        per_slot += mask + log_prob * (1 + usize::from(batch.old_log_prob.is_some()));
    }
    if config.kl.is_some() {
        per_slot += log_prob;
    }
    // Whether a row acts is known only from the advantages of its tokens.
    if matches!(batch.advantages, Advantages::PerToken(_)) {
        per_slot += 4;
    }
    if is_active && matches!(batch.importance_weight, Some(ImportanceWeight::PerToken(_))) {
        per_slot += 4;
    }
    let is_written = acts || config.gradient == Gradient::ZeroFill;
    slots.length * per_slot + usize::from(is_written) * slots.num_slots * gradient.size()
}

/// Lengths, offsets, indices and what else there is one of for each row.
fn index_bytes(layout: &Layout<'_>, weight: Option<ImportanceWeight<'_>>) -> usize {
    let rows = layout.num_rows();
    let layout = match layout {
        Layout::Packed { .. } => 8 * (rows + 1),
        Layout::Padded { lengths, .. } => 4 * lengths.map_or(0, <[i32]>::len),
    };
    let weight = match weight {
        Some(ImportanceWeight::PerResponse(weight)) => 4 * weight.len(),
        _ => 0,
    };
    let active_rows = 4 * rows;
    layout + weight + active_rows
}

/// Rewards and groups in, baselines and advantages out; or given advantages in.
fn reward_bytes(advantages: Advantages<'_>, output: &LossOutput) -> usize {
    match advantages {
        Advantages::FromRewards {
            rewards,
            groups,
            response_index,
        } => {
            let outputs = [&output.baseline, &output.advantage];
            let written: usize = outputs.into_iter().flatten().map(Vec::len).sum();
            let indices = [groups.offsets(), groups.order(), groups.group_of_response()];
            let indices = indices.into_iter().chain([response_index]).flatten();
            4 * (rewards.len() + written + indices.map(<[i32]>::len).sum::<usize>())
        }
        Advantages::PerResponse(values) => 4 * values.len(),
        Advantages::PerToken(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::bytes_moved;
    use crate::{
        Advantages, Config, DType, Layout, MetricsScope, Normalizer, Tensor, TokenBatch, reference,
    };

    #[test]
    fn inactive_rows_cost_their_gradient_only() {
        let log_prob = vec![-1.0; 4 * 1000];
        let mut batch = TokenBatch {
            layout: Layout::padded(4, 1000),
            mask: None,
            log_prob: Tensor::F32(&log_prob),
            old_log_prob: Some(Tensor::F32(&log_prob)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::PerResponse(&[1.0; 4]),
        };
        let config = Config {
            normalizer: Normalizer::Value(1.0),
            metrics_scope: MetricsScope::Active,
            ..Config::default()
        };
        let bytes = |batch: &TokenBatch<'_>, gradient| {
            let output = reference::loss_from_log_probs(batch, &config).unwrap();
            bytes_moved(batch, &config, &output, gradient)
        };
        let per_row = 4 + 4; // an advantage and a place in the list of active rows
        assert_eq!(bytes(&batch, DType::F32), 4 * (12 * 1000 + per_row));
        assert_eq!(bytes(&batch, DType::Bf16), 4 * (10 * 1000 + per_row));
        batch.advantages = Advantages::PerResponse(&[1.0, 0.0, 0.0, 0.0]);
        assert_eq!(bytes(&batch, DType::F32), 12_000 + 3 * 4000 + 4 * per_row);
    }
}
