//! One response of `loss_from_log_probs`: its part of every sum and its row of the gradient.

use super::kl::kl_term;
use super::loss_from_log_probs::Call;
use super::objective::{PolicyTerm, Ratio, policy_term};
use crate::batch::{Advantages, ImportanceWeight, Row};
use crate::config::{Config, Gradient, MetricsScope, Objective};
use crate::metrics::{EntropyMetrics, Metrics};

/// The part of local row `row` in the metrics (its loss already weighted); writes its gradient, and
/// dL/d entropy of each token, which is 0 before, where `d_entropy` is not empty.
pub(crate) fn response(
    call: &Call<'_>,
    row: usize,
    gradient: &mut [f64],
    d_entropy: &mut [f64],
) -> Metrics {
    let config = call.config;
    let mut metrics = Metrics::empty(config.metrics_scope);
    metrics.entropy = call.tokens.entropy.map(|_| EntropyMetrics::default());
    let given = call.advantage(row);
    let advantage = given.map(finite_or_zero);
    // Not finite can only be what the caller gave: advantages from rewards are finite.
    metrics.groups.nonfinite_rewards += u64::from(given.is_some_and(|a| !a.is_finite()));
    metrics.positive = u64::from(advantage.is_some_and(|a| a > 0.0));
    metrics.negative = u64::from(advantage.is_some_and(|a| a < 0.0));
    let acts = call.acts(row);
    if !acts && config.gradient == Gradient::ZeroFill {
        gradient.fill(0.0);
    }
    if acts || config.metrics_scope == MetricsScope::All {
        let response = Response::new(call, row, advantage);
        metrics.active = u64::from(response.active_tokens > 0);
        response.visit(acts, gradient, d_entropy, &mut metrics);
    }
    metrics.zero = match advantage {
        Some(advantage) => u64::from(advantage == 0.0),
        None => 1 - metrics.active,
    };
    metrics
}

/// What a loss makes of a slot, known before its log-prob is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Use {
    /// Nothing: what it holds leaves no trace.
    #[default]
    None,
    /// Its log-prob and entropy are read, for the metrics or for GSPO's mean.
    Read,
    /// They are read, and it has a gradient.
    Acts,
}

/// What the loss makes of each slot of local row `row`.
pub(crate) fn uses(call: &Call<'_>, row: usize) -> Vec<Use> {
    let response = Response::new(call, row, call.advantage(row).map(finite_or_zero));
    (0..response.slots.num_slots)
        .map(|t| {
            if response.is_valid(t) {
                response.use_of(response.token_advantage(t))
            } else {
                Use::None
            }
        })
        .collect()
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
    /// 0 where log-probs were given.
    entropy: f64,
    derivatives: Derivatives,
}

/// Of the loss, all factors included.
#[derive(Clone, Copy, Default)]
struct Derivatives {
    log_prob: f64,
    entropy: f64,
}

/// What all tokens of a response have in common.
#[derive(Clone, Copy)]
struct Terms {
    /// w_i · loss_multiplier.
    weight: f64,
    /// The mean log-ratio of the valid tokens, finite or not; `None` for objectives other than GSPO.
    mean_log_ratio: Option<f64>,
}

impl<'a> Response<'a> {
    fn new(call: &'a Call<'a>, row: usize, advantage: Option<f64>) -> Self {
        let mut response = Self {
            call,
            row,
            slots: call.tokens.layout.row(row),
            advantage,
            length: call.tokens.count_valid(row),
            active_tokens: 0,
        };
        response.active_tokens = match advantage {
            Some(0.0) => 0,
            Some(_) => response.length,
            None => response
                .valid_tokens()
                .filter(|&t| response.token_advantage(t) != 0.0)
                .count(),
        };
        response
    }

    fn terms(&self) -> Terms {
        let log_ratios = || self.valid_tokens().filter_map(|t| self.log_ratio(t));
        Terms {
            weight: self.call.weight(self.length),
            mean_log_ratio: self
                .is_gspo()
                .then(|| log_ratios().sum::<f64>() / self.length as f64),
        }
    }

    /// What the loss makes of a valid token.
    fn use_of(&self, advantage: f64) -> Use {
        // GSPO's mean carries every valid token's log-ratio to the active ones.
        let is_carried = self.is_gspo() && self.active_tokens > 0;
        if advantage != 0.0 || self.call.acts_everywhere() {
            Use::Acts
        } else if is_carried || self.call.config.metrics_scope == MetricsScope::All {
            Use::Read
        } else {
            Use::None
        }
    }

    fn valid_tokens(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.slots.length).filter(|&t| self.is_valid(t))
    }

    fn is_valid(&self, t: usize) -> bool {
        let counts = |mask: &[u8]| mask[self.slots.mask_start + t] != 0;
        t < self.slots.length && self.call.tokens.mask.is_none_or(counts)
    }

    fn given_advantage(&self, t: usize) -> f64 {
        match (self.advantage, self.call.tokens.advantages) {
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
        let tokens = &self.call.tokens;
        let slot = self.slots.start + t;
        let old_log_prob = tokens.old_log_prob?.get(slot);
        Some(tokens.log_prob.get(slot) - old_log_prob)
    }

    /// The rollout correction of a token's policy term.
    fn importance_weight(&self, t: usize) -> f64 {
        match self.call.tokens.importance_weight {
            None => 1.0,
            Some(ImportanceWeight::PerToken(all)) => f64::from(all[self.slots.start + t]),
            Some(ImportanceWeight::PerResponse(all)) => f64::from(all[self.row]),
        }
    }

    /// Adds every token to `metrics`; writes the derivatives if the row acts.
    fn visit(
        &self,
        acts: bool,
        gradient: &mut [f64],
        d_entropy: &mut [f64],
        metrics: &mut Metrics,
    ) {
        if self.length == 0 {
            // Its weight may have a denominator of 0.
            if acts {
                gradient.fill(0.0);
            }
            return;
        }
        let terms = self.terms();
        for (t, slot) in gradient.iter_mut().enumerate() {
            let derivatives = if self.is_valid(t) {
                self.visit_token(t, terms, metrics)
            } else {
                Derivatives::default()
            };
            if acts {
                // + 0.0 turns −0.0 into 0.0: an exact zero is one bit pattern.
                *slot = derivatives.log_prob + 0.0;
                if let Some(slot) = d_entropy.get_mut(t) {
                    *slot = derivatives.entropy;
                }
            }
        }
        metrics.pg_loss *= terms.weight;
        metrics.kl_loss *= terms.weight;
        if let Some(entropy) = &mut metrics.entropy {
            entropy.loss *= terms.weight;
        }
    }

    /// Adds valid token `t` to `metrics`, its losses without the response's weight.
    fn visit_token(&self, t: usize, terms: Terms, metrics: &mut Metrics) -> Derivatives {
        let config = self.call.config;
        let advantage = self.token_advantage(t);
        let active = advantage != 0.0;
        let in_scope = active || config.metrics_scope == MetricsScope::All;
        metrics.groups.nonfinite_rewards += u64::from(!self.given_advantage(t).is_finite());
        metrics.tokens += u64::from(in_scope);
        metrics.active_tokens += u64::from(active);
        let used = self.use_of(advantage);
        if used == Use::None {
            return Derivatives::default();
        }
        let Some(token) = self.token(t, advantage, terms) else {
            let is_carried = self.is_gspo() && self.active_tokens > 0;
            metrics.nonfinite_tokens += u64::from(used == Use::Acts || is_carried);
            return Derivatives::default();
        };
        metrics.pg_loss += token.policy_loss;
        metrics.kl_loss += token.kl;
        if let Some(entropy) = &mut metrics.entropy {
            observe_entropy(token.entropy, advantage, entropy);
        }
        if in_scope {
            observe(&token, metrics);
        }
        token.derivatives
    }

    /// Valid token `t`; `None` where it has to be left out.
    fn token(&self, t: usize, advantage: f64, terms: Terms) -> Option<Token> {
        let config = self.call.config;
        let tokens = &self.call.tokens;
        let slot = self.slots.start + t;
        let log_prob = tokens.log_prob.get(slot);
        let log_ratio = self.log_ratio(t);
        if !log_ratio.unwrap_or(log_prob).is_finite() {
            return None;
        }
        let ratio = self.ratio(log_ratio, terms.mean_log_ratio);
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
        let (kl, kl_gradient) = match (config.kl, tokens.ref_log_prob) {
            (Some(kl), Some(reference)) => kl_term(kl, log_prob, reference.get(slot)),
            _ => (0.0, 0.0),
        };
        let kl_coef = config.kl.map_or(0.0, |kl| kl.coef);
        let derivatives = self.derivatives(terms, policy_gradient + kl_coef * kl_gradient);
        let entropy = tokens.entropy.map_or(0.0, |entropy| entropy[slot]);
        let clamped = |log_ratio| Ratio::of_token(log_ratio, clamp_of(config)).log;
        // No factor hides a part that is not finite: 0 · ∞ is NaN.
        let loss = terms.weight * (policy_loss + kl);
        let is_finite = loss.is_finite() && self.is_applicable(derivatives);
        is_finite.then(|| Token {
            policy,
            ratio,
            log_ratio: log_ratio.map_or(0.0, clamped),
            policy_loss,
            kl,
            entropy,
            derivatives,
        })
    }

    /// With the response's weight, of a token whose loss has derivative `of_log_prob` without it
    /// (docs/math.md §3, §4).
    fn derivatives(&self, terms: Terms, of_log_prob: f64) -> Derivatives {
        let config = self.call.config;
        let scale = terms.weight * config.grad_scale;
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
    fn is_applicable(&self, derivatives: Derivatives) -> bool {
        let temperature = self.call.config.temperature;
        match self.call.tokens.entropy {
            None => derivatives.log_prob.is_finite(),
            Some(_) => [derivatives.log_prob, derivatives.entropy]
                .iter()
                .all(|derivative| (derivative / temperature).is_finite()),
        }
    }

    fn is_gspo(&self) -> bool {
        matches!(self.call.config.objective, Objective::Gspo { .. })
    }

    /// ρ of a token, or of the response under GSPO.
    fn ratio(&self, log_ratio: Option<f64>, mean_log_ratio: Option<f64>) -> Option<Ratio> {
        let config = self.call.config;
        match config.objective {
            Objective::Gspo { log_ratio_max, .. } => mean_log_ratio
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
