//! One response of `loss_from_log_probs`: its part of every sum and its row of the gradient.

use super::loss_from_log_probs::Call;
use super::objective::Ratio;
use super::token::{Derivatives, TokenInput, clamp_of, is_gspo, observe, token};
use crate::batch::{Advantages, ImportanceWeight, Row};
use crate::config::{Gradient, MetricsScope, Objective};
use crate::metrics::{EntropyMetrics, Metrics};

/// The part of local row `row` in the metrics (its loss already weighted); writes its gradient, and
/// dL/d entropy of each token, which is 0 before, where `d_entropy` is not empty.
pub(crate) fn response(
    call: &Call<'_>,
    row: usize,
    gradient: &mut [f64],
    d_entropy: &mut [f64],
) -> Metrics {
    let acts = call.acts(row);
    let (mut metrics, response) = begin(call, row);
    if !acts && call.config.gradient == Gradient::ZeroFill {
        gradient.fill(0.0);
    }
    if let Some(response) = response {
        response.visit(acts, gradient, d_entropy, &mut metrics);
    }
    metrics
}

/// The part of local row `row` in the metrics that is known before its tokens are read, and the
/// response, if its tokens have to be.
pub(crate) fn begin<'c>(call: &'c Call<'_>, row: usize) -> (Metrics, Option<Response<'c>>) {
    let scope = call.config.metrics_scope;
    let mut metrics = Metrics::empty(scope);
    metrics.entropy = call.tokens.entropy.map(|_| EntropyMetrics::default());
    let given = call.advantage(row);
    let advantage = given.map(finite_or_zero);
    // Not finite can only be what the caller gave: advantages from rewards are finite.
    metrics.groups.nonfinite_rewards += u64::from(given.is_some_and(|a| !a.is_finite()));
    metrics.positive = u64::from(advantage.is_some_and(|a| a > 0.0));
    metrics.negative = u64::from(advantage.is_some_and(|a| a < 0.0));
    let is_read = call.acts(row) || scope == MetricsScope::All;
    let response = is_read.then(|| Response::new(call, row));
    let active_tokens = response
        .as_ref()
        .map_or(0, |response| response.active_tokens);
    metrics.active = u64::from(active_tokens > 0);
    metrics.zero = match advantage {
        Some(advantage) => u64::from(advantage == 0.0),
        None => 1 - metrics.active,
    };
    (metrics, response)
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
    let response = Response::new(call, row);
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
pub(crate) struct Response<'a> {
    pub call: &'a Call<'a>,
    pub row: usize,
    pub slots: Row,
    /// Of all its tokens; `None`: each has its own.
    pub advantage: Option<f64>,
    /// Number of valid tokens.
    pub length: usize,
    /// Those with a non-zero advantage.
    pub active_tokens: usize,
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
    pub fn new(call: &'a Call<'a>, row: usize) -> Self {
        let advantage = call.advantage(row).map(finite_or_zero);
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
        let log_ratio = |t| self.log_ratio(t, self.log_prob(t));
        let log_ratios = || self.valid_tokens().filter_map(log_ratio);
        Terms {
            weight: self.call.weight(self.length),
            mean_log_ratio: is_gspo(self.call.config)
                .then(|| log_ratios().sum::<f64>() / self.length as f64),
        }
    }

    /// Of valid token `t`, which acts, with this log-prob and entropy. Not under GSPO, where the
    /// other tokens' log-probs matter.
    pub fn derivatives(&self, t: usize, log_prob: f64, entropy: f64) -> Derivatives {
        let config = self.call.config;
        let terms = Terms {
            weight: self.call.weight(self.length),
            mean_log_ratio: None,
        };
        let input = self.input(t, log_prob, Some(entropy), terms);
        let token = token(config, terms.weight, &input);
        token.map_or(Derivatives::default(), |token| token.derivatives)
    }

    /// What the loss makes of a valid token.
    fn use_of(&self, advantage: f64) -> Use {
        // GSPO's mean carries every valid token's log-ratio to the active ones.
        let is_carried = is_gspo(self.call.config) && self.active_tokens > 0;
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

    fn log_prob(&self, t: usize) -> f64 {
        self.call.tokens.log_prob.get(self.slots.start + t)
    }

    /// δ = log_prob − old_log_prob.
    fn log_ratio(&self, t: usize, log_prob: f64) -> Option<f64> {
        let old_log_prob = self.call.tokens.old_log_prob?;
        Some(log_prob - old_log_prob.get(self.slots.start + t))
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
        let entropy = self.call.tokens.entropy;
        let entropy = entropy.map(|entropy| entropy[self.slots.start + t]);
        let input = self.input(t, self.log_prob(t), entropy, terms);
        let Some(token) = token(config, terms.weight, &input) else {
            let is_carried = is_gspo(config) && self.active_tokens > 0;
            metrics.nonfinite_tokens += u64::from(used == Use::Acts || is_carried);
            return Derivatives::default();
        };
        observe(&token, advantage, in_scope, metrics);
        token.derivatives
    }

    /// What is read of valid token `t`.
    fn input(&self, t: usize, log_prob: f64, entropy: Option<f64>, terms: Terms) -> TokenInput {
        let log_ratio = self.log_ratio(t, log_prob);
        let reference = self.call.tokens.ref_log_prob;
        TokenInput {
            log_prob,
            log_ratio,
            ratio: self.ratio(log_ratio, terms.mean_log_ratio),
            advantage: self.token_advantage(t),
            importance_weight: self.importance_weight(t),
            ref_log_prob: reference.map(|reference| reference.get(self.slots.start + t)),
            entropy,
        }
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
