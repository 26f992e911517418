//! The operations on logits alone for tensors on the host.

use super::CudaBackend;
use super::outputs::widened;
use crate::backend::{LogProbsOutput, Run};
use crate::batch::{LogProbsInput, Logits};
use crate::config::Gradient;
use crate::cuda::log_probs_from_logits::{
    DeviceLogitsRows, LogProbsOutputs, log_probs_from_logits,
};
use crate::cuda::log_probs_from_logits_backward::{
    LogProbsDerivatives, log_probs_from_logits_backward,
};
use crate::cuda::softmax_stats::{SoftmaxStats, merge_softmax_stats};
use crate::cuda::stream::Stream;
use crate::cuda::traffic::{backward_bytes, forward_bytes};
use crate::cuda::upload::{GradientMemory, Owned, UploadedLogits};
use crate::error::{Error, Result};
use crate::reference::check_backward;

impl CudaBackend {
    pub(super) fn run_log_probs_from_logits(
        &self,
        input: &LogProbsInput<'_>,
    ) -> Result<Run<LogProbsOutput>> {
        input.check()?;
        let stream = &self.stream;
        let rows = Rows::upload(self, input, None)?;
        let mut memory = ForwardMemory::new(stream, input.num_rows())?;
        rows.forward(stream, &mut memory.outputs())?; // warms up
        let seconds = self.seconds(|| rows.forward(stream, &mut memory.outputs()))?;
        Ok(Run {
            output: memory.download(stream)?,
            bytes_moved: forward_bytes(input),
            seconds: Some(seconds),
        })
    }

    pub(super) fn run_log_probs_from_logits_backward(
        &self,
        input: &LogProbsInput<'_>,
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<Run<Vec<f64>>> {
        check_backward(input, d_log_prob.len(), d_entropy.map(<[f32]>::len))?;
        let stream = &self.stream;
        let rows = Rows::upload(self, input, None)?;
        let mut memory = ForwardMemory::new(stream, input.num_rows())?;
        rows.forward(stream, &mut memory.statistics_only())?;
        let derivatives = Derivatives::upload(stream, d_log_prob, d_entropy)?;
        let starts = rows.starts();
        let mut gradient = GradientMemory::new(stream, &rows.logits, &self.logits, &starts)?;
        rows.backward(stream, &memory.stats, &derivatives, &mut gradient)?; // warms up
        gradient.restore(&rows.logits)?;
        let launch = || rows.backward(stream, &memory.stats, &derivatives, &mut gradient);
        let seconds = self.seconds(launch)?;
        Ok(Run {
            output: gradient.download(stream, &rows.logits, &starts)?,
            bytes_moved: backward_bytes(input, d_log_prob, d_entropy),
            seconds: Some(seconds),
        })
    }

    /// Forward pass, merge and backward pass on consecutive shards of the vocabulary with these
    /// numbers of columns, as the ranks of a parallel vocabulary run them together: the results of
    /// the whole vocabulary.
    ///
    /// # Errors
    /// Those of [`log_probs_from_logits`], [`merge_softmax_stats`] and
    /// [`log_probs_from_logits_backward`], and [`Error::Invalid`] for columns that are not as many
    /// as the logits'.
    pub fn log_probs_from_shards(
        &self,
        input: &LogProbsInput<'_>,
        columns: &[usize],
        d_log_prob: &[f32],
        d_entropy: Option<&[f32]>,
    ) -> Result<(LogProbsOutput, Vec<f64>)> {
        check_backward(input, d_log_prob.len(), d_entropy.map(<[f32]>::len))?;
        let ranks = self.ranks(input, columns)?;
        let (stream, num_rows) = (&self.stream, input.num_rows());
        let mut gathered = vec![];
        for rank in &ranks {
            let mut memory = ForwardMemory::new(stream, num_rows)?;
            rank.forward(stream, &mut memory.statistics_only())?;
            gathered.extend(memory.stats.download(stream)?);
        }
        let gathered = Owned::upload(stream, &gathered)?;
        let mask = input.mask.map(|mask| Owned::upload(stream, mask));
        let mask = mask.transpose()?;
        let mut merged = ForwardMemory::new(stream, num_rows)?;
        merge_softmax_stats(
            stream,
            &gathered.as_slice(),
            ranks.len(),
            mask.as_ref().map(Owned::as_slice).as_ref(),
            input.temperature,
            &mut merged.outputs(),
        )?;
        let derivatives = Derivatives::upload(stream, d_log_prob, d_entropy)?;
        let vocab_size = input.logits.vocab_size;
        let mut d_logits = vec![0.0; num_rows * vocab_size];
        for rank in &ranks {
            let starts = rank.starts();
            let mut gradient = GradientMemory::new(stream, &rank.logits, &self.logits, &starts)?;
            rank.backward(stream, &merged.stats, &derivatives, &mut gradient)?;
            let part = gradient.download(stream, &rank.logits, &starts)?;
            for (row, columns) in part.chunks(rank.num_columns).enumerate() {
                let start = row * vocab_size + rank.vocab_start.unwrap_or(0);
                d_logits[start..][..columns.len()].copy_from_slice(columns);
            }
        }
        Ok((merged.download(stream)?, d_logits))
    }

    /// The shards of `input`: some consecutive columns of every row each.
    fn ranks<'h>(&self, input: &LogProbsInput<'h>, columns: &[usize]) -> Result<Vec<Rows<'h>>> {
        let logits = input.logits;
        let sum: usize = columns.iter().sum();
        if sum != logits.vocab_size {
            let expected = format!("{} columns in all", logits.vocab_size);
            return Err(Error::invalid("columns", expected, sum));
        }
        let mut start = 0;
        let mut ranks = vec![];
        for &vocab_size in columns {
            let len = logits.values.len();
            let shard = LogProbsInput {
                logits: Logits {
                    values: logits.values.slice(start.min(len)..len),
                    vocab_size,
                    ..logits
                },
                ..*input
            };
            ranks.push(Rows::upload(self, &shard, Some(start))?);
            start += vocab_size;
        }
        Ok(ranks)
    }
}

/// The rows of a call, or of a shard of its vocabulary.
struct Rows<'h> {
    logits: UploadedLogits<'h>,
    mask: Option<Owned<u8>>,
    num_rows: usize,
    num_columns: usize,
    row_stride: usize,
    vocab_start: Option<usize>,
    temperature: f64,
}

impl<'h> Rows<'h> {
    fn upload(
        backend: &CudaBackend,
        input: &LogProbsInput<'h>,
        vocab_start: Option<usize>,
    ) -> Result<Self> {
        let stream = &backend.stream;
        let mask = input.mask.map(|mask| Owned::upload(stream, mask));
        Ok(Self {
            logits: UploadedLogits::new(stream, input.logits, input.token_id, &backend.logits)?,
            mask: mask.transpose()?,
            num_rows: input.num_rows(),
            num_columns: input.logits.vocab_size,
            row_stride: input.logits.row_stride,
            vocab_start,
            temperature: input.temperature,
        })
    }

    /// The first element of each row.
    fn starts(&self) -> Vec<usize> {
        let rows = 0..self.num_rows;
        rows.map(|row| row * self.row_stride).collect()
    }

    fn as_rows(&self) -> DeviceLogitsRows<'_> {
        DeviceLogitsRows {
            token_id: self.logits.token_id(),
            width: None,
            vocab_start: self.vocab_start,
            temperature: self.temperature,
        }
    }

    fn forward(&self, stream: &Stream, outputs: &mut LogProbsOutputs<'_>) -> Result<()> {
        let mask = self.mask.as_ref().map(Owned::as_slice);
        let logits = self.logits.as_logits();
        log_probs_from_logits(stream, &logits, &self.as_rows(), mask.as_ref(), outputs)
    }

    fn backward(
        &self,
        stream: &Stream,
        stats: &Owned<SoftmaxStats>,
        derivatives: &Derivatives,
        memory: &mut GradientMemory,
    ) -> Result<()> {
        let mut logits = self.logits.with_gradient(memory);
        let derivatives = LogProbsDerivatives {
            stats: stats.as_slice(),
            d_log_prob: derivatives.d_log_prob.as_slice(),
            d_entropy: derivatives.d_entropy.as_ref().map(Owned::as_slice),
        };
        let (rows, gradient) = (self.as_rows(), Gradient::ZeroFill);
        log_probs_from_logits_backward(stream, &mut logits, &rows, &derivatives, gradient)
    }
}

struct Derivatives {
    d_log_prob: Owned<f32>,
    d_entropy: Option<Owned<f32>>,
}

impl Derivatives {
    fn upload(stream: &Stream, d_log_prob: &[f32], d_entropy: Option<&[f32]>) -> Result<Self> {
        let d_entropy = d_entropy.map(|d_entropy| Owned::upload(stream, d_entropy));
        Ok(Self {
            d_log_prob: Owned::upload(stream, d_log_prob)?,
            d_entropy: d_entropy.transpose()?,
        })
    }
}

/// What a forward pass, or a merge, writes.
struct ForwardMemory {
    log_prob: Owned<f32>,
    entropy: Owned<f32>,
    log_sum_exp: Owned<f32>,
    stats: Owned<SoftmaxStats>,
}

impl ForwardMemory {
    /// Full of +∞, which no row's result is: a row that a kernel forgot shows.
    fn new(stream: &Stream, num_rows: usize) -> Result<Self> {
        let poisoned = || Owned::upload(stream, &vec![f32::INFINITY; num_rows]);
        Ok(Self {
            log_prob: poisoned()?,
            entropy: poisoned()?,
            log_sum_exp: poisoned()?,
            stats: Owned::zeros(stream, num_rows)?,
        })
    }

    fn outputs(&mut self) -> LogProbsOutputs<'_> {
        LogProbsOutputs {
            log_prob: Some(self.log_prob.as_slice_mut()),
            entropy: Some(self.entropy.as_slice_mut()),
            log_sum_exp: Some(self.log_sum_exp.as_slice_mut()),
            stats: Some(self.stats.as_slice_mut()),
        }
    }

    fn statistics_only(&mut self) -> LogProbsOutputs<'_> {
        LogProbsOutputs {
            stats: Some(self.stats.as_slice_mut()),
            ..LogProbsOutputs::default()
        }
    }

    fn download(&self, stream: &Stream) -> Result<LogProbsOutput> {
        Ok(LogProbsOutput {
            log_prob: widened(&self.log_prob.download(stream)?),
            entropy: widened(&self.entropy.download(stream)?),
            log_sum_exp: widened(&self.log_sum_exp.download(stream)?),
        })
    }
}
