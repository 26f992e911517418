//! What runs an operation.

use crate::device::{Kernels, Memory, Operation};
use crate::errors::Result;
use crate::tensor::{Dtype, Place};
use qae::params::RowPolicy;

/// Chosen by the device of the tensors.
#[derive(Clone, Copy)]
pub(crate) enum Path {
    /// `qae::cpu`.
    Cpu,
    /// The CUDA kernels.
    Kernels(Kernels),
}

impl Path {
    pub(crate) fn of(place: Place) -> Result<Self> {
        Ok(match Kernels::of(place)? {
            None => Self::Cpu,
            Some(kernels) => Self::Kernels(kernels),
        })
    }

    /// Bytes of the workspace that the caller has to allocate; `params` says the arguments.
    pub(crate) fn workspace<O: Operation>(
        self,
        params: impl FnOnce(&dyn Memory) -> Result<O>,
    ) -> Result<u64> {
        match self {
            Self::Cpu => Ok(0),
            Self::Kernels(kernels) => kernels.workspace(params),
        }
    }

    /// Where a row of logits is kept between its two uses.
    pub(crate) fn row_policy(self) -> RowPolicy {
        match self {
            #[cfg(feature = "emulator")]
            Self::Kernels(Kernels::Emulated(emulation)) => emulation.row_policy,
            _ => RowPolicy::Auto,
        }
    }

    /// Dtypes of log-probs and logits.
    pub(crate) fn floats(self) -> &'static [Dtype] {
        match self {
            Self::Cpu => &[Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F64],
            Self::Kernels(_) => &[Dtype::F32, Dtype::Bf16, Dtype::F16],
        }
    }

    /// Dtypes of what is computed for each token.
    pub(crate) fn results(self) -> &'static [Dtype] {
        match self {
            Self::Cpu => &[Dtype::F32, Dtype::F64],
            Self::Kernels(_) => &[Dtype::F32],
        }
    }
}
