//! Whole batches and their parts: what other libraries get wrong when a batch is cut, or is large.

use qae::{Aggregation, Config, DType, Groups, MetricsScope, Normalizer, Objective};
use qae_test_support::Random;

use crate::case::{Case, Rows, Source, Values};
use crate::compare::{TOLERANCE, check};
use crate::random::{fill, rewards, vec_of};

const WIDTH: usize = 37;

/// Rows `rows` of a batch of 24 with groups of 8, in this order.
fn part(rows: &[usize], aggregation: Aggregation) -> Case {
    let mut whole = fill(59, Rows::padded(24, WIDTH), DType::F32);
    for tensor in [Some(&mut whole.log_prob), whole.old_log_prob.as_mut()] {
        let tensor = tensor.expect("both are set");
        let values = tensor.widened();
        let of_row = |row: &usize| values[row * WIDTH..(row + 1) * WIDTH].to_vec();
        *tensor = Values::F32(rows.iter().flat_map(of_row).collect());
    }
    // Rows of 0 to 36 valid tokens.
    let valid = |&row: &usize| (0..WIDTH).map(move |t| u8::from(t < row * 7 % WIDTH));
    whole.mask = Some(rows.iter().flat_map(valid).collect());
    whole.layout = Rows::padded(rows.len(), WIDTH);
    whole.advantage = Source::Rewards {
        rewards: rewards(&mut Random(61), 24),
        groups: Groups::uniform(24, 8).unwrap(),
        response_index: Some(rows.iter().map(|&row| row as i32).collect()),
    };
    whole.config = Config {
        aggregation,
        normalizer: Normalizer::Value(19.0),
        metrics_scope: MetricsScope::Active,
        ..whole.config
    };
    whole
}

/// Groups straddle micro-batches, rows are shuffled, and the normalizer is the whole batch's: losses
/// add up and gradients do not change.
#[test]
fn micro_batches_add_up() {
    for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean] {
        let order = vec_of(24, |i| i * 7 % 24);
        let whole = check(&part(&order, aggregation), "whole").output;
        let (mut loss, mut tokens, mut gradient) = (0.0, 0, vec![]);
        for rows in [&order[..5], &order[5..6], &order[6..]] {
            let output = check(&part(rows, aggregation), "part").output;
            assert_eq!(output.advantage, whole.advantage);
            loss += output.metrics.loss;
            tokens += output.metrics.active_tokens;
            gradient.extend(output.d_log_prob);
        }
        assert_eq!(gradient, whole.d_log_prob, "{aggregation:?}");
        assert_eq!(tokens, whole.metrics.active_tokens);
        assert!((loss - whole.metrics.loss).abs() <= TOLERANCE * whole.metrics.loss.abs());
    }
}

/// More rows, and more groups, than the 65,535 of a grid's other dimensions.
#[test]
fn more_than_65536_rows_and_groups() {
    const ROWS: usize = 66_000;
    let random = &mut Random(67);
    let mut case = fill(68, Rows::packed(&vec_of(ROWS, |row| row % 3)), DType::F32);
    case.advantage = Source::Rewards {
        rewards: vec_of(2 * ROWS, |_| random.below(2) as f32),
        groups: Groups::uniform(2 * ROWS, 2).unwrap(),
        response_index: Some(vec_of(ROWS, |row| (2 * row) as i32)),
    };
    check(&case, "tiles");
    case.config.objective = Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max: None,
    };
    check(&case, "rows");
}
