//! Row lengths around every boundary of the kernels, and rows against the tiles and spans that cut
//! or gather them.

use qae::{Aggregation, DType, Objective};

use crate::case::{Case, Rows};
use crate::compare::check;
use crate::random::fill;

/// Around vectors of 4 and 8, a warp, a warp of vectors, a block, a tile and a row's saved bits.
const LENGTHS: [usize; 24] = [
    0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4095,
    4096, 4097,
];

/// Each kernel that streams tokens: tiles, rows, rows scanned first.
fn check_kernels(case: &Case, what: &str) {
    check(case, what);
    let mut rows = case.clone();
    rows.config.objective = Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max: None,
    };
    check(&rows, &format!("{what}, GSPO"));
    let mut means = case.clone();
    means.config.aggregation = Aggregation::SeqMeanTokenMean;
    let elements = means.layout.borrow().num_mask_elements();
    means.mask.get_or_insert(vec![1; elements]);
    check(&means, &format!("{what}, means over responses"));
}

#[test]
fn every_length_in_every_layout() {
    for length in LENGTHS {
        let padded = Rows::Padded {
            num_rows: 3,
            width: length,
            row_stride: length,
            mask_row_stride: length,
            lengths: Some(vec![length as i32, (length / 2) as i32, length as i32]),
        };
        let packed = Rows::packed(&[length, 0, 3, length]);
        for (layout, dtype) in [
            (padded, DType::F32),
            (packed.clone(), DType::F32),
            (packed, DType::Bf16),
        ] {
            let mut case = fill(length as u64, layout, dtype);
            case.poison_invalid();
            check_kernels(&case, &format!("length {length}, {dtype:?}"));
        }
    }
}

#[test]
fn all_none_or_one_of_the_tokens_valid() {
    const WIDTH: usize = 41;
    for valid in ["all", "none", "one"] {
        let mut case = fill(7, Rows::padded(WIDTH, WIDTH), DType::F32);
        let is_valid = |slot: usize| match valid {
            "all" => true,
            "none" => false,
            // A different one in each row.
            _ => slot / WIDTH == slot % WIDTH,
        };
        let mask = (0..WIDTH * WIDTH).map(|slot| u8::from(is_valid(slot)));
        case.mask = Some(mask.collect());
        case.poison_invalid();
        check_kernels(&case, valid);
    }
}

#[test]
fn rows_over_several_tiles() {
    for layout in [Rows::padded(3, 4099), Rows::packed(&[5000, 1, 0, 3000, 2])] {
        for dtype in [DType::F32, DType::F16] {
            check_kernels(&fill(3, layout.clone(), dtype), &format!("{layout:?}"));
        }
    }
}

/// The tile that begins a row does not see that it is active.
#[test]
fn a_row_is_active_by_a_token_in_any_of_its_tiles() {
    const WIDTH: usize = 5000;
    for only in [0, 1023, 1024, 2500, 4096, 4999] {
        let mut case = fill(5, Rows::padded(4, WIDTH), DType::F32);
        let mask = (0..4 * WIDTH).map(|slot| u8::from(slot % WIDTH == only));
        case.mask = Some(mask.collect());
        case.poison_invalid();
        let run = check(&case, &format!("token {only}"));
        assert_eq!(run.output.active_rows, [0, 2, 3]);
    }
}

#[test]
fn more_rows_in_a_tile_than_it_describes_at_once() {
    for num_rows in [63, 64, 65, 127, 128, 129, 300] {
        let lengths: Vec<usize> = (0..num_rows).map(|row| row * 7 % 5).collect();
        let empty = vec![0; num_rows];
        for lengths in [lengths, empty] {
            let case = fill(11, Rows::packed(&lengths), DType::F32);
            check_kernels(&case, &format!("{num_rows} rows"));
        }
        check_kernels(
            &fill(12, Rows::padded(num_rows, 1), DType::F32),
            "rows of one",
        );
    }
}

#[test]
fn batches_of_more_than_one_span() {
    // 65 tiles; 66 blocks with a row each; 66 blocks with 8 rows each.
    let tiles = fill(13, Rows::padded(5, 65 * 1024 / 5 + 1), DType::F32);
    assert!(check(&tiles, "tiles").loss_trace.launches[0].grid[0] > 64);
    for (rows, width) in [(66, 1030), (528, 3)] {
        let mut case = fill(14, Rows::padded(rows, width), DType::Bf16);
        case.config.aggregation = Aggregation::SeqMeanTokenMean;
        case.mask = Some((0..rows * width).map(|i| u8::from(i % 3 > 0)).collect());
        case.poison_invalid();
        assert!(check(&case, "rows").loss_trace.launches[0].grid[0] > 64);
    }
}

/// Their second pass reads the mask again.
#[test]
fn rows_whose_valid_bits_do_not_fit_into_shared_memory() {
    for lengths in [vec![5000, 3, 0, 9, 1, 1, 2, 4, 0, 0, 7], vec![140_000]] {
        let mut case = fill(15, Rows::packed(&lengths), DType::F32);
        let slots = lengths.iter().sum::<usize>();
        case.mask = Some((0..slots).map(|i| u8::from(i % 7 > 1)).collect());
        case.poison_invalid();
        check_kernels(&case, &format!("{lengths:?}"));
    }
}

#[test]
fn batches_without_rows_or_slots() {
    for layout in [
        Rows::packed(&[]),
        Rows::packed(&[0, 0]),
        Rows::padded(0, 5),
        Rows::padded(3, 0),
    ] {
        let case = fill(1, layout.clone(), DType::F32);
        let run = check(&case, &format!("{layout:?}"));
        assert_eq!(run.output.metrics.loss, 0.0);
    }
}
