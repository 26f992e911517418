//! The operations of `qae` on the emulated kernels: upload, launch, download.
//!
//! Every launch goes through the same checks and params structs (`qae::params`) as on a GPU.

use std::cell::RefCell;

use bytemuck::Pod;
use half::{bf16, f16};
use qae::batch::{Advantages, DType, ImportanceWeight, Layout, Tensor, TokenBatch};
use qae::params::{
    self, AdvantageBuffers, AdvantageOutputs, GroupBuffers, LayoutBuffers, LossOutputs,
    NormalizerSource, TokenBuffers, WeightBuffer,
};
use qae::{
    AdvantageConfig, AdvantageOutput, Aggregation, Backend, Config, Groups, InactiveGradient,
    LossOutput, Normalizer, Run, sys,
};

use crate::launchers;
use crate::{Buffer, Device, Error, Options, Trace};

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
        let bytes = |trace: &Trace| trace.bytes_read() + trace.bytes_written();
        Ok(Run {
            output: run.output,
            bytes_moved: bytes(&run.loss_trace) + run.count_trace.as_ref().map_or(0, bytes),
            seconds: None,
        })
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

    fn run_loss_with<G: Pod + Into<f64>>(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
    ) -> Result<LossRun> {
        let memory = Memory::new(self);
        let groups_memory = match batch.advantages {
            Advantages::FromRewards { groups, .. } => Some(GroupMemory::new(&memory, groups)?),
            _ => None,
        };
        let inputs = memory.upload_batch(batch, groups_memory.as_ref())?;
        let (count_trace, normalizer) = memory.count_normalizer(&inputs, config)?;
        let outputs = OutputMemory::<G>::new(&memory, self, batch)?;
        let mut params = params::loss_from_log_probs(
            &inputs,
            &outputs.buffers(batch, self),
            config,
            normalizer,
        )?;
        // SAFETY: the query reads the params only.
        params.workspace_bytes =
            unsafe { launchers::qae_emu_loss_from_log_probs_workspace_bytes(&params) };
        params.workspace = memory.workspace(params.workspace_bytes)? as *mut _;
        let loss_trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_loss_from_log_probs(&params, std::ptr::null_mut()) }
        });
        Ok(LossRun {
            loss_trace: loss_trace.map_err(failed)?,
            output: outputs.download(batch, config, self)?,
            count_trace,
        })
    }
}

const GROUP_METRICS_WORDS: usize = size_of::<sys::qae_group_metrics>() / 8;
const LOSS_METRICS_WORDS: usize = size_of::<sys::qae_loss_metrics>() / 8;

/// A device and the buffers whose only use is to stay alive during the launches.
struct Memory {
    device: Device,
    misalignment: usize,
    kept: RefCell<Vec<Box<dyn std::any::Any>>>,
}

impl Memory {
    fn new(backend: &EmulatorBackend) -> Self {
        Self {
            device: Device::new(backend.options.clone()),
            misalignment: backend.misalignment,
            kept: RefCell::default(),
        }
    }

    fn alloc<T: Pod>(&self, len: usize, label: &str) -> Result<Buffer<T>> {
        self.device.alloc(len, label).map_err(failed)
    }

    /// Uploads behind `skipped` elements that nothing writes.
    fn upload<T: Pod>(&self, values: &[T], label: &str, skipped: usize) -> Result<params::Buffer> {
        let mut padded = vec![T::zeroed(); skipped];
        padded.extend_from_slice(values);
        let buffer = self.device.upload(&padded, label).map_err(failed)?;
        let view = params::Buffer {
            address: buffer.address() + (skipped * size_of::<T>()) as u64,
            len: values.len(),
        };
        self.kept.borrow_mut().push(Box::new(buffer));
        Ok(view)
    }

    fn upload_tensor(&self, tensor: Tensor<'_>, label: &str) -> Result<params::Buffer> {
        match tensor {
            Tensor::F32(values) => self.upload(values, label, self.misalignment),
            Tensor::Bf16(values) => self.upload(values, label, self.misalignment),
            Tensor::F16(values) => self.upload(values, label, self.misalignment),
        }
    }

    /// Zeroed, as a caller of the launchers has to.
    fn workspace(&self, bytes: u64) -> Result<u64> {
        Ok(self
            .upload(&vec![0_u8; bytes as usize], "workspace", 0)?
            .address)
    }

    fn upload_batch<'a>(
        &self,
        batch: &TokenBatch<'a>,
        groups: Option<&GroupMemory>,
    ) -> Result<TokenBuffers<'a>> {
        let optional =
            |tensor: Option<Tensor<'_>>, label| tensor.map(|t| self.upload_tensor(t, label));
        Ok(TokenBuffers {
            layout: self.upload_layout(batch)?,
            mask: batch
                .mask
                .map(|mask| self.upload(mask, "mask", self.misalignment))
                .transpose()?,
            dtype: batch.log_prob.dtype(),
            log_prob: self.upload_tensor(batch.log_prob, "log_prob")?,
            old_log_prob: optional(batch.old_log_prob, "old_log_prob").transpose()?,
            ref_log_prob: optional(batch.ref_log_prob, "ref_log_prob").transpose()?,
            importance_weight: match batch.importance_weight {
                None => None,
                Some(ImportanceWeight::PerToken(weight)) => Some(WeightBuffer::PerToken(
                    self.upload(weight, "importance_weight", self.misalignment)?,
                )),
                Some(ImportanceWeight::PerResponse(weight)) => Some(WeightBuffer::PerResponse(
                    self.upload(weight, "importance_weight", 0)?,
                )),
            },
            advantages: self.upload_advantages(batch, groups)?,
        })
    }

    fn upload_layout(&self, batch: &TokenBatch<'_>) -> Result<LayoutBuffers> {
        Ok(match batch.layout {
            Layout::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths,
            } => LayoutBuffers::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths: lengths
                    .map(|lengths| self.upload(lengths, "lengths", 0))
                    .transpose()?,
            },
            Layout::Packed { offsets } => LayoutBuffers::Packed {
                offsets: self.upload(offsets, "offsets", 0)?,
                num_slots: batch.log_prob.len(),
            },
        })
    }

    fn upload_advantages<'a>(
        &self,
        batch: &TokenBatch<'a>,
        groups_memory: Option<&GroupMemory>,
    ) -> Result<AdvantageBuffers<'a>> {
        Ok(match (batch.advantages, groups_memory) {
            (
                Advantages::FromRewards {
                    rewards,
                    groups,
                    response_index,
                },
                Some(memory),
            ) => AdvantageBuffers::FromRewards {
                rewards: self.upload(rewards, "rewards", 0)?,
                groups: memory.buffers(groups),
                response_index: response_index
                    .map(|index| self.upload(index, "response_index", 0))
                    .transpose()?,
            },
            (Advantages::PerResponse(values), _) => {
                AdvantageBuffers::PerResponse(self.upload(values, "advantages", 0)?)
            }
            (Advantages::PerToken(values), _) => {
                AdvantageBuffers::PerToken(self.upload(values, "advantages", self.misalignment)?)
            }
            (Advantages::FromRewards { .. }, None) => {
                return Err(qae::Error::missing("groups", "uploaded groups"));
            }
        })
    }

    fn count_normalizer(
        &self,
        inputs: &TokenBuffers<'_>,
        config: &Config,
    ) -> Result<(Option<Trace>, NormalizerSource)> {
        if let Normalizer::Value(_) = config.normalizer {
            return Ok((None, NormalizerSource::Config));
        }
        let tokens = self.alloc::<f64>(1, "num_tokens")?;
        let rows = self.alloc::<f64>(1, "num_rows")?;
        let mut params =
            params::token_counts(&inputs.layout, inputs.mask, whole(&tokens), whole(&rows))?;
        // SAFETY: the query reads the params only.
        params.workspace_bytes =
            unsafe { launchers::qae_emu_token_counts_workspace_bytes(&params) };
        params.workspace = self.workspace(params.workspace_bytes)? as *mut _;
        let trace = self.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_token_counts(&params, std::ptr::null_mut()) }
        });
        let scalar = match config.aggregation {
            Aggregation::TokenMean => whole(&tokens),
            _ => whole(&rows),
        };
        let mut kept = self.kept.borrow_mut();
        kept.push(Box::new(tokens));
        kept.push(Box::new(rows));
        Ok((
            Some(trace.map_err(failed)?),
            NormalizerSource::Scalar(scalar),
        ))
    }
}

/// The index tensors of a partition.
struct GroupMemory {
    offsets: Option<params::Buffer>,
    order: Option<params::Buffer>,
    group_of_response: Option<params::Buffer>,
}

impl GroupMemory {
    fn new(memory: &Memory, groups: &Groups) -> Result<Self> {
        let upload = |values: Option<&[i32]>, label| {
            values
                .map(|values| memory.upload(values, label, 0))
                .transpose()
        };
        Ok(Self {
            offsets: upload(groups.offsets(), "group_offsets")?,
            order: upload(groups.order(), "group_order")?,
            group_of_response: upload(groups.group_of_response(), "group_of_response")?,
        })
    }

    fn buffers<'a>(&self, groups: &'a Groups) -> GroupBuffers<'a> {
        GroupBuffers {
            groups,
            offsets: self.offsets,
            order: self.order,
            group_of_response: self.group_of_response,
        }
    }
}

/// The output tensors, with a gradient of type `G`.
struct OutputMemory<G> {
    gradient: Buffer<G>,
    baseline: Option<Buffer<f32>>,
    advantage: Option<Buffer<f32>>,
    active_rows: Buffer<i32>,
    active_count: Buffer<i32>,
    metrics: Buffer<u64>,
}

impl<G: Pod + Into<f64>> OutputMemory<G> {
    fn new(memory: &Memory, backend: &EmulatorBackend, batch: &TokenBatch<'_>) -> Result<Self> {
        let num_responses = match batch.advantages {
            Advantages::FromRewards { rewards, .. } => Some(rewards.len()),
            _ => None,
        };
        let per_response = |label| num_responses.map(|len| memory.alloc::<f32>(len, label));
        Ok(Self {
            gradient: memory.alloc(
                gradient_layout(batch, backend).num_elements() + memory.misalignment,
                "d_log_prob",
            )?,
            baseline: per_response("baseline").transpose()?,
            advantage: per_response("advantage").transpose()?,
            active_rows: memory.alloc(batch.layout.num_rows(), "active_rows")?,
            active_count: memory.alloc(1, "active_count")?,
            metrics: memory.alloc(LOSS_METRICS_WORDS, "metrics")?,
        })
    }

    fn buffers(&self, batch: &TokenBatch<'_>, backend: &EmulatorBackend) -> LossOutputs {
        let skipped = backend.misalignment;
        LossOutputs {
            gradient_dtype: match (backend.narrow_gradient, batch.log_prob.dtype()) {
                (true, dtype) => dtype,
                (false, _) => DType::F32,
            },
            d_log_prob: params::Buffer {
                address: self.gradient.address() + (skipped * size_of::<G>()) as u64,
                len: self.gradient.len() - skipped,
            },
            gradient_row_stride: backend.gradient_row_stride,
            baseline: self.baseline.as_ref().map(whole),
            advantage: self.advantage.as_ref().map(whole),
            active_rows: Some(whole(&self.active_rows)),
            active_count: Some(whole(&self.active_count)),
            metrics: whole(&self.metrics),
        }
    }

    fn download(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        backend: &EmulatorBackend,
    ) -> Result<LossOutput> {
        // SAFETY: the buffer has the struct's words, all of them written and plain numbers.
        let metrics: sys::qae_loss_metrics =
            unsafe { read_words(&self.metrics.download().map_err(failed)?) };
        let per_response = |buffer: &Option<Buffer<f32>>| {
            buffer
                .as_ref()
                .map(|buffer| buffer.download().map(|values| widened(&values)))
                .transpose()
                .map_err(failed)
        };
        let num_active = self.active_count.download().map_err(failed)?[0] as usize;
        Ok(LossOutput {
            metrics: params::loss_metrics(&metrics, config.metrics_scope),
            d_log_prob: self.download_gradient(batch, config, backend)?,
            baseline: per_response(&self.baseline)?,
            advantage: per_response(&self.advantage)?,
            active_rows: self.active_rows.download_raw()[..num_active]
                .iter()
                .map(|&row| row as u32)
                .collect(),
        })
    }

    /// The gradient laid out as the log-probs, 0 where it may be and was left unwritten. A slot
    /// that should have been written and was not is an error: the poison must be gone.
    fn download_gradient(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        backend: &EmulatorBackend,
    ) -> Result<Vec<f64>> {
        let raw = self.gradient.download_raw();
        let source_layout = gradient_layout(batch, backend);
        let mut gradient = vec![0.0; batch.log_prob.len()];
        for row in 0..batch.layout.num_rows() {
            let target = batch.layout.row(row);
            let source = source_layout.row(row).start + backend.misalignment;
            for slot in 0..target.num_slots {
                if self.gradient.is_initialized(source + slot) {
                    gradient[target.start + slot] = raw[source + slot].into();
                } else if config.inactive_gradient == InactiveGradient::ZeroFill {
                    return Err(qae::Error::Backend {
                        backend: "emulator",
                        message: format!("d_log_prob: slot {slot} of row {row} was not written"),
                    });
                }
            }
        }
        Ok(gradient)
    }
}

fn gradient_layout<'a>(batch: &TokenBatch<'a>, backend: &EmulatorBackend) -> Layout<'a> {
    match (batch.layout, backend.gradient_row_stride) {
        (
            Layout::Padded {
                num_rows,
                width,
                mask_row_stride,
                lengths,
                ..
            },
            Some(row_stride),
        ) => Layout::Padded {
            num_rows,
            width,
            row_stride,
            mask_row_stride,
            lengths,
        },
        (layout, _) => layout,
    }
}

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
