//! The command line of `qae`.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    qae::cli::run(&qae::cli::Cli::parse())
}
