//! Automatic K: a controller that moves the quantile level with the policy's entropy, and schedules
//! that do not look at it (docs/auto-k.md).

mod config;
mod schedule;
mod step;

pub use self::config::{AutoKConfig, EntropyTarget};
pub use self::schedule::KSchedule;
pub use self::step::{AutoKStep, KBound};

use crate::error::{Error, Result};

/// What a stored controller may claim: more than any run has, and exact in the numbers of JSON.
const MAX_STEPS: u64 = 1 << 53;

/// Sets K once per rollout: K ← clamp(K + gain · ln(H\* / H), min_k, max_k).
///
/// H is the entropy of the policy that the caller measures, the mean over all valid tokens of the
/// rollout in nats ([`EntropyMetrics::mean`](crate::EntropyMetrics::mean) with
/// [`MetricsScope::All`](crate::MetricsScope::All)); H\* is its target. Where H is too high, K
/// falls: fewer groups count as easy, fewer failures push the policy apart. Where it is too low, K
/// rises.
///
/// The state is plain data for serde: a controller that was stored and read back continues with the
/// same K, bit for bit.
///
/// ```
/// use qae::{AdvantageConfig, AutoK, AutoKConfig, Baseline, Interpolation};
///
/// let mut auto_k = AutoK::new(AutoKConfig::default())?;
/// assert_eq!(auto_k.k(), 0.4);
/// for entropy in [0.5, 0.7, 0.3] {
///     let step = auto_k.step(entropy)?;
///     println!("{step}"); // auto K step 1: K 0.4000 -> 0.3777, entropy 0.5000 above target ...
///     let advantage = AdvantageConfig {
///         baseline: Baseline::Quantile { k: step.k, interpolation: Interpolation::InvertedCdf },
///         ..AdvantageConfig::default()
///     };
///     advantage.check()?;
/// }
/// let checkpoint = serde_json::to_string(&auto_k).expect("plain data");
/// let resumed: AutoK = serde_json::from_str(&checkpoint).expect("as it was written");
/// assert_eq!(resumed, auto_k);
/// # Ok::<(), qae::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "State")]
pub struct AutoK {
    config: AutoKConfig,
    k: f64,
    /// H₀, in nats; `None` before the first step.
    initial_entropy: Option<f64>,
    steps: u64,
}

impl AutoK {
    /// A controller that has seen no rollout.
    ///
    /// # Errors
    /// Those of [`AutoKConfig::check`].
    pub fn new(config: AutoKConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            k: config.initial_k,
            config,
            initial_entropy: None,
            steps: 0,
        })
    }

    /// Moves K by one rollout whose policy has `entropy` nats per token. The first call sets H₀, and
    /// moves K like every other.
    ///
    /// An entropy of 0 has an infinite logarithm and gives `max_k`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an entropy that is negative or not finite, or a first one of which the
    /// target's share is 0. Nothing changes then: [`Self::k`] still is the last good K.
    pub fn step(&mut self, entropy: f64) -> Result<AutoKStep> {
        check_entropy("entropy", entropy)?;
        let initial_entropy = self.initial_entropy.unwrap_or(entropy);
        let target_entropy = self.config.target.nats(initial_entropy)?;
        // Not ln(H* / H): the quotient overflows, and 0 may have a sign.
        let distance = target_entropy.ln() - entropy.ln();
        let free = self.k + self.config.gain * distance;
        let k = free.clamp(self.config.min_k, self.config.max_k);
        let step = AutoKStep {
            step: self.steps + 1,
            previous_k: self.k,
            entropy,
            target_entropy,
            gain: self.config.gain,
            k,
            held_at: if free < k {
                Some(KBound::Min)
            } else if free > k {
                Some(KBound::Max)
            } else {
                None
            },
        };
        self.initial_entropy = Some(initial_entropy);
        self.steps += 1;
        self.k = k;
        Ok(step)
    }

    /// K as the last step left it, or the initial one.
    pub fn k(&self) -> f64 {
        self.k
    }

    /// H\* in nats; `None` while it depends on a first entropy that was not measured yet.
    pub fn target_entropy(&self) -> Option<f64> {
        match (self.config.target, self.initial_entropy) {
            (EntropyTarget::Nats(nats), _) => Some(nats),
            (target, Some(initial)) => target.nats(initial).ok(),
            (EntropyTarget::InitialShare(_), None) => None,
        }
    }

    /// Steps taken, in rollouts.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What the controller was made with.
    pub fn config(&self) -> &AutoKConfig {
        &self.config
    }
}

fn check_entropy(field: &str, entropy: f64) -> Result<()> {
    if entropy.is_finite() && entropy >= 0.0 {
        return Ok(());
    }
    let expected = "a finite number of nats, at least 0";
    Err(Error::invalid(field, expected, entropy))
}

/// A stored controller, which may hold anything.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config: AutoKConfig,
    k: f64,
    initial_entropy: Option<f64>,
    steps: u64,
}

impl TryFrom<State> for AutoK {
    type Error = Error;

    fn try_from(state: State) -> Result<Self> {
        let State {
            config,
            k,
            initial_entropy,
            steps,
        } = state;
        config.check()?;
        if !(config.min_k..=config.max_k).contains(&k) {
            let expected = format!("a number in [{}, {}]", config.min_k, config.max_k);
            return Err(Error::invalid("k", expected, k));
        }
        if steps > MAX_STEPS {
            let expected = format!("at most {MAX_STEPS} rollouts");
            return Err(Error::invalid("steps", expected, steps));
        }
        if initial_entropy.is_some() != (steps > 0) {
            let expected = format!("a number of nats exactly where steps > 0, with {steps} steps");
            let found = initial_entropy.map_or("nothing".to_owned(), |nats| nats.to_string());
            return Err(Error::invalid("initial_entropy", expected, found));
        }
        if steps == 0 && k != config.initial_k {
            let expected = format!("initial_k, {}, with 0 steps", config.initial_k);
            return Err(Error::invalid("k", expected, k));
        }
        if let Some(entropy) = initial_entropy {
            check_entropy("initial_entropy", entropy)?;
            config.target.nats(entropy)?;
        }
        Ok(Self {
            config,
            k,
            initial_entropy,
            steps,
        })
    }
}
