//! The parallel form has the bits of the serial reference, on any number of threads.

use crate::case::Case;
use qae::{Config, LossOutput, MetricsScope, TensorMut, cpu, reference};
use qae_test_support::{aggregations, bits, kls, objectives};

pub fn assert_same_bits(found: &LossOutput, expected: &LossOutput) {
    let sums = |output: &LossOutput| {
        let metrics = output.metrics;
        bits(&[
            metrics.loss,
            metrics.pg_loss,
            metrics.kl_loss,
            metrics.neg_log_ratio_sum,
            metrics.min_ratio,
            metrics.max_ratio,
        ])
    };
    assert_eq!(found.metrics, expected.metrics);
    assert_eq!(sums(found), sums(expected));
    assert_eq!(bits(&found.d_log_prob), bits(&expected.d_log_prob));
    assert_eq!(found.active_rows, expected.active_rows);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let case = Case::random(71, 301, 23);
    let pools = [1, 2, 7].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    for objective in objectives() {
        for kl in [None, kls()[3]] {
            for aggregation in aggregations() {
                let config = Config {
                    objective,
                    kl,
                    aggregation,
                    metrics_scope: MetricsScope::All,
                    ..Config::default()
                };
                let expected = reference::loss_from_log_probs(&case.batch(), &config).unwrap();
                for pool in &pools {
                    let found =
                        pool.install(|| cpu::loss_from_log_probs(&case.batch(), &config).unwrap());
                    assert_same_bits(&found, &expected);
                }
            }
        }
    }
}

#[test]
fn the_in_place_form_has_the_same_bits() {
    let case = Case::random(72, 40, 9);
    let config = Config::default();
    let expected = cpu::loss_from_log_probs(&case.batch(), &config).unwrap();
    let mut gradient = vec![f64::NAN; 360];
    let target = TensorMut::F64(&mut gradient).into();
    let results = cpu::loss_from_log_probs_into(&case.batch(), &config, target).unwrap();
    assert_eq!(results.metrics, expected.metrics);
    assert_eq!(bits(&gradient), bits(&expected.d_log_prob));
}
