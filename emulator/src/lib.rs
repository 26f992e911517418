//! Runs the CUDA kernels of `qae` on the CPU.
//!
//! The very same `kernels/*.cu` are compiled with a host compiler against
//! `include/qae_emulator.hpp` and run with one fiber per CUDA thread. Barriers, shuffles and votes
//! are real; every access to global and shared memory is checked and counted. A launch fails on
//! accesses out of bounds, misaligned accesses, reads of memory that was never written, races in
//! shared memory, divergent barriers, a block leaving before a barrier, shuffles that read a lane
//! which takes no part, accesses to another block of the cluster before it has started or after it
//! has exited, and bulk copies whose data is used too early, changed too early or not fenced.
//!
//! The blocks of a cluster run together, clusters one after another: missing fences and races
//! through global memory stay unseen.
//!
//! ```
//! use qae_emulator::{Device, Options};
//!
//! let device = Device::new(Options::default());
//! let rewards = device.upload(&[0.0_f32, 1.0], "rewards")?;
//! let advantages = device.alloc::<f32>(2, "advantages")?;
//! assert_eq!(rewards.download()?, [0.0, 1.0]);
//! assert!(advantages.download().is_err(), "nothing has written it");
//! # Ok::<(), qae_emulator::Error>(())
//! ```

mod adopted;
mod buffer;
mod device;
#[doc(hidden)]
pub mod launchers;
mod operations;
mod report;
mod sys;

pub use adopted::{Adopted, HostTensor};
pub use buffer::Buffer;
pub use device::{Device, Options, Order};
pub use operations::{
    AdvantageRun, DeviceIndices, EmulatorBackend, LogProbsRun, LogitsGradientRun, LogitsPlacement,
    LogitsRun, LossRun, ScaleRun, ScaledPlace, ShardsRun,
};
pub use report::{BarrierSite, Error, Finding, FindingKind, Launch, Trace};
