//! From the kernels' metrics structs to the crate's.

use crate::config::MetricsScope;
use crate::metrics::{EntropyMetrics, GroupMetrics, Metrics};
use crate::sys;

/// The counts of `advantages`.
pub fn group_metrics(from: &sys::qae_group_metrics) -> GroupMetrics {
    GroupMetrics {
        num_groups: from.num_groups,
        hard_groups: from.hard_groups,
        easy_groups: from.easy_groups,
        zero_variance_groups: from.zero_variance_groups,
        positive: from.positive,
        zero: from.zero,
        negative: from.negative,
        nonfinite_rewards: from.nonfinite_rewards,
    }
}

/// The report of `loss_from_log_probs`.
pub fn loss_metrics(from: &sys::qae_loss_metrics, scope: MetricsScope) -> Metrics {
    Metrics {
        scope,
        loss: from.loss,
        pg_loss: from.pg_loss,
        kl_loss: from.kl_loss,
        groups: group_metrics(&from.groups),
        positive: from.positive,
        zero: from.zero,
        negative: from.negative,
        active: from.active,
        tokens: from.tokens,
        active_tokens: from.active_tokens,
        clipped_above: from.clipped_above,
        clipped_below: from.clipped_below,
        dual_clipped: from.dual_clipped,
        neg_log_ratio_sum: from.neg_log_ratio_sum,
        min_ratio: from.min_ratio,
        max_ratio: from.max_ratio,
        nonfinite_tokens: from.nonfinite_tokens,
        out_of_range: from.out_of_range,
        entropy: None,
    }
}

/// The report of `loss_from_logits`.
pub fn logits_metrics(from: &sys::qae_logits_metrics, scope: MetricsScope) -> Metrics {
    Metrics {
        entropy: Some(EntropyMetrics {
            loss: from.entropy_loss,
            positive: from.entropy_positive,
            zero: from.entropy_zero,
            negative: from.entropy_negative,
            positive_tokens: from.positive_tokens,
            zero_tokens: from.zero_tokens,
            negative_tokens: from.negative_tokens,
        }),
        ..loss_metrics(&from.loss, scope)
    }
}
