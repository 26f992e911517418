//! `advantages` on the CPU at the size of one training step: 512 prompts, 16 responses each.
//!
//! Baseline: the serial reference. Against verl's loop: `benches/pytorch/verl_advantages.py`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qae::{AdvantageConfig, Baseline, Groups, Interpolation, cpu, reference};
use std::hint::black_box;

const NUM_GROUPS: usize = 512;
const GROUP_SIZE: usize = 16;
/// Reads a reward (f32); writes a baseline and an advantage (f64).
const BYTES_PER_RESPONSE: u64 = 4 + 8 + 8;

fn advantages(criterion: &mut Criterion) {
    let num_responses = NUM_GROUPS * GROUP_SIZE;
    let rewards: Vec<f32> = (0..num_responses)
        .map(|i| (i * 7919 % 97) as f32 / 96.0)
        .collect();
    let uniform = Groups::uniform(num_responses, GROUP_SIZE).unwrap();
    let interleaved: Vec<i64> = (0..num_responses)
        .map(|i| (i % NUM_GROUPS) as i64)
        .collect();
    let interleaved = Groups::from_ids(&interleaved).unwrap();
    let quantile = AdvantageConfig::default();
    let linear = AdvantageConfig {
        baseline: Baseline::Quantile {
            k: 0.4,
            interpolation: Interpolation::Linear,
        },
        ..quantile
    };
    let mean = AdvantageConfig {
        baseline: Baseline::Mean,
        ..quantile
    };
    let mut group = criterion.benchmark_group("advantages/512x16");
    group.throughput(Throughput::Bytes(num_responses as u64 * BYTES_PER_RESPONSE));
    for (name, groups, config) in [
        ("quantile", &uniform, quantile),
        ("quantile-linear", &uniform, linear),
        ("mean", &uniform, mean),
        ("quantile-interleaved", &interleaved, quantile),
    ] {
        group.bench_function(format!("cpu/{name}"), |bencher| {
            bencher.iter(|| cpu::advantages(black_box(&rewards), groups, &config).unwrap());
        });
        group.bench_function(format!("reference/{name}"), |bencher| {
            bencher.iter(|| reference::advantages(black_box(&rewards), groups, &config).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, advantages);
criterion_main!(benches);
