//! Logits to log-probs, entropy and back: every backend against closed forms, finite differences,
//! and against itself where a change must not matter.

mod case;
mod closed_forms;
mod determinism;
mod extremes;
mod finite_differences;
mod refusals;
mod rows;
mod shards;
mod targets;

use qae::{Backend, Config, CpuBackend, LogProbsInput, LogProbsOutput, Run, TokenBatch, reference};

/// Largest accepted error, relative to the largest expected value.
const TOLERANCE: f64 = 1e-13;

/// Every way of running the operations; each must give the same.
fn backends() -> Vec<Box<dyn Backend>> {
    vec![Box::new(Reference), Box::new(CpuBackend)]
}

fn forward(backend: &dyn Backend, input: &LogProbsInput<'_>) -> LogProbsOutput {
    let run = backend.log_probs_from_logits(input);
    run.expect("the input is acceptable").output
}

fn backward(
    backend: &dyn Backend,
    input: &LogProbsInput<'_>,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> Vec<f64> {
    let run = backend.log_probs_from_logits_backward(input, d_log_prob, d_entropy);
    run.expect("the input is acceptable").output
}

/// The serial f64 oracle.
struct Reference;

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> qae::Result<Run> {
        Ok(not_measured(reference::loss_from_log_probs(batch, config)?))
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> qae::Result<Run<LogProbsOutput>> {
        Ok(not_measured(reference::log_probs_from_logits(input)?))
    }

    fn log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> qae::Result<Run<Vec<f64>>> {
        let d_logits = reference::log_probs_from_logits_backward(input, d_log_prob, d_entropy)?;
        Ok(not_measured(d_logits))
    }
}

fn not_measured<T>(output: T) -> Run<T> {
    Run {
        output,
        bytes_moved: 0,
        seconds: None,
    }
}

/// Asserts that `found` is `expected` within `tolerance` of the largest expected magnitude.
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |max, x| f64::max(max, x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * largest,
            "{what}[{i}]: {found} instead of {expected}"
        );
    }
}

/// The bits, so that NaN equals itself and 0 differs from −0.
fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}
