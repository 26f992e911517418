//! The CUDA kernels behind a safe interface: typed arguments, borrowed device memory, errors before
//! any launch. Needs the feature `cuda`; built on [cudarc](https://docs.rs/cudarc).
//!
//! [`Device::open`] finds a GPU or says why there is none, without a panic where no driver is
//! installed. [`advantages`], [`token_counts`], [`loss_from_log_probs`], [`loss_from_logits`],
//! [`log_probs_from_logits`] with its [backward pass](log_probs_from_logits_backward),
//! [`merge_softmax_stats`] for a vocabulary in shards and [`scale_gradient`] for a framework's
//! backward pass are the operations; [`CudaBackend`] is the same for tensors on the host.
//!
//! # Stream ordering
//! A call checks its arguments, enqueues its launch on the [`Stream`] and returns: it neither
//! allocates nor waits. The launch runs after everything that was on the stream before the call.
//! - Memory of cudarc in a context with event tracking (its default): the launch also waits for
//!   users of its tensors on other streams, and they wait for it.
//! - Foreign memory ([`ForeignSlice`]), a foreign stream ([`Stream::from_raw`]), or no event
//!   tracking: the one stream is the only order. Whoever uses or frees a tensor elsewhere has to
//!   wait for it, as the `unsafe` constructors say.
//! - Results are on the device; [`DeviceMetrics::read`] and [`Stream::synchronize`] are what waits.
//!
//! # Graph capture
//! Every call can be captured, by [`Graph::capture`] or by the trainer on its own stream. Addresses,
//! shapes and configuration are frozen by it; what is read from memory, such as a
//! [`DeviceNormalizer::Scalar`], is not. Event tracking has to be off, since its events come from
//! outside of the capture: a call on a captured stream is refused otherwise.
//!
//! # Workspace
//! The caller owns it: [`loss_from_log_probs_workspace_bytes`] and its siblings say how much,
//! [`Workspace`] is zeroed once and then serves any number of launches of one operation, one at a
//! time.
//!
//! # Determinism
//! The same bits on every run: no floating-point atomics, sums in a fixed order.
//!
//! No GPU record covers these kernels yet: `qae selftest` compares them with
//! [`crate::reference`] on the GPU at hand.

mod advantages;
mod backend;
mod batch;
mod device;
mod graph;
mod groups;
mod launch;
mod log_probs_from_logits;
mod log_probs_from_logits_backward;
mod logits;
mod logits_batch;
mod loss_from_log_probs;
mod loss_from_logits;
mod memory;
mod metrics;
mod range;
mod scale_gradient;
mod softmax_stats;
mod stream;
mod token_counts;
mod traffic;
mod upload;
mod workspace;

/// The release of cudarc whose contexts, streams and memory this interface takes.
pub use cudarc;

pub use crate::params::RowPolicy;
pub use advantages::{AdvantageOutputs, advantages, advantages_workspace_bytes};
pub use backend::{CudaBackend, LogitsPlacement};
pub use batch::{DeviceAdvantages, DeviceBatch, DeviceLayout, DeviceWeight};
pub use device::{Device, DeviceInfo, DriverVersion, devices, driver_version};
pub use graph::Graph;
pub use groups::DeviceGroups;
pub use log_probs_from_logits::{DeviceLogitsRows, LogProbsOutputs, log_probs_from_logits};
pub use log_probs_from_logits_backward::{LogProbsDerivatives, log_probs_from_logits_backward};
pub use logits::{DeviceLogits, DeviceTokenIds, LogitsGradient};
pub use logits_batch::{DeviceLogitsBatch, DeviceLogitsLayout};
pub use loss_from_log_probs::{
    DeviceNormalizer, LossOutputs, loss_from_log_probs, loss_from_log_probs_workspace_bytes,
};
pub use loss_from_logits::{
    LossFromLogitsOutputs, loss_from_logits, loss_from_logits_workspace_bytes,
};
pub use memory::{DeviceSlice, DeviceSliceMut, DeviceTensor, DeviceTensorMut, ForeignSlice};
pub use metrics::{DeviceGroupMetrics, DeviceMetrics};
pub use scale_gradient::{DeviceFactor, FactorValue, scale_gradient, scale_gradient_in_place};
pub use softmax_stats::{SoftmaxStats, merge_softmax_stats};
pub use stream::Stream;
pub use token_counts::{token_counts, token_counts_workspace_bytes};
pub use workspace::Workspace;

/// The compute capabilities that the kernels were compiled for, such as `80 90a 100 120`; `None`
/// where they were not compiled (documentation only).
pub const ARCHITECTURES: Option<&str> = option_env!("QAE_CUDA_ARCHITECTURES");

/// The release of CUDA that compiled them, such as `13.0`.
pub const CUDA_VERSION: Option<&str> = option_env!("QAE_CUDA_VERSION");
