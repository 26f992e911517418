//! Results in the caller's memory are those of the reference, rounded once, and nothing else is
//! written.

use crate::case::{Case, config, configs};
use crate::{assert_same_tensors, run};
use half::bf16;
use qae::cpu::{self, LogitsTargets};
use qae::{
    Config, CpuBackend, Gradient, Layout, Logits, LogitsBatch, LogitsLayout, LogitsMut,
    LogitsOutput, RowsMut, Tensor, TensorMut, reference,
};
use qae_test_support::bits;

const ROWS: usize = 5;
const WIDTH: usize = 4;
const VOCAB: usize = 7;
const SLOTS: usize = ROWS * WIDTH;
const POISON: f64 = 12_352.0;

fn case() -> Case {
    Case::random(91, ROWS, WIDTH, VOCAB)
}

fn modes() -> Vec<Config> {
    let modes = [Gradient::ZeroFill, Gradient::Untouched];
    let all = configs().into_iter();
    all.flat_map(|config| modes.map(|gradient| Config { gradient, ..config }))
        .collect()
}

fn acts(case: &Case, config: &Config, row: usize) -> bool {
    let everywhere = config.kl.is_some() || config.entropy_coef != 0.0;
    everywhere || case.advantage_of(row * WIDTH) != 0.0
}

/// Where element `column` of slot `slot` of a tensor with these strides is.
fn place(slot: usize, column: usize, [response, row]: [usize; 2]) -> usize {
    slot / WIDTH * response + slot % WIDTH * row + column
}

#[test]
fn the_reference_bit_for_bit_and_the_gaps_untouched() {
    let case = case();
    let strides = [WIDTH * (VOCAB + 2) + 3, VOCAB + 2];
    for config in modes() {
        let expected = reference::loss_from_logits(&case.batch(), &config).unwrap();
        let mut d_logits = vec![POISON; ROWS * strides[0]];
        let [mut d_log_prob, mut log_prob] = [(); 2].map(|()| vec![POISON; ROWS * (WIDTH + 1)]);
        let mut entropy = vec![POISON; SLOTS];
        let rows = |values| RowsMut {
            values,
            row_stride: Some(WIDTH + 1),
        };
        let targets = LogitsTargets {
            d_logits: Some(LogitsMut {
                values: TensorMut::F64(&mut d_logits),
                row_stride: Some(strides[1]),
                response_stride: Some(strides[0]),
            }),
            d_log_prob: Some(rows(TensorMut::F64(&mut d_log_prob))),
            log_prob: Some(rows(TensorMut::F64(&mut log_prob))),
            entropy: Some(TensorMut::F64(&mut entropy).into()),
        };
        let results = cpu::loss_from_logits_into(&case.batch(), &config, targets).unwrap();
        assert_eq!(results.loss.metrics, expected.loss.metrics);
        assert_eq!(results.loss.active_rows, expected.loss.active_rows);
        assert!(results.active_slots.is_empty());
        assert_eq!(bits(&entropy), bits(&expected.entropy));
        let untouched = config.gradient == Gradient::Untouched;
        let mut of_logits = vec![POISON; d_logits.len()];
        let [mut of_log_prob, mut log_probs] = [(); 2].map(|()| vec![POISON; d_log_prob.len()]);
        for slot in 0..SLOTS {
            let token = place(slot, 0, [WIDTH + 1, 1]);
            log_probs[token] = expected.log_prob[slot];
            if untouched && !acts(&case, &config, slot / WIDTH) {
                continue;
            }
            of_log_prob[token] = expected.loss.d_log_prob[slot];
            for column in 0..VOCAB {
                let value = expected.d_logits[slot * VOCAB + column];
                of_logits[place(slot, column, strides)] = value;
            }
        }
        assert_eq!(bits(&d_logits), bits(&of_logits));
        assert_eq!(bits(&d_log_prob), bits(&of_log_prob));
        assert_eq!(bits(&log_prob), bits(&log_probs));
    }
}

#[test]
fn narrow_targets_are_rounded_once() {
    let case = case();
    for config in modes() {
        let expected = reference::loss_from_logits(&case.batch(), &config).unwrap();
        let mut d_logits = vec![f32::NAN; SLOTS * VOCAB];
        let mut d_log_prob = vec![bf16::NAN; SLOTS];
        let mut log_prob = vec![f32::NAN; SLOTS];
        let targets = LogitsTargets {
            d_logits: Some(TensorMut::F32(&mut d_logits).into()),
            d_log_prob: Some(TensorMut::Bf16(&mut d_log_prob).into()),
            log_prob: Some(TensorMut::F32(&mut log_prob).into()),
            entropy: None,
        };
        cpu::loss_from_logits_into(&case.batch(), &config, targets).unwrap();
        for slot in 0..SLOTS {
            assert_eq!(log_prob[slot], expected.log_prob[slot] as f32);
            let is_written =
                config.gradient == Gradient::ZeroFill || acts(&case, &config, slot / WIDTH);
            let rows = &d_logits[slot * VOCAB..][..VOCAB];
            if !is_written {
                assert!(d_log_prob[slot].is_nan() && rows.iter().all(|x| x.is_nan()));
                continue;
            }
            let exact = expected.loss.d_log_prob[slot];
            let error = f64::from(d_log_prob[slot]) - exact;
            assert!(error.abs() <= exact.abs() / 256.0);
            for (found, exact) in rows.iter().zip(&expected.d_logits[slot * VOCAB..]) {
                assert_eq!(found.to_bits(), (*exact as f32).to_bits());
            }
        }
    }
}

/// The same slots, backwards, and one that belongs to no response.
struct Shuffled {
    case: Case,
    response: Vec<i32>,
}

impl Shuffled {
    fn new() -> Self {
        let mut case = case();
        case.logits = case.logits.chunks(VOCAB).rev().flatten().copied().collect();
        case.token_id.reverse();
        for tensor in [&mut case.old_log_prob, &mut case.ref_log_prob] {
            tensor.as_mut().unwrap().reverse();
        }
        case.mask.as_mut().unwrap().reverse();
        let mut response: Vec<i32> = (0..SLOTS).map(|slot| (slot / WIDTH) as i32).collect();
        response.reverse();
        response[6] = -1;
        Self { case, response }
    }

    fn batch(&self) -> LogitsBatch<'_> {
        LogitsBatch {
            layout: LogitsLayout::Indexed {
                response: &self.response,
                num_responses: ROWS,
            },
            ..self.case.batch()
        }
    }
}

#[test]
fn slots_in_any_order() {
    let shuffled = Shuffled::new();
    for config in modes() {
        let expected = reference::loss_from_logits(&shuffled.batch(), &config).unwrap();
        assert_same_tensors(
            &run(&CpuBackend, &shuffled.batch(), &config),
            &expected,
            "indexed",
        );
        let mut d_logits = vec![POISON; SLOTS * VOCAB];
        let mut log_prob = vec![POISON; SLOTS];
        let targets = LogitsTargets {
            d_logits: Some(TensorMut::F64(&mut d_logits).into()),
            log_prob: Some(TensorMut::F64(&mut log_prob).into()),
            ..LogitsTargets::default()
        };
        cpu::loss_from_logits_into(&shuffled.batch(), &config, targets).unwrap();
        assert_eq!(bits(&log_prob), bits(&expected.log_prob));
        for slot in 0..SLOTS {
            let response = usize::try_from(shuffled.response[slot]);
            let is_written = config.gradient == Gradient::ZeroFill
                || response.is_ok_and(|row| acts(&shuffled.case, &config, row));
            let found = &d_logits[slot * VOCAB..][..VOCAB];
            if is_written {
                assert_eq!(
                    bits(found),
                    bits(&expected.d_logits[slot * VOCAB..][..VOCAB])
                );
            } else {
                assert_eq!(found, [POISON; VOCAB]);
            }
        }
    }
}

fn compact(expected: &LogitsOutput, config: &Config, room: usize) {
    let mut d_logits = vec![POISON; room * (VOCAB + 1)];
    let targets = LogitsTargets {
        d_logits: Some(LogitsMut {
            values: TensorMut::F64(&mut d_logits),
            row_stride: Some(VOCAB + 1),
            response_stride: None,
        }),
        ..LogitsTargets::default()
    };
    let results = cpu::loss_from_logits_into(&case().batch(), config, targets).unwrap();
    assert_eq!(results.active_slots, expected.active_slots);
    assert_eq!(results.loss.metrics, expected.loss.metrics);
    for (row, found) in d_logits.chunks(VOCAB + 1).enumerate() {
        assert_eq!(found[VOCAB], POISON);
        match expected.d_logits.chunks(VOCAB).nth(row) {
            Some(of_row) => assert_eq!(bits(&found[..VOCAB]), bits(of_row)),
            None => assert_eq!(found, [POISON; VOCAB + 1]),
        }
    }
}

#[test]
fn compact_rows_have_room_to_spare_or_too_little() {
    for config in configs() {
        let config = Config {
            gradient: Gradient::Compact,
            ..config
        };
        let expected = reference::loss_from_logits(&case().batch(), &config).unwrap();
        let active = expected.active_slots.len();
        assert!(active > 1);
        for room in [active, SLOTS, active - 1, 0] {
            compact(&expected, &config, room);
        }
    }
}

#[test]
fn f64_logits_in_a_packed_layout() {
    let case = case();
    let logits: Vec<f64> = (case.logits.iter().enumerate())
        .map(|(i, &x)| f64::from(x) + (i % 13) as f64 * 1e-11)
        .collect();
    let old: Vec<f64> = (case.old_log_prob.as_ref().unwrap().iter())
        .map(|&x| f64::from(x) + 1e-11)
        .collect();
    let batch = LogitsBatch {
        layout: Layout::Packed {
            offsets: &[0, 3, 3, 20],
        }
        .into(),
        logits: Logits::contiguous(Tensor::F64(&logits), VOCAB),
        old_log_prob: Some(Tensor::F64(&old)),
        ref_log_prob: None,
        advantages: qae::Advantages::PerResponse(&[1.0, -1.0, -0.5]),
        ..case.batch()
    };
    let expected = reference::loss_from_logits(&batch, &config()).unwrap();
    let found = run(&CpuBackend, &batch, &config());
    assert_same_tensors(&found, &expected, "f64");
    let rounded: Vec<f32> = logits.iter().map(|&x| x as f32).collect();
    let narrow = LogitsBatch {
        logits: Logits::contiguous(Tensor::F32(&rounded), VOCAB),
        ..batch
    };
    let narrow = run(&CpuBackend, &narrow, &config());
    assert_ne!(bits(&narrow.log_prob), bits(&found.log_prob));
}

fn rows(
    values: &mut [f64],
    row_stride: Option<usize>,
    response_stride: Option<usize>,
) -> LogitsTargets<'_> {
    LogitsTargets {
        d_logits: Some(LogitsMut {
            values: TensorMut::F64(values),
            row_stride,
            response_stride,
        }),
        ..LogitsTargets::default()
    }
}

#[test]
fn targets_that_do_not_fit() {
    let case = case();
    let mut values = vec![POISON; SLOTS * VOCAB];
    let refused = |targets: LogitsTargets<'_>, config: &Config, message: &str| {
        let run = cpu::loss_from_logits_into(&case.batch(), config, targets);
        assert_eq!(run.unwrap_err().to_string(), message);
    };
    let message = "d_logits: expected 140 elements, found 139";
    refused(rows(&mut values[1..], None, None), &config(), message);
    let message = "d_logits.row_stride: expected at least the vocabulary of 7, found 6";
    refused(rows(&mut values, Some(6), None), &config(), message);
    let message = "d_logits.response_stride: expected at least the 28 elements of a response, \
                   found 27";
    refused(rows(&mut values, None, Some(27)), &config(), message);
    let compact = Config {
        gradient: Gradient::Compact,
        ..config()
    };
    let message = "d_logits.response_stride: expected none, as a compact gradient has one row \
                   after another, found 28";
    refused(rows(&mut values, None, Some(28)), &compact, message);
    let targets = LogitsTargets {
        entropy: Some(TensorMut::F64(&mut values[..SLOTS - 1]).into()),
        ..LogitsTargets::default()
    };
    refused(
        targets,
        &config(),
        "entropy: expected 20 elements, found 19",
    );
    assert_eq!(values, [POISON; SLOTS * VOCAB]);
}
