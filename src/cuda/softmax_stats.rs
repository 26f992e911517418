//! What a softmax needs to know of each row, and its merge over the shards of a vocabulary.

use super::launch::Accesses;
use super::log_probs_from_logits::LogProbsOutputs;
use super::memory::DeviceSlice;
use super::range::Range;
use super::stream::Stream;
use crate::error::Result;
use crate::params;
use crate::sys;
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

/// Of one row of logits x at temperature T, or of a shard of it: 16 bytes, four f32 in this order
/// (`qae_softmax_stats`).
///
/// In memory that others gather or reduce, a tensor of them is an f32 tensor \[num_rows, 4\].
/// [`merge_softmax_stats`] has the formulas; a row is unusable if `sum_exp` is 0 or not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct SoftmaxStats {
    /// Of the finite logits; the least finite f32 if there is none.
    pub max_logit: f32,
    /// Σ exp((x − max_logit) / T).
    pub sum_exp: f32,
    /// Σ exp((x − max_logit) / T) · (x − max_logit) / T, in nats.
    pub sum_exp_z: f32,
    /// Of the row's token; −∞ if this shard does not hold it.
    pub own_logit: f32,
}

const _: () = assert!(size_of::<SoftmaxStats>() == size_of::<sys::qae_softmax_stats>());

// SAFETY: `repr(C)` of four f32, without padding, as the kernels have it.
unsafe impl DeviceRepr for SoftmaxStats {}

// SAFETY: an f32 of zero bits is 0.
unsafe impl ValidAsZeroBits for SoftmaxStats {}

/// The second phase of a softmax over a vocabulary that several ranks hold: from each shard's
/// statistics to the whole row's, and to log-prob, entropy and log-sum-exp (1805.02867, §3.1).
///
/// With m = max over shards of max_logit and s = exp((max_logit − m) / T), sum_exp = Σ s · sum_exp
/// and sum_exp_z = Σ s · (sum_exp_z + sum_exp · (max_logit − m) / T). The first phase is
/// [`super::log_probs_from_logits`] of a shard; between them, trainers gather `stats`, or reduce
/// them by these formulas themselves and give the result as one shard. As
/// [`crate::reference::SoftmaxStats`].
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `shards` | \[num_shards, num_rows\] | [`SoftmaxStats`] | dimensionless |
/// | `mask` | \[num_rows\] | u8 | 0 or not |
/// | `temperature` | a number above 0 | | dimensionless |
/// | `outputs.log_prob`, `entropy`, `log_sum_exp` | \[num_rows\] | f32 | nats |
/// | `outputs.stats` | \[num_rows\] | [`SoftmaxStats`] | dimensionless |
///
/// Masked rows get 0 everywhere, and statistics of nothing. A row of which a shard holds a NaN or
/// +∞, or that is −∞ everywhere, gets NaN; so does one whose token no shard holds a log-prob of −∞.
/// No rows: nothing is launched.
///
/// The same bits on every run: shards are merged in their order, in f32.
///
/// # Errors
/// - [`crate::Error::Invalid`] for no shards, a temperature out of range, a tensor of another
///   length, or memory of another device.
/// - [`crate::Error::Missing`] without any output.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. See
/// [the module](super).
///
/// ```no_run
/// use qae::cuda::{self, Device, LogProbsOutputs, SoftmaxStats, Stream};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// // Of two ranks, for three rows, such as an all-gather left it.
/// let shards = stream.cudarc().alloc_zeros::<SoftmaxStats>(2 * 3).unwrap();
/// let mut log_prob = stream.cudarc().alloc_zeros::<f32>(3).unwrap();
/// let mut outputs = LogProbsOutputs {
///     log_prob: Some((&mut log_prob).into()),
///     ..LogProbsOutputs::default()
/// };
/// cuda::merge_softmax_stats(&stream, &(&shards).into(), 2, None, 1.0, &mut outputs)?;
/// # Ok::<(), qae::Error>(())
/// ```
pub fn merge_softmax_stats(
    stream: &Stream,
    shards: &DeviceSlice<'_, SoftmaxStats>,
    num_shards: usize,
    mask: Option<&DeviceSlice<'_, u8>>,
    temperature: f64,
    outputs: &mut LogProbsOutputs<'_>,
) -> Result<()> {
    let _range = Range::new(c"qae::merge_softmax_stats");
    let mut accesses = Accesses::new(stream)?;
    let shards = accesses.read("shards", shards)?;
    let mask = accesses.read_some("mask", mask)?;
    let buffers = outputs.write(&mut accesses)?;
    let num_rows = shards.len.checked_div(num_shards).unwrap_or(0);
    let params =
        params::merge_softmax_stats(shards, num_shards, num_rows, mask, temperature, &buffers)?;
    accesses.launch("qae_merge_softmax_stats", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users.
        unsafe { sys::qae_merge_softmax_stats(&params, stream) }
    })
}
