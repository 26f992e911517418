//! The arguments of `qae analyze`.

use crate::analyze::plot::Theme;
use crate::analyze::{Columns, DEFAULT_K, EntropyLevel, Options, RewardTerm, RunFacts};
use crate::auto_k::{AutoKConfig, EntropyTarget};
use crate::config::{Interpolation, Singleton};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AnalyzeFormat {
    /// For reading.
    Table,
    /// For programs: everything.
    Json,
    /// For spreadsheets: a row for each K, over all steps and at each.
    Csv,
}

/// As [`Interpolation`], by the names that the configuration has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum InterpolationChoice {
    /// The ⌈K·G⌉-th smallest reward (the paper).
    InvertedCdf,
    /// Between the neighbors, as torch.quantile (the authors' code).
    Linear,
}

/// As [`Singleton`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SingletonChoice {
    /// Its reward (verl).
    Reward,
    /// 0 (TRL).
    Zero,
}

/// The colors of a plot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ThemeChoice {
    /// On white.
    #[default]
    Light,
    /// On nearly black.
    Dark,
}

impl From<ThemeChoice> for Theme {
    fn from(choice: ThemeChoice) -> Self {
        match choice {
            ThemeChoice::Light => Self::Light,
            ThemeChoice::Dark => Self::Dark,
        }
    }
}

/// Compares the K of quantile advantages on rollouts that a trainer wrote.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct AnalyzeArgs {
    /// Files, or folders of them: dumps of verl, TRL, NeMo-RL, prime-rl, or any JSONL, CSV or
    /// parquet file. `-` is standard input.
    #[arg(required = true)]
    pub(super) paths: Vec<PathBuf>,
    /// Quantile levels in (0, 1) [default: 0.1,0.2,…,0.9].
    #[arg(long, value_delimiter = ',', value_name = "K,…")]
    k: Vec<f64>,
    /// Of the quantile between two rewards.
    #[arg(long, value_enum, default_value_t = InterpolationChoice::InvertedCdf)]
    interpolation: InterpolationChoice,
    /// A reward above this is a success.
    #[arg(long, default_value_t = 0.5, value_name = "REWARD")]
    success_threshold: f64,
    /// The advantage of the only response of a group.
    #[arg(long, value_enum, default_value_t = SingletonChoice::Reward)]
    singleton: SingletonChoice,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t = AnalyzeFormat::Table)]
    pub(super) format: AnalyzeFormat,
    /// With --format table: the figures of every step as those of all, and automatic K's log.
    #[arg(long)]
    pub(super) by_step: bool,
    /// With --format json: every group, with its statistics and baselines.
    #[arg(long)]
    pub(super) by_group: bool,
    /// Draw regimes and sparsity against K, and the active share over steps; with
    /// --simulate-auto-k also entropy and K.
    #[arg(long, value_name = "FILE.svg|png")]
    pub(super) plot: Option<PathBuf>,
    /// The plot's colors.
    #[arg(long, value_enum, default_value_t, value_name = "THEME")]
    pub(super) plot_theme: ThemeChoice,
    /// Leave broken lines out, and count them.
    #[arg(long)]
    skip_bad: bool,
    /// Where the format does not tell.
    #[command(flatten)]
    columns: ColumnArgs,
    /// What no file says.
    #[command(flatten)]
    run: RunArgs,
    /// What would have moved K.
    #[command(flatten)]
    auto_k: AutoKArgs,
}

/// Names of columns.
#[derive(Debug, Args)]
#[command(next_help_heading = "Columns")]
struct ColumnArgs {
    /// Names the group (within a step).
    #[arg(long, value_name = "COLUMN")]
    group: Option<String>,
    /// So many neighboring responses are a group.
    #[arg(long, value_name = "N", conflicts_with_all = ["group", "skip_bad"])]
    group_size: Option<usize>,
    /// The reward; several are added up, each times its weight.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN[=WEIGHT],…")]
    reward: Vec<RewardTerm>,
    /// The training step, an integer [default: step, if there is one].
    #[arg(long, value_name = "COLUMN")]
    step: Option<String>,
    /// Tokens of the response, or a text or list whose size stands for them.
    #[arg(long, value_name = "COLUMN")]
    length: Option<String>,
    /// Entropy of the policy, in nats per token [default: entropy, if there is one].
    #[arg(long, value_name = "COLUMN")]
    entropy: Option<String>,
}

/// Facts about the run, for the recommendation.
#[derive(Debug, Args)]
#[command(next_help_heading = "The run")]
struct RunArgs {
    /// The upper clip bound is the wider one (DAPO's 0.28 beside 0.2).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    clip_higher: Option<bool>,
    /// The policy's entropy, where you know it.
    #[arg(long, value_enum, value_name = "LEVEL")]
    policy_entropy: Option<EntropyLevel>,
}

/// Parameters of automatic K (docs/auto-k.md).
#[derive(Debug, Args)]
#[command(next_help_heading = "Automatic K")]
struct AutoKArgs {
    /// Replay automatic K over the entropies of the steps, beside a fixed --initial-k.
    #[arg(long)]
    simulate_auto_k: bool,
    /// K before the first step, in [--min-k, --max-k].
    #[arg(long, value_name = "K", requires = "simulate_auto_k", default_value_t = AutoKConfig::default().initial_k)]
    initial_k: f64,
    /// How far K moves where the entropy is off by a factor of e.
    #[arg(long, value_name = "GAIN", requires = "simulate_auto_k", default_value_t = AutoKConfig::default().gain)]
    gain: f64,
    /// Smallest K.
    #[arg(long, value_name = "K", requires = "simulate_auto_k", default_value_t = AutoKConfig::default().min_k)]
    min_k: f64,
    /// Largest K.
    #[arg(long, value_name = "K", requires = "simulate_auto_k", default_value_t = AutoKConfig::default().max_k)]
    max_k: f64,
    /// The target, as a share of the first entropy [default: 0.8].
    #[arg(
        long,
        value_name = "SHARE",
        requires = "simulate_auto_k",
        conflicts_with = "target_entropy"
    )]
    target_share: Option<f64>,
    /// The target in nats.
    #[arg(long, value_name = "NATS", requires = "simulate_auto_k")]
    target_entropy: Option<f64>,
}

impl AutoKArgs {
    fn config(&self) -> Option<AutoKConfig> {
        let share = self.target_share.map(EntropyTarget::InitialShare);
        let target = self.target_entropy.map(EntropyTarget::Nats).or(share);
        self.simulate_auto_k.then(|| AutoKConfig {
            initial_k: self.initial_k,
            gain: self.gain,
            min_k: self.min_k,
            max_k: self.max_k,
            target: target.unwrap_or(AutoKConfig::default().target),
        })
    }
}

impl AnalyzeArgs {
    pub(super) fn options(&self) -> Options {
        let columns = &self.columns;
        Options {
            k: if self.k.is_empty() {
                DEFAULT_K.to_vec()
            } else {
                self.k.clone()
            },
            interpolation: match self.interpolation {
                InterpolationChoice::InvertedCdf => Interpolation::InvertedCdf,
                InterpolationChoice::Linear => Interpolation::Linear,
            },
            singleton: match self.singleton {
                SingletonChoice::Reward => Singleton::Reward,
                SingletonChoice::Zero => Singleton::Zero,
            },
            success_threshold: self.success_threshold,
            columns: Columns {
                group: columns.group.clone(),
                rewards: columns.reward.clone(),
                step: columns.step.clone(),
                length: columns.length.clone(),
                entropy: columns.entropy.clone(),
            },
            group_size: columns.group_size,
            skip_bad: self.skip_bad,
            by_group: self.by_group,
            auto_k: self.auto_k.config(),
            run: RunFacts {
                clip_higher: self.run.clip_higher,
                entropy: self.run.policy_entropy,
            },
        }
    }
}
