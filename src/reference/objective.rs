//! The policy-gradient objective of one token and its derivative (docs/math.md §2).

use super::exp::exp;
use crate::config::Objective;

/// An importance ratio ρ = e^δ and what it was made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio {
    /// δ after its clamp, in nats.
    pub log: f64,
    /// ρ.
    pub value: f64,
    /// Whether δ lies inside its clamp: outside, ρ is a constant.
    pub differentiable: bool,
}

impl Ratio {
    /// Of one token, |δ| clamped to `clamp` (verl: 20). The bounds themselves are inside.
    pub fn of_token(log_ratio: f64, clamp: Option<f64>) -> Self {
        let log = Self::clamped(log_ratio, clamp);
        Self {
            log,
            value: exp(log),
            differentiable: log == log_ratio,
        }
    }

    /// δ clamped to ± `clamp`.
    pub fn clamped(log_ratio: f64, clamp: Option<f64>) -> f64 {
        clamp.map_or(log_ratio, |max| log_ratio.clamp(-max, max))
    }

    /// Of a response with mean log-ratio `mean`, clamped above only (verl: 10; 2507.18071, Eq. 7).
    pub fn of_response(mean: f64, max: Option<f64>) -> Self {
        let log = max.map_or(mean, |max| mean.min(max));
        Self {
            log,
            value: exp(log),
            differentiable: log == mean,
        }
    }
}

/// What the policy objective makes of one token, before any weight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct PolicyTerm {
    /// ℓ.
    pub loss: f64,
    /// dℓ/d log_prob.
    pub gradient: f64,
    /// Held by the upper bound.
    pub clipped_above: bool,
    /// Held by the lower bound.
    pub clipped_below: bool,
    /// Held by the dual clip.
    pub dual_clipped: bool,
}

/// The term of a token with advantage `advantage`. `ratio` is `None` where there is none:
/// REINFORCE without `old_log_prob`, or a GSPO response whose mean log-ratio is not finite, which
/// has no policy term.
pub(super) fn policy_term(
    objective: &Objective,
    ratio: Option<Ratio>,
    log_prob: f64,
    advantage: f64,
) -> PolicyTerm {
    match (*objective, ratio) {
        (Objective::Reinforce, _) => reinforce(log_prob, advantage),
        (_, None) => PolicyTerm::default(),
        (
            Objective::Clip {
                low,
                high,
                dual_clip,
                ratio_cap,
            },
            Some(ratio),
        ) => Clip::new(low, high, dual_clip, ratio_cap).ppo(ratio, advantage),
        (Objective::Gspo { low, high, .. }, Some(ratio)) => {
            Clip::new(low, high, None, None).ppo(ratio, advantage)
        }
        (Objective::Cispo { low, high }, Some(ratio)) => {
            Clip::new(low, high, None, None).cispo(ratio, log_prob, advantage)
        }
        (
            Objective::Sapo {
                tau_positive,
                tau_negative,
            },
            Some(ratio),
        ) => {
            let positive = advantage > 0.0;
            let tau = if positive { tau_positive } else { tau_negative };
            sapo(tau, ratio, advantage)
        }
    }
}

/// −A·log_prob.
#[inline(always)]
pub(crate) fn reinforce(log_prob: f64, advantage: f64) -> PolicyTerm {
    PolicyTerm {
        loss: -advantage * log_prob,
        gradient: -advantage,
        ..PolicyTerm::default()
    }
}

/// The bounds of a clipped objective; an absent one is infinite, and does not bound.
#[derive(Clone, Copy)]
pub(crate) struct Clip {
    /// 1 − low.
    lower: f64,
    /// 1 + high.
    upper: f64,
    /// c: where A < 0 the loss is at most −cA.
    dual: f64,
    /// Of ρ in the unclipped branch.
    cap: f64,
}

impl Clip {
    pub fn new(
        low: Option<f64>,
        high: Option<f64>,
        dual_clip: Option<f64>,
        ratio_cap: Option<f64>,
    ) -> Self {
        Self {
            lower: low.map_or(f64::NEG_INFINITY, |low| 1.0 - low),
            upper: high.map_or(f64::INFINITY, |high| 1.0 + high),
            dual: dual_clip.unwrap_or(f64::INFINITY),
            cap: ratio_cap.unwrap_or(f64::INFINITY),
        }
    }

    /// clip(ρ, 1 − low, 1 + high).
    #[inline(always)]
    fn ratio(&self, ratio: f64) -> f64 {
        ratio.max(self.lower).min(self.upper)
    }

    /// −min(ρA, clip(ρ)·A) = max(−ρA, −clip(ρ)·A) (1707.06347, Eq. 7; 2503.14476, Eq. 8), with ρ
    /// capped in the unclipped branch; at most −cA where A < 0 (1912.09729, Eq. 5). In a tie the
    /// unclipped branch is taken, and its gradient.
    #[inline(always)]
    pub fn ppo(&self, ratio: Ratio, advantage: f64) -> PolicyTerm {
        let capped = ratio.value.min(self.cap);
        let unclipped_loss = -advantage * capped;
        let clipped_loss = -advantage * self.ratio(ratio.value);
        let clipped = clipped_loss > unclipped_loss;
        let loss = if clipped {
            clipped_loss
        } else {
            unclipped_loss
        };
        let bound = -advantage * self.dual;
        let dual_clipped = (advantage < 0.0) & (loss > bound);
        let constant = clipped | dual_clipped | !ratio.differentiable | (capped != ratio.value);
        PolicyTerm {
            loss: if dual_clipped { bound } else { loss },
            gradient: if constant {
                0.0
            } else {
                -advantage * ratio.value
            },
            clipped_above: clipped & (advantage > 0.0),
            clipped_below: clipped & (advantage < 0.0),
            dual_clipped,
        }
    }

    /// −sg[clip(ρ)]·A·log_prob (2506.13585, Eq. 4). ρ is a constant here, so that neither its bounds
    /// nor its clamp stop the gradient.
    #[inline(always)]
    pub fn cispo(&self, ratio: Ratio, log_prob: f64, advantage: f64) -> PolicyTerm {
        let coefficient = -self.ratio(ratio.value) * advantage;
        PolicyTerm {
            loss: coefficient * log_prob,
            gradient: coefficient,
            clipped_above: ratio.value > self.upper,
            clipped_below: ratio.value < self.lower,
            dual_clipped: false,
        }
    }
}

/// −(4/τ)·σ(τ(ρ − 1))·A (2511.20347); its derivative is −4σ(1 − σ)·ρ·A, where 1 − σ(x) is
/// computed as σ(−x) because the difference loses every digit for large x.
#[inline(always)]
pub(crate) fn sapo(tau: f64, ratio: Ratio, advantage: f64) -> PolicyTerm {
    let x = tau * (ratio.value - 1.0);
    let slope = sigmoid(x) * sigmoid(-x);
    let gradient = -4.0 * slope * ratio.value * advantage;
    PolicyTerm {
        loss: -4.0 / tau * sigmoid(x) * advantage,
        // Saturated, where a ratio that has overflowed would meet a slope of 0.
        gradient: if ratio.differentiable & (slope > 0.0) {
            gradient
        } else {
            0.0
        },
        ..PolicyTerm::default()
    }
}

#[inline(always)]
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + exp(-x))
}
