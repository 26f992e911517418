//! The policy-gradient objective of one token and its derivative (docs/math.md §2).

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
            value: log.exp(),
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
            value: log.exp(),
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
        // −A·log_prob
        (Objective::Reinforce, _) => PolicyTerm {
            loss: -advantage * log_prob,
            gradient: -advantage,
            ..PolicyTerm::default()
        },
        (_, None) => PolicyTerm::default(),
        (
            Objective::Clip {
                low,
                high,
                dual_clip,
                ratio_cap,
            },
            Some(ratio),
        ) => {
            let term = clip(low, high, ratio_cap, ratio, advantage);
            dual_clip.map_or(term, |c| dual_clipped(term, c, advantage))
        }
        (Objective::Gspo { low, high, .. }, Some(ratio)) => clip(low, high, None, ratio, advantage),
        (Objective::Cispo { low, high }, Some(ratio)) => {
            cispo(low, high, ratio, log_prob, advantage)
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

/// clip(ρ, 1 − low, 1 + high); an absent bound does not bound.
fn clip_ratio(low: Option<f64>, high: Option<f64>, ratio: f64) -> f64 {
    let bounded = low.map_or(ratio, |low| ratio.max(1.0 - low));
    high.map_or(bounded, |high| bounded.min(1.0 + high))
}

/// −min(ρA, clip(ρ)·A) = max(−ρA, −clip(ρ)·A) (1707.06347, Eq. 7; 2503.14476, Eq. 8), with ρ
/// capped in the unclipped branch. In a tie the unclipped branch is taken, and its gradient.
fn clip(
    low: Option<f64>,
    high: Option<f64>,
    cap: Option<f64>,
    ratio: Ratio,
    advantage: f64,
) -> PolicyTerm {
    let capped = cap.map_or(ratio.value, |cap| ratio.value.min(cap));
    let unclipped_loss = -advantage * capped;
    let clipped_loss = -advantage * clip_ratio(low, high, ratio.value);
    if clipped_loss > unclipped_loss {
        return PolicyTerm {
            loss: clipped_loss,
            gradient: 0.0,
            clipped_above: advantage > 0.0,
            clipped_below: advantage < 0.0,
            dual_clipped: false,
        };
    }
    let differentiable = ratio.differentiable && capped == ratio.value;
    PolicyTerm {
        loss: unclipped_loss,
        gradient: if differentiable {
            -advantage * ratio.value
        } else {
            0.0
        },
        ..PolicyTerm::default()
    }
}

/// min(ℓ, −cA) where A < 0 (1912.09729, Eq. 5).
fn dual_clipped(term: PolicyTerm, c: f64, advantage: f64) -> PolicyTerm {
    let bound = -advantage * c;
    if advantage < 0.0 && term.loss > bound {
        PolicyTerm {
            loss: bound,
            gradient: 0.0,
            dual_clipped: true,
            ..term
        }
    } else {
        term
    }
}

/// −sg[clip(ρ)]·A·log_prob (2506.13585, Eq. 4). ρ is a constant here, so that neither its bounds
/// nor its clamp stop the gradient.
fn cispo(
    low: Option<f64>,
    high: Option<f64>,
    ratio: Ratio,
    log_prob: f64,
    advantage: f64,
) -> PolicyTerm {
    let coefficient = -clip_ratio(low, high, ratio.value) * advantage;
    PolicyTerm {
        loss: coefficient * log_prob,
        gradient: coefficient,
        clipped_above: high.is_some_and(|high| ratio.value > 1.0 + high),
        clipped_below: low.is_some_and(|low| ratio.value < 1.0 - low),
        dual_clipped: false,
    }
}

/// −(4/τ)·σ(τ(ρ − 1))·A (2511.20347); its derivative is −4σ(1 − σ)·ρ·A, where 1 − σ(x) is
/// computed as σ(−x) because the difference loses every digit for large x.
fn sapo(tau: f64, ratio: Ratio, advantage: f64) -> PolicyTerm {
    let x = tau * (ratio.value - 1.0);
    let slope = sigmoid(x) * sigmoid(-x);
    let gradient = -4.0 * slope * ratio.value * advantage;
    PolicyTerm {
        loss: -4.0 / tau * sigmoid(x) * advantage,
        // Saturated, where a ratio that has overflowed would meet a slope of 0.
        gradient: if ratio.differentiable && slope > 0.0 {
            gradient
        } else {
            0.0
        },
        ..PolicyTerm::default()
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
