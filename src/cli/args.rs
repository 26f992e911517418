//! The arguments of `qae step`.

use super::flags::Overrides;
use crate::io::Level;
use crate::params::RowPolicy;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For reading.
    Text,
    /// For programs.
    Json,
}

/// Which backend runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The first that this machine has.
    Auto,
    /// f64 on the CPU.
    Cpu,
    /// The CUDA kernels on a GPU.
    Cuda,
}

/// Where the kernels keep a row of logits between its two uses; the CPU has no choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum RowPolicyChoice {
    /// What the device can do best.
    #[default]
    Auto,
    /// In the shared memory of a cluster (compute capability 9.0 and newer).
    Cluster,
    /// In the shared memory of one block; what does not fit is read twice.
    Block,
}

impl From<RowPolicyChoice> for RowPolicy {
    fn from(choice: RowPolicyChoice) -> Self {
        match choice {
            RowPolicyChoice::Auto => Self::Auto,
            RowPolicyChoice::Cluster => Self::Cluster,
            RowPolicyChoice::Block => Self::Block,
        }
    }
}

/// Flags override `--config`, which overrides the configuration in the file's metadata.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct StepArgs {
    /// A golden case or a TRL capture (safetensors), with log-probs or logits.
    pub case: PathBuf,
    /// What to start from where the file has both; the other is not read [default: log-probs].
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub from: Option<Level>,
    /// A JSON file with (a part of) the configuration.
    #[arg(long, value_name = "FILE.json")]
    pub config: Option<PathBuf>,
    /// Write advantage, loss, gradient and metrics, and from logits log-probs and entropy of every
    /// row, to this safetensors file.
    #[arg(long, value_name = "OUT.safetensors")]
    pub out: Option<PathBuf>,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// What runs the operation.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// How the kernels from logits hold a row.
    #[arg(long, value_enum, default_value_t = RowPolicyChoice::Auto)]
    pub row_policy: RowPolicyChoice,
    /// What overrides the configuration.
    #[command(flatten)]
    pub overrides: Overrides,
}
