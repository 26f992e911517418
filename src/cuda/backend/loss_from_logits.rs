//! `loss_from_logits` for a batch on the host.

use super::outputs::{Counts, ResponseMemory, listed, per_response, widened};
use super::{CudaBackend, LogitsPlacement};
use crate::backend::{LogitsOutput, LossOutput, Run};
use crate::batch::{DType, LogitsBatch, LogitsLayout, Slot};
use crate::config::{Config, Gradient};
use crate::cuda::logits_batch::{DeviceLogitsBatch, DeviceLogitsLayout};
use crate::cuda::loss_from_logits::{
    LossFromLogitsOutputs, loss_from_logits, loss_from_logits_workspace_bytes,
};
use crate::cuda::metrics::DeviceMetrics;
use crate::cuda::stream::Stream;
use crate::cuda::traffic::logits_bytes_moved;
use crate::cuda::upload::{GradientMemory, Owned, OwnedTensor, UploadedLogitsBatch};
use crate::cuda::workspace::Workspace;
use crate::error::Result;

impl CudaBackend {
    pub(super) fn run_loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        batch.check(config)?;
        let stream = &self.stream;
        let slots = batch.slots()?;
        let uploaded = UploadedLogitsBatch::new(stream, batch, &self.logits)?;
        let call = Call {
            stream,
            batch: uploaded.as_batch(),
            uploaded: &uploaded,
            config,
            placement: self.logits,
        };
        let old = batch.old_log_prob.filter(|_| self.narrow_gradient);
        let d_log_prob = old.map_or(DType::F32, |old| old.dtype());
        let mut memory = OutputMemory::new(&call, batch, &slots, d_log_prob)?;
        memory.launch(&call)?; // warms up
        memory.gradient.restore(&uploaded.logits)?;
        let seconds = self.seconds(|| memory.launch(&call))?;
        let output = memory.download(&call, batch, &slots)?;
        Ok(Run {
            bytes_moved: logits_bytes_moved(batch, config, &output, &slots, d_log_prob),
            output,
            seconds: Some(seconds),
        })
    }
}

/// What every launch of a run is given.
struct Call<'a> {
    stream: &'a Stream,
    batch: DeviceLogitsBatch<'a>,
    uploaded: &'a UploadedLogitsBatch<'a>,
    config: &'a Config,
    placement: LogitsPlacement,
}

/// Everything that a run writes.
struct OutputMemory {
    gradient: GradientMemory,
    d_log_prob: OwnedTensor,
    log_prob: Owned<f32>,
    entropy: Owned<f32>,
    /// Slots and their number, if compact.
    active_slots: Option<(Owned<i64>, Owned<i64>)>,
    responses: ResponseMemory,
    counts: Counts,
    metrics: DeviceMetrics,
    workspace: Workspace<'static>,
}

impl OutputMemory {
    fn new(
        call: &Call<'_>,
        host: &LogitsBatch<'_>,
        slots: &[Slot],
        d_log_prob: DType,
    ) -> Result<Self> {
        let Call {
            stream,
            config,
            uploaded,
            ..
        } = *call;
        let bytes = loss_from_logits_workspace_bytes(stream, &call.batch, config)?;
        let poisoned = match config.gradient {
            Gradient::ZeroFill => row_starts(slots),
            // Which rows are to be written is for the launch to say.
            Gradient::Untouched | Gradient::Compact => vec![],
        };
        let gradient = GradientMemory::new(stream, &uploaded.logits, &call.placement, &poisoned)?;
        let tokens = poisoned_tokens(host.token_id.len(), slots);
        let is_compact = config.gradient == Gradient::Compact;
        let list = || {
            let slots = Owned::zeros(stream, slots.len())?;
            Ok((slots, Owned::upload(stream, &[-1])?))
        };
        let num_responses = host.layout.num_responses();
        Ok(Self {
            gradient,
            d_log_prob: OwnedTensor::rounded(stream, "d_log_prob", d_log_prob, &tokens, 0)?,
            log_prob: Owned::upload(stream, &tokens)?,
            entropy: Owned::upload(stream, &tokens)?,
            active_slots: is_compact.then(list).transpose()?,
            responses: ResponseMemory::new(stream, host.advantages, num_responses)?,
            counts: counts(stream, host, slots)?,
            metrics: DeviceMetrics::new(stream)?,
            workspace: Workspace::new(stream, bytes)?,
        })
    }

    fn launch(&mut self, call: &Call<'_>) -> Result<()> {
        let Call {
            stream,
            batch,
            config,
            ..
        } = call;
        if let DeviceLogitsLayout::Responses(layout) = &batch.layout {
            (self.counts).count(stream, layout, batch.mask.as_ref(), config)?;
        }
        let responses = &mut self.responses;
        let list = self.active_slots.as_mut();
        let (slots, count) = list.map(|(slots, count)| (slots, count)).unzip();
        let mut outputs = LossFromLogitsOutputs {
            d_log_prob: Some(self.d_log_prob.as_tensor_mut()),
            log_prob: Some(self.log_prob.as_slice_mut()),
            entropy: Some(self.entropy.as_slice_mut()),
            token_row_stride: None,
            active_slots: slots.map(Owned::as_slice_mut),
            active_slot_count: count.map(Owned::as_slice_mut),
            baseline: responses.baseline.as_mut().map(Owned::as_slice_mut),
            advantage: responses.advantage.as_mut().map(Owned::as_slice_mut),
            active_rows: Some(responses.active_rows.as_slice_mut()),
            active_count: Some(responses.active_count.as_slice_mut()),
            metrics: &mut self.metrics,
        };
        loss_from_logits(
            stream,
            batch,
            &mut call.uploaded.logits.with_gradient(&mut self.gradient),
            config,
            &self.counts.normalizer(config),
            call.placement.row_policy,
            &mut outputs,
            &mut self.workspace,
        )
    }

    fn download(
        &self,
        call: &Call<'_>,
        host: &LogitsBatch<'_>,
        slots: &[Slot],
    ) -> Result<LogitsOutput> {
        let stream = call.stream;
        let logits = &call.uploaded.logits;
        let active_slots = match &self.active_slots {
            None => vec![],
            Some((slots, count)) => listed(stream, slots, count)?,
        };
        let starts = match call.config.gradient {
            Gradient::ZeroFill | Gradient::Untouched => row_starts(slots),
            Gradient::Compact => {
                let rows = 0..active_slots.len();
                rows.map(|row| row * host.logits.row_stride).collect()
            }
        };
        Ok(LogitsOutput {
            loss: LossOutput {
                metrics: self.metrics.read(stream)?,
                d_log_prob: self.d_log_prob.download(stream)?,
                baseline: per_response(stream, &self.responses.baseline)?,
                advantage: per_response(stream, &self.responses.advantage)?,
                active_rows: self.responses.active_rows(stream)?,
            },
            log_prob: widened(&self.log_prob.download(stream)?),
            entropy: widened(&self.entropy.download(stream)?),
            d_logits: self.gradient.download(stream, logits, &starts)?,
            active_slots: active_slots.into_iter().map(|slot| slot as u64).collect(),
        })
    }
}

fn row_starts(slots: &[Slot]) -> Vec<usize> {
    slots.iter().map(|slot| slot.row).collect()
}

/// A token tensor before a launch: NaN where a slot is, so that one that a kernel forgot shows, and
/// 0 in the gaps, which stay.
fn poisoned_tokens(len: usize, slots: &[Slot]) -> Vec<f32> {
    let mut tokens = vec![0.0; len];
    for slot in slots {
        tokens[slot.token] = f32::NAN;
    }
    tokens
}

/// `token_counts` counts the slots of rows; those in any order are counted here.
fn counts(stream: &Stream, host: &LogitsBatch<'_>, slots: &[Slot]) -> Result<Counts> {
    let LogitsLayout::Indexed {
        response,
        num_responses,
    } = host.layout
    else {
        return Counts::new(stream);
    };
    let mut has_token = vec![false; num_responses];
    let valid: Vec<&Slot> = slots.iter().filter(|slot| slot.is_valid).collect();
    for slot in &valid {
        has_token[response[slot.index] as usize] = true;
    }
    let num_rows = has_token.into_iter().filter(|&has_token| has_token).count();
    Counts::of(stream, valid.len(), num_rows)
}
