//! `loss_from_log_probs` for a batch on the host.

use super::CudaBackend;
use super::outputs::{Counts, ResponseMemory, per_response};
use crate::backend::{LossOutput, Run};
use crate::batch::{DType, TokenBatch};
use crate::config::{Config, Gradient};
use crate::cuda::batch::DeviceBatch;
use crate::cuda::loss_from_log_probs::{
    LossOutputs, loss_from_log_probs, loss_from_log_probs_workspace_bytes,
};
use crate::cuda::metrics::DeviceMetrics;
use crate::cuda::stream::Stream;
use crate::cuda::traffic::bytes_moved;
use crate::cuda::upload::{Owned, OwnedTensor, UploadedBatch};
use crate::cuda::workspace::Workspace;
use crate::error::Result;

impl CudaBackend {
    pub(super) fn run_loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
    ) -> Result<Run> {
        batch.check(config)?;
        let gradient = if self.narrow_gradient {
            batch.log_prob.dtype()
        } else {
            DType::F32
        };
        let stream = &self.stream;
        let uploaded = UploadedBatch::new(stream, batch)?;
        let device_batch = uploaded.as_batch();
        let mut memory = OutputMemory::new(stream, batch, &device_batch, config, gradient)?;
        memory.launch(stream, &device_batch, config)?; // warms up
        let seconds = self.seconds(|| memory.launch(stream, &device_batch, config))?;
        let output = memory.download(stream)?;
        Ok(Run {
            bytes_moved: bytes_moved(batch, config, &output, gradient),
            output,
            seconds: Some(seconds),
        })
    }
}

/// Everything that a run writes.
struct OutputMemory {
    gradient: OwnedTensor,
    responses: ResponseMemory,
    counts: Counts,
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
}

impl OutputMemory {
    fn new(
        stream: &Stream,
        host: &TokenBatch<'_>,
        batch: &DeviceBatch<'_>,
        config: &Config,
        gradient: DType,
    ) -> Result<Self> {
        let bytes = loss_from_log_probs_workspace_bytes(stream, batch, config)?;
        Ok(Self {
            gradient: OwnedTensor::rounded(
                stream,
                "d_log_prob",
                gradient,
                &poisoned(host, config),
                0,
            )?,
            responses: ResponseMemory::new(stream, host.advantages, host.layout.num_rows())?,
            counts: Counts::new(stream)?,
            metrics: DeviceMetrics::new(stream)?,
            workspace: Workspace::new(stream, bytes)?,
        })
    }

    fn launch(&mut self, stream: &Stream, batch: &DeviceBatch<'_>, config: &Config) -> Result<()> {
        let (layout, mask) = (&batch.layout, batch.mask.as_ref());
        self.counts.count(stream, layout, mask, config)?;
        let normalizer = self.counts.normalizer(config);
        let responses = &mut self.responses;
        let mut outputs = LossOutputs {
            d_log_prob: self.gradient.as_tensor_mut(),
            gradient_row_stride: None,
            baseline: responses.baseline.as_mut().map(Owned::as_slice_mut),
            advantage: responses.advantage.as_mut().map(Owned::as_slice_mut),
            active_rows: Some(responses.active_rows.as_slice_mut()),
            active_count: Some(responses.active_count.as_slice_mut()),
            metrics: &mut self.metrics,
        };
        let workspace = &mut self.workspace;
        loss_from_log_probs(stream, batch, config, &normalizer, &mut outputs, workspace)
    }

    fn download(&self, stream: &Stream) -> Result<LossOutput> {
        Ok(LossOutput {
            metrics: self.metrics.read(stream)?,
            d_log_prob: self.gradient.download(stream)?,
            baseline: per_response(stream, &self.responses.baseline)?,
            advantage: per_response(stream, &self.responses.advantage)?,
            active_rows: self.responses.active_rows(stream)?,
        })
    }
}

/// A gradient before a launch. What has to be written is NaN, so that a slot that a kernel forgot
/// shows; what may be left alone (gaps between rows, all of it under `Untouched`) is 0 and stays.
fn poisoned(batch: &TokenBatch<'_>, config: &Config) -> Vec<f32> {
    let mut gradient = vec![0.0; batch.log_prob.len()];
    if config.gradient == Gradient::ZeroFill {
        for row in 0..batch.layout.num_rows() {
            let slots = batch.layout.row(row);
            gradient[slots.start..slots.start + slots.num_slots].fill(f32::NAN);
        }
    }
    gradient
}
