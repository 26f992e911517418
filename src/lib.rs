//! Quantile advantage estimation (QAE, arXiv 2509.22611) fused with the clipped policy-gradient
//! loss and its gradient.

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
pub mod reference;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod selftest;
#[doc(hidden)]
pub mod sys;

pub use backend::{Backend, LossOutput, Run};
pub use batch::{Advantages, DType, ImportanceWeight, Layout, Tensor, TokenBatch};
pub use config::{
    AdvantageConfig, Aggregation, Baseline, Config, Gate, InactiveGradient, Interpolation, Kl,
    KlEstimator, MetricsScope, Normalizer, Objective, Scale, Singleton,
};
pub use cpu::CpuBackend;
pub use error::{Error, Result};
pub use groups::Groups;
pub use metrics::{GroupMetrics, Metrics};
pub use reference::AdvantageOutput;
