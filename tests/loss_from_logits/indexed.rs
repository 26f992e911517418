//! Slots with their response in any order.

use crate::case::{Case, config, configs};
use crate::layouts::{ROWS, SLOTS, VOCAB, WIDTH, case};
use crate::{backends, run};
use qae::{Config, Gradient, LogitsBatch, LogitsLayout, LogitsOutput};
use qae_test_support::{Advantage, Random, Weight, assert_close, bits};

/// Values by slot in another order: element i is that of slot `order[i]`.
fn picked<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
    order.iter().map(|&slot| values[slot]).collect()
}

/// The case with its slots in another order, and the response of each.
fn shuffled(case: &Case, order: &[usize]) -> (Case, Vec<i32>) {
    let of = |tensor: &Option<Vec<f32>>| tensor.as_ref().map(|values| picked(values, order));
    let rows = order
        .iter()
        .map(|&slot| &case.logits[slot * VOCAB..][..VOCAB]);
    let shuffled = Case {
        mask: case.mask.as_ref().map(|mask| picked(mask, order)),
        logits: rows.flatten().copied().collect(),
        token_id: picked(&case.token_id, order),
        old_log_prob: of(&case.old_log_prob),
        ref_log_prob: of(&case.ref_log_prob),
        weight: match &case.weight {
            Weight::PerToken(values) => Weight::PerToken(picked(values, order)),
            other => other.clone(),
        },
        advantage: match &case.advantage {
            Advantage::PerToken(values) => Advantage::PerToken(picked(values, order)),
            other => other.clone(),
        },
        ..case.clone()
    };
    let response = order.iter().map(|&slot| (slot / WIDTH) as i32);
    (shuffled, response.collect())
}

/// Tensors by slot of an output, put into another order.
fn reordered(output: &LogitsOutput, order: &[usize]) -> [Vec<f64>; 4] {
    let rows = order
        .iter()
        .map(|&slot| &output.d_logits[slot * VOCAB..][..VOCAB]);
    [
        rows.flatten().copied().collect(),
        picked(&output.loss.d_log_prob, order),
        picked(&output.log_prob, order),
        picked(&output.entropy, order),
    ]
}

fn tensors(output: &LogitsOutput) -> [Vec<f64>; 4] {
    reordered(output, &(0..SLOTS).collect::<Vec<_>>())
}

/// Asserts that the slots in `order`, each with its response, have the results that they have
/// response after response; to the last bit if the order within a response is the same.
fn assert_order_does_not_matter(case: &Case, order: &[usize], config: &Config, is_exact: bool) {
    let (moved, response) = shuffled(case, order);
    let indexed = LogitsBatch {
        layout: LogitsLayout::Indexed {
            response: &response,
            num_responses: ROWS,
        },
        ..moved.batch()
    };
    for backend in backends() {
        let in_order = run(&*backend, &case.batch(), config);
        let found = run(&*backend, &indexed, config);
        let expected = reordered(&in_order, order);
        for (found, expected) in tensors(&found).iter().zip(&expected) {
            if is_exact {
                assert_eq!(bits(found), bits(expected), "{config:?}");
            } else {
                assert_close(found, expected, 1e-13, &format!("{config:?}"));
            }
        }
        assert_eq!(found.loss.active_rows, in_order.loss.active_rows);
        let losses = [found.loss.metrics.loss, in_order.loss.metrics.loss];
        // The tokens' losses cancel each other.
        assert_close(&losses[..1], &losses[1..], 1e-10, "loss");
        if is_exact {
            assert_eq!(found.loss.metrics, in_order.loss.metrics);
        }
    }
}

#[test]
fn slots_with_their_response_in_any_order() {
    let mut random = Random(52);
    let by_token = Case {
        advantage: Advantage::PerToken((0..SLOTS).map(|s| [1.0, 0.0, -0.5][s % 3]).collect()),
        ..case()
    };
    let interleaved: Vec<usize> = (0..SLOTS).map(|i| i % ROWS * WIDTH + i / ROWS).collect();
    for case in [case(), by_token] {
        for config in configs() {
            assert_order_does_not_matter(&case, &interleaved, &config, true);
            let mut order: Vec<usize> = (0..SLOTS).collect();
            for last in (1..SLOTS).rev() {
                order.swap(last, random.below(last + 1));
            }
            assert_order_does_not_matter(&case, &order, &config, false);
        }
    }
}

#[test]
fn the_slots_of_compact_rows_are_those_of_the_order_given() {
    let case = case();
    let order: Vec<usize> = (0..SLOTS).rev().collect();
    let (moved, response) = shuffled(&case, &order);
    let indexed = LogitsBatch {
        layout: LogitsLayout::Indexed {
            response: &response,
            num_responses: ROWS,
        },
        ..moved.batch()
    };
    let compact = Config {
        gradient: Gradient::Compact,
        ..config()
    };
    for backend in backends() {
        let dense = run(&*backend, &indexed, &config());
        let found = run(&*backend, &indexed, &compact);
        assert!(found.active_slots.is_sorted());
        assert!(!found.active_slots.is_empty());
        for (row, &slot) in found.d_logits.chunks(VOCAB).zip(&found.active_slots) {
            assert_eq!(
                bits(row),
                bits(&dense.d_logits[slot as usize * VOCAB..][..VOCAB])
            );
        }
    }
}
