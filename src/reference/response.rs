//! One response of `loss_from_log_probs`: its part of every sum and its row of the gradient.

use super::kl::kl_term;
use super::loss_from_log_probs::{Call, count_valid};
use super::objective::{PolicyTerm, Ratio, policy_term};
use crate::batch::{Advantages, ImportanceWeight, Row};
use crate::config::{Config, InactiveGradient, MetricsScope, Objective};
use crate::metrics::Metrics;

/// The part of local row `row` in the metrics (its loss already weighted); writes its gradient.
pub(crate) fn response(call: &Call<'_>, row: usize, gradient: &mut [f64]) -> Metrics {
    let config = call.config;
    let mut metrics = Metrics::empty(config.metrics_scope);
    let given = call.advantage(row);
    let advantage = given.map(finite_or_zero);
    // Not finite can only be what the caller gave: advantages from rewards are finite.
    metrics.groups.nonfinite_rewards += u64::from(given.is_some_and(|a| !a.is_finite()));
    metrics.positive = u64::from(advantage.is_some_and(|a| a > 0.0));
    metrics.negative = u64::from(advantage.is_some_and(|a| a < 0.0));
    let acts = call.acts(row);
    if !acts && config.inactive_gradient == InactiveGradient::ZeroFill {
        gradient.fill(0.0);
    }
    if acts || config.metrics_scope == MetricsScope::All {
        let response = Response::new(call, row, advantage);
        metrics.active = u64::from(response.active_tokens > 0);
        response.visit(acts, gradient, &mut metrics);
    }
    metrics.zero = match advantage {
        Some(advantage) => u64::from(advantage == 0.0),
        None => 1 - metrics.active,
    };
    metrics
}

/// `value`, or 0 where it is not finite: such an advantage does not act.
pub(super) fn finite_or_zero(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// A response whose tokens are looked at.
struct Response<'a> {
    call: &'a Call<'a>,
    row: usize,
    slots: Row,
    /// Of all its tokens; `None`: each has its own.
    advantage: Option<f64>,
    /// Number of valid tokens.
    length: usize,
    /// Those with a non-zero advantage.
    active_tokens: usize,
    /// The mean log-ratio of the valid tokens, finite or not; `None` for objectives other than GSPO.
    mean_log_ratio: Option<f64>,
}

/// A token that is not left out.
struct Token {
    /// Before weights and selection.
    policy: PolicyTerm,
    /// `None` without `old_log_prob`, or where GSPO's mean is not finite.
    ratio: Option<Ratio>,
    /// Of this token, after its clamp; 0 without `old_log_prob`.
    log_ratio: f64,
    /// With the importance weight; 0 without advantage.
    policy_loss: f64,
    /// Before its coefficient.
    kl: f64,
    /// d(policy loss + kl.coef · KL)/d log_prob.
    derivative: f64,
}

impl<'a> Response<'a> {
    fn new(call: &'a Call<'a>, row: usize, advantage: Option<f64>) -> Self {
        let mut response = Self {
            call,
            row,
            slots: call.batch.layout.row(row),
            advantage,
            length: count_valid(call.batch, row),
            active_tokens: 0,
            mean_log_ratio: None,
        };
        response.active_tokens = match advantage {
            Some(0.0) => 0,
            Some(_) => response.length,
            None => response
                .valid_tokens()
                .filter(|&t| response.token_advantage(t) != 0.0)
                .count(),
        };
        if matches!(call.config.objective, Objective::Gspo { .. }) {
            let log_ratios = response
                .valid_tokens()
                .filter_map(|t| response.log_ratio(t));
            response.mean_log_ratio = Some(log_ratios.sum::<f64>() / response.length as f64);
        }
        response
    }

    fn valid_tokens(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.slots.length).filter(|&t| self.is_valid(t))
    }

    fn is_valid(&self, t: usize) -> bool {
        let counts = |mask: &[u8]| mask[self.slots.mask_start + t] != 0;
        t < self.slots.length && self.call.batch.mask.is_none_or(counts)
    }

    fn given_advantage(&self, t: usize) -> f64 {
        match (self.advantage, self.call.batch.advantages) {
            (Some(advantage), _) => advantage,
            (None, Advantages::PerToken(all)) => f64::from(all[self.slots.start + t]),
            (None, _) => 0.0,
        }
    }

    fn token_advantage(&self, t: usize) -> f64 {
        finite_or_zero(self.given_advantage(t))
    }

    /// δ = log_prob − old_log_prob.
    fn log_ratio(&self, t: usize) -> Option<f64> {
        let batch = self.call.batch;
        let slot = self.slots.start + t;
        let old_log_prob = batch.old_log_prob?.get(slot);
        Some(batch.log_prob.get(slot) - old_log_prob)
    }

    /// The rollout correction of a token's policy term.
    fn importance_weight(&self, t: usize) -> f64 {
        match self.call.batch.importance_weight {
            None => 1.0,
            Some(ImportanceWeight::PerToken(all)) => f64::from(all[self.slots.start + t]),
            Some(ImportanceWeight::PerResponse(all)) => f64::from(all[self.row]),
        }
    }

    /// Adds every token to `metrics`; writes the gradient if the row acts.
    fn visit(&self, acts: bool, gradient: &mut [f64], metrics: &mut Metrics) {
        if self.length == 0 {
            // Its weight may have a denominator of 0.
            if acts {
                gradient.fill(0.0);
            }
            return;
        }
        let weight = self.call.weight(self.length);
        let scale = weight * self.call.config.grad_scale;
        for (t, slot) in gradient.iter_mut().enumerate() {
            let derivative = if self.is_valid(t) {
                self.visit_token(t, metrics)
            } else {
                0.0
            };
            if acts {
                // + 0.0 turns −0.0 into 0.0: an exact zero is one bit pattern.
                *slot = scale * derivative + 0.0;
            }
        }
        metrics.pg_loss *= weight;
        metrics.kl_loss *= weight;
    }

    /// Adds valid token `t` to `metrics`, its losses without the response's weight; returns the
    /// derivative of its loss.
    fn visit_token(&self, t: usize, metrics: &mut Metrics) -> f64 {
        let config = self.call.config;
        let advantage = self.token_advantage(t);
        let active = advantage != 0.0;
        let in_scope = active || config.metrics_scope == MetricsScope::All;
        metrics.groups.nonfinite_rewards += u64::from(!self.given_advantage(t).is_finite());
        metrics.tokens += u64::from(in_scope);
        metrics.active_tokens += u64::from(active);
        let Some(token) = self.token(t, advantage) else {
            // GSPO's mean carries every valid token's log-ratio to the active ones.
            let carried = self.active_tokens > 0 && self.mean_log_ratio.is_some();
            let acts = active || config.kl.is_some() || carried;
            metrics.nonfinite_tokens += u64::from(acts);
            return 0.0;
        };
        metrics.pg_loss += token.policy_loss;
        metrics.kl_loss += token.kl;
        if in_scope {
            observe(&token, metrics);
        }
        token.derivative
    }

    /// Valid token `t`; `None` where it has to be left out.
    fn token(&self, t: usize, advantage: f64) -> Option<Token> {
        let config = self.call.config;
        let batch = self.call.batch;
        let slot = self.slots.start + t;
        let log_prob = batch.log_prob.get(slot);
        let log_ratio = self.log_ratio(t);
        if !log_ratio.unwrap_or(log_prob).is_finite() {
            return None;
        }
        let ratio = self.ratio(log_ratio);
        let policy = policy_term(&config.objective, ratio, log_prob, advantage);
        // Selected, not multiplied: without advantage, or without GSPO's ratio of the response, no
        // ratio and no weight leaves a trace.
        let has_policy = advantage != 0.0 && (ratio.is_some() || !self.is_gspo());
        let (policy_loss, policy_gradient) = if !has_policy {
            (0.0, 0.0)
        } else {
            let weight = self.importance_weight(t);
            (weight * policy.loss, weight * policy.gradient)
        };
        let (kl, kl_gradient) = match (config.kl, batch.ref_log_prob) {
            (Some(kl), Some(reference)) => kl_term(kl, log_prob, reference.get(slot)),
            _ => (0.0, 0.0),
        };
        let kl_coef = config.kl.map_or(0.0, |kl| kl.coef);
        let clamped = |log_ratio| Ratio::of_token(log_ratio, clamp_of(config)).log;
        let parts = [policy_loss, policy_gradient, kl, kl_gradient];
        parts.iter().all(|part| part.is_finite()).then(|| Token {
            policy,
            ratio,
            log_ratio: log_ratio.map_or(0.0, clamped),
            policy_loss,
            kl,
            derivative: policy_gradient + kl_coef * kl_gradient,
        })
    }

    fn is_gspo(&self) -> bool {
        matches!(self.call.config.objective, Objective::Gspo { .. })
    }

    /// ρ of a token, or of the response under GSPO.
    fn ratio(&self, log_ratio: Option<f64>) -> Option<Ratio> {
        let config = self.call.config;
        match config.objective {
            Objective::Gspo { log_ratio_max, .. } => self
                .mean_log_ratio
                .filter(|mean| mean.is_finite())
                .map(|mean| Ratio::of_response(mean, log_ratio_max)),
            _ => log_ratio.map(|log_ratio| Ratio::of_token(log_ratio, clamp_of(config))),
        }
    }
}

/// The clamp of a token's log-ratio; the other objectives have none, or one of their own.
fn clamp_of(config: &Config) -> Option<f64> {
    match config.objective {
        Objective::Clip { .. } | Objective::Cispo { .. } | Objective::Sapo { .. } => {
            config.log_ratio_clamp
        }
        Objective::Gspo { .. } | Objective::Reinforce => None,
    }
}

/// Adds a token in scope to what is reported besides the losses.
fn observe(token: &Token, metrics: &mut Metrics) {
    metrics.clipped_above += u64::from(token.policy.clipped_above);
    metrics.clipped_below += u64::from(token.policy.clipped_below);
    metrics.dual_clipped += u64::from(token.policy.dual_clipped);
    metrics.neg_log_ratio_sum -= token.log_ratio;
    if let Some(ratio) = token.ratio {
        metrics.min_ratio = metrics.min_ratio.min(ratio.value);
        metrics.max_ratio = metrics.max_ratio.max(ratio.value);
    }
}
