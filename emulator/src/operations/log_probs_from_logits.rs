//! `log_probs_from_logits`, its backward pass and its vocabulary-parallel phases on the emulated
//! kernels.

use qae::batch::LogProbsInput;
use qae::params;
use qae::{Gradient, LogProbsOutput};

use super::log_prob_outputs::{
    ForwardMemory, STATS_FIELDS, in_stats, upload_gradients, upload_mask,
};
use super::logit_rows::{Rows, Shard};
use super::memory::Memory;
use super::{EmulatorBackend, Result, failed};
use crate::{Trace, launchers};

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
