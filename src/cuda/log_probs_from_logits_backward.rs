//! The gradient of log-probs and entropy with respect to logits on the device.

use super::launch::Accesses;
use super::log_probs_from_logits::DeviceLogitsRows;
use super::logits::{DeviceLogits, LogitsGradient};
use super::memory::DeviceSlice;
use super::range::Range;
use super::softmax_stats::SoftmaxStats;
use super::stream::Stream;
use crate::config::Gradient;
use crate::error::Result;
use crate::params::{self, LogProbsGradients};
use crate::sys;

/// What [`log_probs_from_logits_backward`] reads besides the logits.
#[derive(Debug)]
pub struct LogProbsDerivatives<'a> {
    /// \[num_rows\]: what the forward pass, or the merge, wrote of the whole vocabulary.
    pub stats: DeviceSlice<'a, SoftmaxStats>,
    /// \[num_rows\]: g = d loss / d log_prob, in 1 / nats.
    pub d_log_prob: DeviceSlice<'a, f32>,
    /// \[num_rows\]: h = d loss / d entropy, in 1 / nats; `None`: 0.
    pub d_entropy: Option<DeviceSlice<'a, f32>>,
}

/// d loss / d logits from the derivatives with respect to each row's log-prob and entropy, in the
/// logits' own memory or apart from it, with one read and one write of each row that has any.
///
/// d_logits = (g (1\[token\] − p) − h p (z − Σ p z)) / T with z = x / T and p = softmax(z). As
/// [`crate::reference::log_probs_from_logits_backward`]. In a shard of the vocabulary
/// ([`DeviceLogitsRows::vocab_start`]), its own columns of the same. `logits` and `rows` are those
/// of the forward pass, and still hold the logits.
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `logits.values`: logits, gradient | a row of vocab_size for each token | f32, bf16, f16, alike | dimensionless |
/// | `rows.token_id` | \[num_rows\] | i32, i64 | index |
/// | `derivatives.stats` | \[num_rows\] | [`SoftmaxStats`] | dimensionless |
/// | `derivatives.d_log_prob`, `d_entropy` | \[num_rows\] | f32 | 1 / nats |
///
/// A row whose g and h are both 0, as those of masked tokens are to be, is not read: its gradient is
/// 0 with [`Gradient::ZeroFill`] and not written with [`Gradient::Untouched`]. g or h that is not
/// finite counts as 0, and so do g of a token whose own logit is −∞ and both of a row of which
/// nothing finite can be said. No rows: nothing is launched.
///
/// The same bits on every run and wherever the gradient goes: f32 per element, rounded once.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a temperature, a vocabulary, a stride, a shape or a dtype that
///   does not fit, a gradient apart that overlaps the logits, [`Gradient::Compact`], which only a
///   loss knows the rows of, or memory of another device.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. See
/// [the module](super).
///
/// ```no_run
/// use qae::cuda::{
///     self, Device, DeviceLogits, DeviceLogitsRows, DeviceSlice, DeviceTensor, DeviceTensorMut,
///     LogProbsDerivatives, LogProbsOutputs, LogitsGradient, SoftmaxStats, Stream,
/// };
/// use qae::Gradient;
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let memory = stream.cudarc();
/// let mut values = memory.clone_htod(&[7.0_f32; 2 * 4]).unwrap();
/// let token_id = memory.clone_htod(&[1_i32, 3]).unwrap();
/// let d_log_prob = memory.clone_htod(&[1.0_f32, 0.0]).unwrap();
/// let mut stats = memory.alloc_zeros::<SoftmaxStats>(2).unwrap();
/// let rows = DeviceLogitsRows::new(DeviceSlice::from(&token_id));
///
/// let logits = DeviceLogits::contiguous(DeviceTensor::F32((&values).into()), 4);
/// let mut outputs = LogProbsOutputs {
///     stats: Some((&mut stats).into()),
///     ..LogProbsOutputs::default()
/// };
/// cuda::log_probs_from_logits(&stream, &logits, &rows, None, &mut outputs)?;
///
/// let in_place = LogitsGradient::InPlace(DeviceTensorMut::F32((&mut values).into()));
/// let mut logits = DeviceLogits::contiguous(in_place, 4);
/// let derivatives = LogProbsDerivatives {
///     stats: (&stats).into(),
///     d_log_prob: (&d_log_prob).into(),
///     d_entropy: None,
/// };
/// let gradient = Gradient::ZeroFill;
/// cuda::log_probs_from_logits_backward(&stream, &mut logits, &rows, &derivatives, gradient)?;
/// // −¼, ¾, −¼, −¼, and zeros.
/// println!("{:?}", memory.clone_dtoh(&values).unwrap());
/// # Ok::<(), qae::Error>(())
/// ```
pub fn log_probs_from_logits_backward(
    stream: &Stream,
    logits: &mut DeviceLogits<LogitsGradient<'_>>,
    rows: &DeviceLogitsRows<'_>,
    derivatives: &LogProbsDerivatives<'_>,
    gradient: Gradient,
) -> Result<()> {
    let _range = Range::new(c"qae::log_probs_from_logits_backward");
    let mut accesses = Accesses::new(stream)?;
    let (logits, target) = logits.write(&rows.token_id, &mut accesses)?;
    let given = LogProbsGradients {
        stats: accesses.read("stats", &derivatives.stats)?,
        d_log_prob: accesses.read("d_log_prob", &derivatives.d_log_prob)?,
        d_entropy: accesses.read_some("d_entropy", derivatives.d_entropy.as_ref())?,
    };
    let rows = rows.of(logits);
    let params = params::log_probs_from_logits_backward(&rows, &given, &target, gradient)?;
    accesses.launch("qae_log_probs_from_logits_backward", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users. A gradient that shares
        // the logits' memory has their strides, which the kernels allow.
        unsafe { sys::qae_log_probs_from_logits_backward(&params, stream) }
    })
}
