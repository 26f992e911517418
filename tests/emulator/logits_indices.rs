//! Indices of batches of logits that only the device sees: what points outside its tensor makes its
//! row no token, and is counted.

use qae::params::RowPolicy;
use qae::{DType, Gradient, Normalizer};
use qae_emulator::DeviceIndices;

use crate::case::{Rows, Source};
use crate::logits_case::{LogitsCase, Slots};
use crate::logits_compare::check_output;

const POLICIES: [RowPolicy; 2] = [RowPolicy::Cluster, RowPolicy::Block];

/// Asserts that `case` with `seen` on the device gives what `same` gives on checked indices, and
/// counts `out_of_range` rows.
fn check_indices(mut case: LogitsCase, seen: DeviceIndices, same: &LogitsCase, out_of_range: u64) {
    case.backend.device_indices = seen;
    let mut expected = same.expected();
    expected.loss.metrics.out_of_range = out_of_range;
    for row_policy in POLICIES {
        case.backend.logits.row_policy = row_policy;
        let run = case
            .backend
            .run_loss_from_logits(&case.batch(), &case.config);
        check_output(
            same,
            &run.unwrap().output,
            &expected,
            &format!("{row_policy:?}"),
        );
    }
}

#[test]
fn lengths_beyond_the_width_make_their_rows_empty() {
    let layout = |lengths: [i32; 5]| Rows::Padded {
        num_rows: 5,
        width: 3,
        row_stride: 3,
        mask_row_stride: 3,
        lengths: Some(lengths.to_vec()),
    };
    let case = LogitsCase::fill(1, layout([3; 5]), 50, DType::F32);
    let same = LogitsCase {
        layout: Slots::Responses(layout([0, 3, 0, 0, 2])),
        ..case.clone()
    };
    let seen = DeviceIndices {
        lengths: Some(vec![4, 3, i32::MAX, i32::MIN, 2]),
        ..DeviceIndices::default()
    };
    check_indices(case, seen, &same, 3);
}

#[test]
fn offsets_outside_the_batch_make_their_rows_empty() {
    for gradient in [Gradient::ZeroFill, Gradient::Compact] {
        let mut case = LogitsCase::fill(2, Rows::packed(&[3, 2, 4]), 50, DType::F32);
        case.config.gradient = gradient;
        for (seen, num_tokens) in [
            (vec![0, 3, 5, 10], 5),
            (vec![0, 3, 5, i64::MAX], 5),
            (vec![i64::MIN, 3, 5, 9], 6),
        ] {
            for row_policy in POLICIES {
                case.backend.logits.row_policy = row_policy;
                case.backend.device_indices.offsets = Some(seen.clone());
                let run = case
                    .backend
                    .run_loss_from_logits(&case.batch(), &case.config)
                    .unwrap();
                let metrics = run.output.loss.metrics;
                assert_eq!(
                    (metrics.out_of_range, metrics.tokens),
                    (1, num_tokens),
                    "{seen:?}"
                );
            }
        }
    }
}

#[test]
fn responses_of_slots_outside_the_batch_are_none() {
    let layout = |response: [i32; 7]| Slots::Indexed {
        response: response.to_vec(),
        num_responses: 3,
    };
    let mut case = LogitsCase::fill_slots(3, layout([0, 1, 2, 0, 1, 2, 0]), 50, DType::F32);
    // What the host counts are the indices that it sees.
    case.config.normalizer = Normalizer::Value(4.0);
    let same = LogitsCase {
        layout: layout([0, -1, -1, 0, 1, -1, 0]),
        ..case.clone()
    };
    let seen = DeviceIndices {
        slot_response: Some(vec![0, 3, i32::MAX, 0, 1, i32::MIN, 0]),
        ..DeviceIndices::default()
    };
    // Below 0 is none, not a mistake.
    check_indices(case, seen, &same, 2);
}

/// Offsets that overlap count some slots twice: the counts are unspecified, and nothing is written
/// outside of the lists.
#[test]
fn offsets_that_overlap_access_nothing_outside() {
    for gradient in [Gradient::Compact, Gradient::ZeroFill] {
        for seen in [vec![0, 10, 2, 12], vec![0, 12, 0, 12], vec![5, 12, 0, 3]] {
            let mut case = LogitsCase::fill(4, Rows::packed(&[4, 4, 4]), 50, DType::F32);
            case.advantage = Source::PerResponse(vec![1.0; 3]);
            case.config.gradient = gradient;
            case.config.normalizer = Normalizer::Value(12.0);
            case.backend.device_indices.offsets = Some(seen.clone());
            for row_policy in POLICIES {
                case.backend.logits.row_policy = row_policy;
                let result = case
                    .backend
                    .run_loss_from_logits(&case.batch(), &case.config);
                // What is not written where offsets leave gaps is no finding of the kernel's.
                if let Err(error) = result {
                    let message = error.to_string();
                    assert!(
                        !message.contains(" in loss_from_logits"),
                        "{seen:?}: {message}"
                    );
                }
            }
        }
    }
}
