//! What an automatic K is told.

use crate::config::positive;
use crate::error::{Error, Result};

/// The entropy that a controller steers toward.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyTarget {
    /// H\* as a share of the first entropy that is measured; above 0, dimensionless.
    ///
    /// Shares above 1 ask for more entropy than the policy starts with. In the study behind the
    /// default that did harm together with a `max_k` above 0.6.
    InitialShare(f64),
    /// H\* itself, in nats; above 0.
    Nats(f64),
}

impl EntropyTarget {
    /// H\* in nats, of a policy that started with `initial_entropy`.
    pub(super) fn nats(self, initial_entropy: f64) -> Result<f64> {
        let share = match self {
            Self::Nats(nats) => return Ok(nats),
            Self::InitialShare(share) => share,
        };
        let nats = share * initial_entropy;
        if nats.is_finite() && nats > 0.0 {
            return Ok(nats);
        }
        Err(Error::invalid(
            "initial_entropy",
            format!("a number of nats above 0, of which {share} is the target"),
            initial_entropy,
        ))
    }

    fn check(self) -> Result<()> {
        match self {
            Self::InitialShare(share) => positive("target.initial_share", share),
            Self::Nats(nats) => positive("target.nats", nats),
        }
    }
}

/// The controller's parameters. In JSON, fields that are absent have their default.
///
/// ```
/// use qae::{AutoKConfig, EntropyTarget};
///
/// let config: AutoKConfig = serde_json::from_str(r#"{"target": {"nats": 0.3}}"#).unwrap();
/// assert_eq!(config, AutoKConfig { target: EntropyTarget::Nats(0.3), ..Default::default() });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoKConfig {
    /// K before the first step, in \[`min_k`, `max_k`\].
    pub initial_k: f64,
    /// How far K moves when the entropy is off by a factor of e; above 0.
    pub gain: f64,
    /// Smallest K, in (0, 1).
    pub min_k: f64,
    /// Largest K, in (0, 1).
    pub max_k: f64,
    /// H\*.
    pub target: EntropyTarget,
}

impl Default for AutoKConfig {
    /// K from 0.4 with gain 0.1 in \[0.1, 0.6\], toward 0.8 of the first entropy.
    fn default() -> Self {
        Self {
            initial_k: 0.4,
            gain: 0.1,
            min_k: 0.1,
            max_k: 0.6,
            target: EntropyTarget::InitialShare(0.8),
        }
    }
}

impl AutoKConfig {
    /// Whether every field is in its range and the fields fit together.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first field that is not.
    pub fn check(&self) -> Result<()> {
        check_k("min_k", self.min_k)?;
        check_k("max_k", self.max_k)?;
        if self.min_k > self.max_k {
            let expected = format!("at most max_k, {}", self.max_k);
            return Err(Error::invalid("min_k", expected, self.min_k));
        }
        if !(self.min_k..=self.max_k).contains(&self.initial_k) {
            let expected = format!("a number in [{}, {}]", self.min_k, self.max_k);
            return Err(Error::invalid("initial_k", expected, self.initial_k));
        }
        positive("gain", self.gain)?;
        self.target.check()
    }
}

/// Whether a quantile level is in its range.
pub(super) fn check_k(field: &str, k: f64) -> Result<()> {
    if k > 0.0 && k < 1.0 {
        return Ok(());
    }
    Err(Error::invalid(field, "a number in (0, 1)", k))
}
