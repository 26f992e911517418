//! Rollout files: what is found in them, and what is said about them.

mod auto_k;
mod columns;
mod csv;
mod expected;
#[cfg(unix)]
mod folders;
mod formats;
mod hostile;
mod legible;
mod methods;
mod parquet;
mod plots;
mod warnings;

use qae::analyze::{Options, Report, analyze};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/rollouts")
        .join(name)
}

fn report_of(paths: &[PathBuf], options: &Options) -> Result<Report, String> {
    let analysis = analyze(paths, options, &()).map_err(|error| error.to_string())?;
    Ok(analysis.report)
}

/// The report of a sample in `tests/data/rollouts`.
fn report(name: &str) -> Report {
    report_of(&[sample(name)], &Options::default()).unwrap()
}

/// Files that are gone after the test.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = TempDir::new().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Self(folder)
    }

    fn report(&self, options: &Options) -> Result<Report, String> {
        report_of(&[self.0.path().to_path_buf()], options)
    }
}

/// The report of one file called `1.jsonl`.
fn report_of_lines(content: impl AsRef<[u8]>) -> Result<Report, String> {
    report_of_lines_with(content, &Options::default())
}

fn report_of_lines_with(content: impl AsRef<[u8]>, options: &Options) -> Result<Report, String> {
    Files::new(&[("1.jsonl", content.as_ref())]).report(options)
}

/// A row as verl writes it.
fn row(step: i64, prompt: &str, output: &str, score: Value) -> Value {
    json!({"input": prompt, "output": output, "gts": "", "score": score, "step": step})
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Rows of one prompt at step 1 with these scores and outputs that differ.
fn group(prompt: &str, scores: &[f64]) -> Vec<Value> {
    let scores = scores.iter().enumerate();
    scores
        .map(|(i, &score)| row(1, prompt, &format!("{prompt} {i}"), json!(score)))
        .collect()
}

fn kinds(report: &Report) -> Vec<&'static str> {
    report.warnings.iter().map(|warning| warning.kind).collect()
}
