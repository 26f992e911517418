//! The operations for tensors on the host: upload, launch, download.

use super::advantages::{AdvantageOutputs, advantages, advantages_workspace_bytes};
use super::batch::DeviceBatch;
use super::device::Device;
use super::groups::DeviceGroups;
use super::launch::driver_error;
use super::loss_from_log_probs::{
    DeviceNormalizer, LossOutputs, loss_from_log_probs, loss_from_log_probs_workspace_bytes,
};
use super::memory::{DeviceSliceMut, DeviceTensorMut};
use super::metrics::{DeviceGroupMetrics, DeviceMetrics};
use super::stream::Stream;
use super::token_counts::{token_counts, token_counts_workspace_bytes};
use super::traffic::bytes_moved;
use super::upload::{Owned, UploadedBatch};
use super::workspace::Workspace;
use crate::backend::{Backend, LossOutput, Run};
use crate::batch::{Advantages, DType, TokenBatch};
use crate::config::{AdvantageConfig, Aggregation, Config, InactiveGradient, Normalizer};
use crate::error::{Error, Result};
use crate::groups::Groups;
use crate::reference::AdvantageOutput;
use cudarc::driver::{DeviceRepr, ValidAsZeroBits, sys};
use half::{bf16, f16};

/// Runs operations with the CUDA kernels on one GPU.
///
/// Durations are those of the second of two runs, between two events on the stream, with the
/// launches of `token_counts` (where the batch is its own normalizer) and `loss_from_log_probs`
/// between them and no transfers. [`Run::bytes_moved`] is counted from shapes and results, each
/// tensor once; it is not measured.
#[derive(Debug)]
pub struct CudaBackend {
    stream: Stream,
    description: String,
    /// The gradient has the dtype of the log-probs rather than f32.
    pub narrow_gradient: bool,
}

impl CudaBackend {
    /// On GPU number `ordinal`, with a stream of its own and an f32 gradient.
    ///
    /// # Errors
    /// Those of [`Device::open`].
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let info = device.info()?;
        let (major, minor) = info.compute_capability;
        Ok(Self {
            stream: Stream::new(&device)?,
            description: format!(
                "cuda (f32, {}, compute capability {major}.{minor})",
                info.name
            ),
            narrow_gradient: false,
        })
    }

    /// The stream that it launches on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Baselines and advantages, and the active responses as the kernel lists them.
    ///
    /// # Errors
    /// Those of [`advantages`].
    pub fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        let stream = &self.stream;
        let device_rewards = Owned::upload(stream, rewards)?;
        let device_groups = DeviceGroups::upload(stream, groups.clone())?;
        let mut baseline = Owned::upload(stream, &vec![f32::NAN; rewards.len()])?;
        let mut advantage = Owned::upload(stream, &vec![f32::NAN; rewards.len()])?;
        let mut active = Owned::<i32>::zeros(stream, rewards.len())?;
        let mut active_count = Owned::upload(stream, &[-1])?;
        let mut metrics = DeviceGroupMetrics::new(stream)?;
        let mut workspace = Workspace::new(stream, advantages_workspace_bytes())?;
        let mut outputs = AdvantageOutputs {
            baseline: Some(baseline.as_slice_mut()),
            advantage: advantage.as_slice_mut(),
            active: Some(active.as_slice_mut()),
            active_count: Some(active_count.as_slice_mut()),
            metrics: &mut metrics,
        };
        let rewards = device_rewards.as_slice();
        advantages(
            stream,
            &rewards,
            &device_groups,
            config,
            &mut outputs,
            &mut workspace,
        )?;
        let output = AdvantageOutput {
            baseline: widened(&baseline.download(stream)?),
            advantage: widened(&advantage.download(stream)?),
            metrics: metrics.read(stream)?,
        };
        Ok((output, listed(stream, &active, &active_count)?))
    }

    fn run<G>(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<(LossOutput, f64)>
    where
        G: GradientElement,
        for<'a> DeviceTensorMut<'a>: From<DeviceSliceMut<'a, G>>,
    {
        let stream = &self.stream;
        let uploaded = UploadedBatch::new(stream, batch)?;
        let device_batch = uploaded.as_batch();
        let mut memory = OutputMemory::<G>::new(stream, batch, &device_batch, config)?;
        memory.launch(stream, &device_batch, config)?; // warms up
        let start = self.event()?;
        memory.launch(stream, &device_batch, config)?;
        let end = self.event()?;
        let milliseconds = start.elapsed_ms(&end);
        let milliseconds =
            milliseconds.map_err(|error| driver_error("cuEventElapsedTime", error))?;
        let output = memory.download(stream)?;
        Ok((output, f64::from(milliseconds) / 1e3))
    }

    fn event(&self) -> Result<cudarc::driver::CudaEvent> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT); // with a time
        let event = self.stream.cudarc().record_event(flags);
        event.map_err(|error| driver_error("cuEventRecord", error))
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        self.description.clone()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
        batch.check(config)?;
        let gradient = if self.narrow_gradient {
            batch.log_prob.dtype()
        } else {
            DType::F32
        };
        let (output, seconds) = match gradient {
            DType::F32 => self.run::<f32>(batch, config)?,
            DType::Bf16 => self.run::<bf16>(batch, config)?,
            DType::F16 => self.run::<f16>(batch, config)?,
        };
        Ok(Run {
            bytes_moved: bytes_moved(batch, config, &output, gradient),
            output,
            seconds: Some(seconds),
        })
    }
}

/// An element type of the gradient.
trait GradientElement: DeviceRepr + ValidAsZeroBits + Copy + Into<f64> {
    const NAN: Self;
    const ZERO: Self;
}

impl GradientElement for f32 {
    const NAN: Self = f32::NAN;
    const ZERO: Self = 0.0;
}

impl GradientElement for bf16 {
    const NAN: Self = bf16::NAN;
    const ZERO: Self = bf16::ZERO;
}

impl GradientElement for f16 {
    const NAN: Self = f16::NAN;
    const ZERO: Self = f16::ZERO;
}

fn poisoned_gradient<G: GradientElement>(batch: &TokenBatch<'_>, config: &Config) -> Vec<G> {
    let mut gradient = vec![G::ZERO; batch.log_prob.len()];
    if config.inactive_gradient == InactiveGradient::ZeroFill {
        for row in 0..batch.layout.num_rows() {
            let slots = batch.layout.row(row);
            gradient[slots.start..slots.start + slots.num_slots].fill(G::NAN);
        }
    }
    gradient
}

/// Everything that a run writes, with a gradient of type `G`.
struct OutputMemory<G> {
    gradient: Owned<G>,
    baseline: Option<Owned<f32>>,
    advantage: Option<Owned<f32>>,
    active_rows: Owned<i32>,
    active_count: Owned<i32>,
    num_tokens: Owned<f64>,
    num_rows: Owned<f64>,
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
    count_workspace: Workspace<'static>,
}

impl<G> OutputMemory<G>
where
    G: GradientElement,
    for<'a> DeviceTensorMut<'a>: From<DeviceSliceMut<'a, G>>,
{
    /// What has to be written starts as NaN, so that a slot that a kernel forgot shows; what may be
    /// left alone (gaps between rows, all of it under `Untouched`) starts at 0 and stays.
    fn new(
        stream: &Stream,
        host: &TokenBatch<'_>,
        batch: &DeviceBatch<'_>,
        config: &Config,
    ) -> Result<Self> {
        let num_responses = match host.advantages {
            Advantages::FromRewards { rewards, .. } => Some(rewards.len()),
            _ => None,
        };
        let per_response = || {
            num_responses
                .map(|len| Owned::upload(stream, &vec![f32::NAN; len]))
                .transpose()
        };
        let bytes = loss_from_log_probs_workspace_bytes(stream, batch, config)?;
        Ok(Self {
            gradient: Owned::upload(stream, &poisoned_gradient(host, config))?,
            baseline: per_response()?,
            advantage: per_response()?,
            active_rows: Owned::zeros(stream, host.layout.num_rows())?,
            active_count: Owned::upload(stream, &[-1])?,
            num_tokens: Owned::upload(stream, &[f64::NAN])?,
            num_rows: Owned::upload(stream, &[f64::NAN])?,
            metrics: DeviceMetrics::new(stream)?,
            workspace: Workspace::new(stream, bytes)?,
            count_workspace: Workspace::new(stream, token_counts_workspace_bytes())?,
        })
    }

    fn launch(&mut self, stream: &Stream, batch: &DeviceBatch<'_>, config: &Config) -> Result<()> {
        let normalizer = match config.normalizer {
            Normalizer::Value(_) => DeviceNormalizer::Config,
            Normalizer::FromBatch => {
                token_counts(
                    stream,
                    &batch.layout,
                    batch.mask.as_ref(),
                    &mut self.num_tokens.as_slice_mut(),
                    &mut self.num_rows.as_slice_mut(),
                    &mut self.count_workspace,
                )?;
                DeviceNormalizer::Scalar(match config.aggregation {
                    Aggregation::TokenMean => self.num_tokens.as_slice(),
                    _ => self.num_rows.as_slice(),
                })
            }
        };
        let mut outputs = LossOutputs {
            d_log_prob: self.gradient.as_slice_mut().into(),
            gradient_row_stride: None,
            baseline: self.baseline.as_mut().map(Owned::as_slice_mut),
            advantage: self.advantage.as_mut().map(Owned::as_slice_mut),
            active_rows: Some(self.active_rows.as_slice_mut()),
            active_count: Some(self.active_count.as_slice_mut()),
            metrics: &mut self.metrics,
        };
        let workspace = &mut self.workspace;
        loss_from_log_probs(stream, batch, config, &normalizer, &mut outputs, workspace)
    }

    fn download(&self, stream: &Stream) -> Result<LossOutput> {
        let per_response = |memory: &Option<Owned<f32>>| {
            let values = memory.as_ref().map(|memory| memory.download(stream));
            Ok::<_, Error>(values.transpose()?.map(|values| widened(&values)))
        };
        Ok(LossOutput {
            metrics: self.metrics.read(stream)?,
            d_log_prob: widened(&self.gradient.download(stream)?),
            baseline: per_response(&self.baseline)?,
            advantage: per_response(&self.advantage)?,
            active_rows: listed(stream, &self.active_rows, &self.active_count)?,
        })
    }
}

/// The part of a list that the device filled.
fn listed(stream: &Stream, list: &Owned<i32>, count: &Owned<i32>) -> Result<Vec<u32>> {
    let count = count.download(stream)?[0];
    let list = list.download(stream)?;
    let filled = usize::try_from(count)
        .ok()
        .and_then(|count| list.get(..count));
    let filled = filled.ok_or_else(|| Error::Backend {
        backend: "cuda",
        message: format!(
            "active_count: expected at most {}, found {count}",
            list.len()
        ),
    })?;
    Ok(filled.iter().map(|&row| row as u32).collect())
}

fn widened<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}
