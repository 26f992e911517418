//! One step of a trainer on logits, with all of its memory.

use half::bf16;
use qae::cuda::cudarc::driver::CudaSlice;
use qae::cuda::{
    self, DeviceAdvantages, DeviceGroups, DeviceLayout, DeviceLogits, DeviceLogitsBatch,
    DeviceMetrics, DeviceNormalizer, DeviceSlice, DeviceTensor, DeviceTensorMut, LogitsGradient,
    LossFromLogitsOutputs, RowPolicy, Stream, Workspace,
};
use qae::{Aggregation, Config, Gradient, Groups, Metrics, MetricsScope, Normalizer, Objective};

const NUM_RESPONSES: usize = 16;
const WIDTH: usize = 7;
pub const NUM_SLOTS: usize = NUM_RESPONSES * WIDTH;
/// Of more than one block of a cluster.
pub const VOCAB_SIZE: usize = 100_003;

/// What a launch reads besides the logits.
pub struct Inputs {
    pub token_id: CudaSlice<i64>,
    old_log_prob: CudaSlice<f32>,
    mask: CudaSlice<u8>,
    rewards: CudaSlice<f32>,
    groups: DeviceGroups,
}

impl Inputs {
    pub fn new(stream: &Stream) -> Self {
        let memory = stream.cudarc();
        let token_id: Vec<i64> = (0..NUM_SLOTS)
            .map(|slot| (slot * 104_729 % VOCAB_SIZE) as i64)
            .collect();
        let old_log_prob: Vec<f32> = (0..NUM_SLOTS).map(|i| -11.0 - (i % 9) as f32).collect();
        let mask: Vec<u8> = (0..NUM_SLOTS).map(|i| u8::from(i % 5 > 0)).collect();
        let rewards: Vec<f32> = (0..NUM_RESPONSES).map(|i| (i * 5 % 7 % 2) as f32).collect();
        let groups = Groups::uniform(NUM_RESPONSES, 8).unwrap();
        Self {
            token_id: memory.clone_htod(&token_id).unwrap(),
            old_log_prob: memory.clone_htod(&old_log_prob).unwrap(),
            mask: memory.clone_htod(&mask).unwrap(),
            rewards: memory.clone_htod(&rewards).unwrap(),
            groups: DeviceGroups::upload(stream, groups).unwrap(),
        }
    }

    pub fn batch(&self) -> DeviceLogitsBatch<'_> {
        DeviceLogitsBatch {
            layout: DeviceLayout::padded(NUM_RESPONSES, WIDTH).into(),
            mask: Some((&self.mask).into()),
            token_id: DeviceSlice::from(&self.token_id).into(),
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
pub struct Step {
    pub host: Vec<bf16>,
    pub logits: CudaSlice<bf16>,
    pub d_logits: CudaSlice<bf16>,
    pub inputs: Inputs,
    pub log_prob: CudaSlice<f32>,
    pub active_slots: CudaSlice<i64>,
    pub active_slot_count: CudaSlice<i64>,
    pub metrics: DeviceMetrics,
    pub workspace: Workspace<'static>,
}

/// What a launch computes, and where it writes.
#[derive(Clone, Copy)]
pub struct Call {
    pub config: Config,
    pub row_policy: RowPolicy,
    pub in_place: bool,
}

/// Bits of the gradient and the log-probs, and the metrics.
pub type Results = (Vec<u16>, Vec<u32>, Metrics);

impl Step {
    pub fn new(stream: &Stream) -> Self {
        let memory = stream.cudarc();
        let host: Vec<bf16> = (0..NUM_SLOTS * VOCAB_SIZE)
            .map(|i| bf16::from_f32((i * 7919 % 1021) as f32 / 64.0 - 8.0))
            .collect();
        let mut step = Self {
            logits: memory.clone_htod(&host).unwrap(),
            d_logits: memory.alloc_zeros(host.len()).unwrap(),
            host,
            inputs: Inputs::new(stream),
            log_prob: memory.alloc_zeros(NUM_SLOTS).unwrap(),
            active_slots: memory.alloc_zeros(NUM_SLOTS).unwrap(),
            active_slot_count: memory.alloc_zeros(1).unwrap(),
            metrics: DeviceMetrics::new(stream).unwrap(),
            workspace: Workspace::new(stream, 1).unwrap(),
        };
        let bytes = |call: Call| {
            cuda::loss_from_logits_workspace_bytes(stream, &step.inputs.batch(), &call.config)
                .unwrap()
        };
        let largest = calls().map(bytes).into_iter().max();
        step.workspace = Workspace::new(stream, largest.unwrap()).unwrap();
        step
    }

    pub fn launch(&mut self, stream: &Stream, call: &Call) -> qae::Result<()> {
        let is_compact = call.config.gradient == Gradient::Compact;
        let values = if call.in_place {
            LogitsGradient::InPlace(DeviceTensorMut::Bf16((&mut self.logits).into()))
        } else {
            let d_logits = DeviceTensorMut::Bf16((&mut self.d_logits).into());
            LogitsGradient::apart(DeviceTensor::Bf16((&self.logits).into()), d_logits)
        };
        let batch = self.inputs.batch();
        let mut outputs = LossFromLogitsOutputs {
            log_prob: Some((&mut self.log_prob).into()),
            active_slots: is_compact.then(|| (&mut self.active_slots).into()),
            active_slot_count: is_compact.then(|| (&mut self.active_slot_count).into()),
            ..LossFromLogitsOutputs::new(&mut self.metrics)
        };
        cuda::loss_from_logits(
            stream,
            &batch,
            &mut DeviceLogits::contiguous(values, VOCAB_SIZE),
            &call.config,
            &DeviceNormalizer::Config,
            call.row_policy,
            &mut outputs,
            &mut self.workspace,
        )
    }

    pub fn results(&self, stream: &Stream, call: &Call) -> Results {
        let gradient = if call.in_place {
            &self.logits
        } else {
            &self.d_logits
        };
        let gradient = stream.cudarc().clone_dtoh(gradient).unwrap();
        let log_prob = stream.cudarc().clone_dtoh(&self.log_prob).unwrap();
        let metrics = self.metrics.read(stream).unwrap();
        (
            gradient.iter().map(|g| g.to_bits()).collect(),
            log_prob.iter().map(|l| l.to_bits()).collect(),
            metrics,
        )
    }

    /// Overwrites what an earlier launch wrote, and brings back the logits.
    pub fn restore(&mut self, stream: &Stream) {
        let memory = stream.cudarc();
        memory.memcpy_htod(&self.host, &mut self.logits).unwrap();
        let poison = vec![bf16::NAN; self.host.len()];
        memory.memcpy_htod(&poison, &mut self.d_logits).unwrap();
        let poison = vec![f32::NAN; NUM_SLOTS];
        memory.memcpy_htod(&poison, &mut self.log_prob).unwrap();
        stream.synchronize().unwrap();
    }
}

/// Rows in clusters where there are any and in blocks, GSPO's two launches, and compact rows.
pub fn calls() -> [Call; 4] {
    let config = Config {
        normalizer: Normalizer::Value(100.0),
        metrics_scope: MetricsScope::Active,
        entropy_coef: 0.01,
        ..Config::default()
    };
    let auto = Call {
        config,
        row_policy: RowPolicy::Auto,
        in_place: true,
    };
    let gspo = Config {
        objective: Objective::Gspo {
            low: Some(0.2),
            high: Some(0.28),
            log_ratio_max: None,
        },
        aggregation: Aggregation::SeqMeanTokenMean,
        ..config
    };
    let compact = Config {
        gradient: Gradient::Compact,
        entropy_coef: 0.0,
        ..config
    };
    [
        auto,
        Call {
            row_policy: RowPolicy::Block,
            ..auto
        },
        Call {
            config: gspo,
            ..auto
        },
        Call {
            config: compact,
            in_place: false,
            ..auto
        },
    ]
}
