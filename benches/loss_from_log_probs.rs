//! `loss_from_log_probs` on the CPU, from a micro-batch to a large global batch, with every
//! response active and with 80 % of them inactive.
//!
//! Throughput is of the bytes that the backend declares: f32 log-probs and a u8 mask in, the f64
//! gradient out.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qae::{
    Advantages, Backend, Config, CpuBackend, Layout, MetricsScope, Normalizer, Tensor, TensorMut,
    TokenBatch, cpu,
};
use std::hint::black_box;

/// Slots per response.
const WIDTH: usize = 1024;
/// 64 k, 1 M, 2.6 M and 16.8 M tokens.
const NUM_ROWS: [usize; 4] = [64, 1024, 2560, 16384];

struct Tensors {
    log_prob: Vec<f32>,
    old_log_prob: Vec<f32>,
    mask: Vec<u8>,
    advantage: Vec<f32>,
}

impl Tensors {
    /// One response in `active_of` has an advantage; log-ratios reach beyond both clip bounds.
    fn new(num_rows: usize, active_of: usize) -> Self {
        let slots = num_rows * WIDTH;
        let old_log_prob: Vec<f32> = (0..slots).map(|i| -((i * 31 % 67) as f32) / 16.0).collect();
        let log_ratio = |i: usize| (i * 7919 % 129) as f32 / 160.0 - 0.4;
        let sign = |row: usize| [1.0, -1.0, -1.0][row % 3];
        Self {
            log_prob: (0..slots).map(|i| old_log_prob[i] + log_ratio(i)).collect(),
            old_log_prob,
            mask: (0..slots).map(|i| u8::from(i % WIDTH < 900)).collect(),
            advantage: (0..num_rows)
                .map(|row| if row % active_of == 0 { sign(row) } else { 0.0 })
                .collect(),
        }
    }

    fn batch(&self) -> TokenBatch<'_> {
        TokenBatch {
            layout: Layout::padded(self.advantage.len(), WIDTH),
            mask: Some(&self.mask),
            log_prob: Tensor::F32(&self.log_prob),
            old_log_prob: Some(Tensor::F32(&self.old_log_prob)),
            ref_log_prob: None,
            importance_weight: None,
            advantages: Advantages::PerResponse(&self.advantage),
        }
    }
}

fn loss_from_log_probs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("loss_from_log_probs/cpu");
    group.sample_size(10);
    for (name, active_of) in [("dense", 1), ("inactive-80", 5)] {
        for num_rows in NUM_ROWS {
            let slots = num_rows * WIDTH;
            let config = Config {
                normalizer: Normalizer::Value(slots as f64),
                metrics_scope: MetricsScope::Active,
                ..Config::default()
            };
            let tensors = Tensors::new(num_rows, active_of);
            let batch = tensors.batch();
            let run = CpuBackend.loss_from_log_probs(&batch, &config).unwrap();
            group.throughput(Throughput::Bytes(run.bytes_moved));
            let mut gradient = run.output.d_log_prob;
            group.bench_function(BenchmarkId::new(name, slots), |bencher| {
                bencher.iter(|| {
                    let target = TensorMut::F64(&mut gradient).into();
                    cpu::loss_from_log_probs_into(black_box(&batch), &config, target)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, loss_from_log_probs);
criterion_main!(benches);
