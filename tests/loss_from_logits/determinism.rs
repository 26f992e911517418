//! The parallel form has the bits of the serial reference, on any number of threads.

use crate::assert_same_tensors;
use crate::case::{Case, config};
use qae::{Config, Gradient, cpu, reference};
use qae_test_support::{aggregations, kls, objectives};

#[test]
fn the_number_of_threads_changes_no_bit() {
    let case = Case::random(81, 43, 9, 31);
    let pools = [1, 2, 7].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    for objective in objectives() {
        for (kl, entropy_coef) in [(None, 0.0), (kls()[3], 0.25)] {
            for aggregation in aggregations() {
                let config = Config {
                    objective,
                    kl,
                    entropy_coef,
                    aggregation,
                    gradient: Gradient::Compact,
                    ..config()
                };
                let expected = reference::loss_from_logits(&case.batch(), &config).unwrap();
                for pool in &pools {
                    let found = pool.install(|| cpu::loss_from_logits(&case.batch(), &config));
                    let found = found.unwrap();
                    assert_same_tensors(&found, &expected, "threads");
                    assert_eq!(found.loss.metrics, expected.loss.metrics);
                }
            }
        }
    }
}
