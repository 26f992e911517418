//! `loss_from_logits` on the GPU, bf16, with every response active and with 80 % of them inactive, for
//! each of the ways to treat the gradient of the latter.
//!
//! Time is the device's, between two events around all iterations of a sample. Throughput is of the
//! bytes that have to move: a row that acts is read once and its gradient written once, one that does
//! not is written (zero fill) or not touched. The roofline is `copy`, of the logits within device
//! memory: the throughput of a case over the copy's is its share of it. The baseline is
//! `two-operations`, what a trainer does without the fusion: log-probs, a loss of theirs, and the
//! backward pass, which read the logits twice (its throughput is of the bytes of the fused one).
//! Gradients are apart from the logits, so that every launch finds the same; both are larger than any
//! cache.

use criterion::{BenchmarkId, Criterion, Throughput};
use half::bf16;
use qae::cuda::cudarc::driver::{CudaSlice, sys::CUevent_flags};
use qae::cuda::{
    self, Device, DeviceAdvantages, DeviceBatch, DeviceLayout, DeviceLogits, DeviceLogitsBatch,
    DeviceLogitsRows, DeviceMetrics, DeviceNormalizer, DeviceSlice, DeviceTensor, DeviceTensorMut,
    LogProbsDerivatives, LogProbsOutputs, LogitsGradient, LossFromLogitsOutputs, LossOutputs,
    RowPolicy, SoftmaxStats, Stream, Workspace,
};
use qae::{Config, Gradient, MetricsScope, Normalizer};
use std::time::Duration;

const VOCAB_SIZE: usize = 151_936;
/// Tokens of a response.
const WIDTH: usize = 16;
const NUM_RESPONSES: usize = 100;
const NUM_ROWS: usize = NUM_RESPONSES * WIDTH;

struct Tensors {
    logits: CudaSlice<bf16>,
    d_logits: CudaSlice<bf16>,
    token_id: CudaSlice<i64>,
    old_log_prob: CudaSlice<f32>,
    log_prob: CudaSlice<f32>,
    d_log_prob: CudaSlice<f32>,
    stats: CudaSlice<SoftmaxStats>,
    advantage: CudaSlice<f32>,
}

impl Tensors {
    /// One response in `active_of` has an advantage.
    fn new(stream: &Stream, active_of: usize) -> Self {
        let memory = stream.cudarc();
        let logits: Vec<bf16> = (0..NUM_ROWS * VOCAB_SIZE)
            .map(|i| bf16::from_f32((i * 7919 % 1021) as f32 / 64.0 - 8.0))
            .collect();
        let token_id: Vec<i64> = (0..NUM_ROWS)
            .map(|row| (row * 104_729 % VOCAB_SIZE) as i64)
            .collect();
        let sign = |response: usize| [1.0, -1.0][response / active_of % 2];
        let advantage = |response: usize| match response % active_of {
            0 => sign(response),
            _ => 0.0,
        };
        let advantage: Vec<f32> = (0..NUM_RESPONSES).map(advantage).collect();
        Self {
            d_logits: memory.alloc_zeros(logits.len()).unwrap(),
            logits: memory.clone_htod(&logits).unwrap(),
            token_id: memory.clone_htod(&token_id).unwrap(),
            old_log_prob: memory.clone_htod(&vec![-15.0; NUM_ROWS]).unwrap(),
            log_prob: memory.alloc_zeros(NUM_ROWS).unwrap(),
            d_log_prob: memory.alloc_zeros(NUM_ROWS).unwrap(),
            stats: memory.alloc_zeros(NUM_ROWS).unwrap(),
            advantage: memory.clone_htod(&advantage).unwrap(),
        }
    }
}

/// What launches need besides the tensors.
struct Scratch {
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
}

impl Scratch {
    /// More than either loss takes here.
    fn new(stream: &Stream) -> Self {
        Self {
            metrics: DeviceMetrics::new(stream).unwrap(),
            workspace: Workspace::new(stream, 1 << 24).unwrap(),
        }
    }
}

fn fused(stream: &Stream, tensors: &mut Tensors, config: &Config, scratch: &mut Scratch) {
    let batch = DeviceLogitsBatch {
        layout: DeviceLayout::padded(NUM_RESPONSES, WIDTH).into(),
        mask: None,
        token_id: DeviceSlice::from(&tensors.token_id).into(),
        old_log_prob: Some(DeviceTensor::F32((&tensors.old_log_prob).into())),
        ref_log_prob: None,
        importance_weight: None,
        advantages: DeviceAdvantages::PerResponse((&tensors.advantage).into()),
    };
    let values = LogitsGradient::apart(
        DeviceTensor::Bf16((&tensors.logits).into()),
        DeviceTensorMut::Bf16((&mut tensors.d_logits).into()),
    );
    cuda::loss_from_logits(
        stream,
        &batch,
        &mut DeviceLogits::contiguous(values, VOCAB_SIZE),
        config,
        &DeviceNormalizer::Config,
        RowPolicy::Auto,
        &mut LossFromLogitsOutputs::new(&mut scratch.metrics),
        &mut scratch.workspace,
    )
    .unwrap();
}

fn two_operations(stream: &Stream, tensors: &mut Tensors, config: &Config, scratch: &mut Scratch) {
    let rows = DeviceLogitsRows::new(DeviceSlice::from(&tensors.token_id));
    let values = DeviceTensor::Bf16((&tensors.logits).into());
    let logits = DeviceLogits::contiguous(values, VOCAB_SIZE);
    let mut outputs = LogProbsOutputs {
        log_prob: Some((&mut tensors.log_prob).into()),
        stats: Some((&mut tensors.stats).into()),
        ..LogProbsOutputs::default()
    };
    cuda::log_probs_from_logits(stream, &logits, &rows, None, &mut outputs).unwrap();

    let batch = DeviceBatch {
        layout: DeviceLayout::padded(NUM_RESPONSES, WIDTH),
        mask: None,
        log_prob: DeviceTensor::F32((&tensors.log_prob).into()),
        old_log_prob: Some(DeviceTensor::F32((&tensors.old_log_prob).into())),
        ref_log_prob: None,
        importance_weight: None,
        advantages: DeviceAdvantages::PerResponse((&tensors.advantage).into()),
    };
    let mut outputs = LossOutputs {
        d_log_prob: DeviceTensorMut::F32((&mut tensors.d_log_prob).into()),
        gradient_row_stride: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: &mut scratch.metrics,
    };
    let (normalizer, workspace) = (DeviceNormalizer::Config, &mut scratch.workspace);
    let outputs = &mut outputs;
    cuda::loss_from_log_probs(stream, &batch, config, &normalizer, outputs, workspace).unwrap();

    let values = LogitsGradient::apart(
        DeviceTensor::Bf16((&tensors.logits).into()),
        DeviceTensorMut::Bf16((&mut tensors.d_logits).into()),
    );
    let mut logits = DeviceLogits::contiguous(values, VOCAB_SIZE);
    let given = LogProbsDerivatives {
        stats: (&tensors.stats).into(),
        d_log_prob: (&tensors.d_log_prob).into(),
        d_entropy: None,
    };
    let gradient = Gradient::ZeroFill;
    cuda::log_probs_from_logits_backward(stream, &mut logits, &rows, &given, gradient).unwrap();
}

fn copy(stream: &Stream, tensors: &mut Tensors, _: &Config, _: &mut Scratch) {
    let memory = stream.cudarc();
    let copied = memory.memcpy_dtod(&tensors.logits, &mut tensors.d_logits);
    copied.unwrap();
}

type Launch = fn(&Stream, &mut Tensors, &Config, &mut Scratch);

/// Time of `iterations` launches, one after another.
fn measure(
    stream: &Stream,
    tensors: &mut Tensors,
    config: &Config,
    launch: Launch,
    iterations: u64,
) -> Duration {
    let mut scratch = Scratch::new(stream);
    let event = || {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        stream.cudarc().record_event(flags).unwrap()
    };
    launch(stream, tensors, config, &mut scratch);
    let start = event();
    (0..iterations).for_each(|_| launch(stream, tensors, config, &mut scratch));
    let milliseconds = start.elapsed_ms(&event()).unwrap();
    Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
}

fn loss_from_logits(criterion: &mut Criterion, stream: &Stream) {
    let mut group = criterion.benchmark_group("loss_from_logits/cuda");
    group.sample_size(20);
    let row = 2 * VOCAB_SIZE;
    for (density, active_of) in [("dense", 1), ("inactive-80", 5)] {
        let active = NUM_ROWS.div_ceil(active_of);
        let tensors = &mut Tensors::new(stream, active_of);
        for (name, gradient, written, launch) in [
            ("copy", Gradient::ZeroFill, NUM_ROWS, copy as Launch),
            ("zero-fill", Gradient::ZeroFill, NUM_ROWS, fused),
            ("untouched", Gradient::Untouched, active, fused),
            ("compact", Gradient::Compact, active, fused),
            (
                "two-operations",
                Gradient::ZeroFill,
                NUM_ROWS,
                two_operations,
            ),
        ] {
            let config = Config {
                normalizer: Normalizer::Value(NUM_ROWS as f64),
                metrics_scope: MetricsScope::Active,
                gradient,
                ..Config::default()
            };
            let read = if name == "copy" { NUM_ROWS } else { active };
            group.throughput(Throughput::Bytes((row * (read + written)) as u64));
            let id = BenchmarkId::new(density, name);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|iterations| {
                    measure(stream, tensors, &config, launch, iterations)
                });
            });
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
            loss_from_logits(&mut criterion, &stream);
            criterion.final_summary();
        }
    }
}
