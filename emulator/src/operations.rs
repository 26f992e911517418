//! The operations of `qae` on the emulated kernels: upload, launch, download.
//!
//! Every launch goes through the same checks and params structs (`qae::params`) as on a GPU.

mod gradient;
mod log_prob_outputs;
mod log_probs_from_logits;
mod logit_rows;
mod logits_outputs;
mod loss_from_logits;
mod memory;
mod outputs;
mod scale_gradient;
mod slots;
mod tensor;

pub use log_probs_from_logits::{LogProbsRun, LogitsGradientRun, ShardsRun};
pub use loss_from_logits::{LogitsPlacement, LogitsRun};
pub use scale_gradient::{ScaleRun, ScaledPlace};

use bytemuck::Pod;
use half::{bf16, f16};
use qae::batch::{DType, LogProbsInput, LogitsBatch, TokenBatch};
use qae::params::{self, AdvantageOutputs};
use qae::{
    AdvantageConfig, AdvantageOutput, Backend, Config, Gradient, Groups, LogProbsOutput,
    LogitsOutput, LossOutput, Run, sys,
};

use crate::launchers;
use crate::{Buffer, Error, Options, Trace};
use memory::{GroupMemory, Memory};
use outputs::OutputMemory;

type Result<T, E = qae::Error> = std::result::Result<T, E>;

/// How the emulated operations place their tensors.
#[derive(Clone, Debug, Default)]
pub struct EmulatorBackend {
    /// Order of threads and blocks, and barriers to skip.
    pub options: Options,
    /// The gradient has the dtype of the log-probs rather than f32.
    pub narrow_gradient: bool,
    /// Token tensors start this many elements behind a 256-byte boundary.
    pub misalignment: usize,
    /// Elements from row to row of a padded gradient; `None`: as the log-probs.
    pub gradient_row_stride: Option<usize>,
    /// What the device sees in place of the batch's index tensors.
    pub device_indices: DeviceIndices,
    /// Logits and their gradient.
    pub logits: LogitsPlacement,
}

/// Index tensors that reach the device unchecked, as a caller whose indices are made on the device
/// passes them: only the kernels can guard against these. `None`: the batch's own, which are
/// checked either way.
#[derive(Clone, Debug, Default)]
pub struct DeviceIndices {
    /// In place of the lengths of a padded layout.
    pub lengths: Option<Vec<i32>>,
    /// In place of the offsets of a packed layout.
    pub offsets: Option<Vec<i64>>,
    /// In place of the rows' indices of responses.
    pub response_index: Option<Vec<i32>>,
    /// In place of the responses of slots in any order.
    pub slot_response: Option<Vec<i32>>,
    /// In place of the tokens of rows of logits.
    pub token_id: Option<Vec<i64>>,
}

/// A result, with the traces of the launches that made it.
#[derive(Debug)]
pub struct LossRun {
    /// What a caller of the library sees.
    pub output: LossOutput,
    /// Of `token_counts`, where the batch was its own normalizer.
    pub count_trace: Option<Trace>,
    /// Of `loss_from_log_probs` (two launches where a group is large).
    pub loss_trace: Trace,
}

/// Advantages, with the list of active responses that the kernel wrote.
#[derive(Debug)]
pub struct AdvantageRun {
    /// What a caller of the library sees.
    pub output: AdvantageOutput,
    /// Responses with an advantage other than 0.
    pub active: Vec<i32>,
    /// Of the launch.
    pub trace: Trace,
}

impl Backend for EmulatorBackend {
    fn name(&self) -> String {
        "emulator (the CUDA kernels on the CPU, f32)".to_owned()
    }

    fn loss_from_log_probs(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<Run> {
        let run = self.run_loss(batch, config)?;
        let counting = run.count_trace.as_ref().map_or(0, bytes_moved);
        Ok(emulated(
            run.output,
            bytes_moved(&run.loss_trace) + counting,
        ))
    }

    fn loss_from_logits(
        &self,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Run<LogitsOutput>> {
        let run = self.run_loss_from_logits(batch, config)?;
        let counting = run.count_trace.as_ref().map_or(0, bytes_moved);
        Ok(emulated(
            run.output,
            bytes_moved(&run.loss_trace) + counting,
        ))
    }

    fn log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<Run<LogProbsOutput>> {
        let run = self.run_log_probs_from_logits(input)?;
        Ok(emulated(run.output, bytes_moved(&run.trace)))
    }

    fn log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        let gradient = Gradient::ZeroFill;
        let run =
            self.run_log_probs_from_logits_backward(input, d_log_prob, d_entropy, gradient)?;
        Ok(emulated(run.d_logits, bytes_moved(&run.trace)))
    }
}

fn bytes_moved(trace: &Trace) -> u64 {
    trace.bytes_read() + trace.bytes_written()
}

/// A duration on emulated kernels would mean nothing.
fn emulated<T>(output: T, bytes_moved: u64) -> Run<T> {
    Run {
        output,
        bytes_moved,
        seconds: None,
    }
}

impl EmulatorBackend {
    /// Runs the kernel `advantages`.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<AdvantageRun> {
        let memory = Memory::new(self);
        let rewards_buffer = memory.upload(rewards, "rewards", 0)?;
        let groups_memory = GroupMemory::new(&memory, groups)?;
        let baseline = memory.alloc::<f32>(groups.num_responses(), "baseline")?;
        let advantage = memory.alloc::<f32>(groups.num_responses(), "advantage")?;
        let active = memory.alloc::<i32>(groups.num_responses(), "active")?;
        let active_count = memory.alloc::<i32>(1, "active_count")?;
        let metrics = memory.alloc::<u64>(GROUP_METRICS_WORDS, "metrics")?;
        let outputs = AdvantageOutputs {
            baseline: Some(whole(&baseline)),
            advantage: whole(&advantage),
            active: Some(whole(&active)),
            active_count: Some(whole(&active_count)),
            metrics: whole(&metrics),
        };
        let mut params = params::advantages(
            rewards_buffer,
            &groups_memory.buffers(groups),
            &outputs,
            config,
        )?;
        // SAFETY: the query reads the params only.
        params.workspace_bytes = unsafe { launchers::qae_emu_advantages_workspace_bytes(&params) };
        let workspace = memory.workspace(params.workspace_bytes)?;
        params.workspace = workspace as *mut _;
        let trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_advantages(&params, std::ptr::null_mut()) }
        });
        let trace = trace.map_err(failed)?;
        let count = active_count.download().map_err(failed)?[0] as usize;
        // SAFETY: the buffer has the struct's words, all of them written and plain integers.
        let group_metrics = unsafe { read_words(&metrics.download().map_err(failed)?) };
        Ok(AdvantageRun {
            output: AdvantageOutput {
                baseline: widened(&baseline.download().map_err(failed)?),
                advantage: widened(&advantage.download().map_err(failed)?),
                metrics: params::group_metrics(&group_metrics),
            },
            active: active.download_raw()[..count].to_vec(),
            trace,
        })
    }

    /// Runs the kernel `loss_from_log_probs`, after `token_counts` where the batch is its own
    /// normalizer.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_loss(&self, batch: &TokenBatch<'_>, config: &Config) -> Result<LossRun> {
        batch.check(config)?;
        match (batch.log_prob.dtype(), self.narrow_gradient) {
            (DType::Bf16, true) => self.run_loss_with::<bf16>(batch, config),
            (DType::F16, true) => self.run_loss_with::<f16>(batch, config),
            _ => self.run_loss_with::<f32>(batch, config),
        }
    }

    /// Runs the kernel on several batches one after another, in one workspace that is zeroed once.
    /// The gradients are f32.
    ///
    /// # Errors
    /// Those of [`Self::run_loss`].
    pub fn run_losses(&self, calls: &[(TokenBatch<'_>, Config)]) -> Result<Vec<LossRun>> {
        let backend = Self {
            narrow_gradient: false,
            ..self.clone()
        };
        let memory = Memory::new(&backend);
        let mut prepared = Vec::with_capacity(calls.len());
        for (batch, config) in calls {
            batch.check(config)?;
            prepared.push(PreparedLoss::<f32>::new(&memory, &backend, batch, config)?);
        }
        let sizes = prepared.iter().map(|call| call.params.workspace_bytes);
        let workspace_bytes = sizes.max().unwrap_or(0);
        let workspace = memory.workspace(workspace_bytes)?;
        let run = |(call, (batch, config)): (PreparedLoss<f32>, &(TokenBatch<'_>, Config))| {
            call.run(&memory, &backend, batch, config, workspace)
        };
        prepared.into_iter().zip(calls).map(run).collect()
    }

    fn run_loss_with<G: Pod + Into<f64>>(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
    ) -> Result<LossRun> {
        let memory = Memory::new(self);
        let call = PreparedLoss::<G>::new(&memory, self, batch, config)?;
        let workspace = memory.workspace(call.params.workspace_bytes)?;
        call.run(&memory, self, batch, config, workspace)
    }
}

/// A call with everything in place but the workspace.
struct PreparedLoss<G> {
    params: sys::qae_loss_from_log_probs_params,
    outputs: OutputMemory<G>,
    count_trace: Option<Trace>,
}

impl<G: Pod + Into<f64>> PreparedLoss<G> {
    fn new(
        memory: &Memory,
        backend: &EmulatorBackend,
        batch: &TokenBatch<'_>,
        config: &Config,
    ) -> Result<Self> {
        let groups = GroupMemory::of_advantages(memory, batch.advantages)?;
        let inputs = memory.upload_batch(batch, groups.as_ref())?;
        let (count_trace, normalizer) =
            memory.count_normalizer(&inputs.layout, inputs.mask, config)?;
        let outputs = OutputMemory::<G>::new(memory, backend, batch)?;
        let buffers = outputs.buffers(batch, backend);
        let mut params = params::loss_from_log_probs(&inputs, &buffers, config, normalizer)?;
        // SAFETY: the query reads the params only.
        params.workspace_bytes =
            unsafe { launchers::qae_emu_loss_from_log_probs_workspace_bytes(&params) };
        Ok(Self {
            params,
            outputs,
            count_trace,
        })
    }

    /// Launches in a workspace of at least the size that the params ask for.
    fn run(
        mut self,
        memory: &Memory,
        backend: &EmulatorBackend,
        batch: &TokenBatch<'_>,
        config: &Config,
        workspace: u64,
    ) -> Result<LossRun> {
        self.params.workspace = workspace as *mut _;
        let loss_trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_loss_from_log_probs(&self.params, std::ptr::null_mut()) }
        });
        Ok(LossRun {
            loss_trace: loss_trace.map_err(failed)?,
            output: self.outputs.download(batch, config, backend)?,
            count_trace: self.count_trace,
        })
    }
}

const GROUP_METRICS_WORDS: usize = size_of::<sys::qae_group_metrics>() / 8;

fn whole<T: Pod>(buffer: &Buffer<T>) -> params::Buffer {
    params::Buffer {
        address: buffer.address(),
        len: buffer.len(),
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// # Safety
/// `words` must have the size of `T`, whose fields must be valid for any bits.
unsafe fn read_words<T: Copy>(words: &[u64]) -> T {
    assert_eq!(size_of_val(words), size_of::<T>());
    // SAFETY: of the right size by the assertion; u64 is at least as aligned as the fields.
    unsafe { words.as_ptr().cast::<T>().read() }
}

fn failed(error: Error) -> qae::Error {
    qae::Error::Backend {
        backend: "emulator",
        message: error.to_string().replace('\n', "; "),
    }
}
