//! Tensors of a device, through the kernels' launchers: on CUDA, or emulated.
//!
//! Both take the same way: addresses, strides and lengths to `qae::params`, the params struct to
//! the launcher. Under emulation the addresses are those of adopted memory.

// Each build uses a part of this, and one without kernels none.
#![cfg_attr(
    not(all(feature = "cuda", feature = "emulator")),
    allow(dead_code, unused_variables)
)]

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulator")]
pub(crate) mod emulated;
mod operation;
mod tensors;

pub(crate) use self::operation::Operation;
pub(crate) use self::tensors::{
    NO_GRADIENT, advantages, buffer, dtype, gradient, groups, layout, log_probs_outputs, logits,
    normalizer, stats, weight,
};

use crate::arguments::{Arguments, Tensors};
use crate::errors::{Failure, Result};
use crate::outputs::Output;
use crate::tensor::{Place, TensorView};
use pyo3::Bound;
use pyo3::types::PyDict;
use qae::params::Buffer;
use std::ffi::c_void;

/// The kernels that a call uses.
#[derive(Clone, Copy)]
pub(crate) enum Kernels {
    #[cfg(feature = "cuda")]
    Cuda,
    #[cfg(feature = "emulator")]
    Emulated(emulated::Emulation),
}

impl Kernels {
    /// Those for tensors there; none: the CPU's own operations.
    pub(crate) fn of(place: Place) -> Result<Option<Self>> {
        match place {
            #[cfg(feature = "emulator")]
            Place::Cpu => Ok(emulated::Emulation::current().map(Self::Emulated)),
            #[cfg(not(feature = "emulator"))]
            Place::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Place::Cuda(_) => Ok(Some(Self::Cuda)),
            #[cfg(not(feature = "cuda"))]
            Place::Cuda(_) => Err(Failure::Runtime(format!(
                "device: expected cpu, as this build of qae has no CUDA kernels, found {place}"
            ))),
        }
    }

    /// Bytes of the workspace that the caller has to allocate.
    pub(crate) fn workspace<O: Operation>(
        self,
        params: impl FnOnce(&dyn Memory) -> Result<O>,
    ) -> Result<u64> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => cuda::workspace(&params(&InPlace)?),
            // The emulator makes one that tells what is zeroed from what is not.
            #[cfg(feature = "emulator")]
            Self::Emulated(_) => {
                params(&InPlace)?;
                Ok(0)
            }
        }
    }

    /// Enqueues an operation.
    pub(crate) fn launch<O: Operation>(self, launch: Launch<'_, O>) -> Result<()> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => cuda::launch(launch),
            #[cfg(feature = "emulator")]
            Self::Emulated(emulation) => emulation.launch(launch),
        }
    }
}

/// One launch and what it needs.
pub(crate) struct Launch<'a, O> {
    /// All tensors of the call.
    pub(crate) tensors: &'a Tensors,
    /// The arguments, once it is known where the kernels see the tensors.
    pub(crate) params: &'a dyn Fn(&dyn Memory) -> Result<O>,
    pub(crate) workspace: Option<&'a Output>,
    /// A `cudaStream_t`.
    pub(crate) stream: usize,
}

/// Where kernels see a tensor.
pub(crate) trait Memory {
    /// The address of its first element.
    fn address(&self, view: &TensorView) -> u64;
}

/// Where the tensor says.
struct InPlace;

impl Memory for InPlace {
    fn address(&self, view: &TensorView) -> u64 {
        view.address
    }
}

/// Refuses an output that only the CPU writes.
pub(crate) fn expect_no_loss(loss: Option<&Output>) -> Result<()> {
    match loss {
        None => Ok(()),
        Some(_) => Err(Failure::value(
            "loss",
            "none where kernels run, as the first of words is the loss",
            "a tensor",
        )),
    }
}

/// Compute capabilities that the kernels were compiled for.
pub(crate) fn cuda_architectures() -> Option<&'static str> {
    #[cfg(feature = "cuda")]
    return qae::cuda::ARCHITECTURES;
    #[cfg(not(feature = "cuda"))]
    None
}

/// See `qae/_qae.pyi`.
pub(crate) fn set_emulation(options: Option<&Bound<'_, PyDict>>) -> Result<()> {
    let given = options.map(|options| {
        let mut options = Arguments::new("options", options);
        let given = (options.text("row_policy")?, options.flag("sm80")?);
        options.finish()?;
        Ok::<_, Failure>(given)
    });
    let given = given.transpose()?;
    #[cfg(feature = "emulator")]
    return emulated::Emulation::set(given);
    #[cfg(not(feature = "emulator"))]
    match given {
        None => Ok(()),
        Some(_) => Err(Failure::Runtime(
            "set_emulation: expected a build with the feature emulator, found one without"
                .to_owned(),
        )),
    }
}

/// What a launcher's status says.
fn check(name: &str, status: i32) -> Result<()> {
    use qae::sys::{QAE_INVALID_ARGUMENT, QAE_OK, QAE_WORKSPACE_TOO_SMALL};
    match u32::try_from(status) {
        Ok(QAE_OK) => Ok(()),
        Ok(QAE_WORKSPACE_TOO_SMALL) => Err(Failure::value(
            "workspace",
            format!("as many bytes as {name}_workspace says"),
            "fewer",
        )),
        Ok(QAE_INVALID_ARGUMENT) => Err(Failure::value(
            "arguments",
            format!("what {name} accepts"),
            "a pointer or a number that it refuses",
        )),
        _ => Err(Failure::Runtime(format!(
            "{name}: expected a launch, found status {status}"
        ))),
    }
}

/// Sets the workspace of `params`.
fn set_workspace(params: &mut impl Operation, workspace: Buffer) {
    if let Some((address, bytes)) = params.workspace() {
        *address = workspace.address as *mut c_void;
        *bytes = workspace.len as u64;
    }
}
