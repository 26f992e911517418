//! `loss_from_log_probs` on tensors in device memory.

use crate::device;
use qae::cuda::cudarc::driver::CudaSlice;
use qae::cuda::{
    self, AdvantageOutputs, DeviceAdvantages, DeviceBatch, DeviceGroupMetrics, DeviceGroups,
    DeviceLayout, DeviceMetrics, DeviceNormalizer, DeviceTensor, DeviceTensorMut, ForeignSlice,
    Graph, LossOutputs, Stream, Workspace,
};
use qae::{AdvantageConfig, Aggregation, Config, Error, Groups, Metrics, Normalizer, Objective};

const NUM_ROWS: usize = 64;
const WIDTH: usize = 1500;

struct Inputs {
    log_prob: CudaSlice<f32>,
    old_log_prob: CudaSlice<f32>,
    mask: CudaSlice<u8>,
    rewards: CudaSlice<f32>,
    groups: DeviceGroups,
}

impl Inputs {
    fn batch(&self) -> DeviceBatch<'_> {
        DeviceBatch {
            layout: DeviceLayout::padded(NUM_ROWS, WIDTH),
            mask: Some((&self.mask).into()),
            log_prob: DeviceTensor::F32((&self.log_prob).into()),
            old_log_prob: Some(DeviceTensor::F32((&self.old_log_prob).into())),
            ref_log_prob: None,
            importance_weight: None,
            advantages: DeviceAdvantages::FromRewards {
                rewards: (&self.rewards).into(),
                groups: &self.groups,
                response_index: None,
            },
        }
    }
}

/// One step of a trainer, with all of its memory.
struct Step {
    inputs: Inputs,
    gradient: CudaSlice<f32>,
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
}

impl Step {
    fn new(stream: &Stream) -> Self {
        let memory = stream.cudarc();
        let slots = NUM_ROWS * WIDTH;
        let old_log_prob: Vec<f32> = (0..slots).map(|i| -((i * 31 % 67) as f32) / 16.0).collect();
        let log_prob: Vec<f32> = (0..slots)
            .map(|i| old_log_prob[i] + (i * 7919 % 129) as f32 / 160.0 - 0.4)
            .collect();
        let mask: Vec<u8> = (0..slots).map(|i| u8::from(i % 7 > 0)).collect();
        let rewards: Vec<f32> = (0..NUM_ROWS).map(|i| (i * 5 % 7 % 2) as f32).collect();
        let groups = Groups::uniform(NUM_ROWS, 8).unwrap();
        let inputs = Inputs {
            log_prob: memory.clone_htod(&log_prob).unwrap(),
            old_log_prob: memory.clone_htod(&old_log_prob).unwrap(),
            mask: memory.clone_htod(&mask).unwrap(),
            rewards: memory.clone_htod(&rewards).unwrap(),
            groups: DeviceGroups::upload(stream, groups).unwrap(),
        };
        let bytes = configs().map(|config| {
            cuda::loss_from_log_probs_workspace_bytes(stream, &inputs.batch(), &config).unwrap()
        });
        Self {
            inputs,
            gradient: memory.alloc_zeros(slots).unwrap(),
            metrics: DeviceMetrics::new(stream).unwrap(),
            workspace: Workspace::new(stream, bytes[0].max(bytes[1])).unwrap(),
        }
    }

    fn launch(&mut self, stream: &Stream, config: &Config) -> qae::Result<()> {
        let batch = self.inputs.batch();
        let gradient = DeviceTensorMut::F32((&mut self.gradient).into());
        let mut outputs = outputs(gradient, &mut self.metrics);
        let normalizer = DeviceNormalizer::Config;
        let workspace = &mut self.workspace;
        cuda::loss_from_log_probs(stream, &batch, config, &normalizer, &mut outputs, workspace)
    }

    /// The gradient's bits and the metrics.
    fn results(&self, stream: &Stream) -> (Vec<u32>, Metrics) {
        let gradient = stream.cudarc().clone_dtoh(&self.gradient).unwrap();
        let metrics = self.metrics.read(stream).unwrap();
        (gradient.iter().map(|g| g.to_bits()).collect(), metrics)
    }

    /// Overwrites what an earlier launch wrote.
    fn poison(&mut self, stream: &Stream) {
        let poison = vec![f32::NAN; NUM_ROWS * WIDTH];
        (stream.cudarc())
            .memcpy_htod(&poison, &mut self.gradient)
            .unwrap();
        stream.synchronize().unwrap();
    }
}

fn outputs<'a>(d_log_prob: DeviceTensorMut<'a>, metrics: &'a mut DeviceMetrics) -> LossOutputs<'a> {
    LossOutputs {
        d_log_prob,
        gradient_row_stride: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics,
    }
}

/// One for the kernel of tiles, one for that of whole rows.
fn configs() -> [Config; 2] {
    let tiles = Config {
        normalizer: Normalizer::Value(1000.0),
        ..Config::default()
    };
    let rows = Config {
        objective: Objective::Gspo {
            low: Some(0.2),
            high: Some(0.28),
            log_ratio_max: None,
        },
        aggregation: Aggregation::SeqMeanTokenMean,
        ..tiles
    };
    [tiles, rows]
}

#[test]
fn a_hundred_runs_give_the_same_bits() {
    let Some(device) = device("a_hundred_runs_give_the_same_bits") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    for config in configs() {
        step.launch(&stream, &config).unwrap();
        let first = step.results(&stream);
        for run in 1..100 {
            step.poison(&stream);
            step.launch(&stream, &config).unwrap();
            assert!(step.results(&stream) == first, "run {run} differs");
        }
    }
}

#[test]
fn a_graph_on_a_borrowed_stream_replays_the_same_bits() {
    let Some(device) = device("a_graph_on_a_borrowed_stream_replays_the_same_bits") else {
        return;
    };
    // SAFETY: everything of this test is used and freed on the one stream.
    unsafe { device.context().disable_event_tracking() };
    let trainer = device.context().new_stream().unwrap();
    // SAFETY: `trainer` outlives the value, and nothing else uses its memory.
    let stream = unsafe { Stream::from_raw(&device, trainer.cu_stream().cast()) };
    let mut step = Step::new(&stream);
    for config in configs() {
        step.launch(&stream, &config).unwrap();
        let eager = step.results(&stream);
        let graph = Graph::capture(&stream, || step.launch(&stream, &config)).unwrap();
        for _ in 0..3 {
            step.poison(&stream);
            // SAFETY: `step` holds all memory of the captured launch.
            unsafe { graph.replay() }.unwrap();
            assert!(step.results(&stream) == eager, "a replay differs");
        }
    }
}

#[test]
fn a_capture_with_event_tracking_is_refused_and_ended() {
    let Some(device) = device("a_capture_with_event_tracking_is_refused_and_ended") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    let config = configs()[0];
    let error = Graph::capture(&stream, || step.launch(&stream, &config)).unwrap_err();
    assert!(error.to_string().contains("event tracking"), "{error}");
    step.launch(&stream, &config).unwrap();
    step.results(&stream);
}

#[test]
fn foreign_pointers_give_the_same_bits() {
    let Some(device) = device("foreign_pointers_give_the_same_bits") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    let config = configs()[0];
    step.launch(&stream, &config).unwrap();
    let expected = step.results(&stream);
    step.poison(&stream);
    let slots = NUM_ROWS * WIDTH;
    let address = |slice: &mut CudaSlice<f32>| {
        use qae::cuda::cudarc::driver::DevicePtrMut;
        slice.device_ptr_mut(stream.cudarc()).0
    };
    let inputs = &mut step.inputs;
    let tensors = [
        &mut inputs.log_prob,
        &mut inputs.old_log_prob,
        &mut step.gradient,
    ];
    let [log_prob, old_log_prob, mut gradient] = tensors.map(address).map(|address| {
        // SAFETY: `step` owns the memory and leaves it alone during this test.
        unsafe { ForeignSlice::<f32>::new(&device, address, slots) }.unwrap()
    });
    let batch = DeviceBatch {
        log_prob: DeviceTensor::F32(log_prob.as_slice()),
        old_log_prob: Some(DeviceTensor::F32(old_log_prob.as_slice())),
        ..step.inputs.batch()
    };
    let mut outputs = outputs(
        DeviceTensorMut::F32(gradient.as_slice_mut()),
        &mut step.metrics,
    );
    let (normalizer, workspace) = (DeviceNormalizer::Config, &mut step.workspace);
    cuda::loss_from_log_probs(
        &stream,
        &batch,
        &config,
        &normalizer,
        &mut outputs,
        workspace,
    )
    .unwrap();
    stream.synchronize().unwrap();
    assert!(step.results(&stream) == expected);
}

#[test]
fn what_does_not_fit_is_refused_before_the_launch() {
    let Some(device) = device("what_does_not_fit_is_refused_before_the_launch") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    let config = configs()[0];
    let error = step.metrics.read(&stream).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    let from_batch = Config {
        normalizer: Normalizer::FromBatch,
        ..config
    };
    let error = step.launch(&stream, &from_batch).unwrap_err().to_string();
    assert!(error.starts_with("normalizer"), "{error}");
    step.workspace = Workspace::new(&stream, 64).unwrap();
    let error = step.launch(&stream, &config).unwrap_err().to_string();
    assert!(error.starts_with("workspace: expected at least"), "{error}");
}

#[test]
fn a_workspace_serves_one_operation() {
    let Some(device) = device("a_workspace_serves_one_operation") else {
        return;
    };
    let stream = Stream::new(&device).unwrap();
    let mut step = Step::new(&stream);
    step.launch(&stream, &configs()[0]).unwrap();
    let mut advantage = stream.cudarc().alloc_zeros::<f32>(NUM_ROWS - 1).unwrap();
    let mut metrics = DeviceGroupMetrics::new(&stream).unwrap();
    let mut run = |workspace: &mut Workspace<'_>| {
        let mut outputs = AdvantageOutputs {
            baseline: None,
            advantage: (&mut advantage).into(),
            active: None,
            active_count: None,
            metrics: &mut metrics,
        };
        let (rewards, config) = ((&step.inputs.rewards).into(), AdvantageConfig::default());
        cuda::advantages(
            &stream,
            &rewards,
            &step.inputs.groups,
            &config,
            &mut outputs,
            workspace,
        )
    };
    let error = run(&mut step.workspace).unwrap_err().to_string();
    assert!(
        error.contains("one that served loss_from_log_probs"),
        "{error}"
    );
    let mut workspace = Workspace::new(&stream, cuda::advantages_workspace_bytes()).unwrap();
    let error = run(&mut workspace).unwrap_err().to_string();
    assert!(
        error.starts_with("advantage: expected shape [64]"),
        "{error}"
    );
}
