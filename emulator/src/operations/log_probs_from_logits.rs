//! `log_probs_from_logits`, its backward pass and its vocabulary-parallel phases on the emulated
//! kernels.

use qae::batch::{LogProbsInput, Logits, Tensor};
use qae::params::{
    self, LogProbsGradients, LogProbsOutputs, LogitsBuffers, LogitsGradient, LogitsRows,
};
use qae::{Gradient, LogProbsOutput, sys};

use super::gradient::{GradientRows, changed_rows, written_rows};
use super::loss_from_logits::{LogitsPlacement, upload_token_ids};
use super::memory::Memory;
use super::slots::SlotPlaces;
use super::tensor::TensorMemory;
use super::{EmulatorBackend, Result, failed, whole, widened};
use crate::{Buffer, Trace, launchers};

/// f32 values of a `qae_softmax_stats`.
const STATS_FIELDS: usize = size_of::<sys::qae_softmax_stats>() / 4;

/// Log-probs, with what a backward pass needs.
#[derive(Debug)]
pub struct LogProbsRun {
    /// What a caller of the library sees.
    pub output: LogProbsOutput,
    /// Of each row: largest logit, Σ exp, Σ exp · z, own logit (see `qae_softmax_stats`).
    pub stats: Vec<[f32; STATS_FIELDS]>,
    /// Of the launch.
    pub trace: Trace,
}

/// The gradient with respect to logits.
#[derive(Debug)]
pub struct LogitsGradientRun {
    /// \[num_rows, vocab_size\], 0 where nothing was written.
    pub d_logits: Vec<f64>,
    /// Whether each row was written or, in place, changed.
    pub written: Vec<bool>,
    /// Of the launch of the backward pass alone.
    pub trace: Trace,
}

/// A vocabulary in shards: statistics of each, merged, then the gradient of each.
#[derive(Debug)]
pub struct ShardsRun {
    /// Of the whole vocabulary.
    pub output: LogProbsOutput,
    /// \[num_rows, vocab_size\], the shards' columns side by side.
    pub d_logits: Vec<f64>,
    /// Of the launches, in order.
    pub traces: Vec<Trace>,
}

impl EmulatorBackend {
    /// Runs the kernel `log_probs_from_logits`.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_log_probs_from_logits(&self, input: &LogProbsInput<'_>) -> Result<LogProbsRun> {
        input.check()?;
        let memory = Memory::new(self);
        let rows = Rows::upload(&memory, self, input, None)?;
        let forward = ForwardMemory::new(&memory, input.token_id.len())?;
        let trace = rows.forward(&memory, input.mask, &forward.all())?;
        let stats = forward.stats.download().map_err(failed)?;
        let stats = stats.chunks_exact(STATS_FIELDS);
        Ok(LogProbsRun {
            output: forward.download()?,
            stats: stats.map(|row| [row[0], row[1], row[2], row[3]]).collect(),
            trace,
        })
    }

    /// Runs the kernel `log_probs_from_logits_backward`, after a forward pass for its statistics.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
        gradient: Gradient,
    ) -> Result<LogitsGradientRun> {
        input.check()?;
        let memory = Memory::new(self);
        let rows = Rows::upload(&memory, self, input, None)?;
        let forward = ForwardMemory::new(&memory, input.token_id.len())?;
        rows.forward(&memory, input.mask, &forward.statistics_only())?;
        let gradients = upload_gradients(&memory, &forward, d_log_prob, d_entropy)?;
        rows.backward(&memory, &gradients, gradient)
    }

    /// Runs forward pass, merge and backward pass on consecutive shards of the vocabulary with
    /// these numbers of columns, as the ranks of a parallel vocabulary do together.
    ///
    /// # Errors
    /// Those of the checks, and a detector's findings.
    pub fn run_softmax_shards(
        &self,
        input: &LogProbsInput<'_>,
        columns: &[usize],
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<ShardsRun> {
        input.check()?;
        let shards = Shard::all(columns, input.logits.vocab_size)?;
        let num_rows = input.token_id.len();
        let memory = Memory::new(self);
        let (mut traces, mut gathered, mut ranks) = (vec![], vec![], vec![]);
        for &shard in &shards {
            let rows = Rows::upload(&memory, self, input, Some(shard))?;
            let forward = ForwardMemory::new(&memory, num_rows)?;
            traces.push(rows.forward(&memory, input.mask, &forward.statistics_only())?);
            gathered.extend(forward.stats.download().map_err(failed)?);
            ranks.push(rows);
        }
        let merged = ForwardMemory::new(&memory, num_rows)?;
        traces.push(merge(&memory, &gathered, shards.len(), input, &merged)?);
        let gradients = upload_gradients(&memory, &merged, d_log_prob, d_entropy)?;
        let vocab_size = input.logits.vocab_size;
        let mut d_logits = vec![0.0; num_rows * vocab_size];
        for (shard, rows) in shards.iter().zip(ranks) {
            let run = rows.backward(&memory, &gradients, Gradient::ZeroFill)?;
            traces.push(run.trace);
            for (row, part) in run.d_logits.chunks(shard.columns).enumerate() {
                let start = row * vocab_size + shard.start;
                d_logits[start..][..shard.columns].copy_from_slice(part);
            }
        }
        Ok(ShardsRun {
            output: merged.download()?,
            d_logits,
            traces,
        })
    }
}

/// Launches `merge_softmax_stats`.
fn merge(
    memory: &Memory,
    gathered: &[f32],
    num_shards: usize,
    input: &LogProbsInput<'_>,
    outputs: &ForwardMemory,
) -> Result<Trace> {
    let shards = memory.upload(gathered, "shards", 0)?;
    let params = params::merge_softmax_stats(
        in_stats(shards),
        num_shards,
        input.token_id.len(),
        upload_mask(memory, input.mask)?,
        input.temperature,
        &outputs.all(),
    )?;
    let trace = memory.device.launch(|| {
        // SAFETY: every pointer is a buffer of this device with the length that was checked.
        unsafe { launchers::qae_emu_merge_softmax_stats(&params, std::ptr::null_mut()) }
    });
    trace.map_err(failed)
}

/// Some consecutive columns of every row.
#[derive(Clone, Copy)]
struct Shard {
    start: usize,
    columns: usize,
}

/// The rows of one call, or a shard of them.
struct Rows {
    rows: LogitsRows,
    values: TensorMemory,
    gradient: GradientPlace,
}

/// Where their gradient is written.
struct GradientPlace {
    /// `None`: it takes the logits' place.
    apart: Option<TensorMemory>,
    row_stride: usize,
}

impl Rows {
    fn upload(
        memory: &Memory,
        backend: &EmulatorBackend,
        input: &LogProbsInput<'_>,
        shard: Option<Shard>,
    ) -> Result<Self> {
        let placement = &backend.logits;
        let num_rows = input.token_id.len();
        let values = upload_columns(memory, placement, input, shard)?;
        let (vocab_size, row_stride) = match shard {
            None => (input.logits.vocab_size, input.logits.row_stride),
            Some(shard) => (shard.columns, shard.columns),
        };
        let gradient =
            GradientPlace::new(memory, placement, num_rows, vocab_size, row_stride, &values)?;
        let logits = LogitsBuffers {
            values: values.view(),
            dtype: values.dtype(),
            vocab_size,
            row_stride,
            response_stride: None,
            token_ids: upload_token_ids(memory, placement, input.token_id)?,
            token_id_bytes: if placement.wide_token_ids { 8 } else { 4 },
        };
        let rows = LogitsRows {
            logits,
            num_rows,
            width: None,
            shard_start: shard.map(|shard| shard.start),
            temperature: input.temperature,
        };
        Ok(Self {
            rows,
            values,
            gradient,
        })
    }

    fn forward(
        &self,
        memory: &Memory,
        mask: Option<&[u8]>,
        outputs: &LogProbsOutputs,
    ) -> Result<Trace> {
        let mask = upload_mask(memory, mask)?;
        let params = params::log_probs_from_logits(&self.rows, mask, outputs)?;
        let trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe { launchers::qae_emu_log_probs_from_logits(&params, std::ptr::null_mut()) }
        });
        trace.map_err(failed)
    }

    fn backward(
        &self,
        memory: &Memory,
        gradients: &LogProbsGradients,
        gradient: Gradient,
    ) -> Result<LogitsGradientRun> {
        let before = self
            .gradient
            .apart
            .is_none()
            .then(|| self.values.download_raw());
        let target = LogitsGradient {
            d_logits: self.gradient.memory(self).view(),
            row_stride: Some(self.gradient.row_stride),
            response_stride: None,
        };
        let params =
            params::log_probs_from_logits_backward(&self.rows, gradients, &target, gradient)?;
        let trace = memory.device.launch(|| {
            // SAFETY: every pointer is a buffer of this device with the length that was checked.
            unsafe {
                launchers::qae_emu_log_probs_from_logits_backward(&params, std::ptr::null_mut())
            }
        });
        let trace = trace.map_err(failed)?;
        let places = SlotPlaces::flat(self.rows.num_rows, self.gradient.row_stride);
        let vocab_size = self.rows.logits.vocab_size;
        let may_be_absent = gradient == Gradient::Untouched;
        let tensor = self.gradient.memory(self);
        let GradientRows { values, written } = match before {
            Some(before) => changed_rows(tensor, &before, &places, vocab_size, may_be_absent)?,
            None => written_rows(tensor, &places, vocab_size, may_be_absent)?,
        };
        Ok(LogitsGradientRun {
            d_logits: values,
            written,
            trace,
        })
    }
}

impl GradientPlace {
    fn new(
        memory: &Memory,
        placement: &LogitsPlacement,
        num_rows: usize,
        vocab_size: usize,
        logits_stride: usize,
        values: &TensorMemory,
    ) -> Result<Self> {
        if placement.in_place {
            return Ok(Self {
                apart: None,
                row_stride: logits_stride,
            });
        }
        // A stride that a shard's fewer columns allow all the same.
        let row_stride = placement.gradient_row_stride.unwrap_or(logits_stride);
        let len = SlotPlaces::flat(num_rows, row_stride).num_elements(vocab_size);
        let skipped = placement.gradient_misalignment;
        let tensor = TensorMemory::alloc(memory, values.dtype(), len, "d_logits", skipped)?;
        Ok(Self {
            apart: Some(tensor),
            row_stride,
        })
    }

    fn memory<'a>(&'a self, rows: &'a Rows) -> &'a TensorMemory {
        self.apart.as_ref().unwrap_or(&rows.values)
    }
}

/// The outputs of the forward pass, or of the merge.
struct ForwardMemory {
    log_prob: Buffer<f32>,
    entropy: Buffer<f32>,
    log_sum_exp: Buffer<f32>,
    stats: Buffer<f32>,
}

impl ForwardMemory {
    fn new(memory: &Memory, num_rows: usize) -> Result<Self> {
        Ok(Self {
            log_prob: memory.alloc(num_rows, "log_prob")?,
            entropy: memory.alloc(num_rows, "entropy")?,
            log_sum_exp: memory.alloc(num_rows, "log_sum_exp")?,
            stats: memory.alloc(num_rows * STATS_FIELDS, "stats")?,
        })
    }

    fn statistics(&self) -> params::Buffer {
        in_stats(whole(&self.stats))
    }

    fn all(&self) -> LogProbsOutputs {
        LogProbsOutputs {
            log_prob: Some(whole(&self.log_prob)),
            entropy: Some(whole(&self.entropy)),
            log_sum_exp: Some(whole(&self.log_sum_exp)),
            ..self.statistics_only()
        }
    }

    fn statistics_only(&self) -> LogProbsOutputs {
        LogProbsOutputs {
            stats: Some(self.statistics()),
            ..LogProbsOutputs::default()
        }
    }

    fn download(&self) -> Result<LogProbsOutput> {
        let values = |buffer: &Buffer<f32>| {
            let values = buffer.download().map_err(failed)?;
            Ok::<_, qae::Error>(widened(&values))
        };
        Ok(LogProbsOutput {
            log_prob: values(&self.log_prob)?,
            entropy: values(&self.entropy)?,
            log_sum_exp: values(&self.log_sum_exp)?,
        })
    }
}

/// A buffer of f32 as one of `qae_softmax_stats`.
fn in_stats(buffer: params::Buffer) -> params::Buffer {
    params::Buffer {
        len: buffer.len / STATS_FIELDS,
        ..buffer
    }
}

fn upload_mask(memory: &Memory, mask: Option<&[u8]>) -> Result<Option<params::Buffer>> {
    let upload = |mask| memory.upload(mask, "mask", memory.misalignment);
    mask.map(upload).transpose()
}

fn upload_gradients(
    memory: &Memory,
    forward: &ForwardMemory,
    d_log_prob: &[f32],
    d_entropy: Option<&[f32]>,
) -> Result<LogProbsGradients> {
    let upload = |d_entropy| memory.upload(d_entropy, "d_entropy", 0);
    Ok(LogProbsGradients {
        stats: forward.statistics(),
        d_log_prob: memory.upload(d_log_prob, "d_log_prob", 0)?,
        d_entropy: d_entropy.map(upload).transpose()?,
    })
}

/// The logits as they are, or a shard's columns back to back.
fn upload_columns(
    memory: &Memory,
    placement: &LogitsPlacement,
    input: &LogProbsInput<'_>,
    shard: Option<Shard>,
) -> Result<TensorMemory> {
    let Logits {
        values, row_stride, ..
    } = input.logits;
    let upload = |tensor| TensorMemory::upload(memory, tensor, "logits", placement.misalignment);
    let Some(shard) = shard else {
        return upload(values);
    };
    let num_rows = input.token_id.len();
    match values {
        Tensor::F32(all) => upload(Tensor::F32(&shard.of(all, num_rows, row_stride))),
        Tensor::Bf16(all) => upload(Tensor::Bf16(&shard.of(all, num_rows, row_stride))),
        Tensor::F16(all) => upload(Tensor::F16(&shard.of(all, num_rows, row_stride))),
    }
}

impl Shard {
    /// One shard after another.
    fn all(columns: &[usize], vocab_size: usize) -> Result<Vec<Self>> {
        let mut start = 0;
        let mut shards = vec![];
        for &columns in columns {
            shards.push(Self { start, columns });
            start += columns;
        }
        if start == vocab_size {
            return Ok(shards);
        }
        let expected = format!("{vocab_size} in all, as the logits");
        Err(qae::Error::invalid(
            "columns of the shards",
            expected,
            start,
        ))
    }

    fn of<T: Copy>(&self, values: &[T], num_rows: usize, row_stride: usize) -> Vec<T> {
        let row = |row: usize| &values[row * row_stride + self.start..][..self.columns];
        (0..num_rows).flat_map(row).copied().collect()
    }
}
