//! What a user can say about the data and the methods to compare.

use crate::auto_k::AutoKConfig;
use crate::config::{Interpolation, Singleton, finite};
use crate::error::{Error, Result};
use std::str::FromStr;

/// The K that are compared where nobody says which.
pub const DEFAULT_K: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// More K than this are no comparison, and memory grows with them.
const MAX_K: usize = 100;

/// What to compare, and what the files do not say themselves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Quantile levels, at most 100, each in (0, 1). Neighbors are compared in ascending order.
    pub k: Vec<f64>,
    /// Of the quantile between two rewards.
    pub interpolation: Interpolation,
    /// Groups of one response.
    pub singleton: Singleton,
    /// A reward above this is a success; compared in f32.
    pub success_threshold: f64,
    /// Which columns hold what, where the format does not tell.
    pub columns: Columns,
    /// So many neighboring responses are a group, whatever their columns say.
    pub group_size: Option<usize>,
    /// Broken lines are counted and left out rather than an error.
    pub skip_bad: bool,
    /// Report every group by its name.
    pub by_group: bool,
    /// Replay automatic K with these parameters over the entropies of the steps.
    pub auto_k: Option<AutoKConfig>,
    /// What only the one who ran the training knows.
    pub run: RunFacts,
}

/// Names of columns; `None`: those of the format.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Names the group within a step.
    pub group: Option<String>,
    /// The rewards that are added up.
    pub rewards: Vec<RewardTerm>,
    /// The training step, an integer.
    pub step: Option<String>,
    /// Length of the response: tokens, or a text or list whose size stands for them.
    pub length: Option<String>,
    /// Entropy of the policy over the response, in nats per token.
    pub entropy: Option<String>,
}

/// A column of rewards and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardTerm {
    /// The column.
    pub name: String,
    /// What it is multiplied with.
    pub weight: f64,
}

/// Facts about a training run that no dump holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunFacts {
    /// Whether the upper clip bound is the wider one (Clip-Higher, 2503.14476).
    pub clip_higher: Option<bool>,
    /// How the policy's entropy is.
    pub entropy: Option<EntropyLevel>,
}

/// A judgment on the policy's entropy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EntropyLevel {
    /// High or rising.
    High,
    /// Low or falling.
    Low,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            k: DEFAULT_K.to_vec(),
            interpolation: Interpolation::InvertedCdf,
            singleton: Singleton::Reward,
            success_threshold: 0.5,
            columns: Columns::default(),
            group_size: None,
            skip_bad: false,
            by_group: false,
            auto_k: None,
            run: RunFacts::default(),
        }
    }
}

impl Options {
    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a K outside (0, 1), none at all or too many, a threshold or a weight
    /// that is not finite, a group size of 0, or one together with lines that may be left out; those
    /// of [`AutoKConfig::check`], as `auto_k.` and the field.
    pub fn check(&self) -> Result<()> {
        self.check_k()?;
        if self.k.len() > MAX_K {
            let expected = format!("at most {MAX_K} numbers");
            return Err(Error::invalid("k", expected, self.k.len()));
        }
        finite("success_threshold", self.success_threshold)?;
        for term in &self.columns.rewards {
            finite(&format!("weight of {}", term.name), term.weight)?;
        }
        if self.group_size == Some(0) {
            return Err(Error::invalid("group_size", "at least 1", 0));
        }
        if self.group_size.is_some() && self.skip_bad {
            let expected = "no broken lines left out, since neighbors make the groups";
            return Err(Error::invalid("group_size", expected, "skip_bad"));
        }
        self.auto_k.map_or(Ok(()), check_auto_k)
    }

    pub(super) fn check_k(&self) -> Result<()> {
        if self.k.is_empty() {
            return Err(Error::invalid("k", "at least one number in (0, 1)", "none"));
        }
        if let Some(k) = self.k.iter().find(|&&k| !(k > 0.0 && k < 1.0)) {
            return Err(Error::invalid("k", "numbers in (0, 1)", k));
        }
        Ok(())
    }

    /// The K in ascending order, each once.
    pub(super) fn sorted_k(&self) -> Vec<f64> {
        let mut sorted = self.k.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup();
        sorted
    }
}

fn check_auto_k(config: AutoKConfig) -> Result<()> {
    config.check().map_err(|error| match error {
        Error::Invalid {
            field,
            expected,
            found,
        } => Error::invalid(format!("auto_k.{field}"), expected, found),
        error => error,
    })
}

/// `name` or `name=weight`.
impl FromStr for RewardTerm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weight) = match text.rsplit_once('=') {
            None => (text, 1.0),
            Some((name, weight)) => {
                let weight = weight.parse().map_err(|_| "expected NAME=WEIGHT")?;
                (name, weight)
            }
        };
        if name.is_empty() {
            return Err("expected the name of a column".to_string());
        }
        Ok(Self {
            name: name.to_string(),
            weight,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_have_weights() {
        let term = |name: &str, weight| RewardTerm {
            name: name.to_string(),
            weight,
        };
        assert_eq!("score".parse(), Ok(term("score", 1.0)));
        assert_eq!("format=-0.5".parse(), Ok(term("format", -0.5)));
        for text in ["", "=1", "a=b"] {
            assert!(text.parse::<RewardTerm>().is_err(), "{text}");
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let with = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().map_err(|error| error.to_string())
        };
        assert_eq!(with(|_| {}), Ok(()));
        for (change, part) in [
            ((|o| o.k.clear()) as fn(&mut Options), "at least one"),
            (|o| o.k.push(1.0), "found 1"),
            (|o| o.k.push(f64::NAN), "found NaN"),
            (|o| o.k = vec![0.5; 101], "at most 100 numbers, found 101"),
            (|o| o.success_threshold = f64::NAN, "success_threshold"),
            (|o| o.group_size = Some(0), "group_size"),
            (
                |o| {
                    o.auto_k = Some(AutoKConfig {
                        gain: 0.0,
                        ..AutoKConfig::default()
                    });
                },
                "auto_k.gain",
            ),
            (
                |o| (o.group_size, o.skip_bad) = (Some(4), true),
                "neighbors",
            ),
        ] {
            let message = with(change).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
