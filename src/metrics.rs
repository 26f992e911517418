//! What an operation reports besides its tensors (docs/math.md §6).

use crate::config::{MetricsScope, finite};
use crate::error::{Error, Result};

/// Counts over the groups and responses of a batch of rewards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct GroupMetrics {
    /// Number of groups.
    pub num_groups: u64,
    /// Groups whose ⌈k·n⌉-th smallest reward is a failure: only successes act. 0 without a k.
    pub hard_groups: u64,
    /// The other groups: only failures act. 0 without a k.
    pub easy_groups: u64,
    /// Groups whose rewards are all equal: nothing acts.
    pub zero_variance_groups: u64,
    /// Responses with a positive advantage.
    pub positive: u64,
    /// Responses with an advantage of exactly 0.
    pub zero: u64,
    /// Responses with a negative advantage.
    pub negative: u64,
    /// Rewards that are NaN or infinite; their responses have advantage 0.
    pub nonfinite_rewards: u64,
}

/// Entropy of the policy's next-token distribution, over the tokens whose logits are read and that
/// are not left out, split by the sign of the token's advantage (arXiv 2509.22611, Figures 4 and 5).
/// All valid tokens are read if they are in the metrics' scope or there is a KL or an entropy term.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct EntropyMetrics {
    /// Aggregated as the policy-gradient term is, before its coefficient.
    pub loss: f64,
    /// Sum over the tokens with a positive advantage, in nats.
    pub positive: f64,
    /// Sum over the tokens with an advantage of exactly 0, in nats.
    pub zero: f64,
    /// Sum over the tokens with a negative advantage, in nats.
    pub negative: f64,
    /// Tokens in `positive`.
    pub positive_tokens: u64,
    /// Tokens in `zero`.
    pub zero_tokens: u64,
    /// Tokens in `negative`.
    pub negative_tokens: u64,
}

impl EntropyMetrics {
    /// Mean over all tokens in the sums, in nats; 0 without any.
    pub fn mean(&self) -> f64 {
        mean(
            self.positive + self.zero + self.negative,
            self.positive_tokens + self.zero_tokens + self.negative_tokens,
        )
    }

    /// Mean over the tokens with a positive advantage, in nats; 0 without any.
    pub fn mean_positive(&self) -> f64 {
        mean(self.positive, self.positive_tokens)
    }

    /// Mean over the tokens with an advantage of exactly 0, in nats; 0 without any.
    pub fn mean_zero(&self) -> f64 {
        mean(self.zero, self.zero_tokens)
    }

    /// Mean over the tokens with a negative advantage, in nats; 0 without any.
    pub fn mean_negative(&self) -> f64 {
        mean(self.negative, self.negative_tokens)
    }
}

/// Counts and sums over the local responses and tokens of one loss.
///
/// Counts are raw so that they add up over micro-batches and ranks; the methods divide.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Which tokens the token counts and sums cover.
    #[serde(skip)]
    pub scope: MetricsScope,
    /// The loss: `pg_loss` + kl.coef · `kl_loss` − entropy_coef · `entropy.loss`.
    pub loss: f64,
    /// The aggregated policy-gradient term.
    pub pg_loss: f64,
    /// The aggregated KL estimate, before its coefficient; 0 without a KL term.
    pub kl_loss: f64,
    /// Over the groups of the global batch; all 0 where advantages were given.
    pub groups: GroupMetrics,
    /// Local responses with a positive advantage; 0 if advantages are given per token.
    pub positive: u64,
    /// Local responses with an advantage of exactly 0.
    pub zero: u64,
    /// Local responses with a negative advantage.
    pub negative: u64,
    /// Local responses with a non-zero advantage and at least one valid token.
    pub active: u64,
    /// Valid tokens in scope.
    pub tokens: u64,
    /// Valid tokens with a non-zero advantage.
    pub active_tokens: u64,
    /// Tokens with A > 0 whose clipped branch is strictly worse (above 1 + high).
    pub clipped_above: u64,
    /// Tokens with A < 0 whose clipped branch is strictly worse (below 1 − low).
    pub clipped_below: u64,
    /// Tokens held by the dual clip.
    pub dual_clipped: u64,
    /// Σ of old_log_prob − log_prob over the tokens in scope, after the clamp, in nats. Under GSPO
    /// without a KL term the kernels add the response's mean for each token that counts, which is
    /// another number only where part of a response counts.
    pub neg_log_ratio_sum: f64,
    /// Smallest importance ratio of the tokens in scope; +∞ if there is none or all are left out.
    pub min_ratio: f64,
    /// Largest importance ratio of the tokens in scope; −∞ if there is none or all are left out.
    pub max_ratio: f64,
    /// Tokens left out because their log-prob, log-ratio, loss or gradient is not finite. They stay
    /// in the counts of tokens, which are known before a token's values are.
    pub nonfinite_tokens: u64,
    /// Rows, offsets or lengths that point outside their tensor, which count as inactive, and token
    /// ids outside the vocabulary, whose tokens are left out.
    pub out_of_range: u64,
    /// Entropy, from logits only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyMetrics>,
}

impl Metrics {
    /// All counts 0, for a batch without tokens.
    pub fn empty(scope: MetricsScope) -> Self {
        Self {
            scope,
            loss: 0.0,
            pg_loss: 0.0,
            kl_loss: 0.0,
            groups: GroupMetrics::default(),
            positive: 0,
            zero: 0,
            negative: 0,
            active: 0,
            tokens: 0,
            active_tokens: 0,
            clipped_above: 0,
            clipped_below: 0,
            dual_clipped: 0,
            neg_log_ratio_sum: 0.0,
            min_ratio: f64::INFINITY,
            max_ratio: f64::NEG_INFINITY,
            nonfinite_tokens: 0,
            out_of_range: 0,
            entropy: None,
        }
    }

    /// Share of the tokens in scope that are clipped on either side (verl's `pg_clipfrac`).
    pub fn clip_fraction(&self) -> f64 {
        share(self.clipped_above + self.clipped_below, self.tokens)
    }

    /// Share of the tokens in scope that the dual clip holds (verl's `pg_clipfrac_lower`).
    pub fn dual_clip_fraction(&self) -> f64 {
        share(self.dual_clipped, self.tokens)
    }

    /// Mean of old_log_prob − log_prob over the tokens in scope, in nats (verl's `ppo_kl`).
    pub fn approx_kl(&self) -> f64 {
        mean(self.neg_log_ratio_sum, self.tokens)
    }

    /// Turns the counts of values that were left out into an error, and a loss that overflowed.
    ///
    /// # Errors
    /// [`Error::LeftOut`] names the first kind with a count above 0, [`Error::Invalid`] a loss that
    /// is not finite though every token's part of it is.
    pub fn check(&self) -> Result<()> {
        for (field, count) in [
            ("rewards", self.groups.nonfinite_rewards),
            ("log-ratios", self.nonfinite_tokens),
            ("row indices", self.out_of_range),
        ] {
            if count > 0 {
                return Err(Error::LeftOut { field, count });
            }
        }
        finite("loss", self.loss)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    mean(part as f64, whole)
}

fn mean(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}
