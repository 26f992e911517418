//! From the kernels' metrics structs to the crate's, and back.

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

/// The kernels' struct of what [`group_metrics`] reads.
pub fn group_metrics_struct(from: &GroupMetrics) -> sys::qae_group_metrics {
    sys::qae_group_metrics {
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

/// The kernels' struct of what [`loss_metrics`] reads.
pub fn loss_metrics_struct(from: &Metrics) -> sys::qae_loss_metrics {
    sys::qae_loss_metrics {
        loss: from.loss,
        pg_loss: from.pg_loss,
        kl_loss: from.kl_loss,
        neg_log_ratio_sum: from.neg_log_ratio_sum,
        min_ratio: from.min_ratio,
        max_ratio: from.max_ratio,
        positive: from.positive,
        zero: from.zero,
        negative: from.negative,
        active: from.active,
        tokens: from.tokens,
        active_tokens: from.active_tokens,
        clipped_above: from.clipped_above,
        clipped_below: from.clipped_below,
        dual_clipped: from.dual_clipped,
        nonfinite_tokens: from.nonfinite_tokens,
        out_of_range: from.out_of_range,
        groups: group_metrics_struct(&from.groups),
    }
}

/// The kernels' struct of what [`logits_metrics`] reads; without entropy all of it is 0.
pub fn logits_metrics_struct(from: &Metrics) -> sys::qae_logits_metrics {
    let entropy = from.entropy.unwrap_or_default();
    sys::qae_logits_metrics {
        loss: loss_metrics_struct(from),
        entropy_loss: entropy.loss,
        entropy_positive: entropy.positive,
        entropy_zero: entropy.zero,
        entropy_negative: entropy.negative,
        positive_tokens: entropy.positive_tokens,
        zero_tokens: entropy.zero_tokens,
        negative_tokens: entropy.negative_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number of its own in every field.
    fn distinct() -> Metrics {
        Metrics {
            scope: MetricsScope::Active,
            loss: 1.5,
            pg_loss: 2.5,
            kl_loss: 3.5,
            groups: GroupMetrics {
                num_groups: 4,
                hard_groups: 5,
                easy_groups: 6,
                zero_variance_groups: 7,
                positive: 8,
                zero: 9,
                negative: 10,
                nonfinite_rewards: 11,
            },
            positive: 12,
            zero: 13,
            negative: 14,
            active: 15,
            tokens: 16,
            active_tokens: 17,
            clipped_above: 18,
            clipped_below: 19,
            dual_clipped: 20,
            neg_log_ratio_sum: 21.5,
            min_ratio: 22.5,
            max_ratio: f64::NEG_INFINITY,
            nonfinite_tokens: 23,
            out_of_range: 24,
            entropy: Some(EntropyMetrics {
                loss: 25.5,
                positive: 26.5,
                zero: 27.5,
                negative: 28.5,
                positive_tokens: 29,
                zero_tokens: 30,
                negative_tokens: 31,
            }),
        }
    }

    #[test]
    fn structs_and_back() {
        let metrics = distinct();
        let scope = metrics.scope;
        let read = logits_metrics(&logits_metrics_struct(&metrics), scope);
        assert_eq!(read, metrics);
        let without_entropy = Metrics {
            entropy: None,
            ..metrics
        };
        let read = loss_metrics(&loss_metrics_struct(&metrics), scope);
        assert_eq!(read, without_entropy);
    }
}
