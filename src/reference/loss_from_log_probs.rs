//! From log-probs to the loss and its gradient (docs/math.md §2, §3, §6).

use super::advantages::{add as add_groups, advantages};
use super::response::{finite_or_zero, response};
use super::tokens::Tokens;
use crate::backend::LossOutput;
use crate::batch::{Advantages, Layout, TokenBatch};
use crate::config::{Aggregation, Config, Normalizer};
use crate::error::Result;
use crate::metrics::Metrics;

/// L = Σ_i w_i Σ_t m_it ℓ_it, its gradient and metrics, in f64 and one thread.
///
/// | tensor of `batch` | shape | dtype | unit |
/// |---|---|---|---|
/// | `log_prob`, `old_log_prob`, `ref_log_prob` | one for each slot | f64, f32, bf16, f16, alike | nats |
/// | `mask` | one for each slot | u8 | dimensionless |
/// | rewards | \[num_responses\] | f32 | reward |
/// | advantages, importance weights | \[num_rows\] or one for each slot | f32 | dimensionless |
///
/// Masked slots have gradient 0 and leave no trace, whatever they hold. A batch without a valid
/// token has loss 0 and gradient 0. A token whose values are not finite is left out and counted.
/// Sums are taken in order, tokens then rows.
///
/// # Errors
/// Those of [`TokenBatch::check`]; nothing is computed then.
///
/// ```
/// use qae::{Advantages, Config, Layout, Tensor, TokenBatch, reference};
///
/// let batch = TokenBatch {
///     layout: Layout::padded(1, 2),
///     mask: None,
///     log_prob: Tensor::F32(&[-1.0, -2.0]),
///     old_log_prob: Some(Tensor::F32(&[-1.0, -2.0])),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: Advantages::PerResponse(&[0.5]),
/// };
/// let out = reference::loss_from_log_probs(&batch, &Config::default())?;
/// // On policy every ratio is 1: the loss is the mean of −A.
/// assert_eq!(out.metrics.loss, -0.5);
/// assert_eq!(out.d_log_prob, [-0.25, -0.25]);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_log_probs(batch: &TokenBatch<'_>, config: &Config) -> Result<LossOutput> {
    batch.check(config)?;
    let from_rewards = match batch.advantages {
        Advantages::FromRewards {
            rewards, groups, ..
        } => Some(advantages(rewards, groups, &config.advantage)?),
        Advantages::PerResponse(_) | Advantages::PerToken(_) => None,
    };
    let tokens = Tokens::from(batch);
    let call = Call {
        tokens,
        config,
        global_advantage: from_rewards.as_ref().map(|out| &out.advantage[..]),
        normalizer: normalizer(config, || tokens.counts()),
    };
    let mut d_log_prob = vec![0.0; batch.log_prob.len()];
    let rows = rows_of(batch.layout, &mut d_log_prob);
    let metrics: Vec<Metrics> = rows
        .into_iter()
        .enumerate()
        .map(|(row, gradient)| response(&call, row, gradient, &mut []))
        .collect();
    let (mut metrics, active_rows) = sum(&metrics, config);
    if let Some(out) = &from_rewards {
        add_groups(&mut metrics.groups, &out.metrics);
    }
    let (baseline, advantage) = from_rewards
        .map(|out| (out.baseline, out.advantage))
        .unzip();
    Ok(LossOutput {
        metrics,
        d_log_prob,
        baseline,
        advantage,
        active_rows,
    })
}

/// What all responses of one call share.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub tokens: Tokens<'a>,
    pub config: &'a Config,
    /// The advantages of the global batch, where they come from rewards.
    pub global_advantage: Option<&'a [f64]>,
    /// The denominator of the aggregation: tokens or responses.
    pub normalizer: f64,
}

impl Call<'_> {
    /// The advantage of a local row, as given; `None` where each token has its own.
    pub fn advantage(&self, row: usize) -> Option<f64> {
        match self.tokens.advantages {
            Advantages::FromRewards { response_index, .. } => {
                let response = response_index.map_or(row, |index| index[row] as usize);
                self.global_advantage.map(|advantage| advantage[response])
            }
            Advantages::PerResponse(advantage) => Some(f64::from(advantage[row])),
            Advantages::PerToken(_) => None,
        }
    }

    /// Whether there is a term that acts where the advantage is 0.
    pub fn acts_everywhere(&self) -> bool {
        self.config.kl.is_some() || self.config.entropy_coef != 0.0
    }

    /// Whether the row's gradient is computed. Rows with an advantage for each token always are,
    /// so that this is known before a token is read.
    pub fn acts(&self, row: usize) -> bool {
        self.acts_everywhere() || self.advantage(row).is_none_or(|a| finite_or_zero(a) != 0.0)
    }

    /// w_i · loss_multiplier, of a response with `length` > 0 valid tokens (docs/math.md §3).
    pub fn weight(&self, length: usize) -> f64 {
        let denominator = match self.config.aggregation {
            Aggregation::TokenMean | Aggregation::SeqMeanTokenSum => self.normalizer,
            Aggregation::SeqMeanTokenMean => self.normalizer * length as f64,
            Aggregation::SeqMeanTokenSumNorm { scale } => self.normalizer * scale,
        };
        self.config.loss_multiplier / denominator
    }
}

/// The denominator that the configuration has or, of a batch whose rows have `counts` valid tokens:
/// all of them, or the rows that have any.
pub(crate) fn normalizer(config: &Config, counts: impl FnOnce() -> Vec<usize>) -> f64 {
    let total: usize = match (config.normalizer, config.aggregation) {
        (Normalizer::Value(value), _) => return value,
        (Normalizer::FromBatch, Aggregation::TokenMean) => counts().iter().sum(),
        (
            Normalizer::FromBatch,
            Aggregation::SeqMeanTokenMean
            | Aggregation::SeqMeanTokenSum
            | Aggregation::SeqMeanTokenSumNorm { .. },
        ) => counts().iter().filter(|&&count| count > 0).count(),
    };
    total as f64
}

/// The slots of each row in a tensor laid out as the log-probs, without the gaps between rows.
pub(crate) fn rows_of<'t, T>(layout: Layout<'_>, mut tensor: &'t mut [T]) -> Vec<&'t mut [T]> {
    let mut next = 0;
    let mut rows = Vec::with_capacity(layout.num_rows());
    for row in 0..layout.num_rows() {
        let slots = layout.row(row);
        let (_, rest) = tensor.split_at_mut(slots.start - next);
        let (slice, rest) = rest.split_at_mut(slots.num_slots);
        rows.push(slice);
        next = slots.start + slots.num_slots;
        tensor = rest;
    }
    rows
}

/// The metrics of the whole batch from those of its rows, added in order, and the active rows.
pub(crate) fn sum(rows: &[Metrics], config: &Config) -> (Metrics, Vec<u32>) {
    let mut total = Metrics::empty(config.metrics_scope);
    let mut active_rows = vec![];
    for (row, part) in rows.iter().enumerate() {
        add(&mut total, part);
        if part.active > 0 {
            active_rows.push(row as u32);
        }
    }
    let kl_coef = config.kl.map_or(0.0, |kl| kl.coef);
    total.loss = total.pg_loss + kl_coef * total.kl_loss;
    if let Some(entropy) = total.entropy
        && config.entropy_coef != 0.0
    {
        total.loss -= config.entropy_coef * entropy.loss;
    }
    (total, active_rows)
}

fn add(total: &mut Metrics, part: &Metrics) {
    add_groups(&mut total.groups, &part.groups);
    total.pg_loss += part.pg_loss;
    total.kl_loss += part.kl_loss;
    total.positive += part.positive;
    total.zero += part.zero;
    total.negative += part.negative;
    total.active += part.active;
    total.tokens += part.tokens;
    total.active_tokens += part.active_tokens;
    total.clipped_above += part.clipped_above;
    total.clipped_below += part.clipped_below;
    total.dual_clipped += part.dual_clipped;
    total.neg_log_ratio_sum += part.neg_log_ratio_sum;
    total.min_ratio = total.min_ratio.min(part.min_ratio);
    total.max_ratio = total.max_ratio.max(part.max_ratio);
    total.nonfinite_tokens += part.nonfinite_tokens;
    if let Some(part) = &part.entropy {
        let total = total.entropy.get_or_insert_default();
        total.loss += part.loss;
        total.positive += part.positive;
        total.zero += part.zero;
        total.negative += part.negative;
        total.positive_tokens += part.positive_tokens;
        total.zero_tokens += part.zero_tokens;
        total.negative_tokens += part.negative_tokens;
    }
}
