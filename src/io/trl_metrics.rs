//! The metrics of TRL's `GRPOTrainer` that [`crate::Metrics`] does not hold: they look at each
//! response apart.
//!
//! Evaluated in f64 on the host from the batch and its advantages, whichever backend ran. Tokens
//! whose log-ratio is not finite are left out, as the loss leaves them out.

use super::Case;
use crate::backend::LogProbsOutput;
use crate::batch::{LogitsBatch, Tensor, TokenBatch};
use crate::config::{Config, Kl, KlEstimator, Objective};
use std::borrow::Cow;

/// verl's clamps of K3: of the exponent and of the estimate, in nats.
const K3_EXPONENT: f64 = 20.0;
const K3_VALUE: f64 = 10.0;

/// What these metrics need of a batch, whatever it starts from.
pub(super) struct Tokens<'a> {
    /// The slots of each response that count.
    slots: Vec<Vec<usize>>,
    log_prob: Cow<'a, [f64]>,
    old_log_prob: Option<Tensor<'a>>,
    ref_log_prob: Option<Tensor<'a>>,
}

impl<'a> Tokens<'a> {
    pub(super) fn of_log_probs(case: &Case, batch: &TokenBatch<'a>) -> Self {
        let slots = 0..batch.log_prob.len();
        Self {
            slots: case.valid_slots(),
            log_prob: slots.map(|slot| batch.log_prob.get(slot)).collect(),
            old_log_prob: batch.old_log_prob,
            ref_log_prob: batch.ref_log_prob,
        }
    }

    pub(super) fn of_logits(
        case: &Case,
        batch: &LogitsBatch<'a>,
        log_probs: &'a LogProbsOutput,
    ) -> Self {
        Self {
            slots: case.valid_slots(),
            log_prob: log_probs.log_prob.as_slice().into(),
            old_log_prob: batch.old_log_prob,
            ref_log_prob: batch.ref_log_prob,
        }
    }

    /// log_prob − `other` of the tokens of response `response`.
    fn log_ratios(&self, response: usize, other: Tensor<'a>) -> impl Iterator<Item = f64> {
        let ratio = move |&slot: &usize| self.log_prob[slot] - other.get(slot);
        let ratios = self.slots[response].iter().map(ratio);
        ratios.filter(|ratio| ratio.is_finite())
    }
}

/// Shares of clipped tokens, or of clipped responses for a ratio per response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClipRatios {
    /// Below the lower bound, where A < 0.
    pub(super) low_mean: f64,
    /// Above the upper bound, where A > 0.
    pub(super) high_mean: f64,
    /// The smallest share of a response below.
    pub(super) low_min: f64,
    /// The largest share of a response above.
    pub(super) high_max: f64,
}

/// What one response contributes.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    low: usize,
    high: usize,
    total: usize,
}

impl Counts {
    fn add(&mut self, advantage: f64, ratio: f64, low: f64, high: f64) {
        self.low += usize::from(advantage < 0.0 && ratio < low);
        self.high += usize::from(advantage > 0.0 && ratio > high);
        self.total += 1;
    }
}

/// TRL's `clip_ratio/*`; `None` for an objective without a two-sided clip by sign.
pub(super) fn clip_ratios(
    tokens: &Tokens<'_>,
    config: &Config,
    advantage: &[f64],
) -> Option<ClipRatios> {
    let old = tokens.old_log_prob?;
    let (low, high) = match config.objective {
        Objective::Clip { low, high, .. } | Objective::Gspo { low, high, .. } => (low, high),
        Objective::Cispo { .. } | Objective::Sapo { .. } | Objective::Reinforce => return None,
    };
    let low = low.map_or(f64::NEG_INFINITY, |low| 1.0 - low);
    let high = high.map_or(f64::INFINITY, |high| 1.0 + high);
    let rows: Vec<Counts> = (0..tokens.slots.len())
        .map(|row| {
            let log_ratios: Vec<f64> = tokens.log_ratios(row, old).collect();
            let mut counts = Counts::default();
            for ratio in ratios(config, &log_ratios) {
                counts.add(advantage[row], ratio, low, high);
            }
            counts
        })
        .collect();
    Some(ClipRatios {
        low_mean: mean(rows.iter().map(|row| (row.low, row.total))),
        high_mean: mean(rows.iter().map(|row| (row.high, row.total))),
        low_min: shares(&rows, |row| row.low).fold(f64::INFINITY, f64::min),
        high_max: shares(&rows, |row| row.high).fold(0.0, f64::max),
    })
    .filter(|ratios| ratios.low_min.is_finite())
}

/// The ratios that are compared with the bounds: of each token, or the one of the response, which
/// is 1 for a response without tokens.
fn ratios(config: &Config, log_ratios: &[f64]) -> Vec<f64> {
    match config.objective {
        Objective::Gspo { log_ratio_max, .. } => {
            let sum: f64 = log_ratios.iter().sum();
            let mean = sum / log_ratios.len().max(1) as f64;
            vec![mean.min(log_ratio_max.unwrap_or(f64::INFINITY)).exp()]
        }
        Objective::Clip { ratio_cap, .. } => {
            let clamp = config.log_ratio_clamp.unwrap_or(f64::INFINITY);
            let cap = ratio_cap.unwrap_or(f64::INFINITY);
            let ratio = |log_ratio: &f64| log_ratio.clamp(-clamp, clamp).exp().min(cap);
            log_ratios.iter().map(ratio).collect()
        }
        Objective::Cispo { .. } | Objective::Sapo { .. } | Objective::Reinforce => vec![],
    }
}

/// TRL's `kl`: the mean over tokens of the KL estimate, whatever the aggregation.
pub(super) fn token_mean_kl(tokens: &Tokens<'_>, config: &Config) -> Option<f64> {
    let (kl, reference) = (config.kl?, tokens.ref_log_prob?);
    let mut sum = 0.0;
    let mut count = 0;
    for response in 0..tokens.slots.len() {
        for log_ratio in tokens.log_ratios(response, reference) {
            sum += estimate(kl, -log_ratio);
            count += 1;
        }
    }
    Some(sum / f64::from(count.max(1)))
}

/// `difference` is ref_log_prob − log_prob.
fn estimate(kl: Kl, difference: f64) -> f64 {
    match kl.estimator {
        KlEstimator::K1 => -difference,
        KlEstimator::K2 => 0.5 * difference * difference,
        KlEstimator::K3 if kl.clamp => {
            let clamped = difference.clamp(-K3_EXPONENT, K3_EXPONENT);
            (clamped.exp_m1() - clamped).clamp(-K3_VALUE, K3_VALUE)
        }
        KlEstimator::K3 => difference.exp_m1() - difference,
    }
}

fn mean(parts: impl Iterator<Item = (usize, usize)>) -> f64 {
    let (part, whole) = parts.fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
    share(part, whole)
}

fn shares(rows: &[Counts], part: impl Fn(&Counts) -> usize) -> impl Iterator<Item = f64> {
    rows.iter().map(move |row| share(part(row), row.total))
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}
