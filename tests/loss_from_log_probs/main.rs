//! Log-probs to loss and gradient: every backend against closed forms, finite differences, and
//! against itself where a change must not matter.

mod blocks;
mod case;
mod closed_forms;
mod determinism;
mod finite_differences;
mod inactive;
mod layouts;
mod left_out;
mod metrics;
mod normalizers;
mod refusals;
mod targets;

use qae::{Backend, Config, CpuBackend, LossOutput, Run, TokenBatch, reference};

/// One way of running the operation.
struct Runner {
    backend: Box<dyn Backend>,
    /// Largest accepted error, relative to the largest expected value.
    tolerance: f64,
}

/// Every way; each must give the same.
fn runners() -> Vec<Runner> {
    vec![
        Runner {
            backend: Box::new(Reference),
            tolerance: 1e-13,
        },
        Runner {
            backend: Box::new(CpuBackend),
            tolerance: 1e-13,
        },
    ]
}

impl Runner {
    fn run(&self, batch: &TokenBatch<'_>, config: &Config) -> LossOutput {
        let run = self.backend.loss_from_log_probs(batch, config);
        run.expect("the batch is acceptable").output
    }

    fn assert_close(&self, found: &[f64], expected: &[f64], what: &str) {
        let what = format!("{}: {what}", self.backend.name());
        assert_close(found, expected, self.tolerance, &what);
    }
}

/// The serial f64 oracle.
struct Reference;

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> qae::Result<Run> {
        Ok(Run {
            output: reference::loss_from_log_probs(batch, config)?,
            bytes_moved: 0,
            seconds: None,
        })
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
