//! `qae step` on the emulated kernels: the same arguments, report and output, computed in f32 by
//! the CUDA kernels' own source on the CPU.
//!
//! ```text
//! cargo run --release -p qae-emulator --example step -- CASE.safetensors --out OUT.safetensors
//! ```

use std::process::ExitCode;

use clap::Parser;
use qae::cli::{Candidate, StepArgs, emit, step};
use qae::io::Precision;
use qae_emulator::EmulatorBackend;

#[derive(Parser)]
#[command(version, about = "qae step on the emulated CUDA kernels")]
struct Arguments {
    #[command(flatten)]
    step: StepArgs,
}

fn main() -> ExitCode {
    let candidates = [Candidate {
        name: "emulator",
        precision: Precision::F32,
        open: || Ok(Box::new(EmulatorBackend::default())),
    }];
    emit(step(&Arguments::parse().step, &candidates))
}
