//! K as a function of the step alone.

use super::config::check_k;
use crate::error::{Error, Result};

/// K by rollout, whatever the entropy does. Steps count from 0.
///
/// ```
/// use qae::KSchedule;
///
/// let schedule = KSchedule::Linear { from: 0.6, to: 0.2, steps: 100 };
/// schedule.check()?;
/// assert_eq!([0, 50, 100, 999].map(|step| schedule.k(step)), [0.6, 0.4, 0.2, 0.2]);
/// # Ok::<(), qae::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KSchedule {
    /// The same K throughout.
    Constant {
        /// In (0, 1).
        k: f64,
    },
    /// From one K to another in equal steps, and there from then on.
    Linear {
        /// K of step 0, in (0, 1).
        from: f64,
        /// K of step `steps` and all later ones, in (0, 1).
        to: f64,
        /// Rollouts between the two, at least 1.
        steps: u64,
    },
    /// One K, then another.
    TwoPhase {
        /// K before step `switch_at`, in (0, 1).
        first: f64,
        /// K from step `switch_at` on, in (0, 1).
        second: f64,
        /// The first rollout of the second phase, at least 1.
        switch_at: u64,
    },
}

impl KSchedule {
    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the first field that is not.
    pub fn check(&self) -> Result<()> {
        match *self {
            Self::Constant { k } => check_k("k", k),
            Self::Linear { from, to, steps } => {
                check_k("from", from)?;
                check_k("to", to)?;
                at_least_one("steps", steps)
            }
            Self::TwoPhase {
                first,
                second,
                switch_at,
            } => {
                check_k("first", first)?;
                check_k("second", second)?;
                at_least_one("switch_at", switch_at)
            }
        }
    }

    /// K of rollout `step`, counted from 0.
    pub fn k(&self, step: u64) -> f64 {
        match *self {
            Self::Constant { k } => k,
            Self::Linear { to, steps, .. } if step >= steps => to,
            Self::Linear { from, to, steps } => {
                let done = step as f64 / steps as f64;
                let between = from * (1.0 - done) + to * done;
                // Rounding must not lead out of what was checked.
                between.max(from.min(to)).min(from.max(to))
            }
            Self::TwoPhase {
                first, switch_at, ..
            } if step < switch_at => first,
            Self::TwoPhase { second, .. } => second,
        }
    }
}

fn at_least_one(field: &str, steps: u64) -> Result<()> {
    if steps > 0 {
        return Ok(());
    }
    Err(Error::invalid(field, "at least 1 rollout", steps))
}
