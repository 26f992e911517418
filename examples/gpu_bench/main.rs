//! Times `loss_from_log_probs` on a GPU, from 64 k to 128 M tokens, and the copy that bounds it.
//!
//! ```text
//! cargo run --release --features cuda --example gpu_bench
//! cargo run --release --features cuda --example gpu_bench -- --repeat-bits 100 --sizes 1m
//! ```
//!
//! One JSON object a line: `device`, `copy`, then `loss_from_log_probs` (or `repeat_bits`) for each
//! case, with raw samples in seconds per launch and the fewest bytes that a launch can move. Before
//! a case is timed, its result is compared with f64 on the CPU, from poisoned outputs. Launches
//! rotate over copies of the batch that no cache holds. `benches/records/README.md` describes the
//! fields. Exit status 1, and one line on stderr, where there is no GPU or a result is wrong.

mod arguments;
mod check;
mod device;
mod inputs;
mod run;
mod timing;

use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn run() -> Result<()> {
    let arguments = arguments::Arguments::parse(std::env::args().skip(1))?;
    run::run(&arguments)
}

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("gpu_bench: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
