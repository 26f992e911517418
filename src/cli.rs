//! The command line: arguments, backends, reports. Public only so that the emulator's example can
//! be the same command on other backends; not part of the library's interface.

#[cfg(feature = "analyze")]
mod analyze;
mod args;
mod backends;
mod difference;
mod emit;
mod flags;
mod info;
mod layers;
mod outcome;
mod printable;
mod report;
mod selftest;
mod step;
mod text;
mod threads;

#[cfg(feature = "analyze")]
pub use analyze::{AnalyzeArgs, analyze};
pub use args::{BackendChoice, Format, RowPolicyChoice, StepArgs};
pub use backends::{Candidate, candidates};
pub use difference::Difference;
pub use emit::emit;
pub use flags::{OrNone, Overrides};
pub use report::Report;
pub use step::step;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Quantile advantage estimation fused with the clipped policy-gradient loss and its gradient.
#[derive(Debug, Parser)]
#[command(name = "qae", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Computes advantages, loss and gradient of a batch in a safetensors file.
    Step(Box<StepArgs>),
    /// Compares the K of quantile advantages on rollouts that a trainer wrote.
    #[cfg(feature = "analyze")]
    Analyze(Box<AnalyzeArgs>),
    /// Says what this build and this machine have.
    Info,
    /// Compares the kernels on the GPU with the f64 reference, in built-in cases.
    Selftest,
}

/// Runs a command and prints its result. Status 0: done; 1: failed, with one line on stderr.
pub fn run(cli: &Cli) -> ExitCode {
    emit(match &cli.command {
        Command::Step(args) => step(args, &candidates()),
        #[cfg(feature = "analyze")]
        Command::Analyze(args) => analyze(args),
        Command::Info => Ok(info::info()),
        Command::Selftest => return run_selftest(),
    })
}

/// The table is printed in any case; status 1 also where it shows a mismatch.
fn run_selftest() -> ExitCode {
    let report = match selftest::selftest() {
        Ok(report) => report,
        Err(error) => return emit(Err(error)),
    };
    let printed = emit(Ok(report.to_string()));
    match report.num_mismatches() {
        0 => printed,
        _ => ExitCode::FAILURE,
    }
}
