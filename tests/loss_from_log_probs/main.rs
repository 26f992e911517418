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

use qae::{Backend, Config, CpuBackend, LossOutput, TokenBatch};
use qae_test_support::{Reference, assert_close};

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
