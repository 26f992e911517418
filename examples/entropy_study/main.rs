//! How K steers the entropy of a small policy that is trained with verifiable rewards, with this
//! crate's own advantages and loss (docs/entropy-study.md).
//!
//! ```text
//! cargo run --release --example entropy_study -- --out target/entropy-study
//! ```

mod method;
mod optimizer;
mod plot;
mod policy;
mod random;
mod rollout;
mod setting;
mod study;
mod table;
mod task;
#[cfg(test)]
mod tests;
mod training;

use clap::Parser;
use std::path::PathBuf;
use std::time::Instant;

/// Any error, for `?`.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Trains a small policy with every way of computing advantages, prints entropy and success, and
/// plots them over the rollouts.
#[derive(Parser)]
struct Arguments {
    /// Runs of each method in each setting.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Rollouts of each run.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rollouts: u64,
    /// Gains of automatic K, a method each; the first is drawn.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.1",
        value_name = "GAIN,…"
    )]
    gain: Vec<f64>,
    /// Folder of the plots, for light and dark pages, SVG and PNG.
    #[arg(long, default_value = "target/entropy-study")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out)
        .map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    let start = Instant::now();
    let study = study::Study::run(
        arguments.rollouts as usize,
        arguments.seeds,
        &arguments.gain,
    )?;
    print!("{}", table::of(&study));
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} runs in {seconds:.1} s on {} threads",
        study.num_runs(),
        rayon::current_num_threads(),
    );
    println!(
        "Setting X was selected by a search for settings in which the mean baseline makes entropy \
         explode; docs/entropy-study.md says what did not reproduce."
    );
    for path in plot::write(&study, &arguments.out)? {
        println!("{}", path.display());
    }
    Ok(())
}
