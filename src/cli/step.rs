//! `qae step`: one batch through the fused operation.

use super::args::{Format, StepArgs};
use super::backends::{Candidate, choose};
use super::layers::Layers;
use super::outcome::run;
use super::report::Report;
use super::threads::with_threads;
use crate::error::{Error, Result};
use crate::io::{Case, TensorFile};
use std::path::Path;

/// Runs the operation on the first of `candidates` that `--backend` admits; returns the report.
///
/// # Errors
/// Whatever is wrong with the file, the configuration or the backend; the message names the file
/// or the flag.
pub fn step(args: &StepArgs, candidates: &[Candidate]) -> Result<String> {
    let report = with_threads(|| report(args, candidates))?;
    Ok(match args.format {
        Format::Text => report.to_string(),
        Format::Json => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|error| Error::invalid("--format json", "a report", error))? + "\n"
        }
    })
}

/// An output that replaced one of the inputs would lose it.
fn check_out(args: &StepArgs) -> Result<()> {
    let Some(out) = &args.out else {
        return Ok(());
    };
    let target = out.canonicalize().ok();
    for input in std::iter::once(&args.case).chain(&args.config) {
        if target.is_some() && input.canonicalize().ok() == target {
            let expected = format!("another file than the input {}", input.display());
            return Err(Error::invalid("--out", expected, out.display()));
        }
    }
    Ok(())
}

fn report(args: &StepArgs, candidates: &[Candidate]) -> Result<Report> {
    check_out(args)?;
    let case = Case::at_level(&TensorFile::read(&args.case)?, args.from)?;
    let layers = Layers::read(args)?;
    layers.check_level(case.level())?;
    let blame = |error| layers.blame(&args.case, error);
    let (config, batch) = case.prepare_any(&layers.merged()).map_err(blame)?;
    let chosen = choose(args.backend, args.row_policy.into(), candidates)?;
    let outcome = run(&chosen, &case, &config, &batch, args.out.as_deref()).map_err(blame)?;
    let mut report = Report::new(&case, &config, &outcome);
    report.file = args.case.display().to_string();
    report.backend.name = chosen.backend.name();
    report.backend.reason = chosen.reason;
    report.difference = outcome.difference;
    report.out = args.out.as_ref().map(|out| out.display().to_string());
    Ok(report)
}

/// Errors of the library name the field; the user has to know the file, too.
pub(super) fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::File { .. } | Error::NoDevice(_) | Error::Cuda { .. } => error,
        error => Error::file(path.display(), error),
    }
}

#[cfg(test)]
mod tests;
