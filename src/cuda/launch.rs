//! What every launch has in common: result codes, and the order among users of the same memory.

use super::memory::{DeviceSlice, DeviceSliceMut, DeviceTensor, DeviceTensorMut};
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::params::Buffer;
use crate::sys;
use cudarc::driver::{DriverError, SyncOnDrop, result, sys as driver};
use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    /// Of the CUDA runtime, which is linked with the kernels; answers for any number.
    safe fn cudaGetErrorName(error: c_int) -> *const c_char;
}

/// What the launcher `call` answered.
pub(super) fn check(call: &'static str, result: sys::qae_result) -> Result<()> {
    if result == 0 {
        return Ok(());
    }
    if result == sys::QAE_WORKSPACE_TOO_SMALL as i32 {
        return Err(Error::invalid(
            "workspace",
            format!("as many bytes as {call} asks for"),
            "fewer",
        ));
    }
    if result > 0 {
        return Err(Error::invalid(
            "arguments",
            format!("what {call} accepts"),
            "a pointer or a number that it refuses",
        ));
    }
    // SAFETY: the runtime's answer is a static string for any number.
    let name = unsafe { CStr::from_ptr(cudaGetErrorName(-result)) };
    Err(Error::Cuda {
        call,
        code: -result,
        name: name.to_string_lossy().into_owned(),
    })
}

/// An error of the driver API, in the crate's terms.
pub(super) fn driver_error(call: &'static str, error: DriverError) -> Error {
    let name = error.error_name();
    Error::Cuda {
        call,
        code: error.0 as i32,
        name: name.map_or_else(
            |_| format!("{:?}", error.0),
            |name| name.to_string_lossy().into_owned(),
        ),
    }
}

/// The tensors of one launch. Made before it, dropped after it: where cudarc tracks memory with
/// events, the stream waits for earlier users of every tensor, and later users wait for the launch.
#[derive(Debug)]
pub(super) struct Accesses<'s> {
    stream: &'s Stream,
    guards: Vec<SyncOnDrop<'s>>,
}

impl<'s> Accesses<'s> {
    /// Of a launch on `stream`.
    pub(super) fn new(stream: &'s Stream) -> Result<Self> {
        refuse_tracked_capture(stream)?;
        Ok(Self {
            stream,
            guards: Vec::with_capacity(16),
        })
    }

    /// A tensor that the launch reads.
    pub(super) fn read<T>(&mut self, field: &str, slice: &'s DeviceSlice<'_, T>) -> Result<Buffer> {
        slice.expect_on(field, self.stream)?;
        let (buffer, guard) = slice.access(self.stream.cudarc());
        self.guards.extend(guard);
        Ok(buffer)
    }

    /// A tensor that the launch writes.
    pub(super) fn write<T>(
        &mut self,
        field: &str,
        slice: &'s mut DeviceSliceMut<'_, T>,
    ) -> Result<Buffer> {
        slice.expect_on(field, self.stream)?;
        let (buffer, guard) = slice.access(self.stream.cudarc());
        self.guards.extend(guard);
        Ok(buffer)
    }

    /// [`Self::read`] of a tensor that may be absent.
    pub(super) fn read_some<T>(
        &mut self,
        field: &str,
        slice: Option<&'s DeviceSlice<'_, T>>,
    ) -> Result<Option<Buffer>> {
        slice.map(|slice| self.read(field, slice)).transpose()
    }

    /// [`Self::write`] of a tensor that may be absent.
    pub(super) fn write_some<T>(
        &mut self,
        field: &str,
        slice: Option<&'s mut DeviceSliceMut<'_, T>>,
    ) -> Result<Option<Buffer>> {
        slice.map(|slice| self.write(field, slice)).transpose()
    }

    /// [`Self::write_some`] of a single number.
    pub(super) fn write_scalar<T>(
        &mut self,
        field: &str,
        slice: Option<&'s mut DeviceSliceMut<'_, T>>,
    ) -> Result<Option<Buffer>> {
        let buffer = self.write_some(field, slice)?;
        buffer.map_or(Ok(()), |buffer| expect_scalar(field, buffer.len))?;
        Ok(buffer)
    }

    /// [`Self::read`] of a tensor of any dtype.
    pub(super) fn read_tensor(
        &mut self,
        field: &str,
        tensor: &'s DeviceTensor<'_>,
    ) -> Result<Buffer> {
        match tensor {
            DeviceTensor::F32(slice) => self.read(field, slice),
            DeviceTensor::Bf16(slice) => self.read(field, slice),
            DeviceTensor::F16(slice) => self.read(field, slice),
        }
    }

    /// [`Self::write`] of a tensor of any dtype.
    pub(super) fn write_tensor(
        &mut self,
        field: &str,
        tensor: &'s mut DeviceTensorMut<'_>,
    ) -> Result<Buffer> {
        match tensor {
            DeviceTensorMut::F32(slice) => self.write(field, slice),
            DeviceTensorMut::Bf16(slice) => self.write(field, slice),
            DeviceTensorMut::F16(slice) => self.write(field, slice),
        }
    }

    /// [`Self::write_tensor`] of one that may be absent.
    pub(super) fn write_some_tensor(
        &mut self,
        field: &str,
        tensor: Option<&'s mut DeviceTensorMut<'_>>,
    ) -> Result<Option<Buffer>> {
        let write = |tensor| self.write_tensor(field, tensor);
        tensor.map(write).transpose()
    }

    /// [`Self::write`] of a workspace, of which the launch needs `bytes`.
    pub(super) fn scratch(
        &mut self,
        workspace: &'s mut DeviceSliceMut<'_, u8>,
        bytes: u64,
    ) -> Result<Buffer> {
        let buffer = self.write("workspace", workspace)?;
        if (buffer.len as u64) < bytes {
            let expected = format!("at least {bytes} bytes");
            return Err(Error::invalid("workspace", expected, buffer.len));
        }
        Ok(buffer)
    }

    /// Fills a tensor that was given to [`Self::write`] with zeros.
    pub(super) fn zero(self, buffer: Buffer) -> Result<()> {
        let stream = self.stream.cudarc();
        self.bind()?;
        // SAFETY: the view that the buffer came from is borrowed for writing until the guards of
        // this value are dropped, which orders later users behind the memset.
        let done =
            unsafe { result::memset_d8_async(buffer.address, 0, buffer.len, stream.cu_stream()) };
        done.map_err(|error| driver_error("cuMemsetD8Async", error))
    }

    /// Makes the device current for this thread and calls the launcher `call`.
    pub(super) fn launch(
        self,
        call: &'static str,
        launcher: impl FnOnce(*mut std::ffi::c_void) -> sys::qae_result,
    ) -> Result<()> {
        self.bind()?;
        check(call, launcher(self.stream.as_raw()))
    }

    /// Also reports what went wrong while the stream was told to wait.
    fn bind(&self) -> Result<()> {
        let bound = self.stream.cudarc().context().bind_to_thread();
        bound.map_err(|error| driver_error("cuCtxSetCurrent", error))
    }
}

pub(super) fn expect_scalar(field: &str, len: usize) -> Result<()> {
    if len == 1 {
        return Ok(());
    }
    Err(Error::invalid(field, "shape [1]", format!("[{len}]")))
}

/// cudarc's events come from outside of the capture, which CUDA refuses and which would spoil it.
fn refuse_tracked_capture(stream: &Stream) -> Result<()> {
    let stream = stream.cudarc();
    if !stream.context().is_managing_stream_synchronization() {
        return Ok(());
    }
    let status = stream.capture_status();
    match status.map_err(|error| driver_error("cuStreamIsCapturing", error))? {
        driver::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => Err(Error::invalid(
            "stream",
            "a context without event tracking, as the stream is captured",
            "event tracking (CudaContext::disable_event_tracking turns it off)",
        )),
    }
}
