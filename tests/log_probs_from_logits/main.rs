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

use qae::{Backend, CpuBackend, LogProbsInput, LogProbsOutput};
use qae_test_support::Reference;

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
