//! What a step of an automatic K did, in numbers and in one line.

use std::fmt;

/// A bound that K did not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KBound {
    /// `min_k`.
    Min,
    /// `max_k`.
    Max,
}

/// One step of [`AutoK`](super::AutoK); its `Display` is a line for a log.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AutoKStep {
    /// Which step, from 1; in rollouts.
    pub step: u64,
    /// K before it.
    pub previous_k: f64,
    /// H, as measured, in nats.
    pub entropy: f64,
    /// H\*, in nats.
    pub target_entropy: f64,
    /// What ln(H\* / H) was multiplied by.
    pub gain: f64,
    /// K after it: the level for this rollout's advantages.
    pub k: f64,
    /// The bound that K was held at, if the formula led beyond it.
    pub held_at: Option<KBound>,
}

impl fmt::Display for AutoKStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.entropy > self.target_entropy {
            "above"
        } else if self.entropy < self.target_entropy {
            "below"
        } else {
            "at"
        };
        write!(
            f,
            "auto K step {}: K {:.4} -> {:.4}, entropy {:.4} {side} target {:.4} nats, \
             K + {} * ln({:.4} / {:.4})",
            self.step,
            self.previous_k,
            self.k,
            self.entropy,
            self.target_entropy,
            self.gain,
            self.target_entropy,
            self.entropy,
        )?;
        match self.held_at {
            None => Ok(()),
            Some(KBound::Min) => write!(f, ", held at min_k"),
            Some(KBound::Max) => write!(f, ", held at max_k"),
        }
    }
}
