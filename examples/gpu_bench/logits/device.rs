//! The batch in device memory, twice: as it was, and where a gradient is written.

use super::inputs::{Case, HostLogits, Operation, Shape};
use crate::Result;
use crate::inputs::{Element, GROUP_SIZE};
use cudarc::driver::CudaSlice;
use qae::cuda::{
    self, DeviceAdvantages, DeviceGroups, DeviceLayout, DeviceLogits, DeviceLogitsBatch,
    DeviceLogitsRows, DeviceMetrics, DeviceNormalizer, DeviceSlice, DeviceTensor,
    LogProbsDerivatives, LogProbsOutputs, LogitsGradient, LossFromLogitsOutputs, SoftmaxStats,
    Stream, Workspace,
};
use qae::{Config, Gradient, Groups, Metrics};

/// Larger than any cache.
const CACHE_BYTES: usize = 1 << 28;

/// What a launch reads besides the logits.
struct Inputs {
    shape: Shape,
    rewards: CudaSlice<f32>,
    groups: DeviceGroups,
    token_id: CudaSlice<i64>,
    old_log_prob: CudaSlice<f32>,
    d_log_prob: CudaSlice<f32>,
}

impl Inputs {
    fn batch(&self) -> DeviceLogitsBatch<'_> {
        DeviceLogitsBatch {
            layout: DeviceLayout::padded(self.shape.num_responses, self.shape.width).into(),
            mask: None,
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

    fn rows(&self) -> DeviceLogitsRows<'_> {
        DeviceLogitsRows::new(DeviceSlice::from(&self.token_id))
    }
}

/// What launches write besides the gradient.
struct Outputs {
    log_prob: CudaSlice<f32>,
    entropy: CudaSlice<f32>,
    log_sum_exp: CudaSlice<f32>,
    stats: CudaSlice<SoftmaxStats>,
    active_slots: CudaSlice<i64>,
    active_slot_count: CudaSlice<i64>,
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
}

impl Outputs {
    fn new(stream: &Stream, num_rows: usize) -> Result<Self> {
        let memory = stream.cudarc();
        Ok(Self {
            log_prob: memory.alloc_zeros(num_rows)?,
            entropy: memory.alloc_zeros(num_rows)?,
            log_sum_exp: memory.alloc_zeros(num_rows)?,
            stats: memory.alloc_zeros(num_rows)?,
            active_slots: memory.alloc_zeros(num_rows)?,
            active_slot_count: memory.alloc_zeros(1)?,
            metrics: DeviceMetrics::new(stream)?,
            workspace: Workspace::new(stream, 0)?,
        })
    }

    /// Of those that a launch of `case` is given.
    fn bytes(&self, case: &Case) -> usize {
        let rows = self.log_prob.len();
        let list = match case.gradient {
            Gradient::Compact => 8 * rows + 8,
            _ => 0,
        };
        match case.operation {
            Operation::Forward => rows * (3 * 4 + size_of::<SoftmaxStats>()),
            // The statistics that the forward pass left for it.
            Operation::Backward => rows * size_of::<SoftmaxStats>(),
            Operation::Loss => {
                2 * 4 * rows + list + self.metrics.words().num_bytes() + self.workspace.len()
            }
        }
    }
}

pub struct DeviceBatch<T> {
    /// As it was.
    logits: CudaSlice<T>,
    /// The gradient, or, for a gradient in place, logits until a launch.
    work: CudaSlice<T>,
    inputs: Inputs,
    outputs: Outputs,
    config: Config,
    cache: CudaSlice<u8>,
}

impl<T: Element> DeviceBatch<T> {
    /// What the largest tensors take together.
    pub fn needed_bytes(shape: &Shape) -> usize {
        2 * shape.num_logits() * size_of::<T>() + CACHE_BYTES
    }

    pub fn upload(stream: &Stream, host: &HostLogits<T>, case: &Case) -> Result<Self> {
        let memory = stream.cudarc();
        let shape = host.shape;
        let groups = Groups::uniform(shape.num_responses, GROUP_SIZE)?;
        let inputs = Inputs {
            shape,
            rewards: memory.clone_htod(&host.rewards)?,
            groups: DeviceGroups::upload(stream, groups)?,
            token_id: memory.clone_htod(&host.token_id)?,
            old_log_prob: memory.alloc_zeros(shape.num_rows())?,
            d_log_prob: memory.clone_htod(&host.d_log_prob)?,
        };
        let logits = memory.clone_htod(&host.values)?;
        let mut batch = Self {
            work: logits.try_clone()?,
            logits,
            inputs,
            outputs: Outputs::new(stream, shape.num_rows())?,
            config: case.config(&shape),
            cache: memory.alloc_zeros(CACHE_BYTES)?,
        };
        batch.forward(stream)?;
        let log_prob = batch.log_prob(stream)?;
        let log_ratio = host.log_ratio.iter();
        let old: Vec<f32> = log_prob.iter().zip(log_ratio).map(|(l, r)| l - r).collect();
        memory.memcpy_htod(&old, &mut batch.inputs.old_log_prob)?;
        Ok(batch)
    }

    /// Changes what the next launches compute.
    pub fn set_case(&mut self, stream: &Stream, case: &Case) -> Result<()> {
        self.config = case.config(&self.inputs.shape);
        if case.operation == Operation::Loss {
            let batch = self.inputs.batch();
            let bytes = cuda::loss_from_logits_workspace_bytes(stream, &batch, &self.config)?;
            self.outputs.workspace = Workspace::new(stream, bytes)?;
        }
        Ok(())
    }

    /// Device memory of a launch beyond the logits and its other inputs.
    pub fn extra_bytes(&self, case: &Case) -> usize {
        let is_apart = case.has_gradient() && !case.in_place;
        let gradient = if is_apart { self.work.num_bytes() } else { 0 };
        gradient + self.outputs.bytes(case)
    }

    /// Brings back the logits that a gradient in place has overwritten.
    pub fn restore(&mut self, stream: &Stream, case: &Case) -> Result<()> {
        if case.in_place {
            stream.cudarc().memcpy_dtod(&self.logits, &mut self.work)?;
        }
        Ok(())
    }

    /// Makes the gradient's memory tell what a launch does not write.
    pub fn poison(&mut self, stream: &Stream, case: &Case) -> Result<()> {
        if !case.in_place {
            let poison = vec![T::poison(); self.work.len()];
            stream.cudarc().memcpy_htod(&poison, &mut self.work)?;
        }
        self.restore(stream, case)
    }

    /// Leaves nothing of the batch in any cache.
    pub fn flush(&mut self, stream: &Stream) -> Result<()> {
        Ok(stream.cudarc().memset_zeros(&mut self.cache)?)
    }

    pub fn launch(&mut self, stream: &Stream, case: &Case) -> qae::Result<()> {
        match case.operation {
            Operation::Forward => self.forward(stream),
            Operation::Backward => self.backward(stream, case),
            Operation::Loss => self.loss(stream, case),
        }
    }

    fn forward(&mut self, stream: &Stream) -> qae::Result<()> {
        let values = T::input((&self.logits).into());
        let logits = DeviceLogits::contiguous(values, self.inputs.shape.vocab);
        let outputs = &mut self.outputs;
        let mut outputs = LogProbsOutputs {
            log_prob: Some((&mut outputs.log_prob).into()),
            entropy: Some((&mut outputs.entropy).into()),
            log_sum_exp: Some((&mut outputs.log_sum_exp).into()),
            stats: Some((&mut outputs.stats).into()),
        };
        cuda::log_probs_from_logits(stream, &logits, &self.inputs.rows(), None, &mut outputs)
    }

    fn backward(&mut self, stream: &Stream, case: &Case) -> qae::Result<()> {
        let values = gradient(&self.logits, &mut self.work, case);
        let mut logits = DeviceLogits::contiguous(values, self.inputs.shape.vocab);
        let derivatives = LogProbsDerivatives {
            stats: (&self.outputs.stats).into(),
            d_log_prob: (&self.inputs.d_log_prob).into(),
            d_entropy: None,
        };
        let (rows, gradient) = (self.inputs.rows(), case.gradient);
        cuda::log_probs_from_logits_backward(stream, &mut logits, &rows, &derivatives, gradient)
    }

    fn loss(&mut self, stream: &Stream, case: &Case) -> qae::Result<()> {
        let values = gradient(&self.logits, &mut self.work, case);
        let is_compact = case.gradient == Gradient::Compact;
        let outputs = &mut self.outputs;
        let mut given = LossFromLogitsOutputs {
            log_prob: Some((&mut outputs.log_prob).into()),
            entropy: Some((&mut outputs.entropy).into()),
            active_slots: is_compact.then(|| (&mut outputs.active_slots).into()),
            active_slot_count: is_compact.then(|| (&mut outputs.active_slot_count).into()),
            ..LossFromLogitsOutputs::new(&mut outputs.metrics)
        };
        cuda::loss_from_logits(
            stream,
            &self.inputs.batch(),
            &mut DeviceLogits::contiguous(values, self.inputs.shape.vocab),
            &self.config,
            &DeviceNormalizer::Config,
            case.row_policy,
            &mut given,
            &mut outputs.workspace,
        )
    }

    /// The gradient, and in place also what is left of the logits.
    pub fn gradient(&self, stream: &Stream) -> Result<Vec<T>> {
        let values = stream.cudarc().clone_dtoh(&self.work)?;
        stream.synchronize()?;
        Ok(values)
    }

    pub fn log_prob(&self, stream: &Stream) -> Result<Vec<f32>> {
        let values = stream.cudarc().clone_dtoh(&self.outputs.log_prob)?;
        stream.synchronize()?;
        Ok(values)
    }

    pub fn entropy(&self, stream: &Stream) -> Result<Vec<f32>> {
        let values = stream.cudarc().clone_dtoh(&self.outputs.entropy)?;
        stream.synchronize()?;
        Ok(values)
    }

    pub fn old_log_prob(&self, stream: &Stream) -> Result<Vec<f32>> {
        let values = stream.cudarc().clone_dtoh(&self.inputs.old_log_prob)?;
        stream.synchronize()?;
        Ok(values)
    }

    /// The slots of the rows of a compact gradient.
    pub fn active_slots(&self, stream: &Stream) -> Result<Vec<i64>> {
        let memory = stream.cudarc();
        let mut slots = memory.clone_dtoh(&self.outputs.active_slots)?;
        let count = memory.clone_dtoh(&self.outputs.active_slot_count)?;
        stream.synchronize()?;
        slots.truncate(count[0] as usize);
        Ok(slots)
    }

    /// Those of the latest loss.
    pub fn metrics(&self, stream: &Stream) -> Result<Metrics> {
        Ok(self.outputs.metrics.read(stream)?)
    }

    /// The same, to the bit.
    pub fn metric_words(&self, stream: &Stream) -> Result<Vec<u64>> {
        let words = stream.cudarc().clone_dtoh(self.outputs.metrics.words())?;
        stream.synchronize()?;
        Ok(words)
    }
}

fn gradient<'a, T: Element>(
    logits: &'a CudaSlice<T>,
    work: &'a mut CudaSlice<T>,
    case: &Case,
) -> LogitsGradient<'a> {
    let target = T::output(work.into());
    if case.in_place {
        return LogitsGradient::InPlace(target);
    }
    LogitsGradient::apart(T::input(logits.into()), target)
}
