//! Which rows are read, where they lie, and in which dtype.

use crate::case::Rows;
use crate::{backends, backward, forward};
use half::{bf16, f16};
use qae::{Backend, CpuBackend, LogProbsInput, Logits, Tensor};
use qae_test_support::bits;

#[test]
fn masked_rows_leave_no_trace() {
    let clean = Rows::random(31, 6, 7);
    let mask = [1, 0, 255, 1, 0, 0];
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        let mut poisoned = clean.clone();
        poisoned.mask = Some(mask.to_vec());
        for row in (0..6).filter(|&row| mask[row] == 0) {
            poisoned.logits[row * 7..][..7].fill(poison);
            // Such as the label of a token that does not count.
            poisoned.token_id[row] = -100;
        }
        for backend in backends() {
            let all = forward(&*backend, &clean.input());
            let found = forward(&*backend, &poisoned.input());
            let selected = |values: &[f64]| -> Vec<f64> {
                let each = values.iter().zip(mask);
                each.map(|(&x, valid)| if valid == 0 { 0.0 } else { x })
                    .collect()
            };
            assert_eq!(bits(&found.log_prob), bits(&selected(&all.log_prob)));
            assert_eq!(bits(&found.entropy), bits(&selected(&all.entropy)));
            assert_eq!(bits(&found.log_sum_exp), bits(&selected(&all.log_sum_exp)));
            let mut expected = backward(&*backend, &clean.input(), &[1.0; 6], Some(&[0.5; 6]));
            for row in (0..6).filter(|&row| mask[row] == 0) {
                expected[row * 7..][..7].fill(0.0);
            }
            let mut d_log_prob = [1.0; 6];
            d_log_prob[1] = poison;
            let found = backward(&*backend, &poisoned.input(), &d_log_prob, Some(&[0.5; 6]));
            assert_eq!(bits(&found), bits(&expected));
        }
    }
}

#[test]
fn derivatives_that_are_not_finite_count_as_zero() {
    let rows = Rows::random(32, 3, 7);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for backend in backends() {
            let of = |g: [f32; 3], h: [f32; 3]| backward(&*backend, &rows.input(), &g, Some(&h));
            let found = of([bad, 1.0, bad], [1.0, bad, bad]);
            let expected = of([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]);
            assert_eq!(bits(&found), bits(&expected));
        }
    }
}

#[test]
fn strides_skip_the_gaps() {
    let rows = Rows::random(33, 5, 9);
    let expected = forward(&CpuBackend, &rows.input());
    let gradient = backward(&CpuBackend, &rows.input(), &[1.0; 5], None);
    // With and without the gap behind the last row.
    for len in [4 * 13 + 9, 5 * 13] {
        let mut logits = vec![f32::NAN; len];
        for row in 0..5 {
            logits[row * 13..][..9].copy_from_slice(rows.row(row));
        }
        let strided = LogProbsInput {
            logits: Logits {
                values: Tensor::F32(&logits),
                vocab_size: 9,
                row_stride: 13,
                response_stride: None,
            },
            ..rows.input()
        };
        for backend in backends() {
            assert_eq!(forward(&*backend, &strided), expected);
            let found = backward(&*backend, &strided, &[1.0; 5], None);
            assert_eq!(bits(&found), bits(&gradient));
        }
    }
}

#[test]
fn narrow_dtypes_are_widened_exactly() {
    let rows = Rows::random(34, 4, 17);
    let as_bf16: Vec<bf16> = rows.logits.iter().map(|&x| bf16::from_f32(x)).collect();
    let as_f16: Vec<f16> = rows.logits.iter().map(|&x| f16::from_f32(x)).collect();
    for values in [Tensor::Bf16(&as_bf16), Tensor::F16(&as_f16)] {
        let narrow = LogProbsInput {
            logits: Logits::contiguous(values, 17),
            ..rows.input()
        };
        let mut widened = rows.clone();
        widened.logits = (0..values.len()).map(|i| values.get(i) as f32).collect();
        for backend in backends() {
            let expected = forward(&*backend, &widened.input());
            assert_eq!(forward(&*backend, &narrow), expected);
            let of = |input| backward(&*backend, &input, &[1.0; 4], Some(&[0.5; 4]));
            assert_eq!(bits(&of(narrow)), bits(&of(widened.input())));
        }
    }
}

#[test]
fn no_rows_have_no_results() {
    let rows = Rows {
        vocab_size: 5,
        logits: vec![],
        token_id: vec![],
        mask: Some(vec![]),
        temperature: 1.0,
    };
    for backend in backends() {
        assert!(forward(&*backend, &rows.input()).log_prob.is_empty());
        assert!(backward(&*backend, &rows.input(), &[], Some(&[])).is_empty());
    }
}

#[test]
fn the_cpu_declares_what_it_reads_and_writes() {
    let mut rows = Rows::random(35, 4, 8);
    let forward = |rows: &Rows| CpuBackend.log_probs_from_logits(&rows.input()).unwrap();
    let backward = |rows: &Rows, g: &[f32], h: Option<&[f32]>| {
        let run = CpuBackend.log_probs_from_logits_backward(&rows.input(), g, h);
        run.unwrap().bytes_moved
    };
    // Rows of f32 and i32 ids in, three f64 out.
    assert_eq!(forward(&rows).bytes_moved, 4 * (8 * 4 + 4 + 3 * 8));
    // Derivatives, rows and ids in, f64 rows out.
    let expected = 4 * (4 + 8 * 4 + 4 + 8 * 8);
    assert_eq!(backward(&rows, &[1.0; 4], None), expected);
    // Rows without a derivative and masked rows are not read.
    let g = [1.0, 0.0, 1.0, 1.0];
    assert_eq!(backward(&rows, &g, None), expected - 8 * 4);
    let h = [0.0, 1.0, 0.0, 0.0];
    assert_eq!(backward(&rows, &g, Some(&h)), expected + 4 * 4);
    rows.mask = Some(vec![1, 1, 1, 0]);
    let expected = 4 * (4 + 1 + 3 * 8) + 3 * 8 * 4;
    assert_eq!(forward(&rows).bytes_moved, expected);
}
