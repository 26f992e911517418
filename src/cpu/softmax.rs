//! The softmax of one row of logits, some hundred columns at a time: the arithmetic of
//! [`SoftmaxStats`] on several columns in one instruction, sums in the order of columns.

use super::simd::{Work, widest};
use crate::batch::{Element, for_elements};
use crate::reference::{RowGradient, RowShard, SoftmaxStats, exp_terms};

/// Columns that are widened at a time.
const BLOCK: usize = 256;
/// Columns whose maximum is taken at a time.
const LANES: usize = 8;

/// [`SoftmaxStats::of_row`].
pub(super) fn stats(shard: &RowShard<'_>) -> SoftmaxStats {
    let temperature = shard.temperature;
    let (max_logit, sum_exp, sum_exp_z) = for_elements!(Tensor: shard.logits, logits => {
        widest(Sums { logits, temperature })
    });
    SoftmaxStats {
        max_logit,
        sum_exp,
        sum_exp_z,
        own_logit: shard.own_logit(),
    }
}

/// [`SoftmaxStats::backward`], rounded once.
pub(super) fn backward<D: Element>(
    stats: &SoftmaxStats,
    shard: &RowShard<'_>,
    d_log_prob: f64,
    d_entropy: f64,
    d_logits: &mut [D],
) {
    match stats.gradient(shard, d_log_prob, d_entropy) {
        None => d_logits.fill(D::round(0.0)),
        Some(gradient) => for_elements!(Tensor: shard.logits, logits => {
            widest(Backward { logits, gradient, d_logits });
        }),
    }
}

/// max x, Σ e^y and Σ e^y y with y = (x − max x) / T.
struct Sums<'a, T> {
    logits: &'a [T],
    temperature: f64,
}

impl<T: Element> Work for Sums<'_, T> {
    type Output = (f64, f64, f64);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut wide = [0.0; BLOCK];
        let mut largest = [f64::NEG_INFINITY; LANES];
        for logits in self.logits.chunks(BLOCK) {
            T::widen_all(logits, &mut wide);
            wide[logits.len()..].fill(f64::NEG_INFINITY);
            for wide in wide.chunks_exact(LANES) {
                for (largest, &logit) in largest.iter_mut().zip(wide) {
                    let is_larger = (logit > *largest) & logit.is_finite();
                    *largest = if is_larger { logit } else { *largest };
                }
            }
        }
        let max_logit = largest.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let max_logit = if max_logit.is_finite() {
            max_logit
        } else {
            f64::from(f32::MIN)
        };
        let (mut sum_exp, mut sum_exp_z) = (0.0, 0.0);
        let (mut exps, mut exps_z) = ([0.0; BLOCK], [0.0; BLOCK]);
        for logits in self.logits.chunks(BLOCK) {
            T::widen_all(logits, &mut wide);
            for column in 0..BLOCK {
                (exps[column], exps_z[column]) =
                    exp_terms(wide[column], max_logit, self.temperature);
            }
            for (exp, exp_z) in exps.iter().zip(&exps_z).take(logits.len()) {
                sum_exp += exp;
                sum_exp_z += exp_z;
            }
        }
        (max_logit, sum_exp, sum_exp_z)
    }
}

struct Backward<'a, T, D> {
    logits: &'a [T],
    gradient: RowGradient,
    d_logits: &'a mut [D],
}

impl<T: Element, D: Element> Work for Backward<'_, T, D> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut wide = [0.0; BLOCK];
        let rows = self
            .logits
            .chunks(BLOCK)
            .zip(self.d_logits.chunks_mut(BLOCK));
        for (block, (logits, d_logits)) in rows.enumerate() {
            T::widen_all(logits, &mut wide);
            for (column, value) in wide.iter_mut().enumerate() {
                *value = self.gradient.at(block * BLOCK + column, *value);
            }
            D::round_all(&wide, d_logits);
        }
    }
}
