//! `qae step` on the emulated kernels: the same arguments, report and output, computed in f32 by
//! the CUDA kernels' own source on the CPU.
//!
//! ```text
//! cargo run --release -p qae-emulator --example step -- CASE.safetensors --out OUT.safetensors
//! ```

use std::process::ExitCode;

use clap::Parser;
use qae::Backend;
use qae::cli::{Candidate, StepArgs, emit, step};
use qae::io::Precision;
use qae::params::RowPolicy;
use qae_emulator::{EmulatorBackend, Options};

#[derive(Parser)]
#[command(version, about = "qae step on the emulated CUDA kernels")]
struct Arguments {
    /// Emulate a GPU without clusters (compute capability 8.0) instead of 9.0.
    #[arg(long)]
    sm80: bool,
    #[command(flatten)]
    step: StepArgs,
}

fn open(options: Options, row_policy: RowPolicy) -> qae::Result<Box<dyn Backend>> {
    let mut backend = EmulatorBackend {
        options,
        ..EmulatorBackend::default()
    };
    backend.logits.row_policy = row_policy;
    Ok(Box::new(backend))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let candidate = Candidate {
        name: "emulator",
        precision: Precision::F32,
        open: if arguments.sm80 {
            |row_policy| open(Options::sm80(), row_policy)
        } else {
            |row_policy| open(Options::sm90(), row_policy)
        },
    };
    emit(step(&arguments.step, &[candidate]))
}
