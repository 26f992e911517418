//! The CPU path takes tokens in blocks: rows of any length, whatever stands in them, have the bits
//! of the reference.

use crate::case::Case;
use crate::determinism::assert_same_bits;
use qae::{Config, DType, Gradient, Layout, MetricsScope, TokenBatch, cpu, reference};
use qae_test_support::{Advantage, Owned, Random, Weight, aggregations, kls, objectives};

/// Around the length of a block, and of what one instruction takes.
const WIDTHS: [usize; 10] = [1, 3, 8, 9, 64, 127, 128, 129, 255, 300];
const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::Bf16, DType::F16];
const POISONS: [f32; 6] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -90.0, 0.0];

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len())]
}

/// One value in `every` is a poison.
fn poison(random: &mut Random, values: &mut [f32], every: usize) {
    for value in values {
        if random.below(every) == 0 {
            *value = pick(random, &POISONS);
        }
    }
}

fn random_case(random: &mut Random, width: usize) -> Case {
    let num_rows = 1 + random.below(5);
    let slots = num_rows * width;
    let mut case = Case::random(random.below(1 << 30) as u64, num_rows, width);
    let every = pick(random, &[2, 50, 1_000_000]);
    poison(random, &mut case.log_prob, every);
    poison(random, case.old_log_prob.as_mut().unwrap(), every);
    poison(random, case.ref_log_prob.as_mut().unwrap(), every);
    if random.below(3) == 0 {
        case.mask = None;
    }
    let mut weight: Vec<f32> = (0..slots).map(|_| random.grid(2.0)).collect();
    poison(random, &mut weight, every);
    case.weight = match random.below(3) {
        0 => Weight::None,
        1 => Weight::PerResponse(weight[..num_rows].to_vec()),
        _ => Weight::PerToken(weight),
    };
    let mut advantage: Vec<f32> = (0..slots).map(|_| random.grid(2.0) - 1.0).collect();
    poison(random, &mut advantage, every);
    for value in &mut advantage {
        *value *= f32::from(u8::from(random.below(4) > 0));
    }
    if random.below(2) == 0 {
        case.advantage = Advantage::PerToken(advantage);
    }
    case
}

fn random_config(random: &mut Random) -> Config {
    Config {
        objective: pick(random, &objectives()),
        kl: pick(random, &kls()),
        aggregation: pick(random, &aggregations()),
        metrics_scope: pick(random, &[MetricsScope::All, MetricsScope::Active]),
        gradient: pick(random, &[Gradient::ZeroFill, Gradient::Untouched]),
        log_ratio_clamp: pick(random, &[None, Some(20.0), Some(0.25)]),
        grad_scale: pick(random, &[1.0, -3.0, 1e38]),
        ..Config::default()
    }
}

#[test]
fn rows_of_any_length_have_the_bits_of_the_reference() {
    let mut random = Random(17);
    for _ in 0..60 {
        for width in WIDTHS {
            let case = random_case(&mut random, width);
            let config = random_config(&mut random);
            let dtype = pick(&mut random, &DTYPES);
            let owned = |values: &Vec<f32>| Owned::new(dtype, values);
            let log_prob = owned(&case.log_prob);
            let old = case.old_log_prob.as_ref().map(owned);
            let old = old.filter(|_| config.objective.uses_ratio() || random.below(2) == 0);
            let reference_log_prob = case.ref_log_prob.as_ref().map(owned);
            let below = |random: &mut Random| random.below(width + 1) as i32;
            let lengths: Vec<i32> = (0..case.num_rows).map(|_| below(&mut random)).collect();
            let layout = Layout::Padded {
                num_rows: case.num_rows,
                width,
                row_stride: width,
                mask_row_stride: width,
                lengths: (random.below(2) == 0).then_some(&lengths),
            };
            let batch = TokenBatch {
                layout,
                log_prob: log_prob.tensor(),
                old_log_prob: old.as_ref().map(Owned::tensor),
                ref_log_prob: reference_log_prob.as_ref().map(Owned::tensor),
                ..case.batch()
            };
            let expected = reference::loss_from_log_probs(&batch, &config).unwrap();
            let found = cpu::loss_from_log_probs(&batch, &config).unwrap();
            assert_same_bits(&found, &expected);
        }
    }
}
