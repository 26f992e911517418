//! Many rows, and responses cut into micro-batches.

use qae::params::RowPolicy;
use qae::{Aggregation, Config, DType, Gradient, Groups, MetricsScope, Normalizer};
use qae_test_support::Random;

use crate::case::{Rows, Source, Values};
use crate::compare::TOLERANCE;
use crate::logits_case::LogitsCase;
use crate::logits_compare::check;
use crate::random::{rewards, vec_of};

/// More rows, and more responses, than the 65,535 of a grid's other dimensions.
#[test]
fn more_than_65536_rows_and_responses() {
    const RESPONSES: usize = 66_000;
    for row_policy in [RowPolicy::Cluster, RowPolicy::Block] {
        let layout = Rows::packed(&vec_of(RESPONSES, |response| response % 3));
        let mut case = LogitsCase::fill(1, layout, 3, DType::F32);
        case.backend.logits.row_policy = row_policy;
        case.config.metrics_scope = MetricsScope::Active;
        case.config.gradient = Gradient::Untouched;
        // The few that act lie anywhere.
        let advantage = |response| if response % 97 == 5 { 0.5 } else { 0.0 };
        case.advantage = Source::PerResponse(vec_of(RESPONSES, advantage));
        check(&case, &format!("{row_policy:?}"));
    }
}

const WIDTH: usize = 3;
/// Of whole vectors, so that a row is summed in the same order wherever it stands.
const COLUMNS: usize = 52;

/// Responses `responses` of a batch of 24 with groups of 8, in this order.
fn part(responses: &[usize], aggregation: Aggregation) -> LogitsCase {
    let mut part = LogitsCase::fill(2, Rows::padded(24, WIDTH), COLUMNS, DType::F32);
    let rows = |values: &Values, elements: usize| {
        let values = values.widened();
        let of_response = |&r: &usize| values[r * elements..(r + 1) * elements].to_vec();
        Values::F32(responses.iter().flat_map(of_response).collect())
    };
    part.logits = rows(&part.logits, WIDTH * COLUMNS);
    part.old_log_prob = part.old_log_prob.as_ref().map(|old| rows(old, WIDTH));
    let tokens = |&response: &usize| part.token_id[response * WIDTH..][..WIDTH].to_vec();
    part.token_id = responses.iter().flat_map(tokens).collect();
    part.layout = crate::logits_case::Slots::Responses(Rows::padded(responses.len(), WIDTH));
    part.advantage = Source::Rewards {
        rewards: rewards(&mut Random(61), 24),
        groups: Groups::uniform(24, 8).unwrap(),
        response_index: Some(responses.iter().map(|&response| response as i32).collect()),
    };
    part.config = Config {
        aggregation,
        normalizer: Normalizer::Value(19.0),
        metrics_scope: MetricsScope::Active,
        entropy_coef: 0.01,
        ..part.config
    };
    part
}

/// Groups straddle micro-batches, responses are shuffled, and the normalizer is the whole batch's:
/// losses add up and gradients do not change.
#[test]
fn micro_batches_add_up() {
    for aggregation in [Aggregation::TokenMean, Aggregation::SeqMeanTokenMean] {
        let order = vec_of(24, |i| i * 7 % 24);
        let whole = check(&part(&order, aggregation), "whole").output;
        let (mut loss, mut entropy, mut gradient) = (0.0, 0.0, vec![]);
        for responses in [&order[..5], &order[5..6], &order[6..]] {
            let output = check(&part(responses, aggregation), "part").output;
            loss += output.loss.metrics.loss;
            entropy += output.loss.metrics.entropy.unwrap().loss;
            gradient.extend(output.d_logits);
        }
        assert_eq!(gradient, whole.d_logits, "{aggregation:?}");
        let metrics = whole.loss.metrics;
        let of_entropy = metrics.entropy.unwrap().loss;
        assert!((loss - metrics.loss).abs() <= TOLERANCE * (metrics.loss.abs() + of_entropy));
        assert!((entropy - of_entropy).abs() <= TOLERANCE * of_entropy);
    }
}

/// The same bits whether tokens are i32 or i64, rows back to back or with gaps, in place or not.
#[test]
fn placement_changes_no_bit() {
    for row_policy in [RowPolicy::Cluster, RowPolicy::Block] {
        let mut case = LogitsCase::fill(3, Rows::padded(4, 2), 3001, DType::Bf16);
        case.backend.logits.row_policy = row_policy;
        let plain = check(&case, "plain").output;
        case.backend.logits.wide_token_ids = true;
        let wide = check(&case, "wide").output;
        case.backend.logits.in_place = true;
        let in_place = check(&case, "in place").output;
        assert_eq!(wide.d_logits, plain.d_logits);
        assert_eq!(in_place.d_logits, plain.d_logits);
        assert_eq!(in_place.loss.metrics, plain.loss.metrics);
    }
}
