//! The entropy term and the entropy metrics.

use crate::case::{Case, config};
use crate::{TOLERANCE, backends, run};
use qae::{
    Aggregation, Config, EntropyMetrics, LogProbsInput, MetricsScope, Normalizer, reference,
};
use qae_test_support::{Advantage, aggregations, assert_close, bits};

const VOCAB: usize = 6;
const SIGNS: [f32; 4] = [1.0, 0.0, -1.0, 0.0];

fn case() -> Case {
    Case {
        advantage: Advantage::PerResponse(SIGNS.to_vec()),
        ..Case::random(71, 4, 5, VOCAB)
    }
}

/// Entropy of every slot.
fn entropies(case: &Case) -> Vec<f64> {
    let batch = case.batch();
    let input = LogProbsInput {
        logits: batch.logits,
        token_id: batch.token_id,
        mask: None,
        temperature: config().temperature,
    };
    reference::log_probs_from_logits(&input).unwrap().entropy
}

/// Sum and count over the valid tokens of the responses with this sign.
fn of_sign(case: &Case, sign: f32) -> (f64, u64) {
    let entropy = entropies(case);
    let slots = (0..case.num_slots()).filter(|&s| case.is_valid(s) && case.advantage_of(s) == sign);
    slots.fold((0.0, 0), |(sum, count), slot| {
        (sum + entropy[slot], count + 1)
    })
}

#[test]
fn sums_and_counts_by_the_sign_of_the_advantage() {
    let case = case();
    let [positive, zero, negative] = [1.0, 0.0, -1.0].map(|sign| of_sign(&case, sign));
    for (metrics_scope, entropy_coef) in [
        (MetricsScope::All, 0.0),
        (MetricsScope::Active, 0.0),
        // Every row is read for the term.
        (MetricsScope::Active, 0.25),
    ] {
        let config = Config {
            metrics_scope,
            entropy_coef,
            ..config()
        };
        let reads_all = metrics_scope == MetricsScope::All || entropy_coef != 0.0;
        let zero = if reads_all { zero } else { (0.0, 0) };
        for backend in backends() {
            let found = run(&*backend, &case.batch(), &config).loss.metrics;
            let found = found.entropy.unwrap();
            let sums = [found.positive, found.zero, found.negative];
            assert_close(&sums, &[positive.0, zero.0, negative.0], TOLERANCE, "sums");
            let counts = [
                found.positive_tokens,
                found.zero_tokens,
                found.negative_tokens,
            ];
            assert_eq!(counts, [positive.1, zero.1, negative.1]);
        }
    }
}

#[test]
fn advantages_of_tokens_split_by_token() {
    let base = case();
    let case = Case {
        advantage: Advantage::PerToken((0..20).map(|slot| SIGNS[slot % 4]).collect()),
        ..base
    };
    let expected = [1.0, 0.0, -1.0].map(|sign| of_sign(&case, sign));
    for backend in backends() {
        let found = run(&*backend, &case.batch(), &config()).loss.metrics;
        let found = found.entropy.unwrap();
        let sums = [found.positive, found.zero, found.negative];
        assert_close(&sums, &expected.map(|(sum, _)| sum), TOLERANCE, "sums");
        let counts = [
            found.positive_tokens,
            found.zero_tokens,
            found.negative_tokens,
        ];
        assert_eq!(counts, expected.map(|(_, count)| count));
    }
}

#[test]
fn means_divide_by_their_own_counts() {
    let entropy = EntropyMetrics {
        loss: 9.0,
        positive: 6.0,
        zero: 2.0,
        negative: 0.0,
        positive_tokens: 3,
        zero_tokens: 1,
        negative_tokens: 0,
    };
    let means = [
        entropy.mean_positive(),
        entropy.mean_zero(),
        entropy.mean_negative(),
    ];
    assert_eq!(means, [2.0, 2.0, 0.0]);
    assert_eq!(entropy.mean(), 2.0);
    assert_eq!(EntropyMetrics::default().mean(), 0.0);
}

/// w_i of every slot (docs/math.md §3).
fn weights(case: &Case, aggregation: Aggregation) -> Vec<f64> {
    let is_valid: Vec<bool> = (0..case.num_slots())
        .map(|slot| case.is_valid(slot))
        .collect();
    let lengths: Vec<f64> = is_valid
        .chunks(case.width)
        .map(|row| row.iter().filter(|&&valid| valid).count() as f64)
        .collect();
    let tokens: f64 = lengths.iter().sum();
    let sequences = lengths.iter().filter(|&&length| length > 0.0).count() as f64;
    let weight = |slot: usize| match aggregation {
        Aggregation::TokenMean => 1.0 / tokens,
        Aggregation::SeqMeanTokenMean => 1.0 / (sequences * lengths[slot / case.width]),
        Aggregation::SeqMeanTokenSum => 1.0 / sequences,
        Aggregation::SeqMeanTokenSumNorm { scale } => 1.0 / (sequences * scale),
    };
    (0..case.num_slots())
        .map(|slot| if is_valid[slot] { weight(slot) } else { 0.0 })
        .collect()
}

#[test]
fn the_term_is_aggregated_as_the_policy_term() {
    let case = case();
    let entropy = entropies(&case);
    for aggregation in aggregations() {
        let weights = weights(&case, aggregation);
        let expected: f64 = weights.iter().zip(&entropy).map(|(w, h)| w * h).sum();
        let with = |entropy_coef| Config {
            aggregation,
            entropy_coef,
            loss_multiplier: 2.0,
            grad_scale: 0.5,
            ..config()
        };
        for backend in backends() {
            let without = run(&*backend, &case.batch(), &with(0.0)).loss.metrics;
            let found = run(&*backend, &case.batch(), &with(0.25)).loss.metrics;
            let of_entropy = [found.entropy.unwrap().loss, without.entropy.unwrap().loss];
            assert_close(&of_entropy, &[2.0 * expected; 2], TOLERANCE, "entropy loss");
            let loss = without.loss - 0.25 * 2.0 * expected;
            assert_close(&[found.loss], &[loss], TOLERANCE, "loss");
            assert_eq!(found.pg_loss.to_bits(), without.pg_loss.to_bits());
        }
    }
}

#[test]
fn the_term_alone_has_the_gradient_of_the_entropies() {
    let case = Case {
        advantage: Advantage::PerResponse(vec![0.0; 4]),
        ..case()
    };
    let batch = case.batch();
    let input = LogProbsInput {
        logits: batch.logits,
        token_id: batch.token_id,
        mask: batch.mask,
        temperature: config().temperature,
    };
    // h = −c · grad_scale / 8, exact in f32.
    for (entropy_coef, h) in [(0.5, -0.125), (-0.5, 0.125)] {
        let config = Config {
            entropy_coef,
            normalizer: Normalizer::Value(8.0),
            grad_scale: 2.0,
            ..config()
        };
        let expected =
            reference::log_probs_from_logits_backward(&input, &[0.0; 20], Some(&[h; 20])).unwrap();
        for backend in backends() {
            let found = run(&*backend, &batch, &config);
            assert_eq!(bits(&found.d_logits), bits(&expected));
            assert!(found.loss.d_log_prob.iter().all(|g| g.to_bits() == 0));
            // It makes no response active: that is the advantage's to say.
            assert_eq!(found.loss.metrics.active, 0);
            assert!(found.loss.active_rows.is_empty());
        }
    }
}

#[test]
fn a_bonus_pushes_towards_uniform() {
    let mut case = case();
    case.advantage = Advantage::PerResponse(vec![0.0; 4]);
    case.mask = None;
    let config = Config {
        entropy_coef: 1.0,
        ..config()
    };
    for backend in backends() {
        let output = run(&*backend, &case.batch(), &config);
        for (logits, gradient) in case.logits.chunks(VOCAB).zip(output.d_logits.chunks(VOCAB)) {
            let largest = (0..VOCAB)
                .max_by(|&i, &j| logits[i].total_cmp(&logits[j]))
                .unwrap();
            // Descent lowers the largest logit.
            assert!(gradient[largest] > 0.0);
        }
    }
}
