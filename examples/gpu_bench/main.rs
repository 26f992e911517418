//! Times the operations on a GPU, and the copy that bounds them: `loss_from_log_probs` from 64 k to
//! 128 M tokens, and those on logits at 8192 x 151936 bf16.
//!
//! ```text
//! cargo run --release --features cuda --example gpu_bench
//! cargo run --release --features cuda --example gpu_bench -- --operation logits --only inactive-80
//! cargo run --release --features cuda --example gpu_bench -- --repeat-bits 100 --sizes 1m
//! ```
//!
//! One JSON object a line: `device`, `copy`, then, for each case, an object whose `kind` is the
//! operation (or `repeat_bits`), with raw samples in seconds per launch and the fewest bytes that a
//! launch can move. Before a case is timed, its result is compared with f64 on the CPU, from
//! poisoned outputs; logits are compared at four vocabularies besides (`logits_check`). Launches on
//! log-probs rotate over copies of the batch that no cache holds; before each launch on logits, they
//! are restored and every cache is overwritten. `benches/records/README.md` describes the fields.
//! Exit status 1, and one line on stderr, where there is no GPU or a result is wrong.

mod arguments;
mod check;
mod device;
mod inputs;
mod logits;
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
