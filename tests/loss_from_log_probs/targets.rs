//! Results in the caller's memory are those of the reference, rounded once, and nothing else is
//! written.

use crate::case::Case;
use half::{bf16, f16};
use qae::{
    Config, Gradient, Groups, Layout, MetricsScope, RowsMut, Tensor, TensorMut, TokenBatch, cpu,
    reference,
};
use qae_test_support::{Advantage, Weight, bits, kls, objectives};

const WIDTH: usize = 9;
const ROWS: usize = 7;
/// Poison of what must not be written.
const POISON: f32 = 12_352.0;

fn case() -> Case {
    let case = Case::random(91, ROWS, WIDTH);
    Case {
        weight: Weight::PerToken((0..ROWS * WIDTH).map(|i| i as f32 / 37.0).collect()),
        ..case
    }
}

fn configs() -> Vec<Config> {
    let mut configs = vec![];
    for objective in objectives() {
        for kl in [None, kls()[4]] {
            for gradient in [Gradient::ZeroFill, Gradient::Untouched] {
                configs.push(Config {
                    objective,
                    kl,
                    gradient,
                    metrics_scope: MetricsScope::All,
                    ..Config::default()
                });
            }
        }
    }
    configs
}

/// Asserts that neither neighbor of `found` is nearer to `exact`.
fn assert_nearest(found: f64, neighbors: [f64; 2], exact: f64) {
    let distance = |value: f64| (value - exact).abs();
    for neighbor in neighbors.into_iter().filter(|neighbor| !neighbor.is_nan()) {
        assert!(distance(found) <= distance(neighbor), "{found} for {exact}");
    }
}

/// Asserts that `found`, rows `stride` apart, holds the rows of `expected` rounded, where they are
/// written, and poison elsewhere.
fn assert_rounded<T: Copy + Into<f64>>(
    found: &[T],
    neighbors: impl Fn(T) -> [T; 2],
    expected: &[f64],
    stride: usize,
    is_written: impl Fn(usize) -> bool,
) {
    for (place, &value) in found.iter().enumerate() {
        let (row, t) = (place / stride, place % stride);
        if t < WIDTH && row < ROWS && is_written(row) {
            let exact = expected[row * WIDTH + t];
            assert_nearest(value.into(), neighbors(value).map(T::into), exact);
            assert!(value.into().is_sign_positive() || exact < 0.0);
        } else {
            assert_eq!(value.into(), f64::from(POISON));
        }
    }
}

#[test]
fn every_dtype_and_stride_is_the_reference_rounded_once() {
    let case = case();
    for config in configs() {
        let expected = reference::loss_from_log_probs(&case.batch(), &config).unwrap();
        let acts = |row| {
            config.gradient == Gradient::ZeroFill
                || config.kl.is_some()
                || case.row_advantage(row) != 0.0
        };
        for stride in [None, Some(WIDTH), Some(WIDTH + 4)] {
            let run = |values: TensorMut<'_>| {
                let target = RowsMut {
                    values,
                    row_stride: stride,
                };
                let results = cpu::loss_from_log_probs_into(&case.batch(), &config, target);
                let results = results.unwrap();
                assert_eq!(results.metrics, expected.metrics);
                assert_eq!(results.active_rows, expected.active_rows);
                assert!(results.baseline.is_none() && results.advantage.is_none());
            };
            let stride = stride.unwrap_or(WIDTH);
            // With the gap behind the last row, or without.
            let len = ROWS * stride - if stride % 2 == 0 { 4 } else { 0 };
            let gradient = &expected.d_log_prob;
            let mut found = vec![f64::from(POISON); len];
            run(TensorMut::F64(&mut found));
            assert_rounded(
                &found,
                |x| [x.next_down(), x.next_up()],
                gradient,
                stride,
                acts,
            );
            for row in (0..ROWS).filter(|&row| acts(row)) {
                let of_row = &gradient[row * WIDTH..][..WIDTH];
                assert_eq!(bits(&found[row * stride..][..WIDTH]), bits(of_row));
            }
            let mut found = vec![POISON; len];
            run(TensorMut::F32(&mut found));
            assert_rounded(
                &found,
                |x| [x.next_down(), x.next_up()],
                gradient,
                stride,
                acts,
            );
            let mut found = vec![bf16::from_f32(POISON); len];
            run(TensorMut::Bf16(&mut found));
            let near =
                |x: bf16| [x.to_bits().wrapping_sub(1), x.to_bits() + 1].map(bf16::from_bits);
            assert_rounded(&found, near, gradient, stride, acts);
            let mut found = vec![f16::from_f32(POISON); len];
            run(TensorMut::F16(&mut found));
            let near = |x: f16| [x.to_bits().wrapping_sub(1), x.to_bits() + 1].map(f16::from_bits);
            assert_rounded(&found, near, gradient, stride, acts);
        }
    }
}

#[test]
fn rewards_bring_baselines_and_advantages() {
    let case = case();
    let groups = Groups::uniform(ROWS, 1).unwrap();
    let rewards = [1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 1.0];
    let batch = TokenBatch {
        advantages: qae::Advantages::FromRewards {
            rewards: &rewards,
            groups: &groups,
            response_index: None,
        },
        ..case.batch()
    };
    let expected = reference::loss_from_log_probs(&batch, &Config::default()).unwrap();
    let mut found = vec![f64::NAN; ROWS * WIDTH];
    let target = TensorMut::F64(&mut found).into();
    let results = cpu::loss_from_log_probs_into(&batch, &Config::default(), target).unwrap();
    assert_eq!(results.metrics, expected.metrics);
    assert_eq!(results.baseline, expected.baseline);
    assert_eq!(results.advantage, expected.advantage);
    assert!(results.advantage.is_some());
    assert_eq!(bits(&found), bits(&expected.d_log_prob));
}

#[test]
fn packed_rows_have_no_stride() {
    let case = Case::random(92, 2, 3);
    let batch = TokenBatch {
        layout: Layout::Packed {
            offsets: &[0, 2, 6],
        },
        ..case.batch()
    };
    let expected = reference::loss_from_log_probs(&batch, &Config::default()).unwrap();
    let mut found = [POISON; 6];
    let target = TensorMut::F32(&mut found).into();
    cpu::loss_from_log_probs_into(&batch, &Config::default(), target).unwrap();
    let rounded: Vec<f32> = expected.d_log_prob.iter().map(|&x| x as f32).collect();
    assert_eq!(found[..], rounded);
    let target = RowsMut {
        values: TensorMut::F32(&mut found),
        row_stride: Some(3),
    };
    let error = cpu::loss_from_log_probs_into(&batch, &Config::default(), target).unwrap_err();
    let expected = "d_log_prob.row_stride: expected none, since only the rows of a padded layout \
                    have one, found 3";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn targets_that_do_not_fit() {
    let case = case();
    let mut found = vec![POISON; 100];
    for (len, row_stride, message) in [
        (62, None, "d_log_prob: expected 63 elements, found 62"),
        (
            63,
            Some(8),
            "d_log_prob.row_stride: expected at least the width of 9, found 8",
        ),
        (
            70,
            Some(11),
            "d_log_prob: expected 75 to 77 elements, found 70",
        ),
    ] {
        let target = RowsMut {
            values: TensorMut::F32(&mut found[..len]),
            row_stride,
        };
        let run = cpu::loss_from_log_probs_into(&case.batch(), &Config::default(), target);
        assert_eq!(run.unwrap_err().to_string(), message);
    }
    assert_eq!(found, [POISON; 100]);
}

/// Log-probs that f32 does not have.
fn wide(values: &[f32], seed: usize) -> Vec<f64> {
    let each = values.iter().enumerate();
    each.map(|(i, &x)| f64::from(x) + ((i * 31 + seed) % 17) as f64 * 1e-10)
        .collect()
}

#[test]
fn f64_log_probs_are_not_rounded() {
    let case = Case {
        advantage: Advantage::PerResponse(vec![1.0, -1.0]),
        mask: None,
        ..Case::random(93, 2, 4)
    };
    let log_prob = wide(&case.log_prob, 1);
    let old = wide(case.old_log_prob.as_ref().unwrap(), 2);
    let batch = TokenBatch {
        log_prob: Tensor::F64(&log_prob),
        old_log_prob: Some(Tensor::F64(&old)),
        ref_log_prob: None,
        ..case.batch()
    };
    let config = Config {
        objective: objectives()[3],
        ..Config::default()
    };
    for output in [
        reference::loss_from_log_probs(&batch, &config).unwrap(),
        cpu::loss_from_log_probs(&batch, &config).unwrap(),
    ] {
        for slot in 0..8 {
            // −A·ρ / 8, with the ratio of the f64 values.
            let advantage = case.row_advantage(slot / 4);
            let expected = -advantage * (log_prob[slot] - old[slot]).exp() / 8.0;
            let error = (output.d_log_prob[slot] - expected).abs();
            assert!(error <= 1e-14 * expected.abs(), "slot {slot}: {error}");
        }
    }
    let narrow = case.old_log_prob.as_deref().map(Tensor::F32);
    let mixed = TokenBatch {
        old_log_prob: narrow,
        ..batch
    };
    let error = cpu::loss_from_log_probs(&mixed, &config).unwrap_err();
    let expected = "old_log_prob: expected dtype F64 as log_prob, found F32";
    assert_eq!(error.to_string(), expected);
}
