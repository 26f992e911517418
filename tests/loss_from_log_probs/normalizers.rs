//! Aggregations and denominators: how a batch was cut must not matter.

use crate::case::{Case, plain_clip};
use crate::runners;
use qae::{Advantages, Aggregation, Config, Groups, Layout, Normalizer, Tensor, TokenBatch};
use qae_test_support::{Advantage, Weight, aggregations, kls};

/// Mean advantages −1 and −2 on policy, with 3 of 4 and 1 of 4 valid tokens, and an empty row.
fn uneven() -> Case {
    Case {
        num_rows: 3,
        width: 4,
        mask: Some(vec![1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
        log_prob: vec![-1.0; 12],
        old_log_prob: Some(vec![-1.0; 12]),
        ref_log_prob: None,
        weight: Weight::None,
        advantage: Advantage::PerResponse(vec![1.0, 2.0, 4.0]),
    }
}

#[test]
fn each_aggregation_in_closed_form() {
    for (aggregation, normalizer, weights) in [
        (Aggregation::TokenMean, None, [1.0 / 4.0, 1.0 / 4.0]),
        (Aggregation::TokenMean, Some(10.0), [0.1, 0.1]),
        (Aggregation::SeqMeanTokenMean, None, [1.0 / 6.0, 1.0 / 2.0]),
        (
            Aggregation::SeqMeanTokenMean,
            Some(3.0),
            [1.0 / 9.0, 1.0 / 3.0],
        ),
        (Aggregation::SeqMeanTokenSum, None, [0.5, 0.5]),
        (
            Aggregation::SeqMeanTokenSum,
            Some(3.0),
            [1.0 / 3.0, 1.0 / 3.0],
        ),
        (
            Aggregation::SeqMeanTokenSumNorm { scale: 8.0 },
            None,
            [1.0 / 16.0, 1.0 / 16.0],
        ),
    ] {
        let config = Config {
            aggregation,
            normalizer: normalizer.map_or(Normalizer::FromBatch, Normalizer::Value),
            loss_multiplier: 2.0,
            grad_scale: 3.0,
            ..Config::default()
        };
        for runner in runners() {
            let output = runner.run(&uneven().batch(), &config);
            let [a, b] = weights.map(|weight| 2.0 * weight);
            let loss = -3.0 * a - 2.0 * b;
            runner.assert_close(&[output.metrics.loss], &[loss], "loss");
            let (a, b) = (-3.0 * a, -6.0 * b);
            let gradient = [a, 0.0, a, a, 0.0, b, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
            runner.assert_close(&output.d_log_prob, &gradient, "gradient");
            // The empty row has an advantage, but no token that could act.
            assert_eq!((output.metrics.active, output.metrics.positive), (2, 3));
            assert_eq!(output.active_rows, [0, 1]);
        }
    }
}

#[test]
fn an_all_masked_batch_has_loss_and_gradient_zero() {
    let mut case = Case::random(31, 4, 5);
    case.mask = Some(vec![0; 20]);
    for aggregation in aggregations() {
        for kl in kls() {
            let config = Config {
                aggregation,
                kl,
                ..Config::default()
            };
            for runner in runners() {
                let output = runner.run(&case.batch(), &config);
                assert!(output.d_log_prob.iter().all(|g| g.to_bits() == 0));
                assert_eq!(output.metrics.loss.to_bits(), 0);
                assert_eq!((output.metrics.tokens, output.metrics.active), (0, 0));
                assert_eq!(output.metrics.approx_kl(), 0.0);
            }
        }
    }
}

#[test]
fn an_empty_batch_has_loss_zero() {
    for layout in [
        Layout::padded(0, 0),
        Layout::padded(0, 8),
        Layout::Packed { offsets: &[0] },
    ] {
        let batch = TokenBatch {
            layout,
            mask: None,
            log_prob: Tensor::F32(&[]),
            old_log_prob: Some(Tensor::F32(&[])),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::PerResponse(&[]),
        };
        for runner in runners() {
            let output = runner.run(&batch, &Config::default());
            assert_eq!(output.metrics.loss.to_bits(), 0);
            assert!(output.d_log_prob.is_empty() && output.active_rows.is_empty());
            assert_eq!(output.metrics.min_ratio, f64::INFINITY);
        }
    }
}

#[test]
fn rows_without_slots_are_rows_without_tokens() {
    let batch = TokenBatch {
        layout: Layout::padded(3, 0),
        mask: Some(&[]),
        log_prob: Tensor::F32(&[]),
        old_log_prob: Some(Tensor::F32(&[])),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::PerResponse(&[1.0, 0.0, -1.0]),
    };
    for runner in runners() {
        let metrics = runner.run(&batch, &Config::default()).metrics;
        assert_eq!(
            (metrics.positive, metrics.zero, metrics.negative),
            (1, 1, 1)
        );
        assert_eq!((metrics.active, metrics.tokens), (0, 0));
    }
}

#[test]
fn micro_batches_with_the_global_normalizer_add_up_to_the_batch() {
    let case = Case::random(32, 12, 5);
    let rewards: Vec<f32> = (0..12).map(|i| [0.0, 1.0, 0.3][i % 3]).collect();
    let groups = Groups::from_ids(&[2, 1, 0, 2, 1, 0, 0, 0, 1, 1, 2, 2]).unwrap();
    // Shuffled and uneven: groups straddle the cuts.
    let order = [7, 2, 11, 0, 5, 9, 3, 1, 10, 8, 6, 4];
    for aggregation in aggregations() {
        let config = Config {
            aggregation,
            kl: kls()[4],
            normalizer: Normalizer::Value(global_count(&case, aggregation)),
            ..plain_clip()
        };
        for runner in runners() {
            let whole = TokenBatch {
                advantages: Advantages::FromRewards {
                    rewards: &rewards,
                    groups: &groups,
                    response_index: None,
                },
                ..case.batch()
            };
            let whole = runner.run(&whole, &config);
            let mut loss = 0.0;
            let mut gradient = vec![f64::NAN; 60];
            for rows in [&order[..5], &order[5..6], &order[6..]] {
                let part = select(&case, rows);
                let batch = TokenBatch {
                    advantages: Advantages::FromRewards {
                        rewards: &rewards,
                        groups: &groups,
                        response_index: Some(rows),
                    },
                    ..part.batch()
                };
                let output = runner.run(&batch, &config);
                assert_eq!(output.advantage, whole.advantage);
                loss += output.metrics.loss;
                for (local, &row) in rows.iter().enumerate() {
                    gradient[row as usize * 5..][..5]
                        .copy_from_slice(&output.d_log_prob[local * 5..][..5]);
                }
            }
            runner.assert_close(&[loss], &[whole.metrics.loss], "loss");
            assert_eq!(gradient, whole.d_log_prob, "{aggregation:?}");
        }
    }
}

/// Valid tokens or responses of the whole batch.
fn global_count(case: &Case, aggregation: Aggregation) -> f64 {
    match aggregation {
        Aggregation::TokenMean => (0..60).filter(|&slot| case.is_valid(slot)).count() as f64,
        _ => 12.0,
    }
}

/// Some rows of a case.
fn select(case: &Case, rows: &[i32]) -> Case {
    fn of<T: Copy>(rows: &[i32], values: &[T]) -> Vec<T> {
        rows.iter()
            .flat_map(|&row| values[row as usize * 5..][..5].to_vec())
            .collect()
    }
    Case {
        num_rows: rows.len(),
        mask: case.mask.as_ref().map(|values| of(rows, values)),
        log_prob: of(rows, &case.log_prob),
        old_log_prob: case.old_log_prob.as_ref().map(|values| of(rows, values)),
        ref_log_prob: case.ref_log_prob.as_ref().map(|values| of(rows, values)),
        ..case.clone()
    }
}
