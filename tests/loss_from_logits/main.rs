//! Logits to loss and gradient: every backend against closed forms, finite differences, the losses
//! of the same log-probs, and against itself where a change must not matter.

mod case;
mod composition;
mod determinism;
mod entropy;
mod finite_differences;
mod gradient_modes;
mod indexed;
mod layouts;
mod left_out;
mod no_trace;
mod refusals;
mod targets;

use qae::{Backend, Config, CpuBackend, LogitsBatch, LogitsOutput, Run, TokenBatch, reference};

/// Largest accepted error, relative to the largest expected value.
const TOLERANCE: f64 = 1e-13;

/// Every way of running the operation; each must give the same.
fn backends() -> Vec<Box<dyn Backend>> {
    vec![Box::new(Reference), Box::new(CpuBackend)]
}

fn run(backend: &dyn Backend, batch: &LogitsBatch<'_>, config: &Config) -> LogitsOutput {
    let run = backend.loss_from_logits(batch, config);
    run.expect("the batch is acceptable").output
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

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> qae::Result<Run<LogitsOutput>> {
        Ok(not_measured(reference::loss_from_logits(batch, config)?))
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

/// Asserts that gradients and results by token are the same to the last bit.
fn assert_same_tensors(found: &LogitsOutput, expected: &LogitsOutput, what: &str) {
    for (name, found, expected) in [
        ("d_logits", &found.d_logits, &expected.d_logits),
        (
            "d_log_prob",
            &found.loss.d_log_prob,
            &expected.loss.d_log_prob,
        ),
        ("log_prob", &found.log_prob, &expected.log_prob),
        ("entropy", &found.entropy, &expected.entropy),
    ] {
        assert_eq!(bits(found), bits(expected), "{what}: {name}");
    }
    assert_eq!(found.active_slots, expected.active_slots, "{what}");
    assert_eq!(found.loss.active_rows, expected.loss.active_rows, "{what}");
}
