//! Quantile advantage estimation (QAE, arXiv 2509.22611) fused with the clipped policy-gradient
//! loss and its gradient.
//!
//! From rewards and log-probs, or logits, to the loss, its gradient and metrics, computing nothing
//! for responses whose advantage is exactly zero:
//!
//! - [`TokenBatch`] and [`LogitsBatch`] borrow the tensors, [`Config`] says what to compute,
//!   [`Groups`] which responses answer the same prompt.
//! - [mod@reference] is the f64 specification, plain loops; [`cpu`] the same on all cores, bit for
//!   bit.
//! - `cuda` (feature `cuda`) runs the kernels on device memory, on any stream, capturable in a
//!   graph; the C ABI is `kernels/qae.h`.
//! - [`Backend`] is what they have in common.
//! - [`AutoK`] and [`KSchedule`] set the quantile level over a training run.
//! - `analyze` (feature `analyze`) says what each level would do to rollouts that a trainer has dumped.
//!
//! Lengths are in tokens, log-probs, entropy and KL in nats, rewards in whatever unit the caller
//! uses. All results are deterministic. What is not finite is left out and counted
//! ([`Metrics::check`]).

#[cfg(feature = "analyze")]
pub mod analyze;
pub mod auto_k;
pub mod backend;
pub mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod config;
pub mod config_json;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod groups;
#[cfg(feature = "cli")]
pub mod io;
pub mod metrics;
#[doc(hidden)]
pub mod params;
#[cfg(feature = "analyze")]
#[doc(hidden)]
pub mod plot;
pub mod reference;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod selftest;
#[doc(hidden)]
pub mod sys;

pub use auto_k::{AutoK, AutoKConfig, AutoKStep, EntropyTarget, KBound, KSchedule};
pub use backend::{Backend, LogProbsOutput, LogitsOutput, LossOutput, Run};
pub use batch::{
    Advantages, DType, Factor, GradientRows, ImportanceWeight, Layout, LogProbsInput, Logits,
    LogitsBatch, LogitsLayout, LogitsMut, RowsMut, Tensor, TensorMut, TokenBatch,
};
pub use config::{
    AdvantageConfig, Aggregation, Baseline, Config, Gate, Gradient, Interpolation, Kl, KlEstimator,
    MetricsScope, Normalizer, Objective, Scale, Singleton,
};
pub use cpu::CpuBackend;
pub use error::{Error, Result};
pub use groups::Groups;
pub use metrics::{EntropyMetrics, GroupMetrics, Metrics};
pub use reference::AdvantageOutput;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So is that of the page on automatic K.
#[cfg(doctest)]
#[doc = include_str!("../docs/auto-k.md")]
struct AutoKPage;
