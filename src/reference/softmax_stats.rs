//! The softmax of one row of logits, whole or in shards (docs/math.md §4).

use super::exp::exp;
use crate::batch::Tensor;

/// The columns of one row of logits that one rank of a vocabulary-parallel model holds, or all.
#[derive(Debug, Clone, Copy)]
pub struct RowShard<'a> {
    /// The scores x before the temperature.
    pub logits: Tensor<'a>,
    /// Token id of the first column.
    pub vocab_start: usize,
    /// The row's token, in the whole vocabulary.
    pub token_id: usize,
    /// Scores are divided by it; finite, above 0.
    pub temperature: f64,
}

/// e^y and e^y y with y = (x − max x) / T.
#[inline(always)]
pub(crate) fn exp_terms(logit: f64, max_logit: f64, temperature: f64) -> (f64, f64) {
    let z = (logit - max_logit) / temperature;
    let exp = exp(z);
    // By selection: z is −∞ where its exponential is 0.
    (exp, if exp == 0.0 { 0.0 } else { exp * z })
}

impl RowShard<'_> {
    pub(crate) fn own_logit(&self) -> f64 {
        let own = self.own();
        own.map_or(f64::NEG_INFINITY, |column| self.logits.get(column))
    }

    /// The column of the row's token, if this shard holds it.
    fn own(&self) -> Option<usize> {
        let column = self.token_id.checked_sub(self.vocab_start)?;
        (column < self.logits.len()).then_some(column)
    }
}

/// What a softmax needs to know of one row, or of a shard of it (`qae_softmax_stats`): the two
/// phases of a vocabulary-parallel softmax are the stats of each shard, and what follows from the
/// merged ones (1805.02867, §3.1).
///
/// ```
/// use qae::Tensor;
/// use qae::reference::{RowShard, SoftmaxStats};
///
/// let shard = |logits, vocab_start| RowShard {
///     logits: Tensor::F32(logits),
///     vocab_start,
///     token_id: 2,
///     temperature: 1.0,
/// };
/// let [a, b] = [shard(&[0.5, 0.5], 0), shard(&[0.5, 0.5], 2)];
/// let merged = SoftmaxStats::of_row(&a).merge(SoftmaxStats::of_row(&b), 1.0);
/// assert_eq!(merged.log_prob(1.0), -4_f64.ln());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftmaxStats {
    /// Of the finite logits x; the least finite f32 if there is none.
    pub max_logit: f64,
    /// Σ exp((x − max_logit) / T). The row is unusable if it is 0 or not finite.
    pub sum_exp: f64,
    /// Σ exp((x − max_logit) / T) · (x − max_logit) / T, in nats.
    pub sum_exp_z: f64,
    /// Of the row's token; −∞ if this shard does not hold it.
    pub own_logit: f64,
}

impl SoftmaxStats {
    /// Of the columns of a shard, in their order.
    pub fn of_row(shard: &RowShard<'_>) -> Self {
        let logits = || (0..shard.logits.len()).map(|column| shard.logits.get(column));
        let max_logit = logits().filter(|logit| logit.is_finite()).reduce(f64::max);
        let mut stats = Self {
            max_logit: max_logit.unwrap_or(f64::from(f32::MIN)),
            sum_exp: 0.0,
            sum_exp_z: 0.0,
            own_logit: shard.own_logit(),
        };
        for logit in logits() {
            let (exp, exp_z) = exp_terms(logit, stats.max_logit, shard.temperature);
            stats.sum_exp += exp;
            stats.sum_exp_z += exp_z;
        }
        stats
    }

    /// Of two shards of one row: max = max(a.max, b.max), and with s = exp((shard.max − max) / T)
    /// the sums of s · shard.sum_exp and of s · (shard.sum_exp_z + shard.sum_exp · ln s).
    #[must_use]
    pub fn merge(self, other: Self, temperature: f64) -> Self {
        let max_logit = self.max_logit.max(other.max_logit);
        let [a, b] = [self, other].map(|shard| shard.rescaled(max_logit, temperature));
        Self {
            max_logit,
            sum_exp: a.0 + b.0,
            sum_exp_z: a.1 + b.1,
            own_logit: self.own_logit.max(other.own_logit),
        }
    }

    /// The two sums with respect to another maximum.
    fn rescaled(self, max_logit: f64, temperature: f64) -> (f64, f64) {
        let shift = (self.max_logit - max_logit) / temperature;
        let scale = exp(shift);
        if !self.sum_exp.is_finite() {
            (f64::NAN, f64::NAN)
        } else if self.sum_exp == 0.0 || scale == 0.0 {
            // By selection: the shift may be −∞.
            (0.0, 0.0)
        } else {
            let sum_exp_z = self.sum_exp_z + self.sum_exp * shift;
            (scale * self.sum_exp, scale * sum_exp_z)
        }
    }

    /// Whether the row is one of which something finite can be said.
    pub fn is_usable(&self) -> bool {
        self.sum_exp > 0.0 && self.sum_exp.is_finite()
    }

    /// log p\[token\] = (own_logit − max_logit) / T − ln sum_exp, in nats; NaN if unusable.
    pub fn log_prob(&self, temperature: f64) -> f64 {
        self.if_usable((self.own_logit - self.max_logit) / temperature - self.sum_exp.ln())
    }

    /// −Σ p ln p = ln sum_exp − sum_exp_z / sum_exp, in nats; NaN if unusable.
    pub fn entropy(&self) -> f64 {
        self.if_usable(self.sum_exp.ln() - self.mean_z())
    }

    /// ln Σ e^z = max_logit / T + ln sum_exp, in nats; NaN if unusable.
    pub fn log_sum_exp(&self, temperature: f64) -> f64 {
        self.if_usable(self.max_logit / temperature + self.sum_exp.ln())
    }

    fn if_usable(&self, value: f64) -> f64 {
        if self.is_usable() { value } else { f64::NAN }
    }

    /// Σ p z, counted from the maximum.
    fn mean_z(&self) -> f64 {
        self.sum_exp_z / self.sum_exp
    }

    /// Writes a shard's part of the gradient (see [`super::log_probs_from_logits_backward`]) with g =
    /// `d_log_prob` and h = `d_entropy`, where `self` are the stats of the whole row.
    pub fn backward(
        &self,
        shard: &RowShard<'_>,
        d_log_prob: f64,
        d_entropy: f64,
        d_logits: &mut [f64],
    ) {
        match self.gradient(shard, d_log_prob, d_entropy) {
            None => d_logits.fill(0.0),
            Some(gradient) => {
                for (column, slot) in d_logits.iter_mut().enumerate() {
                    *slot = gradient.at(column, shard.logits.get(column));
                }
            }
        }
    }

    /// What the gradient of each column follows from; `None` for a row of which nothing finite can
    /// be said.
    pub(crate) fn gradient(
        &self,
        shard: &RowShard<'_>,
        d_log_prob: f64,
        d_entropy: f64,
    ) -> Option<RowGradient> {
        let finite_or_zero = |value: f64| if value.is_finite() { value } else { 0.0 };
        let has_log_prob = self.own_logit > f64::NEG_INFINITY;
        self.is_usable().then(|| RowGradient {
            own: shard.own().map_or(-1.0, |column| column as f64),
            max_logit: self.max_logit,
            temperature: shard.temperature,
            sum_exp: self.sum_exp,
            mean_z: self.mean_z(),
            g: if has_log_prob {
                finite_or_zero(d_log_prob)
            } else {
                0.0
            },
            h: finite_or_zero(d_entropy),
        })
    }
}

/// What the gradient of a row of logits follows from.
#[derive(Clone, Copy)]
pub(crate) struct RowGradient {
    /// Column of the row's token; −1 if this shard does not hold it.
    own: f64,
    max_logit: f64,
    temperature: f64,
    sum_exp: f64,
    mean_z: f64,
    g: f64,
    h: f64,
}

impl RowGradient {
    /// (g (1\[token\] − p) − h p (z − Σ p z)) / temperature.
    #[inline(always)]
    pub fn at(&self, column: usize, logit: f64) -> f64 {
        let z = (logit - self.max_logit) / self.temperature;
        let p = exp(z) / self.sum_exp;
        let is_own = if column as f64 == self.own { 1.0 } else { 0.0 };
        // By selection: z is −∞ where p is 0.
        let of_entropy = if p == 0.0 {
            0.0
        } else {
            self.h * p * (z - self.mean_z)
        };
        // + 0.0 turns −0.0 into 0.0: an exact zero is one bit pattern.
        (self.g * (is_own - p) - of_entropy) / self.temperature + 0.0
    }
}
