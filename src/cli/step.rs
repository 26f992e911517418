//! `qae step`: one batch through the fused operation.

use super::args::{Format, StepArgs};
use super::backends::{Candidate, choose};
use super::difference::Difference;
use super::report::Report;
use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use crate::io::{Case, Precision, write_output};
use std::path::Path;

/// Runs the operation on the first of `candidates` that `--backend` admits; returns the report.
///
/// # Errors
/// Whatever is wrong with the file, the configuration or the backend; the message names the file.
pub fn step(args: &StepArgs, candidates: &[Candidate]) -> Result<String> {
    let report = report(args, candidates)?;
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
    let Some(out) = args.out.as_ref().and_then(|out| out.canonicalize().ok()) else {
        return Ok(());
    };
    for input in std::iter::once(&args.case).chain(&args.config) {
        if input.canonicalize().is_ok_and(|input| input == out) {
            let expected = "another file than the inputs";
            return Err(Error::invalid("--out", expected, input.display()));
        }
    }
    Ok(())
}

fn report(args: &StepArgs, candidates: &[Candidate]) -> Result<Report> {
    check_out(args)?;
    let case = Case::read(&args.case)?;
    let mut overrides = ConfigFile::default();
    if let Some(path) = &args.config {
        overrides = read_config(path)?;
    }
    overrides = overrides.overridden_by(&args.overrides.to_config_file());
    let in_case = |error| in_file(&args.case, error);
    let (config, batch) = case.prepare(&overrides).map_err(in_case)?;
    let chosen = choose(args.backend, candidates)?;
    let run = chosen
        .backend
        .loss_from_log_probs(&batch, &config)
        .map_err(in_case)?;
    let difference = match chosen.precision {
        Precision::F64 => None,
        Precision::F32 => {
            let reference = crate::reference::loss_from_log_probs(&batch, &config);
            let reference = reference.map_err(in_case)?;
            Some(Difference::between(&run.output, &reference))
        }
    };
    let name = chosen.backend.name();
    if let Some(out) = &args.out {
        let precision = chosen.precision;
        write_output(out, &case, &config, &batch, &run.output, precision, &name)?;
    }
    let mut report = Report::new(&case, &config, &batch, &run);
    report.file = args.case.display().to_string();
    report.backend.name = name;
    report.backend.reason = chosen.reason;
    report.difference = difference;
    report.out = args.out.as_ref().map(|out| out.display().to_string());
    Ok(report)
}

fn read_config(path: &Path) -> Result<ConfigFile> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file(path.display(), error))?;
    ConfigFile::from_json(&text).map_err(|error| in_file(path, error))
}

/// Errors of the library name the field; the user has to know the file, too.
fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::File { .. } | Error::NoDevice(_) | Error::Cuda { .. } => error,
        error => Error::file(path.display(), error),
    }
}

#[cfg(test)]
mod tests {
    use super::step;
    use crate::backend::{Backend, Run};
    use crate::batch::TokenBatch;
    use crate::cli::{Candidate, Cli, Command};
    use crate::config::Config;
    use crate::cpu::CpuBackend;
    use crate::error::{Error, Result};
    use crate::io::{Precision, TensorFile};
    use clap::Parser;

    const CASE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/token/p033-kl-k3.safetensors"
    );

    /// Stands for the kernels: the right result in float32, without a duration.
    struct Rounded;

    impl Backend for Rounded {
        fn name(&self) -> String {
            "rounded".to_string()
        }

        fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
            let mut run = CpuBackend.loss_from_log_probs(batch, config)?;
            for gradient in &mut run.output.d_log_prob {
                *gradient = f64::from(*gradient as f32);
            }
            run.seconds = None;
            Ok(run)
        }
    }

    const ABSENT: Candidate = Candidate {
        name: "cuda",
        precision: Precision::F32,
        open: || Err(Error::NoDevice("no driver".to_string())),
    };

    const ROUNDED: Candidate = Candidate {
        name: "rounded",
        precision: Precision::F32,
        open: || Ok(Box::new(Rounded)),
    };

    fn run(args: &[&str], candidates: &[Candidate]) -> Result<String> {
        let cli = Cli::parse_from([&["qae", "step", CASE], args].concat());
        let Command::Step(args) = cli.command else {
            panic!("the command is step")
        };
        step(&args, candidates)
    }

    #[test]
    fn float32_results_are_compared_with_the_reference_and_written_as_float32() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out.safetensors");
        let out = out.to_str().unwrap();
        let report = run(&["--out", out, "--format", "json"], &[ABSENT, ROUNDED]).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let gradient = &report["difference"]["gradient_over_largest"];
        let gradient = gradient.as_f64().unwrap();
        assert!(gradient > 0.0 && gradient < 1e-7, "{gradient}");
        assert_eq!(report["difference"]["advantage"], 0.0);
        assert_eq!(report["backend"]["reason"], "no cuda: no driver");
        assert_eq!(report["backend"]["seconds"], serde_json::Value::Null);
        let loss = TensorFile::read(out.as_ref())
            .unwrap()
            .f64s("loss")
            .unwrap()[0];
        assert_eq!(loss, f64::from(loss as f32));

        let text = run(&[], &[ROUNDED]).unwrap();
        assert!(text.contains("rounded; the first choice"), "{text}");
        assert!(
            text.contains("largest difference from the reference"),
            "{text}"
        );
    }

    #[test]
    fn a_backend_that_is_absent_is_an_error_with_the_reason() {
        for (args, candidates, expected) in [
            (
                &["--backend", "cuda"][..],
                &[ABSENT, ROUNDED][..],
                "CUDA device: no driver",
            ),
            (
                &["--backend", "cpu"],
                &[ABSENT],
                "--backend: expected auto or cuda, found cpu",
            ),
            (&[], &[ABSENT], "no cuda: no driver"),
        ] {
            let message = run(args, candidates).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
