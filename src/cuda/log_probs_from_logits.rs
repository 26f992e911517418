//! Logits to log-probs, entropy and log-sum-exp on the device.

use super::launch::Accesses;
use super::logits::{DeviceLogits, DeviceTokenIds};
use super::memory::{DeviceSlice, DeviceSliceMut, DeviceTensor};
use super::range::Range;
use super::softmax_stats::SoftmaxStats;
use super::stream::Stream;
use crate::error::Result;
use crate::params::{self, LogProbsOutputs as OutputBuffers, LogitsBuffers, LogitsRows};
use crate::sys;

/// What the operations on logits alone are told of their rows.
#[derive(Debug)]
pub struct DeviceLogitsRows<'a> {
    /// \[num_rows\]: the token of each row, in the whole vocabulary.
    pub token_id: DeviceTokenIds<'a>,
    /// Rows of a response, where responses have a stride of their own
    /// ([`DeviceLogits::response_stride`]), such as `logits[:, :-1]` has; `None`: every row is one
    /// row stride behind the one before.
    pub width: Option<usize>,
    /// The token id of the first column, where the logits are a shard of the vocabulary; `None`:
    /// they are all of it.
    pub vocab_start: Option<usize>,
    /// T: logits are divided by it; finite, above 0.
    pub temperature: f64,
}

impl<'a> DeviceLogitsRows<'a> {
    /// One after another, over the whole vocabulary, at temperature 1.
    pub fn new(token_id: impl Into<DeviceTokenIds<'a>>) -> Self {
        Self {
            token_id: token_id.into(),
            width: None,
            vocab_start: None,
            temperature: 1.0,
        }
    }

    pub(super) fn of(&self, logits: LogitsBuffers) -> LogitsRows {
        LogitsRows {
            logits,
            num_rows: self.token_id.len(),
            width: self.width,
            shard_start: self.vocab_start,
            temperature: self.temperature,
        }
    }
}

/// Where [`log_probs_from_logits`] and [`super::merge_softmax_stats`] write; at least one of them.
#[derive(Debug, Default)]
pub struct LogProbsOutputs<'a> {
    /// \[num_rows\]: log π(token), in nats; not of a shard.
    pub log_prob: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_rows\], in nats; not of a shard.
    pub entropy: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_rows\], in nats; not of a shard.
    pub log_sum_exp: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_rows\]: for the backward pass, or to be merged with those of other shards.
    pub stats: Option<DeviceSliceMut<'a, SoftmaxStats>>,
}

impl LogProbsOutputs<'_> {
    pub(super) fn write<'s>(&'s mut self, accesses: &mut Accesses<'s>) -> Result<OutputBuffers> {
        Ok(OutputBuffers {
            log_prob: accesses.write_some("log_prob", self.log_prob.as_mut())?,
            entropy: accesses.write_some("entropy", self.entropy.as_mut())?,
            log_sum_exp: accesses.write_some("log_sum_exp", self.log_sum_exp.as_mut())?,
            stats: accesses.write_some("stats", self.stats.as_mut())?,
        })
    }
}

/// Log-prob of each row's token, entropy and log-sum-exp of each row, from logits that are read
/// once, without a tensor of probabilities.
///
/// With z = x / T: log_prob = z\[token\] − ln Σ e^z, entropy = ln Σ e^z − Σ p z with
/// p = softmax(z), by the online softmax of arXiv 1805.02867. As
/// [`crate::reference::log_probs_from_logits`]. Of a shard of the vocabulary
/// ([`DeviceLogitsRows::vocab_start`]) only `stats` can be had, which
/// [`super::merge_softmax_stats`] turns into the others.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `logits.values` | a row of vocab_size for each token | f32, bf16, f16 | dimensionless |
/// | `rows.token_id` | \[num_rows\] | i32, i64 | index |
/// | `mask` | \[num_rows\] | u8 | 0 or not |
/// | `outputs.log_prob`, `entropy`, `log_sum_exp` | \[num_rows\] | f32 | nats |
/// | `outputs.stats` | \[num_rows\] | [`SoftmaxStats`] | dimensionless |
///
/// Masked rows are not read, whatever stands there, and get 0. A logit of −∞ has p = 0; a token
/// whose own logit is −∞ has log-prob −∞. A row with a NaN or +∞, with −∞ alone, or with a token id
/// outside the vocabulary has NaN in all three. No rows: nothing is launched.
///
/// The same bits on every run: f32 with the maximum subtracted first, sums in a fixed order that
/// depends on vocab_size and on where a row starts modulo 16 bytes.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a temperature, a vocabulary, a stride or a shape that does not
///   fit, log-probs of a shard, or memory of another device.
/// - [`crate::Error::Missing`] without any output.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. See
/// [the module](super).
///
/// ```no_run
/// use qae::cuda::{
///     self, Device, DeviceLogits, DeviceLogitsRows, DeviceSlice, DeviceTensor, LogProbsOutputs,
///     Stream,
/// };
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let memory = stream.cudarc();
/// let values = memory.clone_htod(&[7.0_f32; 2 * 4]).unwrap();
/// let token_id = memory.clone_htod(&[1_i64, 3]).unwrap();
/// let mut log_prob = memory.alloc_zeros::<f32>(2).unwrap();
/// let logits = DeviceLogits::contiguous(DeviceTensor::F32((&values).into()), 4);
/// let rows = DeviceLogitsRows::new(DeviceSlice::from(&token_id));
/// let mut outputs = LogProbsOutputs {
///     log_prob: Some((&mut log_prob).into()),
///     ..LogProbsOutputs::default()
/// };
/// cuda::log_probs_from_logits(&stream, &logits, &rows, None, &mut outputs)?;
/// // −ln 4, twice.
/// println!("{:?}", memory.clone_dtoh(&log_prob).unwrap());
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits(
    stream: &Stream,
    logits: &DeviceLogits<DeviceTensor<'_>>,
    rows: &DeviceLogitsRows<'_>,
    mask: Option<&DeviceSlice<'_, u8>>,
    outputs: &mut LogProbsOutputs<'_>,
) -> Result<()> {
    let _range = Range::new(c"qae::log_probs_from_logits");
    let mut accesses = Accesses::new(stream)?;
    let logits = logits.read(&rows.token_id, &mut accesses)?;
    let mask = accesses.read_some("mask", mask)?;
    let buffers = outputs.write(&mut accesses)?;
    let params = params::log_probs_from_logits(&rows.of(logits), mask, &buffers)?;
    accesses.launch("qae_log_probs_from_logits", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users.
        unsafe { sys::qae_log_probs_from_logits(&params, stream) }
    })
}
