//! Indices that only the device sees: one that points outside its tensor makes its row empty or
//! inactive and is counted, and nothing is read there.

use qae::{DType, Gradient, Groups, MetricsScope};
use qae_emulator::DeviceIndices;

use crate::case::{Case, Rows, Source};
use crate::compare::check_output;
use crate::random::fill;

/// Asserts that `case` with `seen` on the device gives what `same` gives on checked indices, and
/// counts `out_of_range` rows.
fn check_indices(mut case: Case, seen: DeviceIndices, same: &Case, out_of_range: u64) {
    // The rows that are out of range are written or not, as their place is unknown.
    case.config.gradient = Gradient::Untouched;
    case.backend.device_indices = seen;
    let run = case.backend.run_loss(&case.batch(), &case.config).unwrap();
    let mut expected = qae::reference::loss_from_log_probs(&same.batch(), &case.config).unwrap();
    expected.metrics.out_of_range = out_of_range;
    check_output(same, &run.output, &expected, "indices");
}

#[test]
fn lengths_beyond_the_width_make_their_rows_empty() {
    let layout = |lengths: &[i32]| Rows::Padded {
        num_rows: 5,
        width: 33,
        row_stride: 33,
        mask_row_stride: 33,
        lengths: Some(lengths.to_vec()),
    };
    let case = fill(47, layout(&[33; 5]), DType::F32);
    let same = Case {
        layout: layout(&[0, 33, 0, 0, 12]),
        ..case.clone()
    };
    let seen = DeviceIndices {
        lengths: Some(vec![34, 33, i32::MAX, i32::MIN, 12]),
        ..DeviceIndices::default()
    };
    check_indices(case, seen, &same, 3);
}

#[test]
fn offsets_that_are_not_in_order_make_their_rows_empty() {
    let case = fill(48, Rows::packed(&[20, 10, 10, 10]), DType::F32);
    for (seen, num_tokens) in [
        (vec![0, 20, 30, 40, 51], 40),
        (vec![0, 20, 30, 40, i64::MAX], 40),
        (vec![i64::MIN, 20, 30, 40, 50], 30),
    ] {
        let mut case = case.clone();
        case.config.gradient = Gradient::Untouched;
        case.backend.device_indices.offsets = Some(seen);
        let run = case.backend.run_loss(&case.batch(), &case.config).unwrap();
        assert_eq!(run.output.metrics.out_of_range, 1);
        assert_eq!(run.output.metrics.tokens, num_tokens);
    }
}

#[test]
fn responses_out_of_range_are_inactive() {
    let mut case = fill(49, Rows::padded(6, 21), DType::F32);
    case.config.metrics_scope = MetricsScope::Active;
    let source = |index: [i32; 6]| Source::Rewards {
        rewards: vec![1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        groups: Groups::uniform(8, 4).unwrap(),
        response_index: Some(index.to_vec()),
    };
    case.advantage = source([0; 6]);
    // Responses 1 and 5 have an advantage of 0, as a row out of range has.
    let same = Case {
        advantage: source([0, 1, 1, 1, 1, 0]),
        ..case.clone()
    };
    let seen = DeviceIndices {
        response_index: Some(vec![0, -1, 8, i32::MAX, i32::MIN, 0]),
        ..DeviceIndices::default()
    };
    check_indices(case, seen, &same, 4);
}
