//! All runs.

use crate::Result;
use crate::method::Method;
use crate::setting::Setting;
use crate::training::{Run, train};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

pub struct Study {
    pub settings: Vec<Setting>,
    pub methods: Vec<Method>,
    pub rollouts: usize,
    pub seeds: u64,
    /// By setting, method, then seed.
    runs: Vec<Run>,
}

impl Study {
    /// Trains with every method in every setting from every seed. Each run has numbers of its own:
    /// neither the others nor the threads change them.
    pub fn run(rollouts: usize, seeds: u64, gains: &[f64]) -> Result<Self> {
        let mut study = Self {
            settings: Setting::all(),
            methods: Method::all(gains),
            rollouts,
            seeds,
            runs: vec![],
        };
        let runs_of_setting = study.methods.len() * seeds as usize;
        let num_runs = study.settings.len() * runs_of_setting;
        let progress = ProgressBar::new(num_runs as u64).with_style(ProgressStyle::with_template(
            "{bar:40} {pos}/{len} runs, {elapsed}, {eta} left",
        )?);
        study.runs = (0..num_runs)
            .into_par_iter()
            .map(|run| {
                let setting = &study.settings[run / runs_of_setting];
                let method = &study.methods[run % runs_of_setting / seeds as usize];
                let run = train(setting, method, rollouts, run as u64 % seeds);
                progress.inc(1);
                run
            })
            .collect::<qae::Result<_>>()?;
        progress.finish_and_clear();
        Ok(study)
    }

    pub fn num_runs(&self) -> usize {
        self.runs.len()
    }

    /// One for each seed.
    pub fn runs(&self, setting: usize, method: usize) -> &[Run] {
        let seeds = self.seeds as usize;
        let first = (setting * self.methods.len() + method) * seeds;
        &self.runs[first..first + seeds]
    }
}

/// Mean and sample standard deviation; the latter NaN of a single value.
pub struct Spread {
    pub mean: f64,
    pub deviation: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (squares / (count - 1.0)).sqrt(),
        }
    }
}
