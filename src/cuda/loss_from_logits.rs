//! Rewards or advantages and logits to loss, log-probs, entropy, gradient and metrics on the device.

use super::launch::Accesses;
use super::logits::{DeviceLogits, LogitsGradient};
use super::logits_batch::DeviceLogitsBatch;
use super::loss_from_log_probs::DeviceNormalizer;
use super::memory::{DeviceSliceMut, DeviceTensorMut};
use super::metrics::{DeviceMetrics, Written};
use super::range::Range;
use super::stream::Stream;
use super::workspace::Workspace;
use crate::batch::DType;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::params::{
    self, Buffer, LogitsBuffers, LogitsGradient as GradientBuffer, LogitsOutputs as OutputBuffers,
    NormalizerSource, RowPolicy,
};
use crate::sys;

/// Where [`loss_from_logits`] writes, besides the gradient with respect to the logits.
#[derive(Debug)]
pub struct LossFromLogitsOutputs<'a> {
    /// One for each slot, f32 or the dtype of `old_log_prob`: d loss / d log_prob, in 1 / nats.
    pub d_log_prob: Option<DeviceTensorMut<'a>>,
    /// One for each slot: log π(token) in nats; 0 where a row of logits is not read.
    pub log_prob: Option<DeviceSliceMut<'a, f32>>,
    /// One for each slot: the entropy of softmax(logits / temperature) in nats; likewise.
    pub entropy: Option<DeviceSliceMut<'a, f32>>,
    /// Elements from row to row of these three, if padded; `None`: as the token tensors.
    pub token_row_stride: Option<usize>,
    /// \[num_slots\]: the slot of each row of a compact gradient, ascending; a slot's index is
    /// row · width + t in a padded layout, whatever the strides, else its position.
    pub active_slots: Option<DeviceSliceMut<'a, i64>>,
    /// \[1\]: how many of `active_slots` are written, and how many rows the gradient has, or would
    /// have if there were room.
    pub active_slot_count: Option<DeviceSliceMut<'a, i64>>,
    /// \[num_responses\], in units of reward; only with rewards.
    pub baseline: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_responses\]; only with rewards.
    pub advantage: Option<DeviceSliceMut<'a, f32>>,
    /// \[num_rows\]: the responses with a non-zero advantage and a valid token, ascending.
    pub active_rows: Option<DeviceSliceMut<'a, i32>>,
    /// \[1\]: how many of `active_rows` are written.
    pub active_count: Option<DeviceSliceMut<'a, i32>>,
    /// Loss, entropy, counts and sums.
    pub metrics: &'a mut DeviceMetrics,
}

impl<'a> LossFromLogitsOutputs<'a> {
    /// Loss and metrics only.
    pub fn new(metrics: &'a mut DeviceMetrics) -> Self {
        Self {
            d_log_prob: None,
            log_prob: None,
            entropy: None,
            token_row_stride: None,
            active_slots: None,
            active_slot_count: None,
            baseline: None,
            advantage: None,
            active_rows: None,
            active_count: None,
            metrics,
        }
    }
}

/// Bytes of workspace that [`loss_from_logits`] takes for `batch`, whatever its logits and outputs
/// are. A workspace for the largest batch serves every smaller one; GSPO and
/// [`crate::Gradient::Compact`] take more than the others.
///
/// # Errors
/// Those of [`loss_from_logits`] for `batch` and `config`.
pub fn loss_from_logits_workspace_bytes(
    stream: &Stream,
    batch: &DeviceLogitsBatch<'_>,
    config: &Config,
) -> Result<usize> {
    let views = batch.advantages.group_views();
    let mut accesses = Accesses::new(stream)?;
    let (token_ids, token_id_bytes) = batch.token_id.read(&mut accesses)?;
    // The query looks at the shapes of token tensors only: logits of one column, apart from their
    // gradient, stand for any.
    let unused = |address, len| Buffer { address, len };
    let logits = LogitsBuffers {
        values: unused(256, token_ids.len),
        dtype: DType::F32,
        vocab_size: 1,
        row_stride: 1,
        response_stride: None,
        token_ids,
        token_id_bytes,
    };
    let inputs = batch.read(logits, views.as_ref(), &mut accesses)?;
    let outputs = OutputBuffers {
        gradient: GradientBuffer {
            d_logits: unused(1 << 60, token_ids.len),
            row_stride: None,
            response_stride: None,
        },
        gradient_dtype: DType::F32,
        d_log_prob: None,
        log_prob: None,
        entropy: None,
        token_row_stride: None,
        active_slots: None,
        active_slot_count: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: unused(256, 1),
    };
    let normalizer = NormalizerSource::Scalar(unused(256, 1));
    let params = params::loss_from_logits(&inputs, &outputs, config, normalizer, RowPolicy::Auto)?;
    Ok(workspace_bytes(&params) as usize)
}

fn workspace_bytes(params: &sys::qae_loss_from_logits_params) -> u64 {
    // SAFETY: the query reads the params only, and follows none of their pointers.
    unsafe { sys::qae_loss_from_logits_workspace_bytes(params) }
}

/// The clipped policy-gradient loss of a batch, its gradient with respect to the logits, log-probs,
/// entropy and metrics, from rewards or advantages and logits: each row that acts is read once and
/// its gradient written once, the others are written at most.
///
/// With z = logits / T, log_prob = z\[token\] − ln Σ e^z and entropy H = ln Σ e^z − Σ p z, the loss
/// is Σ w (ℓ(log_prob) − entropy_coef · H), with ℓ and the weights w of
/// [`super::loss_from_log_probs`] (PPO, arXiv 1707.06347; DAPO, 2503.14476; QAE, 2509.22611). With
/// g = d loss / d log_prob and h = d loss / d H,
/// d_logits = (g (1\[token\] − p) − h p (z − Σ p z)) / T. As [`crate::reference::loss_from_logits`].
///
/// | argument | shape | dtype | unit |
/// |---|---|---|---|
/// | `logits.values`: logits, gradient | a row of vocab_size for each slot | f32, bf16, f16, alike | dimensionless |
/// | `batch.token_id` | one for each slot | i32, i64 | index |
/// | `batch.old_log_prob`, `ref_log_prob` | one for each slot | f32, bf16, f16, alike | nats |
/// | `batch.mask` | one for each slot | u8 | 0 or not |
/// | `batch.importance_weight` | one for each slot, or \[num_rows\] | f32 | dimensionless |
/// | `batch.advantages`: rewards | \[num_responses\] | f32 | reward |
/// | `batch.advantages`: given | \[num_rows\], or one for each slot | f32 | dimensionless |
/// | `normalizer` | \[1\], or a number in `config` | f64 | tokens, or responses |
/// | `outputs.d_log_prob` | one for each slot | f32 or that of `old_log_prob` | 1 / nats |
/// | `outputs.log_prob`, `entropy` | one for each slot | f32 | nats |
/// | `outputs.active_slots`, `active_slot_count` | \[num_slots\], \[1\] | i64 | indices |
/// | `outputs.baseline`, `advantage` | \[num_responses\] | f32 | reward, dimensionless |
/// | `outputs.active_rows`, `active_count` | \[num_rows\], \[1\] | i32 | indices |
///
/// A token acts if it is valid and its advantage is not 0, or there is a KL or an entropy term. A
/// row of logits whose token does not act leaves no trace, whatever stands there, NaN and infinities
/// included, unless [`crate::MetricsScope::All`] has its token counted. Its gradient is 0
/// ([`crate::Gradient::ZeroFill`]), not written where its whole response is inactive
/// ([`crate::Gradient::Untouched`]: in place, logits remain there), or left out of rows that follow
/// each other ([`crate::Gradient::Compact`]: never in place; rows that `d_logits` has no room for
/// are not written, though counted). All masked, or no rows: loss 0. Tokens whose log-prob,
/// log-ratio, loss or gradient is not finite, and tokens outside the vocabulary, are left out, with
/// a gradient of 0, and counted ([`crate::Metrics::check`]).
///
/// `row_policy` says where a row stays between its two uses: in the shared memory of a cluster
/// (compute capability 9.0 or newer), or of a block, which reads twice what exceeds it.
///
/// The same bits on every run: f32 per row, f64 sums, partial results added in a fixed order. How
/// many blocks share a row, and how many rows a sum, depends on the kind of GPU and on `row_policy`,
/// and so do last bits.
///
/// # Errors
/// - [`Error::Invalid`] for a configuration out of range, a shape, stride or dtype that does not
///   fit, a gradient apart that overlaps the logits, or a compact one in place, lists of slots
///   without [`crate::Gradient::Compact`], an indexed layout with what needs whole responses,
///   baseline and advantage outputs where advantages are given, [`RowPolicy::Cluster`] where no
///   cluster holds a row, memory of another device, or a workspace that is too small or another
///   operation's.
/// - [`Error::Missing`] for an objective without `old_log_prob`, a KL term without `ref_log_prob`,
///   or [`crate::Normalizer::FromBatch`] without a scalar.
/// - [`Error::Cuda`] where the launch fails.
///
/// # Stream ordering
/// One launch on `stream`, after the work that is already on it; returns at once. One more, which
/// measures log-probs and so reads the logits once more, for [`crate::Objective::Gspo`], whose
/// gradient needs the whole response's ratio; a short one more for [`crate::Gradient::Compact`], which
/// counts the tokens that act, and where a group has more than 1,024 responses. All of them can be
/// captured in a graph. See [the module](super).
///
/// ```no_run
/// use qae::cuda::{
///     self, Device, DeviceAdvantages, DeviceLayout, DeviceLogits, DeviceLogitsBatch,
///     DeviceMetrics, DeviceNormalizer, DeviceSlice, DeviceTensor, DeviceTensorMut,
///     LogitsGradient, LossFromLogitsOutputs, RowPolicy, Stream, Workspace,
/// };
/// use qae::{Config, Normalizer};
///
/// let stream = Stream::new(&Device::open(0)?)?;
/// let memory = stream.cudarc();
/// let mut values = memory.clone_htod(&[0.0_f32; 3 * 4]).unwrap();
/// let token_id = memory.clone_htod(&[0_i64, 3, 1]).unwrap();
/// let old_log_prob = memory.clone_htod(&[-1.3863_f32; 3]).unwrap();
/// let advantage = memory.clone_htod(&[3.0_f32]).unwrap();
/// let mut metrics = DeviceMetrics::new(&stream)?;
/// let config = Config { normalizer: Normalizer::Value(3.0), ..Config::default() };
/// let batch = DeviceLogitsBatch {
///     layout: DeviceLayout::padded(1, 3).into(),
///     mask: None,
///     token_id: DeviceSlice::from(&token_id).into(),
///     old_log_prob: Some(DeviceTensor::F32((&old_log_prob).into())),
///     ref_log_prob: None,
///     importance_weight: None,
///     advantages: DeviceAdvantages::PerResponse((&advantage).into()),
/// };
/// let bytes = cuda::loss_from_logits_workspace_bytes(&stream, &batch, &config)?;
/// let mut workspace = Workspace::new(&stream, bytes)?;
/// let in_place = LogitsGradient::InPlace(DeviceTensorMut::F32((&mut values).into()));
/// cuda::loss_from_logits(
///     &stream,
///     &batch,
///     &mut DeviceLogits::contiguous(in_place, 4),
///     &config,
///     &DeviceNormalizer::Config,
///     RowPolicy::Auto,
///     &mut LossFromLogitsOutputs::new(&mut metrics),
///     &mut workspace,
/// )?;
/// println!("loss {}", metrics.read(&stream)?.loss);
/// // Each row: −¾ of the token, ¼ of the others.
/// println!("{:?}", memory.clone_dtoh(&values).unwrap());
/// # Ok::<(), qae::Error>(())
/// ```
pub fn loss_from_logits(
    stream: &Stream,
    batch: &DeviceLogitsBatch<'_>,
    logits: &mut DeviceLogits<LogitsGradient<'_>>,
    config: &Config,
    normalizer: &DeviceNormalizer<'_>,
    row_policy: RowPolicy,
    outputs: &mut LossFromLogitsOutputs<'_>,
    workspace: &mut Workspace<'_>,
) -> Result<()> {
    let _range = Range::new(c"qae::loss_from_logits");
    let views = batch.advantages.group_views();
    let mut metrics = outputs.metrics.lend();
    let mut scratch = workspace.lend("loss_from_logits")?;
    let mut accesses = Accesses::new(stream)?;
    let (values, gradient) = logits.write(&batch.token_id, &mut accesses)?;
    let inputs = batch.read(values, views.as_ref(), &mut accesses)?;
    let normalizer = normalizer.read(&mut accesses)?;
    let d_log_prob = outputs.d_log_prob.as_mut();
    let buffers = OutputBuffers {
        gradient,
        gradient_dtype: d_log_prob.as_ref().map_or(DType::F32, |g| g.dtype()),
        d_log_prob: accesses.write_some_tensor("d_log_prob", d_log_prob)?,
        log_prob: accesses.write_some("log_prob", outputs.log_prob.as_mut())?,
        entropy: accesses.write_some("entropy", outputs.entropy.as_mut())?,
        token_row_stride: outputs.token_row_stride,
        active_slots: accesses.write_some("active_slots", outputs.active_slots.as_mut())?,
        active_slot_count: accesses
            .write_scalar("active_slot_count", outputs.active_slot_count.as_mut())?,
        baseline: accesses.write_some("baseline", outputs.baseline.as_mut())?,
        advantage: accesses.write_some("advantage", outputs.advantage.as_mut())?,
        active_rows: accesses.write_some("active_rows", outputs.active_rows.as_mut())?,
        active_count: accesses.write_scalar("active_count", outputs.active_count.as_mut())?,
        metrics: accesses.write("metrics", &mut metrics)?,
    };
    let mut params = params::loss_from_logits(&inputs, &buffers, config, normalizer, row_policy)?;
    let scratch = accesses.scratch(&mut scratch, workspace_bytes(&params))?;
    params.loss.workspace = scratch.address as *mut _;
    params.loss.workspace_bytes = scratch.len as u64;
    let launched = accesses.launch("qae_loss_from_logits", |stream| {
        // SAFETY: every pointer is borrowed memory of the stream's device with the length that was
        // checked, and `accesses` orders the launch with its other users. A gradient that shares
        // the logits' memory has their strides, which the kernels allow.
        unsafe { sys::qae_loss_from_logits(&params, stream) }
    });
    launched.map_err(|error| explained(error, row_policy))?;
    let scope = config.metrics_scope;
    outputs.metrics.set_written(Written::FromLogits(scope));
    Ok(())
}

/// Of what the launcher refuses, only the policy depends on the device.
fn explained(error: Error, row_policy: RowPolicy) -> Error {
    match (&error, row_policy) {
        (Error::Invalid { .. }, RowPolicy::Cluster) => Error::invalid(
            "row_policy",
            "Auto or Block, as no cluster of this device holds a row",
            "Cluster",
        ),
        _ => error,
    }
}
