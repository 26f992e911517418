//! `loss_from_logits` on the emulated kernels.

use qae::batch::{DType, LogitsBatch, LogitsLayout, Tensor};
use qae::params::{
    self, LogitsBuffers, LogitsInputs, LogitsLayoutBuffers, NormalizerSource, RowPolicy,
};
use qae::{Aggregation, Config, LogitsOutput, Normalizer, sys};

use super::logits_outputs::LogitsOutputMemory;
use super::memory::{GroupMemory, Memory};
use super::tensor::TensorMemory;
use super::{EmulatorBackend, Result, failed};
use crate::{Trace, launchers};

/// How the emulated operations on logits place their tensors.
#[derive(Clone, Debug, Default)]
pub struct LogitsPlacement {
    /// Where a row is kept between its two uses.
    pub row_policy: RowPolicy,
    /// The gradient takes the logits' place.
    pub in_place: bool,
    /// Logits start this many elements behind a 256-byte boundary.
    pub misalignment: usize,
    /// The same of their gradient, unless in place.
    pub gradient_misalignment: usize,
    /// Elements from row to row of the gradient, unless in place; `None`: as the logits.
    pub gradient_row_stride: Option<usize>,
    /// Elements from response to response of a padded gradient, unless in place; `None`: as the
    /// logits where the row stride is theirs, else none that are not in a row.
    pub gradient_response_stride: Option<usize>,
    /// Token ids are 64 bits wide.
    pub wide_token_ids: bool,
    /// The gradient with respect to the log-probs is not asked for.
    pub without_d_log_prob: bool,
    /// Nor are log-probs and entropy.
    pub without_token_outputs: bool,
    /// Rows of a compact gradient; `None`: as many as there are slots.
    pub compact_room: Option<usize>,
}

/// A result, with the traces of the launches that made it.
#[derive(Debug)]
pub struct LogitsRun {
    /// What a caller of the library sees; empty where it was not asked for.
    pub output: LogitsOutput,
    /// Whether each row of the gradient was written or, in place, changed.
    pub written: Vec<bool>,
    /// Of `token_counts`, where the batch was its own normalizer.
    pub count_trace: Option<Trace>,
    /// Of `loss_from_logits`.
    pub loss_trace: Trace,
}

impl EmulatorBackend {
    /// Runs the kernel `loss_from_logits`, after `token_counts` where the batch is its own
    /// normalizer.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<LogitsRun> {
        let memory = Memory::new(self);
        let call = PreparedLogits::new(&memory, self, batch, config)?;
        let workspace = memory.workspace(call.params.loss.workspace_bytes)?;
        call.run(&memory, batch, config, workspace)
    }

    /// Runs the kernel on several batches one after another, in one workspace that is zeroed once.
    ///
    /// # Errors
    /// Those of [`Self::run_loss_from_logits`].
    pub fn run_losses_from_logits(
        &self,
        calls: &[(LogitsBatch<'_>, Config)],
    ) -> Result<Vec<LogitsRun>> {
        let memory = Memory::new(self);
        let prepare = |(batch, config): &(LogitsBatch<'_>, Config)| {
            PreparedLogits::new(&memory, self, batch, config)
        };
        let prepared: Vec<_> = calls.iter().map(prepare).collect::<Result<_>>()?;
        let sizes = prepared.iter().map(|call| call.params.loss.workspace_bytes);
        let workspace = memory.workspace(sizes.max().unwrap_or(0))?;
        let run = |(call, (batch, config)): (PreparedLogits, &(LogitsBatch<'_>, Config))| {
            call.run(&memory, batch, config, workspace)
        };
        prepared.into_iter().zip(calls).map(run).collect()
    }
}

/// A call with everything in place but the workspace.
struct PreparedLogits {
    params: sys::qae_loss_from_logits_params,
    logits: TensorMemory,
    outputs: LogitsOutputMemory,
    count_trace: Option<Trace>,
}

impl PreparedLogits {
    fn new(
        memory: &Memory,
        backend: &EmulatorBackend,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Self> {
        batch.check(config)?;
        let placement = &backend.logits;
        let values = batch.logits.values;
        let logits = TensorMemory::upload(memory, values, "logits", placement.misalignment)?;
        let groups = GroupMemory::of_advantages(memory, batch.advantages)?;
        let inputs = upload(memory, placement, batch, &logits, groups.as_ref())?;
        let (count_trace, normalizer) = match inputs.layout {
            LogitsLayoutBuffers::Responses(layout) => {
                memory.count_normalizer(&layout, inputs.mask, config)?
            }
            LogitsLayoutBuffers::Indexed { .. } => (None, count_indexed(memory, batch, config)?),
        };
        let outputs = LogitsOutputMemory::new(memory, backend, batch, config)?;
        let buffers = outputs.buffers(&logits);
        let row_policy = placement.row_policy;
        let mut params =
            params::loss_from_logits(&inputs, &buffers, config, normalizer, row_policy)?;
        // SAFETY: the query reads the params only.
        params.loss.workspace_bytes =
            unsafe { launchers::qae_emu_loss_from_logits_workspace_bytes(&params) };
        Ok(Self {
            params,
            logits,
            outputs,
            count_trace,
        })
    }

    /// Launches in a workspace of at least the size that the params ask for.
    fn run(
        mut self,
        memory: &Memory,
        batch: &LogitsBatch<'_>,
        config: &Config,
        workspace: u64,
    ) -> Result<LogitsRun> {
        self.params.loss.workspace = workspace as *mut _;
        let loss_trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_loss_from_logits(&self.params, std::ptr::null_mut()) }
        });
        let loss_trace = loss_trace.map_err(|error| self.explained(error))?;
        let (output, written) = self.outputs.download(&self.logits, batch, config)?;
        Ok(LogitsRun {
            output,
            written,
            count_trace: self.count_trace,
            loss_trace,
        })
    }

    /// Of what the launcher refuses, only the policy depends on the device.
    fn explained(&self, error: crate::Error) -> qae::Error {
        let is_cluster = self.params.row_policy == sys::QAE_ROW_CLUSTER as i32;
        match error {
            crate::Error::Status(_) if is_cluster => qae::Error::invalid(
                "row_policy",
                "Auto or Block, as no cluster of this device holds a row",
                "Cluster",
            ),
            error => failed(error),
        }
    }
}

/// Uploads everything that is not logits.
fn upload(
    memory: &Memory,
    placement: &LogitsPlacement,
    batch: &LogitsBatch<'_>,
    logits: &TensorMemory,
    groups: Option<&GroupMemory>,
) -> Result<LogitsInputs> {
    let log_probs = [batch.old_log_prob, batch.ref_log_prob];
    let dtype = log_probs
        .iter()
        .flatten()
        .next()
        .map(|tensor| tensor.dtype());
    let upload = |tensor: Option<Tensor<'_>>, label| {
        let upload = |tensor| memory.upload_tensor(tensor, label);
        tensor.map(upload).transpose()
    };
    let old_log_prob = upload(batch.old_log_prob, "old_log_prob");
    let ref_log_prob = upload(batch.ref_log_prob, "ref_log_prob");
    let layout = match batch.layout {
        LogitsLayout::Responses(layout) => {
            LogitsLayoutBuffers::Responses(memory.upload_layout(layout)?)
        }
        LogitsLayout::Indexed {
            response,
            num_responses,
        } => LogitsLayoutBuffers::Indexed {
            response: memory.upload_slot_response(response)?,
            num_responses,
        },
    };
    let mask = batch
        .mask
        .map(|mask| memory.upload(mask, "mask", memory.misalignment));
    Ok(LogitsInputs {
        layout,
        mask: mask.transpose()?,
        logits: LogitsBuffers {
            values: logits.view(),
            dtype: logits.dtype(),
            vocab_size: batch.logits.vocab_size,
            row_stride: batch.logits.row_stride,
            response_stride: batch.logits.response_stride,
            token_ids: upload_token_ids(memory, placement, batch.token_id)?,
            token_id_bytes: if placement.wide_token_ids { 8 } else { 4 },
        },
        dtype: dtype.unwrap_or(DType::F32),
        old_log_prob: old_log_prob?,
        ref_log_prob: ref_log_prob?,
        importance_weight: memory.upload_weight(batch.importance_weight)?,
        advantages: memory.upload_advantages(batch.advantages, groups)?,
    })
}

/// Token ids as wide as `placement` says.
pub(super) fn upload_token_ids(
    memory: &Memory,
    placement: &LogitsPlacement,
    token_id: &[i32],
) -> Result<params::Buffer> {
    let ids = memory.device_token_ids(token_id);
    if placement.wide_token_ids {
        return memory.upload(&ids, "token_id", memory.misalignment);
    }
    let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    memory.upload(&narrow, "token_id", memory.misalignment)
}

/// `token_counts` counts rows of slots; of slots in any order the caller knows the counts.
fn count_indexed(
    memory: &Memory,
    batch: &LogitsBatch<'_>,
    config: &Config,
) -> Result<NormalizerSource> {
    let LogitsLayout::Indexed {
        response,
        num_responses,
    } = batch.layout
    else {
        return Ok(NormalizerSource::Config);
    };
    if let Normalizer::Value(_) = config.normalizer {
        return Ok(NormalizerSource::Config);
    }
    let mut counts = vec![0_usize; num_responses];
    for (slot, &response) in response.iter().enumerate() {
        let counts_here = batch.mask.is_none_or(|mask| mask[slot] != 0);
        if let (Ok(response), true) = (usize::try_from(response), counts_here) {
            counts[response] += 1;
        }
    }
    let count = match config.aggregation {
        Aggregation::TokenMean => counts.iter().sum(),
        _ => counts.iter().filter(|&&count| count > 0).count(),
    };
    let scalar = memory.upload(&[count as f64], "normalizer", 0)?;
    Ok(NormalizerSource::Scalar(scalar))
}
