//! Rewards or advantages and log-probs to loss, gradient and metrics on the device.

use super::batch::DeviceBatch;
use super::launch::Accesses;
use super::memory::{DeviceSlice, DeviceSliceMut, DeviceTensorMut};
use super::metrics::{DeviceMetrics, Written};
use super::range::Range;
use super::stream::Stream;
use super::workspace::Workspace;
use crate::config::Config;
use crate::error::Result;
use crate::params::{self, Buffer, LossOutputs as OutputBuffers, NormalizerSource};
use crate::sys;

/// Where [`loss_from_log_probs`] writes.
#[derive(Debug)]
pub struct LossOutputs<'a> {
    /// One for each slot, f32 or the dtype of the log-probs: d loss / d log_prob, in 1 / nats.
    pub d_log_prob: DeviceTensorMut<'a>,
    /// Elements from row to row of a padded gradient; `None`: as the log-probs.
    pub gradient_row_stride: Option<usize>,
    /// \[num_responses\], in units of reward; only with rewards.
    pub baseline: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_responses\]; only with rewards.
    pub advantage: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_rows\]: the rows with a non-zero advantage and a valid token, ascending.
    pub active_rows: Option<DeviceSliceMut<'a, i32>>,
    /// \[1\]: how many of `active_rows` are written.
    pub active_count: Option<DeviceSliceMut<'a, i32>>,
    /// Loss, counts and sums.
    pub metrics: &'a mut DeviceMetrics,
}

/// The denominator of the aggregation.
#[derive(Debug)]
pub enum DeviceNormalizer<'a> {
    /// The number in [`Config::normalizer`].
    Config,
    /// \[1\] f64, such as one that [`super::token_counts`] wrote, or a sum over ranks. A value that
    /// is not above 0 makes loss and gradient 0.
    Scalar(DeviceSlice<'a, f64>),
}

impl DeviceNormalizer<'_> {
    pub(super) fn read<'s>(&'s self, accesses: &mut Accesses<'s>) -> Result<NormalizerSource> {
        Ok(match self {
            Self::Config => NormalizerSource::Config,
            Self::Scalar(scalar) => NormalizerSource::Scalar(accesses.read("normalizer", scalar)?),
        })
    }
}

/// Bytes of workspace that [`loss_from_log_probs`] takes for `batch`, whatever its outputs are. A
/// workspace for the largest batch serves every smaller one.
///
/// # Errors
/// Those of [`loss_from_log_probs`] for `batch` and `config`.
pub fn loss_from_log_probs_workspace_bytes(
    stream: &Stream,
    batch: &DeviceBatch<'_>,
    config: &Config,
) -> Result<usize> {
    let views = batch.advantages.group_views();
    let mut accesses = Accesses::new(stream)?;
    let inputs = batch.read(views.as_ref(), &mut accesses)?;
    // The query looks at shapes only, so that any address stands for the outputs.
    let unused = |len| Buffer { address: 256, len };
    let outputs = OutputBuffers {
        gradient_dtype: batch.log_prob.dtype(),
        d_log_prob: unused(batch.log_prob.len()),
        gradient_row_stride: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: unused(1),
    };
    let normalizer = NormalizerSource::Scalar(unused(1));
    let params = params::loss_from_log_probs(&inputs, &outputs, config, normalizer)?;
    Ok(workspace_bytes(&params) as usize)
}

fn workspace_bytes(params: &sys::qae_loss_from_log_probs_params) -> u64 {
    // SAFETY: the query reads the params only, and follows none of their pointers.
    unsafe { sys::qae_loss_from_log_probs_workspace_bytes(params) }
}

/// The clipped policy-gradient loss of a batch, its gradient and its metrics, from rewards or
/// advantages and log-probs, each tensor read and written once.
///
/// With ρ = exp(log_prob − old_log_prob), the loss of a token is
/// −min(ρA, clip(ρ, 1 − low, 1 + high)·A) (PPO, arXiv 1707.06347; DAPO, 2503.14476), or that of
/// another [`crate::Objective`], plus kl.coef times an estimate of the KL divergence; tokens are
/// summed as [`crate::Aggregation`] says. A comes from grouped rewards by the quantile baseline of
/// arXiv 2509.22611, or is given. As [`crate::reference::loss_from_log_probs`].
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `batch.log_prob`, `old_log_prob`, `ref_log_prob` | one for each slot | f32, bf16, f16, all alike | nats |
/// | `batch.mask` | one for each slot | u8 | 0 or not |
/// | `batch.importance_weight` | one for each slot, or \[num_rows\] | f32 | dimensionless |
/// | `batch.advantages`: rewards | \[num_responses\] | f32 | reward |
/// | `batch.advantages`: given | \[num_rows\], or one for each slot | f32 | dimensionless |
/// | `normalizer` | \[1\], or a number in `config` | f64 | tokens, or responses |
/// | `outputs.d_log_prob` | one for each slot | f32 or that of the log-probs | 1 / nats |
/// | `outputs.baseline`, `advantage` | \[num_responses\] | f32 | reward, dimensionless |
/// | `outputs.active_rows`, `active_count` | \[num_rows\], \[1\] | i32 | indices |
///
/// Masked slots get gradient 0, whatever stands there, NaN and infinities included. So do inactive
/// responses (advantage exactly 0 and no KL term): nothing of them is read with
/// [`crate::MetricsScope::Active`], and with [`crate::Gradient::Untouched`] nothing is
/// written. All masked, or no rows: loss 0. Tokens whose log-ratio, loss or gradient is not finite
/// are left out and counted ([`crate::Metrics::check`]).
///
/// The same bits on every run: f32 per token, f64 sums, partial results added in a fixed order.
///
/// # Errors
/// - [`crate::Error::Invalid`] for a configuration out of range, a shape, stride or dtype that does
///   not fit, baseline and advantage outputs where advantages are given, memory of another device,
///   or a workspace that is too small or another operation's.
/// - [`crate::Error::Missing`] for an objective without `old_log_prob`, a KL term without
///   `ref_log_prob`, or [`crate::Normalizer::FromBatch`] without a scalar.
/// - [`crate::Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream` (two where a group has more than 1,024 responses), after the work that is
/// already on it; returns at once. See [the module](super).
///
/// ```no_run
/// use qae::cuda::{
///     self, DeviceAdvantages, DeviceBatch, DeviceLayout, DeviceMetrics, DeviceNormalizer,
///     DeviceTensor, Device, LossOutputs, Stream, Workspace,
/// };
/// use qae::{Config, Normalizer};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let memory = stream.cudarc();
/// let log_prob = memory.clone_htod(&[-1.0_f32, -2.0, -3.0]).unwrap();
/// let advantage = memory.clone_htod(&[3.0_f32]).unwrap();
/// let mut gradient = memory.alloc_zeros::<f32>(3).unwrap();
/// let mut metrics = DeviceMetrics::new(&stream)?;
/// let config = Config { normalizer: Normalizer::Value(3.0), ..Config::default() };
/// let batch = DeviceBatch {
///     layout: DeviceLayout::padded(1, 3),
///     mask: None,
///     log_prob: DeviceTensor::F32((&log_prob).into()),
///     old_log_prob: Some(DeviceTensor::F32((&log_prob).into())),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: DeviceAdvantages::PerResponse((&advantage).into()),
/// };
/// let bytes = cuda::loss_from_log_probs_workspace_bytes(&stream, &batch, &config)?;
/// let mut workspace = Workspace::new(&stream, bytes)?;
/// let mut outputs = LossOutputs {
///     d_log_prob: cuda::DeviceTensorMut::F32((&mut gradient).into()),
///     gradient_row_stride: None,
///     baseline: None,
///     advantage: None,
///     active_rows: None,
///     active_count: None,
///     metrics: &mut metrics,
/// };
/// let normalizer = DeviceNormalizer::Config;
/// cuda::loss_from_log_probs(&stream, &batch, &config, &normalizer, &mut outputs, &mut workspace)?;
/// assert_eq!(metrics.read(&stream)?.loss, -3.0);
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_log_probs(
    stream: &Stream,
    batch: &DeviceBatch<'_>,
    config: &Config,
    normalizer: &DeviceNormalizer<'_>,
    outputs: &mut LossOutputs<'_>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    let _range = Range::new(c"qae::loss_from_log_probs");
    let views = batch.advantages.group_views();
    let mut metrics = outputs.metrics.lend();
    let mut scratch = workspace.lend("loss_from_log_probs")?;
    let mut accesses = Accesses::new(stream)?;
    let inputs = batch.read(views.as_ref(), &mut accesses)?;
    let normalizer = normalizer.read(&mut accesses)?;
    let buffers = OutputBuffers {
        gradient_dtype: outputs.d_log_prob.dtype(),
        d_log_prob: accesses.write_tensor("d_log_prob", &mut outputs.d_log_prob)?,
        gradient_row_stride: outputs.gradient_row_stride,
        baseline: accesses.write_some("baseline", outputs.baseline.as_mut())?,
        advantage: accesses.write_some("advantage", outputs.advantage.as_mut())?,
        active_rows: accesses.write_some("active_rows", outputs.active_rows.as_mut())?,
        active_count: accesses.write_scalar("active_count", outputs.active_count.as_mut())?,
        metrics: accesses.write("metrics", &mut metrics)?,
    };
    let mut params = params::loss_from_log_probs(&inputs, &buffers, config, normalizer)?;
    let scratch = accesses.scratch(&mut scratch, workspace_bytes(&params))?;
    params.workspace = scratch.address as *mut _;
    params.workspace_bytes = scratch.len as u64;
    accesses.launch("qae_loss_from_log_probs", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users.
        unsafe { sys::qae_loss_from_log_probs(&params, stream) }
    })?;
    let scope = config.metrics_scope;
    outputs.metrics.set_written(Written::FromLogProbs(scope));
    Ok(())
}
