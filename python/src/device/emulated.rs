//! The kernels on the CPU, each access checked: what a CUDA tensor would meet.

use super::{Launch, Memory, Operation, check, set_workspace};
use crate::errors::{Failure, Result};
use crate::tensor::TensorView;
use qae::params::{Buffer, RowPolicy};
use qae_emulator::{Adopted, Device, Error, HostTensor, Options};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

/// How CPU tensors are emulated, if they are: bit 0, bit 1 for compute capability 8.0, the row
/// policy above. Not a lock, which a child process might find locked.
static EMULATION: AtomicU8 = AtomicU8::new(0);

const POLICIES: [(&str, RowPolicy); 3] = [
    ("auto", RowPolicy::Auto),
    ("cluster", RowPolicy::Cluster),
    ("block", RowPolicy::Block),
];

/// A device to emulate.
#[derive(Clone, Copy)]
pub(crate) struct Emulation {
    is_sm80: bool,
    pub(crate) row_policy: RowPolicy,
}

impl Emulation {
    /// What was last set.
    pub(crate) fn current() -> Option<Self> {
        let bits = EMULATION.load(Ordering::Relaxed);
        let (_, row_policy) = POLICIES[usize::from(bits >> 2) % POLICIES.len()];
        (bits & 1 == 1).then_some(Self {
            is_sm80: bits & 2 != 0,
            row_policy,
        })
    }

    /// Emulates from now on, or stops.
    pub(crate) fn set(options: Option<(Option<String>, bool)>) -> Result<()> {
        let bits = match options {
            None => 0,
            Some((policy, is_sm80)) => {
                let policy = policy.as_deref().unwrap_or("auto");
                let index = POLICIES.iter().position(|(name, _)| *name == policy);
                let index = index.ok_or_else(|| {
                    Failure::value("row_policy", "auto, cluster or block", policy)
                })?;
                1 | u8::from(is_sm80) << 1 | (index as u8) << 2
            }
        };
        EMULATION.store(bits, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn launch<O: Operation>(self, launch: Launch<'_, O>) -> Result<()> {
        let options = if self.is_sm80 {
            Options::sm80()
        } else {
            Options::sm90()
        };
        let device = Device::new(options);
        let tensors: Vec<_> = (launch.tensors.inputs.iter().map(|view| (view, false)))
            .chain(launch.tensors.outputs.iter().map(|view| (view, true)))
            .filter(|(view, _)| view.name != "workspace")
            .map(|(view, is_output)| view.host_tensor(is_output))
            .collect();
        // SAFETY: the caller holds the tensors until this returns, and changes them meanwhile no
        // more than under any operation of torch.
        let adopted = unsafe { device.adopt(&tensors) }.map_err(failed)?;
        let mut params = (launch.params)(&adopted)?;
        // SAFETY: the query reads the params only.
        let bytes = O::EMULATED
            .workspace_bytes
            .map_or(0, |workspace_bytes| unsafe { workspace_bytes(&params) });
        let workspace = device.workspace(bytes).map_err(failed)?;
        set_workspace(
            &mut params,
            Buffer {
                address: workspace.address(),
                len: workspace.len(),
            },
        );
        // SAFETY: the emulator checks every access.
        let result = device.launch(|| unsafe { (O::EMULATED.launch)(&params, ptr::null_mut()) });
        match result {
            Ok(_) => {}
            Err(Error::Status(status)) => return check(O::NAME, status),
            Err(error) => return Err(failed(error)),
        }
        // SAFETY: as above.
        unsafe { adopted.write_back() };
        Ok(())
    }
}

impl TensorView {
    fn host_tensor(&self, is_output: bool) -> HostTensor<'_> {
        HostTensor {
            label: self.name,
            address: self.address,
            element_bytes: self.dtype.size(),
            shape: &self.shape,
            strides: &self.strides,
            is_output,
        }
    }
}

impl Memory for Adopted {
    fn address(&self, view: &TensorView) -> u64 {
        self.address(view.address).unwrap_or_default()
    }
}

fn failed(error: Error) -> Failure {
    let message = error.to_string().replace('\n', "; ");
    Failure::Runtime(format!("emulator: expected no finding, found {message}"))
}
