//! Advantages of a batch with either baseline, by prompt.

use qae::config_json::ConfigFile;
use qae::io::Case;
use qae::{Advantages, Baseline, Error, Interpolation, Result, cpu};
use std::path::Path;

/// The level of the quantile.
pub const K: f64 = 0.4;

/// One batch, twice.
pub struct Batch {
    /// Hard ones first.
    pub prompts: Vec<Prompt>,
    pub mean: Method,
    pub quantile: Method,
}

/// The responses to one prompt, successes first.
pub struct Prompt {
    responses: Vec<usize>,
    pub successes: usize,
    /// Its K-quantile is a failure.
    pub is_hard: bool,
}

/// What a baseline makes of the batch.
pub struct Method {
    /// Of each response of the batch.
    advantages: Vec<f64>,
    /// Responses with tokens and an advantage.
    pub num_active: usize,
}

impl Batch {
    /// Runs `qae step` with either baseline on the batch of a file.
    pub fn read(path: &Path) -> Result<Self> {
        let case = Case::read(path)?;
        let (config, batch) = case.prepare(&ConfigFile::default())?;
        let Advantages::FromRewards {
            rewards, groups, ..
        } = batch.advantages
        else {
            return Err(Error::invalid("advantages", "rewards", "advantages"));
        };
        let run = |baseline| {
            let mut config = config;
            config.advantage.baseline = baseline;
            cpu::loss_from_log_probs(&batch, &config)
        };
        let mean = run(Baseline::Mean)?;
        let quantile = run(Baseline::Quantile {
            k: K,
            interpolation: Interpolation::InvertedCdf,
        })?;
        let threshold = config.advantage.success_threshold;
        let is_success = |reward: f64| reward > threshold;
        let baselines = quantile.baseline.as_deref().unwrap_or_default();
        let prompt = |group| {
            let mut responses: Vec<usize> = groups.members(group).collect();
            responses.sort_by(|&a, &b| rewards[b].total_cmp(&rewards[a]));
            let rewards = responses.iter().map(|&i| f64::from(rewards[i]));
            Prompt {
                successes: rewards.filter(|&reward| is_success(reward)).count(),
                is_hard: responses.iter().all(|&i| !is_success(baselines[i])),
                responses,
            }
        };
        let mut prompts: Vec<_> = (0..groups.num_groups()).map(prompt).collect();
        prompts.sort_by_key(|prompt| prompt.successes);
        let method = |output: qae::LossOutput| Method {
            advantages: output.advantage.unwrap_or_default(),
            num_active: output.active_rows.len(),
        };
        let (mean, quantile) = (method(mean), method(quantile));
        Ok(Self {
            prompts,
            mean,
            quantile,
        })
    }

    pub fn num_responses(&self) -> usize {
        self.mean.advantages.len()
    }

    pub fn num_hard(&self) -> usize {
        self.prompts.iter().filter(|prompt| prompt.is_hard).count()
    }

    /// A whole number that no advantage exceeds.
    pub fn bound(&self) -> f64 {
        let both = self.mean.advantages.iter().chain(&self.quantile.advantages);
        both.fold(1.0, |bound, advantage| advantage.abs().ceil().max(bound))
    }
}

impl Prompt {
    pub fn num_responses(&self) -> usize {
        self.responses.len()
    }

    /// With a method of the batch.
    pub fn advantages<'a>(&'a self, method: &'a Method) -> impl Iterator<Item = f64> + 'a {
        self.responses.iter().map(|&i| method.advantages[i])
    }
}
