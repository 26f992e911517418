//! One token of a response: its loss, its derivatives and what is reported of it.

use super::kl::kl_term;
use super::objective::{PolicyTerm, Ratio, policy_term};
use crate::config::{Config, Objective};
use crate::metrics::{EntropyMetrics, Metrics};

/// What a loss reads of a valid token.
#[derive(Clone, Copy)]
pub(crate) struct TokenInput {
    pub log_prob: f64,
    /// δ = log_prob − old_log_prob; `None` without `old_log_prob`.
    pub log_ratio: Option<f64>,
    /// ρ of the token, or of the response under GSPO; `None` without `old_log_prob`, or where
    /// GSPO's mean is not finite.
    pub ratio: Option<Ratio>,
    /// Finite.
    pub advantage: f64,
    /// The rollout correction of the policy term.
    pub importance_weight: f64,
    pub ref_log_prob: Option<f64>,
    /// From logits only.
    pub entropy: Option<f64>,
}

/// A token that is not left out.
pub(crate) struct Token {
    /// Before weights and selection.
    policy: PolicyTerm,
    ratio: Option<Ratio>,
    /// Of this token, after its clamp; 0 without `old_log_prob`.
    log_ratio: f64,
    /// With the importance weight; 0 without advantage.
    pub policy_loss: f64,
    /// Before its coefficient.
    pub kl: f64,
    /// 0 where log-probs were given.
    pub entropy: f64,
    pub derivatives: Derivatives,
}

/// Of the loss, all factors included.
#[derive(Clone, Copy, Default)]
pub(crate) struct Derivatives {
    pub log_prob: f64,
    pub entropy: f64,
}

/// The loss of a token of a response with weight w_i · loss_multiplier = `weight`; `None` where the
/// token has to be left out.
pub(crate) fn token(config: &Config, weight: f64, input: &TokenInput) -> Option<Token> {
    let TokenInput {
        log_prob,
        log_ratio,
        ratio,
        advantage,
        ..
    } = *input;
    if !log_ratio.unwrap_or(log_prob).is_finite() {
        return None;
    }
    let policy = policy_term(&config.objective, ratio, log_prob, advantage);
    // Selected, not multiplied: without advantage, or without GSPO's ratio of the response, no
    // ratio and no weight leaves a trace.
    let has_policy = advantage != 0.0 && (ratio.is_some() || !is_gspo(config));
    let (policy_loss, policy_gradient) = if !has_policy {
        (0.0, 0.0)
    } else {
        let weight = input.importance_weight;
        (weight * policy.loss, weight * policy.gradient)
    };
    let (kl, kl_gradient) = match (config.kl, input.ref_log_prob) {
        (Some(kl), Some(reference)) => kl_term(kl, log_prob, reference),
        _ => (0.0, 0.0),
    };
    let kl_coef = config.kl.map_or(0.0, |kl| kl.coef);
    let derivatives = derivatives(config, weight, policy_gradient + kl_coef * kl_gradient);
    // No factor hides a part that is not finite: 0 · ∞ is NaN.
    let loss = weight * (policy_loss + kl);
    let is_finite = loss.is_finite() && is_applicable(config, input, derivatives);
    is_finite.then(|| Token {
        policy,
        ratio,
        log_ratio: log_ratio.map_or(0.0, |log_ratio| Ratio::clamped(log_ratio, clamp_of(config))),
        policy_loss,
        kl,
        entropy: input.entropy.unwrap_or(0.0),
        derivatives,
    })
}

/// With the response's weight, of a token whose loss has derivative `of_log_prob` without it
/// (docs/math.md §3, §4).
fn derivatives(config: &Config, weight: f64, of_log_prob: f64) -> Derivatives {
    let scale = weight * config.grad_scale;
    Derivatives {
        log_prob: scale * of_log_prob,
        // By selection: an infinite scale leaves no trace where there is no term.
        entropy: if config.entropy_coef == 0.0 {
            0.0
        } else {
            -config.entropy_coef * scale
        },
    }
}

/// Whether the derivatives are finite as they are applied: to logits, over the temperature.
fn is_applicable(config: &Config, input: &TokenInput, derivatives: Derivatives) -> bool {
    match input.entropy {
        None => derivatives.log_prob.is_finite(),
        Some(_) => [derivatives.log_prob, derivatives.entropy]
            .iter()
            .all(|derivative| (derivative / config.temperature).is_finite()),
    }
}

pub(crate) fn is_gspo(config: &Config) -> bool {
    matches!(config.objective, Objective::Gspo { .. })
}

/// The clamp of a token's log-ratio; the other objectives have none, or one of their own.
pub(crate) fn clamp_of(config: &Config) -> Option<f64> {
    match config.objective {
        Objective::Clip { .. } | Objective::Cispo { .. } | Objective::Sapo { .. } => {
            config.log_ratio_clamp
        }
        Objective::Gspo { .. } | Objective::Reinforce => None,
    }
}

/// Adds a token with advantage `advantage` to `metrics`, its losses without the response's weight.
pub(crate) fn observe(token: &Token, advantage: f64, in_scope: bool, metrics: &mut Metrics) {
    metrics.pg_loss += token.policy_loss;
    metrics.kl_loss += token.kl;
    if let Some(entropy) = &mut metrics.entropy {
        observe_entropy(token.entropy, advantage, entropy);
    }
    if in_scope {
        observe_ratio(token, metrics);
    }
}

/// Adds a token in scope to what is reported besides the losses.
fn observe_ratio(token: &Token, metrics: &mut Metrics) {
    metrics.clipped_above += u64::from(token.policy.clipped_above);
    metrics.clipped_below += u64::from(token.policy.clipped_below);
    metrics.dual_clipped += u64::from(token.policy.dual_clipped);
    metrics.neg_log_ratio_sum -= token.log_ratio;
    if let Some(ratio) = token.ratio {
        metrics.min_ratio = metrics.min_ratio.min(ratio.value);
        metrics.max_ratio = metrics.max_ratio.max(ratio.value);
    }
}

/// Adds the entropy of a token that was read; its loss without the response's weight.
fn observe_entropy(entropy: f64, advantage: f64, metrics: &mut EntropyMetrics) {
    let (sum, count) = if advantage > 0.0 {
        (&mut metrics.positive, &mut metrics.positive_tokens)
    } else if advantage < 0.0 {
        (&mut metrics.negative, &mut metrics.negative_tokens)
    } else {
        (&mut metrics.zero, &mut metrics.zero_tokens)
    };
    *sum += entropy;
    *count += 1;
    metrics.loss += entropy;
}
