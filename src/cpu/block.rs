//! Some hundred tokens of a response: the arithmetic of [`crate::reference`] in loops without
//! branches, several tokens in one instruction. Sums are taken in the order of tokens, and what is
//! left out adds an exact 0, so that the bits are the reference's.

use super::policy::Policy;
use super::response::Row;
use crate::batch::{Advantages, Element, ImportanceWeight, Tensor, for_elements};
use crate::metrics::Metrics;
use crate::reference::{Ratio, Response, clamp_of, exp, kl_term};
use std::ops::Range;

/// Tokens of a block: all its quantities lie in the first cache.
pub(super) const BLOCK: usize = 128;
/// Tokens that a block is filled up to a multiple of.
const LANES: usize = 8;

type Lane = [f64; BLOCK];

/// The tokens of a block, one array for each quantity.
pub(super) struct Block {
    /// How many elements of the arrays are computed, with those that fill up.
    lanes: usize,
    is_valid: [bool; BLOCK],
    log_prob: Lane,
    /// δ; without `old_log_prob`, the log-prob.
    log_ratio: Lane,
    /// δ after its clamp; without `old_log_prob`, 0.
    clamped: Lane,
    /// ρ of each token, or of the response.
    ratio: Lane,
    advantage: Lane,
    importance_weight: Lane,
    kl: Lane,
    kl_gradient: Lane,
    results: Results,
}

/// What is made of the tokens of a block; what is left out is 0.
struct Results {
    policy_loss: Lane,
    kl: Lane,
    /// Of the tokens in scope.
    log_ratio: Lane,
    /// Likewise; NaN, which compares to nothing, where there is none.
    ratio: Lane,
    d_log_prob: Lane,
}

impl Default for Block {
    fn default() -> Self {
        let zeros = [0.0; BLOCK];
        Self {
            lanes: 0,
            is_valid: [false; BLOCK],
            log_prob: zeros,
            log_ratio: zeros,
            clamped: zeros,
            ratio: zeros,
            advantage: zeros,
            importance_weight: zeros,
            kl: zeros,
            kl_gradient: zeros,
            results: Results {
                policy_loss: zeros,
                kl: zeros,
                log_ratio: zeros,
                ratio: zeros,
                d_log_prob: zeros,
            },
        }
    }
}

impl Block {
    /// Writes what is the same for all blocks of a response.
    pub fn fill(&mut self, row: &Row<'_>) {
        let tokens = &row.response.call.tokens;
        if let Some(advantage) = row.response.advantage {
            self.advantage.fill(advantage);
        }
        match tokens.importance_weight {
            None => self.importance_weight.fill(1.0),
            Some(ImportanceWeight::PerResponse(all)) => {
                self.importance_weight
                    .fill(f64::from(all[row.response.row]));
            }
            Some(ImportanceWeight::PerToken(_)) => {}
        }
        if tokens.old_log_prob.is_none() {
            self.clamped.fill(0.0);
        }
        if row.config.kl.is_none() {
            self.kl.fill(0.0);
            self.kl_gradient.fill(0.0);
        }
    }

    /// Writes the ratio of a response.
    pub fn fill_ratio(&mut self, ratio: f64) {
        self.ratio.fill(ratio);
    }

    /// dL/d log_prob of each token.
    pub fn d_log_prob(&self) -> &Lane {
        &self.results.d_log_prob
    }

    /// Reads the tokens `tokens` of a response.
    #[inline(always)]
    pub fn load(&mut self, row: &Row<'_>, tokens: Range<usize>) {
        self.load_log_ratios(row.response, tokens.clone());
        if row.response.call.tokens.old_log_prob.is_some() {
            self.load_ratios(row);
        }
        self.load_rest(row, tokens);
    }

    /// Reads the mask, log-probs and log-ratios.
    #[inline(always)]
    pub fn load_log_ratios(&mut self, response: &Response<'_>, tokens: Range<usize>) {
        let (slots, len) = (&response.slots, tokens.len());
        self.lanes = len.next_multiple_of(LANES);
        match response.call.tokens.mask {
            None => self.is_valid[..len].fill(true),
            Some(mask) => {
                let mask = &mask[slots.mask_start + tokens.start..][..len];
                for (is_valid, &byte) in self.is_valid.iter_mut().zip(mask) {
                    *is_valid = byte != 0;
                }
            }
        }
        self.is_valid[len..self.lanes].fill(false);
        let start = slots.start + tokens.start;
        let log_prob = &mut self.log_prob[..len];
        widen(response.call.tokens.log_prob, start, log_prob);
        let log_ratio = &mut self.log_ratio[..len];
        match response.call.tokens.old_log_prob {
            None => log_ratio.copy_from_slice(log_prob),
            Some(old) => {
                widen(old, start, log_ratio);
                for (old, log_prob) in log_ratio.iter_mut().zip(log_prob) {
                    *old = *log_prob - *old;
                }
            }
        }
    }

    /// Adds the log-ratios of the valid tokens.
    pub fn add_log_ratios(&self, mut sum: f64) -> f64 {
        for t in 0..self.lanes {
            sum += if self.is_valid[t] {
                self.log_ratio[t]
            } else {
                0.0
            };
        }
        sum
    }

    #[inline(always)]
    fn load_ratios(&mut self, row: &Row<'_>) {
        let max = clamp_of(row.config).unwrap_or(f64::INFINITY);
        let clamped = &mut self.clamped[..self.lanes];
        for (clamped, &log_ratio) in clamped.iter_mut().zip(&self.log_ratio) {
            *clamped = log_ratio.clamp(-max, max);
        }
        if row.ratio.is_none() {
            for (ratio, &clamped) in self.ratio.iter_mut().zip(&*clamped) {
                *ratio = exp(clamped);
            }
        }
    }

    #[inline(always)]
    fn load_rest(&mut self, row: &Row<'_>, tokens: Range<usize>) {
        let all = &row.response.call.tokens;
        let start = row.response.slots.start + tokens.start;
        let len = tokens.len();
        if let Advantages::PerToken(advantage) = all.advantages {
            f32::widen_all(&advantage[start..][..len], &mut self.advantage);
        }
        if let Some(ImportanceWeight::PerToken(weight)) = all.importance_weight {
            f32::widen_all(&weight[start..][..len], &mut self.importance_weight);
        }
        if let (Some(kl), Some(reference)) = (row.config.kl, all.ref_log_prob) {
            widen(reference, start, &mut self.kl[..len]);
            for t in 0..len {
                let (value, gradient) = kl_term(kl, self.log_prob[t], self.kl[t]);
                self.kl[t] = value;
                self.kl_gradient[t] = gradient;
            }
        }
    }

    /// As [`crate::reference`]'s `token`. Adds the counts.
    #[inline(always)]
    pub fn combine(&mut self, row: &Row<'_>, policy: impl Policy, metrics: &mut Metrics) {
        let mut counts = [0_u64; 7];
        for t in 0..self.lanes.min(BLOCK) {
            let is_valid = self.is_valid[t];
            let given = self.advantage[t];
            let advantage = if given.is_finite() { given } else { 0.0 };
            let active = advantage != 0.0;
            let ratio = Ratio {
                log: self.clamped[t],
                value: self.ratio[t],
                differentiable: self.clamped[t] == self.log_ratio[t],
            };
            let term = policy.term(ratio, self.log_prob[t], advantage);
            let acts = active & row.has_policy;
            let weight = self.importance_weight[t];
            let policy_loss = if acts { weight * term.loss } else { 0.0 };
            let policy_gradient = if acts { weight * term.gradient } else { 0.0 };
            let kl = self.kl[t];
            let d_log_prob = row.scale * (policy_gradient + row.kl_coef * self.kl_gradient[t]);
            let loss = row.weight * (policy_loss + kl);
            let is_finite =
                self.log_ratio[t].is_finite() & loss.is_finite() & d_log_prob.is_finite();
            let is_kept = is_valid & (active | row.all_read) & is_finite;
            let in_scope = active | row.all_in_scope;
            let is_observed = is_kept & in_scope;
            let has_ratio = is_observed & row.has_ratio;
            let has_term = is_observed & row.has_policy;
            let results = &mut self.results;
            results.policy_loss[t] = if is_kept { policy_loss } else { 0.0 };
            results.kl[t] = if is_kept { kl } else { 0.0 };
            results.log_ratio[t] = if is_observed { ratio.log } else { 0.0 };
            results.ratio[t] = if has_ratio { ratio.value } else { f64::NAN };
            // + 0.0 turns −0.0 into 0.0: an exact zero is one bit pattern.
            results.d_log_prob[t] = if is_kept { d_log_prob + 0.0 } else { 0.0 };
            let counted = [
                is_valid & !given.is_finite(),
                is_valid & in_scope,
                is_valid & active,
                is_valid & !is_finite & (active | row.all_counted),
                has_term & term.clipped_above,
                has_term & term.clipped_below,
                has_term & term.dual_clipped,
            ];
            for (count, is_counted) in counts.iter_mut().zip(counted) {
                *count += u64::from(is_counted);
            }
        }
        metrics.groups.nonfinite_rewards += counts[0];
        metrics.tokens += counts[1];
        metrics.active_tokens += counts[2];
        metrics.nonfinite_tokens += counts[3];
        metrics.clipped_above += counts[4];
        metrics.clipped_below += counts[5];
        metrics.dual_clipped += counts[6];
    }

    /// Adds the tokens to the sums, in their order.
    #[inline(always)]
    pub fn add(&self, row: &Row<'_>, metrics: &mut Metrics) {
        let results = &self.results;
        let (mut pg_loss, mut neg_log_ratio) = (metrics.pg_loss, metrics.neg_log_ratio_sum);
        for t in 0..self.lanes {
            pg_loss += results.policy_loss[t];
            neg_log_ratio -= results.log_ratio[t];
        }
        (metrics.pg_loss, metrics.neg_log_ratio_sum) = (pg_loss, neg_log_ratio);
        if row.config.kl.is_some() {
            for kl in &results.kl[..self.lanes] {
                metrics.kl_loss += kl;
            }
        }
        let (mut least, mut largest) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        let (ratios, _) = results.ratio[..self.lanes].as_chunks::<LANES>();
        for ratios in ratios {
            for (least, &ratio) in least.iter_mut().zip(ratios) {
                *least = if ratio < *least { ratio } else { *least };
            }
            for (largest, &ratio) in largest.iter_mut().zip(ratios) {
                *largest = if ratio > *largest { ratio } else { *largest };
            }
        }
        metrics.min_ratio = least.into_iter().fold(metrics.min_ratio, f64::min);
        metrics.max_ratio = largest.into_iter().fold(metrics.max_ratio, f64::max);
    }
}

#[inline(always)]
fn widen(tensor: Tensor<'_>, start: usize, lane: &mut [f64]) {
    for_elements!(Tensor: tensor, values => {
        Element::widen_all(&values[start..][..lane.len()], lane);
    });
}
