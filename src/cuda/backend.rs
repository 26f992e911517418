//! The operations for tensors on the host: upload, launch, download.

mod log_probs_from_logits;
mod loss_from_log_probs;
mod loss_from_logits;
mod outputs;
mod scale_gradient;

use super::advantages::{AdvantageOutputs, advantages, advantages_workspace_bytes};
use super::device::Device;
use super::groups::DeviceGroups;
use super::launch::driver_error;
use super::metrics::DeviceGroupMetrics;
use super::stream::Stream;
use super::upload::Owned;
use super::workspace::Workspace;
use crate::backend::{Backend, LogProbsOutput, LogitsOutput, Run};
use crate::batch::{LogProbsInput, LogitsBatch, TokenBatch};
use crate::config::{AdvantageConfig, Config};
use crate::error::Result;
use crate::groups::Groups;
use crate::params::RowPolicy;
use crate::reference::AdvantageOutput;
use cudarc::driver::sys;
use outputs::{listed, widened};

/// Runs operations with the CUDA kernels on one GPU.
///
/// Durations are those of the second of two runs, between two events on the stream, with the
/// launches of the operation (and of `token_counts`, where a loss is its own normalizer) between
/// them and no transfers. [`Run::bytes_moved`] is counted from shapes and results, each tensor
/// once; it is not measured.
#[derive(Debug)]
pub struct CudaBackend {
    stream: Stream,
    description: String,
    /// The gradient with respect to log-probs has the dtype of the log-probs rather than f32.
    pub narrow_gradient: bool,
    /// Logits and their gradient.
    pub logits: LogitsPlacement,
}

/// How [`CudaBackend`] places logits and their gradient in device memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogitsPlacement {
    /// Where a row stays between its two uses.
    pub row_policy: RowPolicy,
    /// The gradient takes the place of (a copy of) the logits; not for a compact one.
    pub in_place: bool,
    /// Logits start this many elements behind a 256-byte boundary.
    pub misalignment: usize,
    /// The same of their gradient, unless in place.
    pub gradient_misalignment: usize,
    /// Token ids have 64 bits.
    pub wide_token_ids: bool,
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
            logits: LogitsPlacement::default(),
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
        let active = listed(stream, &active, &active_count)?;
        Ok((output, active.into_iter().map(|row| row as u32).collect()))
    }

    /// What the device spends on what `enqueue` enqueues.
    fn seconds(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = self.event()?;
        enqueue()?;
        let milliseconds = start.elapsed_ms(&self.event()?);
        let milliseconds =
            milliseconds.map_err(|error| driver_error("cuEventElapsedTime", error))?;
        Ok(f64::from(milliseconds) / 1e3)
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
        self.run_loss_from_log_probs(batch, config)
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        self.run_loss_from_logits(batch, config)
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        self.run_log_probs_from_logits(input)
    }

    fn log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        self.run_log_probs_from_logits_backward(input, d_log_prob, d_entropy)
    }
}
