//! `log_probs_from_logits` and its backward pass on the CPU, at the vocabularies of Llama 2, Llama 3
//! and Qwen 2.5.
//!
//! Throughput is of the bytes that the backend declares: bf16 logits in; three f64 a row, or f64 rows
//! of the gradient, out.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qae::{Backend, CpuBackend, LogProbsInput, Logits, Tensor, cpu};
use std::hint::black_box;

/// Tokens.
const NUM_ROWS: usize = 64;
const VOCAB_SIZES: [usize; 3] = [32_000, 128_256, 151_936];

fn logits(vocab_size: usize) -> Vec<bf16> {
    (0..NUM_ROWS * vocab_size)
        .map(|i| bf16::from_f32((i * 7919 % 1021) as f32 / 64.0 - 8.0))
        .collect()
}

fn log_probs_from_logits(criterion: &mut Criterion) {
    let token_id: Vec<i32> = (0..NUM_ROWS as i32).map(|row| row * 397).collect();
    let derivatives = vec![1.0; NUM_ROWS];
    let mut group = criterion.benchmark_group("log_probs_from_logits/cpu");
    group.sample_size(10);
    for vocab_size in VOCAB_SIZES {
        let logits = logits(vocab_size);
        let input = LogProbsInput {
            logits: Logits::contiguous(Tensor::Bf16(&logits), vocab_size),
            token_id: &token_id,
            mask: None,
            temperature: 0.7,
        };
        let run = CpuBackend.log_probs_from_logits(&input).unwrap();
        group.throughput(Throughput::Bytes(run.bytes_moved));
        group.bench_function(BenchmarkId::new("forward", vocab_size), |bencher| {
            bencher.iter(|| cpu::log_probs_from_logits(black_box(&input)));
        });
        let backward = |input: &LogProbsInput<'_>| {
            CpuBackend.log_probs_from_logits_backward(input, &derivatives, Some(&derivatives))
        };
        group.throughput(Throughput::Bytes(backward(&input).unwrap().bytes_moved));
        group.bench_function(BenchmarkId::new("backward", vocab_size), |bencher| {
            bencher.iter(|| backward(black_box(&input)));
        });
    }
    group.finish();
}

criterion_group!(benches, log_probs_from_logits);
criterion_main!(benches);
