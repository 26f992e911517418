//! `log_probs_from_logits` and its backward pass on the GPU, bf16, at the vocabularies of today's
//! models.
//!
//! Time is the device's, between two events around all iterations of a sample. Throughput is of the
//! bytes that have to move: the forward pass reads the logits once; the backward pass, in place,
//! reads and writes them once, again and again, of whatever the launch before left. The roofline is
//! `copy` in each group, a copy of as many bytes within device memory: the throughput of an operation
//! over the copy's is its share of it. The logits are larger than any cache.

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use half::bf16;
use qae::Gradient;
use qae::cuda::cudarc::driver::{CudaSlice, sys::CUevent_flags};
use qae::cuda::{
    self, Device, DeviceLogits, DeviceLogitsRows, DeviceSlice, DeviceTensor, DeviceTensorMut,
    LogProbsDerivatives, LogProbsOutputs, LogitsGradient, SoftmaxStats, Stream,
};
use std::time::Duration;

/// Llama 2, Llama 3, Qwen 2.5 and Gemma 3.
const VOCABULARIES: [usize; 4] = [32_000, 128_256, 151_936, 262_144];
/// Of logits, in bytes.
const LOGITS_BYTES: usize = 1 << 29;

struct Tensors {
    logits: CudaSlice<bf16>,
    copy: CudaSlice<bf16>,
    token_id: CudaSlice<i64>,
    d_log_prob: CudaSlice<f32>,
    log_prob: CudaSlice<f32>,
    entropy: CudaSlice<f32>,
    stats: CudaSlice<SoftmaxStats>,
    vocab_size: usize,
}

impl Tensors {
    fn new(stream: &Stream, vocab_size: usize) -> Self {
        let memory = stream.cudarc();
        let num_rows = LOGITS_BYTES / 2 / vocab_size;
        let logits: Vec<bf16> = (0..num_rows * vocab_size)
            .map(|i| bf16::from_f32((i * 7919 % 1021) as f32 / 64.0 - 8.0))
            .collect();
        let token_id: Vec<i64> = (0..num_rows)
            .map(|row| (row * 104_729 % vocab_size) as i64)
            .collect();
        Self {
            logits: memory.clone_htod(&logits).unwrap(),
            copy: memory.alloc_zeros(logits.len()).unwrap(),
            token_id: memory.clone_htod(&token_id).unwrap(),
            d_log_prob: memory.clone_htod(&vec![1.0; num_rows]).unwrap(),
            log_prob: memory.alloc_zeros(num_rows).unwrap(),
            entropy: memory.alloc_zeros(num_rows).unwrap(),
            stats: memory.alloc_zeros(num_rows).unwrap(),
            vocab_size,
        }
    }

    fn copy(&mut self, stream: &Stream) {
        let copied = stream.cudarc().memcpy_dtod(&self.logits, &mut self.copy);
        copied.unwrap();
    }

    fn forward(&mut self, stream: &Stream) {
        let values = DeviceTensor::Bf16((&self.logits).into());
        let logits = DeviceLogits::contiguous(values, self.vocab_size);
        let rows = DeviceLogitsRows::new(DeviceSlice::from(&self.token_id));
        let mut outputs = LogProbsOutputs {
            log_prob: Some((&mut self.log_prob).into()),
            entropy: Some((&mut self.entropy).into()),
            log_sum_exp: None,
            stats: Some((&mut self.stats).into()),
        };
        cuda::log_probs_from_logits(stream, &logits, &rows, None, &mut outputs).unwrap();
    }

    fn backward(&mut self, stream: &Stream) {
        let in_place = LogitsGradient::InPlace(DeviceTensorMut::Bf16((&mut self.logits).into()));
        let mut logits = DeviceLogits::contiguous(in_place, self.vocab_size);
        let rows = DeviceLogitsRows::new(DeviceSlice::from(&self.token_id));
        let given = LogProbsDerivatives {
            stats: (&self.stats).into(),
            d_log_prob: (&self.d_log_prob).into(),
            d_entropy: None,
        };
        let gradient = Gradient::ZeroFill;
        cuda::log_probs_from_logits_backward(stream, &mut logits, &rows, &given, gradient).unwrap();
    }
}

/// Time of `iterations` launches, one after another.
fn measure(stream: &Stream, iterations: u64, mut launch: impl FnMut()) -> Duration {
    let event = || {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        stream.cudarc().record_event(flags).unwrap()
    };
    launch();
    let start = event();
    (0..iterations).for_each(|_| launch());
    let milliseconds = start.elapsed_ms(&event()).unwrap();
    Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
}

fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    stream: &Stream,
    tensors: &mut Tensors,
    (name, passes): (&str, usize),
    launch: fn(&mut Tensors, &Stream),
) {
    let bytes = passes * tensors.logits.num_bytes();
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(BenchmarkId::new(name, tensors.vocab_size), |bencher| {
        bencher.iter_custom(|iterations| measure(stream, iterations, || launch(tensors, stream)));
    });
}

fn log_probs_from_logits(criterion: &mut Criterion, stream: &Stream) {
    let mut group = criterion.benchmark_group("log_probs_from_logits/cuda");
    group.sample_size(20);
    for vocab_size in VOCABULARIES {
        let tensors = &mut Tensors::new(stream, vocab_size);
        bench(&mut group, stream, tensors, ("copy", 2), Tensors::copy);
        bench(
            &mut group,
            stream,
            tensors,
            ("forward", 1),
            Tensors::forward,
        );
        bench(
            &mut group,
            stream,
            tensors,
            ("backward", 2),
            Tensors::backward,
        );
    }
    group.finish();
}

fn main() {
    let stream = Device::open(0).and_then(|device| Stream::new(&device));
    match stream {
        Err(error) => println!("nothing was measured: {error}"),
        Ok(stream) => {
            let mut criterion = Criterion::default().configure_from_args();
            log_probs_from_logits(&mut criterion, &stream);
            criterion.final_summary();
        }
    }
}
