//! The entries `metrics.*`.

use crate::backend::LossOutput;
use crate::config::{Config, Objective};
use crate::io::trl_metrics::{Tokens, clip_ratios, token_mean_kl};
use crate::metrics::EntropyMetrics;

/// An advantage this small counts as zero (the golden cases' rule).
const ZERO_ADVANTAGE: f64 = 1e-9;

pub(super) fn metrics(
    config: &Config,
    tokens: &Tokens<'_>,
    output: &LossOutput,
) -> Vec<(&'static str, f64)> {
    let metrics = &output.metrics;
    let of_tokens = |count: u64| count as f64 / metrics.tokens.max(1) as f64;
    let mut values = vec![
        ("pg_clipfrac", metrics.clip_fraction()),
        ("pg_clipfrac_lower", metrics.dual_clip_fraction()),
        ("ppo_kl", metrics.approx_kl()),
    ];
    if config.kl.is_some() {
        values.push(("kl_loss", metrics.kl_loss));
    }
    if let Some(entropy) = &metrics.entropy {
        values.extend(entropies(entropy));
    }
    if matches!(config.objective, Objective::Clip { .. }) {
        values.push(("trl_clip_ratio_low_mean", of_tokens(metrics.clipped_below)));
        values.push(("trl_clip_ratio_high_mean", of_tokens(metrics.clipped_above)));
    }
    if let Some(kl) = token_mean_kl(tokens, config) {
        values.push(("kl", kl));
    }
    let Some(advantage) = output.advantage.as_deref() else {
        return values;
    };
    let zeros = advantage.iter().filter(|a| a.abs() <= ZERO_ADVANTAGE);
    let share = zeros.count() as f64 / advantage.len().max(1) as f64;
    values.push(("zero_advantage_share", share));
    if let Some(ratios) = clip_ratios(tokens, config, advantage) {
        values.extend([
            ("clip_ratio_low_mean", ratios.low_mean),
            ("clip_ratio_high_mean", ratios.high_mean),
            ("clip_ratio_region_mean", ratios.low_mean + ratios.high_mean),
            ("clip_ratio_low_min", ratios.low_min),
            ("clip_ratio_high_max", ratios.high_max),
        ]);
    }
    values
}

/// Means in nats, and the numbers of tokens that they are over.
fn entropies(entropy: &EntropyMetrics) -> [(&'static str, f64); 7] {
    [
        ("entropy", entropy.mean()),
        ("entropy_positive", entropy.mean_positive()),
        ("entropy_zero", entropy.mean_zero()),
        ("entropy_negative", entropy.mean_negative()),
        ("entropy_positive_tokens", entropy.positive_tokens as f64),
        ("entropy_zero_tokens", entropy.zero_tokens as f64),
        ("entropy_negative_tokens", entropy.negative_tokens as f64),
    ]
}
