//! `loss_from_logits` on the CPU, with every response active and with 80 % of them inactive, and
//! with each way to write the gradient.
//!
//! Throughput is of the bytes that the backend declares: bf16 logits in, twice where a row acts, and
//! f64 rows of the gradient out.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qae::{
    Advantages, Backend, Config, CpuBackend, Gradient, Layout, Logits, LogitsBatch, MetricsScope,
    Normalizer, Tensor, cpu,
};
use std::hint::black_box;

/// Responses, and tokens of each.
const NUM_ROWS: usize = 20;
const WIDTH: usize = 8;
const VOCAB_SIZES: [usize; 2] = [32_000, 151_936];

struct Tensors {
    vocab_size: usize,
    logits: Vec<bf16>,
    token_id: Vec<i32>,
    old_log_prob: Vec<f32>,
    advantage: Vec<f32>,
}

impl Tensors {
    /// One response in `active_of` has an advantage.
    fn new(vocab_size: usize, active_of: usize) -> Self {
        let slots = NUM_ROWS * WIDTH;
        let sign = |row: usize| [1.0, -1.0, -1.0][row % 3];
        let score = |i: usize| (i * 7919 % 1021) as f32 / 64.0 - 8.0;
        Self {
            vocab_size,
            logits: (0..slots * vocab_size)
                .map(|i| bf16::from_f32(score(i)))
                .collect(),
            token_id: (0..slots as i32).map(|slot| slot * 197).collect(),
            old_log_prob: vec![-9.0; slots],
            advantage: (0..NUM_ROWS)
                .map(|row| if row % active_of == 0 { sign(row) } else { 0.0 })
                .collect(),
        }
    }

    fn batch(&self) -> LogitsBatch<'_> {
        LogitsBatch {
            layout: Layout::padded(NUM_ROWS, WIDTH).into(),
            mask: None,
            logits: Logits::contiguous(Tensor::Bf16(&self.logits), self.vocab_size),
            token_id: &self.token_id,
            old_log_prob: Some(Tensor::F32(&self.old_log_prob)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::PerResponse(&self.advantage),
        }
    }
}

fn loss_from_logits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("loss_from_logits/cpu");
    group.sample_size(10);
    for vocab_size in VOCAB_SIZES {
        for (name, active_of, gradient) in [
            ("dense", 1, Gradient::ZeroFill),
            ("inactive-80-zero-fill", 5, Gradient::ZeroFill),
            ("inactive-80-compact", 5, Gradient::Compact),
        ] {
            let config = Config {
                normalizer: Normalizer::Value((NUM_ROWS * WIDTH) as f64),
                metrics_scope: MetricsScope::Active,
                temperature: 0.7,
                gradient,
                ..Config::default()
            };
            let tensors = Tensors::new(vocab_size, active_of);
            let batch = tensors.batch();
            let run = CpuBackend.loss_from_logits(&batch, &config).unwrap();
            group.throughput(Throughput::Bytes(run.bytes_moved));
            group.bench_function(BenchmarkId::new(name, vocab_size), |bencher| {
                bencher.iter(|| cpu::loss_from_logits(black_box(&batch), &config));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, loss_from_logits);
criterion_main!(benches);
