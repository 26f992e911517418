//! The softmax of one row of logits, whole or in shards (docs/math.md §4).

use crate::batch::{Element, Tensor, for_elements};

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

impl RowShard<'_> {
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
        let own_logit = shard.own().map(|column| shard.logits.get(column));
        let temperature = shard.temperature;
        let (max_logit, sum_exp, sum_exp_z) =
            for_elements!(Tensor: shard.logits, logits => sums(logits, temperature));
        Self {
            max_logit,
            sum_exp,
            sum_exp_z,
            own_logit: own_logit.unwrap_or(f64::NEG_INFINITY),
        }
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
        let scale = shift.exp();
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
        self.backward_into(shard, d_log_prob, d_entropy, d_logits);
    }

    /// [`Self::backward`], rounded once.
    pub(crate) fn backward_into<D: Element>(
        &self,
        shard: &RowShard<'_>,
        d_log_prob: f64,
        d_entropy: f64,
        d_logits: &mut [D],
    ) {
        if !self.is_usable() {
            d_logits.fill(D::round(0.0));
            return;
        }
        let counts = d_log_prob.is_finite() && self.own_logit > f64::NEG_INFINITY;
        let coefficients = Coefficients {
            own: shard.own(),
            temperature: shard.temperature,
            g: if counts { d_log_prob } else { 0.0 },
            h: if d_entropy.is_finite() {
                d_entropy
            } else {
                0.0
            },
        };
        for_elements!(Tensor: shard.logits, logits => self.write(logits, &coefficients, d_logits));
    }

    fn write<T: Element, D: Element>(
        &self,
        logits: &[T],
        coefficients: &Coefficients,
        d_logits: &mut [D],
    ) {
        let Coefficients {
            own,
            temperature,
            g,
            h,
        } = *coefficients;
        for (column, (&logit, slot)) in logits.iter().zip(d_logits).enumerate() {
            let z = (logit.into() - self.max_logit) / temperature;
            let p = z.exp() / self.sum_exp;
            let is_own = f64::from(u8::from(own == Some(column)));
            // By selection: z is −∞ where p is 0.
            let of_entropy = if p == 0.0 {
                0.0
            } else {
                h * p * (z - self.mean_z())
            };
            // + 0.0 turns −0.0 into 0.0: an exact zero is one bit pattern.
            *slot = D::round((g * (is_own - p) - of_entropy) / temperature + 0.0);
        }
    }
}

/// What the gradient of a row needs besides its softmax.
struct Coefficients {
    own: Option<usize>,
    temperature: f64,
    g: f64,
    h: f64,
}

/// max x, Σ e^y and Σ e^y y with y = (x − max x) / T.
fn sums<T: Element>(logits: &[T], temperature: f64) -> (f64, f64, f64) {
    let least = f64::from(f32::MIN);
    let max_logit = logits
        .iter()
        .map(|&logit| logit.into())
        .filter(|logit: &f64| logit.is_finite())
        .fold(least, f64::max);
    let mut sum_exp = 0.0;
    let mut sum_exp_z = 0.0;
    for &logit in logits {
        let z = (logit.into() - max_logit) / temperature;
        let exp = z.exp();
        sum_exp += exp;
        // By selection: z is −∞ where its exponential is 0.
        sum_exp_z += if exp == 0.0 { 0.0 } else { exp * z };
    }
    (max_logit, sum_exp, sum_exp_z)
}
