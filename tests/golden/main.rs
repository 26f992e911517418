//! The golden cases (tests/data) and the TRL capture (data/) on every backend.
//!
//! Inputs and float64 outputs were computed with other people's code (verl, TRL, torch, numpy).
//! Results are compared as `qae step --out` writes them, so that the names and shapes of the output
//! are tested along.

mod capture;
mod logits;
mod token;
mod tolerance;

use qae::io::{Batch, Case, Precision, Provenance, Results, TensorFile, write_output};
use qae::{Backend, Config, CpuBackend, LogProbsOutput, LogitsOutput, LossOutput};
use qae_emulator::EmulatorBackend;
use qae_test_support::Reference;
use serde_json::Value;
use std::path::PathBuf;
use tolerance::Tolerance;

fn backends() -> Vec<(Box<dyn Backend>, Tolerance)> {
    vec![
        (Box::new(Reference), Tolerance::DOUBLE),
        (Box::new(CpuBackend), Tolerance::DOUBLE),
        (Box::new(EmulatorBackend::default()), Tolerance::SINGLE),
    ]
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The entries of the manifest of `level`, each with the file it describes.
fn manifest(level: &str) -> Vec<(Value, PathBuf)> {
    let directory = root().join("tests/data").join(level);
    let text = std::fs::read_to_string(directory.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let cases = manifest["cases"].as_array().unwrap();
    let entry = |case: &Value| (case.clone(), directory.join(case["file"].as_str().unwrap()));
    cases.iter().map(entry).collect()
}

/// What a backend computed, whatever the case starts from.
enum Computed {
    LogProbs(Box<LossOutput>),
    Logits(Box<LogitsOutput>, Box<LogProbsOutput>),
}

impl Computed {
    fn loss(&self) -> &LossOutput {
        match self {
            Self::LogProbs(output) => output,
            Self::Logits(output, _) => &output.loss,
        }
    }
}

fn compute(backend: &dyn Backend, case: &Case, config: &Config, batch: &Batch<'_>) -> Computed {
    match batch {
        Batch::LogProbs(batch) => {
            let run = backend.loss_from_log_probs(batch, config).unwrap();
            Computed::LogProbs(Box::new(run.output))
        }
        Batch::Logits(batch) => {
            let run = backend.loss_from_logits(batch, config).unwrap();
            let rows = case.log_probs_input(config).unwrap();
            let rows = backend.log_probs_from_logits(&rows).unwrap();
            Computed::Logits(Box::new(run.output), Box::new(rows.output))
        }
    }
}

/// What is written of `computed`, read back.
fn written(case: &Case, config: &Config, batch: &Batch<'_>, computed: &Computed) -> TensorFile {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.safetensors");
    let of = Provenance {
        case,
        config,
        backend: "test",
        precision: Precision::F64,
    };
    let results = match (batch, computed) {
        (Batch::LogProbs(batch), Computed::LogProbs(output)) => Results::LogProbs(*batch, output),
        (Batch::Logits(batch), Computed::Logits(output, rows)) => {
            Results::Logits(*batch, output, rows)
        }
        _ => panic!("the output is of the batch"),
    };
    write_output(&path, &of, &results).unwrap();
    TensorFile::read(&path).unwrap()
}

/// The largest difference over the largest expected value, and that value.
fn relative_error(found: &[f64], expected: &[f64]) -> (f64, f64) {
    let largest = expected.iter().fold(0.0, |m: f64, e| m.max(e.abs()));
    let worst = largest_error(found, expected);
    (if worst == 0.0 { 0.0 } else { worst / largest }, largest)
}

fn largest_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    errors.fold(0.0, |m: f64, d| if m.is_nan() || d <= m { m } else { d })
}

/// The tensors `expected.*` of `file`, by the name without it.
fn expectations(file: &TensorFile) -> Vec<(String, Vec<f64>)> {
    let names = file.names();
    let expected = names
        .iter()
        .filter_map(|name| Some((name.strip_prefix("expected.")?, name)));
    expected
        .map(|(name, full)| (name.to_string(), file.f64s(full).unwrap()))
        .collect()
}

/// Negated, so that NaN fails.
fn assert_within(error: f64, tolerance: f64, what: &str) {
    assert!(
        !(error > tolerance || error.is_nan()),
        "{what} is off by {error:e}, more than {tolerance:e}"
    );
}
