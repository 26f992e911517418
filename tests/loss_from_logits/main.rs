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

use qae::{Backend, Config, CpuBackend, LogitsBatch, LogitsOutput};
use qae_test_support::{Reference, bits};

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
