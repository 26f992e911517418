//! `scale_gradient` on the CPU, at the vocabularies of Llama 2, Llama 3 and Qwen 2.5: bf16 in place,
//! with all rows active and with 80 % of them known to be 0.
//!
//! Throughput is of one read and one write of the rows that act.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qae::{Factor, GradientRows, Tensor, TensorMut, cpu};

/// Tokens.
const NUM_ROWS: usize = 60;
const VOCAB_SIZES: [usize; 3] = [32_000, 128_256, 151_936];

fn scale_gradient(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scale_gradient/cpu");
    group.sample_size(10);
    for vocab_size in VOCAB_SIZES {
        let mut gradient: Vec<bf16> = (0..NUM_ROWS * vocab_size)
            .map(|i| bf16::from_f32((i * 7919 % 1021) as f32 / 64.0 - 8.0))
            .collect();
        for (name, active_every) in [("dense", 1), ("80 % inactive", 5)] {
            let row_gradient: Vec<f32> = (0..NUM_ROWS)
                .map(|row| f32::from(u8::from(row % active_every == 0)))
                .collect();
            // Of magnitude 1, so that the values stay what they are over any number of calls.
            let factor = Factor {
                value: -1.0,
                row_gradient: Some(Tensor::F32(&row_gradient)),
            };
            let num_active = NUM_ROWS.div_ceil(active_every);
            group.throughput(Throughput::Bytes((2 * 2 * num_active * vocab_size) as u64));
            group.bench_function(BenchmarkId::new(name, vocab_size), |bencher| {
                bencher.iter(|| {
                    let values = TensorMut::Bf16(&mut gradient);
                    let rows = GradientRows::contiguous(values, NUM_ROWS, vocab_size);
                    cpu::scale_gradient_in_place(rows, &factor)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, scale_gradient);
criterion_main!(benches);
