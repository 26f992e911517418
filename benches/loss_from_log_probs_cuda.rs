//! `loss_from_log_probs` on the GPU, from a micro-batch to a large global batch, with every response
//! active and with 80 % of them inactive.
//!
//! Time is the device's, between two events around all iterations of a sample. Throughput is of the
//! bytes that every tensor element costs once: log-probs and old log-probs (f32), a mask (u8) where
//! there is one, and the gradient (f32), of which inactive responses cost only the last.

use criterion::{BenchmarkId, Criterion, Throughput};
use qae::cuda::cudarc::driver::{CudaSlice, sys::CUevent_flags};
use qae::cuda::{
    self, Device, DeviceAdvantages, DeviceBatch, DeviceLayout, DeviceMetrics, DeviceNormalizer,
    DeviceTensor, DeviceTensorMut, LossOutputs, Stream, Workspace,
};
use qae::{Config, MetricsScope, Normalizer};
use std::time::Duration;

/// Slots per response.
const WIDTH: usize = 1024;
/// 64 k, 1 M, 16.8 M and 134 M tokens.
const NUM_ROWS: [usize; 4] = [64, 1024, 16_384, 131_072];

struct Tensors {
    log_prob: CudaSlice<f32>,
    old_log_prob: CudaSlice<f32>,
    mask: Option<CudaSlice<u8>>,
    offsets: CudaSlice<i64>,
    advantage: CudaSlice<f32>,
    gradient: CudaSlice<f32>,
    num_rows: usize,
}

impl Tensors {
    /// One response in `active_of` has an advantage; log-ratios reach beyond both clip bounds.
    fn new(stream: &Stream, num_rows: usize, active_of: usize, is_masked: bool) -> Self {
        let memory = stream.cudarc();
        let slots = num_rows * WIDTH;
        let old_log_prob: Vec<f32> = (0..slots).map(|i| -((i * 31 % 67) as f32) / 16.0).collect();
        let log_ratio = |i: usize| (i * 7919 % 129) as f32 / 160.0 - 0.4;
        let log_prob: Vec<f32> = (0..slots).map(|i| old_log_prob[i] + log_ratio(i)).collect();
        let mask = || (0..slots).map(|i| u8::from(i % WIDTH < 900)).collect();
        let sign = |row: usize| [1.0, -1.0, -1.0][row % 3];
        let advantage: Vec<f32> = (0..num_rows)
            .map(|row| if row % active_of == 0 { sign(row) } else { 0.0 })
            .collect();
        let offsets: Vec<i64> = (0..=num_rows).map(|row| (row * WIDTH) as i64).collect();
        Self {
            log_prob: memory.clone_htod(&log_prob).unwrap(),
            old_log_prob: memory.clone_htod(&old_log_prob).unwrap(),
            mask: is_masked.then(|| memory.clone_htod::<u8, Vec<u8>>(&mask()).unwrap()),
            offsets: memory.clone_htod(&offsets).unwrap(),
            advantage: memory.clone_htod(&advantage).unwrap(),
            gradient: memory.alloc_zeros(slots).unwrap(),
            num_rows,
        }
    }

    fn bytes(&self, active_of: usize) -> u64 {
        let num_active = self.num_rows.div_ceil(active_of);
        let read = 4 + 4 + usize::from(self.mask.is_some());
        (WIDTH * (num_active * read + self.num_rows * 4)) as u64
    }
}

/// Time of `iterations` launches, one after another.
fn measure(stream: &Stream, tensors: &mut Tensors, config: &Config, iterations: u64) -> Duration {
    let batch = DeviceBatch {
        layout: match &tensors.mask {
            Some(_) => DeviceLayout::padded(tensors.num_rows, WIDTH),
            None => DeviceLayout::Packed {
                offsets: (&tensors.offsets).into(),
                num_slots: tensors.num_rows * WIDTH,
            },
        },
        mask: tensors.mask.as_ref().map(Into::into),
        log_prob: DeviceTensor::F32((&tensors.log_prob).into()),
        old_log_prob: Some(DeviceTensor::F32((&tensors.old_log_prob).into())),
        ref_log_prob: None,
        importance_weight: None,
        advantages: DeviceAdvantages::PerResponse((&tensors.advantage).into()),
    };
    let bytes = cuda::loss_from_log_probs_workspace_bytes(stream, &batch, config).unwrap();
    let mut workspace = Workspace::new(stream, bytes).unwrap();
    let mut metrics = DeviceMetrics::new(stream).unwrap();
    let mut outputs = LossOutputs {
        d_log_prob: DeviceTensorMut::F32((&mut tensors.gradient).into()),
        gradient_row_stride: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: &mut metrics,
    };
    let normalizer = DeviceNormalizer::Config;
    let event = || {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        stream.cudarc().record_event(flags).unwrap()
    };
    let mut launch = || {
        let (outputs, workspace) = (&mut outputs, &mut workspace);
        cuda::loss_from_log_probs(stream, &batch, config, &normalizer, outputs, workspace).unwrap();
    };
    launch(); // the first one of a new workspace finds cold caches
    let start = event();
    (0..iterations).for_each(|_| launch());
    let milliseconds = start.elapsed_ms(&event()).unwrap();
    Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
}

fn loss_from_log_probs(criterion: &mut Criterion, stream: &Stream) {
    let mut group = criterion.benchmark_group("loss_from_log_probs/cuda");
    group.sample_size(20);
    for (layout, is_masked) in [("packed", false), ("padded", true)] {
        for (name, active_of) in [("dense", 1), ("inactive-80", 5)] {
            for num_rows in NUM_ROWS {
                let slots = num_rows * WIDTH;
                let config = Config {
                    normalizer: Normalizer::Value(slots as f64),
                    metrics_scope: MetricsScope::Active,
                    ..Config::default()
                };
                let mut tensors = Tensors::new(stream, num_rows, active_of, is_masked);
                group.throughput(Throughput::Bytes(tensors.bytes(active_of)));
                let id = BenchmarkId::new(format!("{layout}/{name}"), slots);
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|iterations| {
                        measure(stream, &mut tensors, &config, iterations)
                    });
                });
            }
        }
    }
    group.finish();
}

fn main() {
    let stream = Device::open(0).and_then(|device| Stream::new(&device));
    match stream {
        Err(error) => println!("nothing was measured: {error}"),
        Ok(stream) => {
            let mut criterion = Criterion::default().configure_from_args();
            loss_from_log_probs(&mut criterion, &stream);
            criterion.final_summary();
        }
    }
}
