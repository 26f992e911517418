//! Which K, in the paper's terms (arXiv 2509.22611), and what that rests on.

use super::options::{EntropyLevel, RunFacts};
use super::report::{GroupSize, usual_size};
use crate::auto_k::{AutoKConfig, EntropyTarget};
use crate::reference::rank;
use serde::Serialize;

/// Entropy at the end over entropy at the start, from where on it has risen.
const RISEN: f64 = 1.1;

/// The same, below which it has fallen: automatic K aims at 0.8.
const FALLEN: f64 = 0.55;

/// Which K to take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recommendation {
    /// The K; `None`: let it follow the entropy.
    pub k: Option<f64>,
    /// Whether automatic K is advised.
    pub automatic: bool,
    /// In words.
    pub text: String,
    /// What it rests on, and what was not known.
    pub rests_on: String,
}

/// The paper's rule, on what is known: what the user says, then what the files hold.
pub(super) fn recommend(run: RunFacts, entropies: &[f64], sizes: &[GroupSize]) -> Recommendation {
    let measured = trend(entropies);
    let unknown = match entropies {
        [] => "the files have no entropy",
        [_] => "the files have the entropy of one step only",
        _ => "the first entropy of the files is not above 0",
    };
    let (k, mut rests_on) = match (run.entropy, run.clip_higher, &measured) {
        (Some(EntropyLevel::High), ..) => (Some(0.4), "entropy is high, as you say".to_string()),
        (Some(EntropyLevel::Low), ..) => (Some(0.6), "entropy is low, as you say".to_string()),
        (None, Some(true), _) => (Some(0.4), "Clip-Higher is on, as you say".to_string()),
        (None, _, Some(trend)) if trend.ratio() > RISEN => {
            (Some(0.4), format!("entropy rises: {trend}"))
        }
        (None, _, Some(trend)) if trend.ratio() < FALLEN => {
            (Some(0.6), format!("entropy falls: {trend}"))
        }
        (None, _, Some(trend)) => (
            None,
            format!("entropy neither rises nor falls much: {trend}"),
        ),
        (None, Some(false), None) => (
            None,
            format!("Clip-Higher is off, as you say, and {unknown}"),
        ),
        (None, None, None) => (
            None,
            format!("{unknown}, and neither --clip-higher nor --policy-entropy is given"),
        ),
    };
    if let (Some(k), Some(trend)) = (k, &measured) {
        rests_on += &contradiction(k, trend);
    }
    let text = match k {
        Some(k) => {
            let why = if k == 0.4 {
                "entropy is high or Clip-Higher is on: let successes of hard prompts act"
            } else {
                "entropy is low: let failures of easy prompts act sooner"
            };
            format!("K = {k}: {why}{}", method(k, sizes))
        }
        None => automatic(sizes),
    };
    Recommendation {
        k,
        automatic: k.is_none(),
        text,
        rests_on,
    }
}

/// What the files say against a K that the user's words lead to.
fn contradiction(k: f64, trend: &Trend) -> String {
    match trend.ratio() {
        ratio if k < 0.5 && ratio < FALLEN => {
            format!("; the files say that entropy falls: {trend}")
        }
        ratio if k > 0.5 && ratio > RISEN => format!("; the files say that entropy rises: {trend}"),
        _ => String::new(),
    }
}

fn automatic(sizes: &[GroupSize]) -> String {
    let AutoKConfig {
        initial_k,
        gain,
        min_k,
        max_k,
        target,
    } = AutoKConfig::default();
    let target = match target {
        EntropyTarget::InitialShare(share) => format!("{share}·H₀"),
        EntropyTarget::Nats(nats) => nats.to_string(),
    };
    format!(
        "automatic K (AutoK): from {initial_k} on, K ← clamp(K + {gain}·ln({target}/H), {min_k}, \
         {max_k}) with the measured entropy H and its first value H₀, which bounded entropy better \
         than a fixed K in simulations (and is not better than the best fixed one). Until then K = {initial_k}{}",
        method(initial_k, sizes),
    )
}

/// Which other K are the same method, for the usual size of a group.
fn method(k: f64, sizes: &[GroupSize]) -> String {
    let Some(GroupSize {
        size: size @ 2.., ..
    }) = usual_size(sizes)
    else {
        return String::new();
    };
    let rank = rank(k, size as usize);
    let bound = |rank: usize| {
        let bound = format!("{:.4}", rank as f64 / size as f64);
        bound
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_string()
    };
    let (low, high) = (bound(rank - 1), bound(rank));
    format!("; for groups of {size} the same as any K in ({low}, {high}]")
}

/// Entropy of the first and the last steps that have one.
struct Trend {
    first: f64,
    last: f64,
    num_steps: usize,
}

impl Trend {
    fn ratio(&self) -> f64 {
        self.last / self.first
    }
}

impl std::fmt::Display for Trend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            first,
            last,
            num_steps,
        } = self;
        let ratio = self.ratio();
        write!(
            f,
            "{first:.3} to {last:.3} nats over {num_steps} steps, a factor of {ratio:.2}"
        )
    }
}

/// Over tenths of the steps, so that one step decides nothing where there are many.
fn trend(entropies: &[f64]) -> Option<Trend> {
    let part = (entropies.len() / 10).max(1);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (entropies.get(..part)?, &entropies[entropies.len() - part..]);
    let trend = Trend {
        first: mean(first),
        last: mean(last),
        num_steps: entropies.len(),
    };
    (trend.num_steps > 1 && trend.first > 0.0).then_some(trend)
}
