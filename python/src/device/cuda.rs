//! The kernels on CUDA.

use super::{InPlace, Launch, Operation, check, set_workspace};
use crate::errors::{Failure, Result};
use crate::outputs::Output;
use qae::params::Buffer;
use std::ffi::{CStr, c_char, c_int, c_void};

unsafe extern "C" {
    /// Of the CUDA runtime, which is linked with the kernels; answers for any number.
    safe fn cudaGetErrorName(error: c_int) -> *const c_char;
}

pub(super) fn workspace<O: Operation>(params: &O) -> Result<u64> {
    Ok(match O::CUDA.workspace_bytes {
        // SAFETY: the query reads the params only.
        Some(workspace_bytes) => unsafe { workspace_bytes(params) },
        None => 0,
    })
}

/// A workspace that the launcher can use.
fn checked(workspace: Option<&Output>, bytes: u64) -> Result<Buffer> {
    let expected = || format!("{bytes} bytes, 256-byte aligned");
    let Some(Output(view)) = workspace else {
        return Err(qae::Error::missing("workspace", expected()).into());
    };
    let (address, len) = (view.address, view.numel());
    if len as u64 >= bytes && address.is_multiple_of(256) {
        return Ok(Buffer { address, len });
    }
    let found = format!("{len} at {address:#x}");
    Err(Failure::value("workspace", expected(), found))
}

/// Enqueues on a stream of the device that torch has made current.
pub(super) fn launch<O: Operation>(launch: Launch<'_, O>) -> Result<()> {
    let mut params = (launch.params)(&InPlace)?;
    let bytes = workspace(&params)?;
    if bytes > 0 {
        set_workspace(&mut params, checked(launch.workspace, bytes)?);
    }
    let stream = launch.stream as *mut c_void;
    // SAFETY: every pointer is that of a tensor on the stream's device, whose extent was checked
    // against its shape and strides. The caller holds the tensors for the call, and torch keeps
    // memory for as long as work that was enqueued on the stream may use it.
    let status = unsafe { (O::CUDA.launch)(&params, stream) };
    if status >= 0 {
        return check(O::NAME, status);
    }
    // SAFETY: the runtime's answer is a static string for any number.
    let name = unsafe { CStr::from_ptr(cudaGetErrorName(-status)) };
    let error = qae::Error::Cuda {
        call: O::NAME,
        code: -status,
        name: name.to_string_lossy().into_owned(),
    };
    Err(error.into())
}
