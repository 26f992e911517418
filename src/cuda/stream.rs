//! Where launches are enqueued: a stream of this program or of the trainer that calls it.

use super::device::Device;
use super::launch::driver_error;
use crate::error::Result;
use cudarc::driver::{CudaStream, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A queue of launches, which run one after another.
///
/// Dropping it destroys a stream of its own and leaves a borrowed one alone.
#[derive(Debug, Clone)]
pub struct Stream {
    inner: Arc<CudaStream>,
}

impl Stream {
    /// A new stream that does not wait for the legacy default stream.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`] where the driver fails.
    ///
    /// ```no_run
    /// use qae::cuda::{Device, Stream};
    ///
    /// let stream = Stream::new(&Device::open(0)?)?;
    /// stream.synchronize()?;
    /// # Ok::<(), qae::Error>(())
    /// ```
    pub fn new(device: &Device) -> Result<Self> {
        let inner = device.context().new_stream();
        Ok(Self {
            inner: inner.map_err(|error| driver_error("cuStreamCreate", error))?,
        })
    }

    /// A stream of somebody else, such as PyTorch's current stream: `stream` is a `CUstream`, which
    /// is the same pointer as a `cudaStream_t`; null is the legacy default stream.
    ///
    /// # Safety
    /// - `stream` must be null or a live stream of the device's primary context, and must stay alive
    ///   as long as this value, its clones and the tensors that were allocated on it.
    /// - Nothing orders its work with that of other streams. Whoever uses memory that a launch on
    ///   this stream reads or writes, or frees it, must do so on this stream, or wait for it.
    ///
    /// ```no_run
    /// use qae::cuda::{Device, Stream};
    ///
    /// fn stream_of(trainer: *mut std::ffi::c_void) -> qae::Result<Stream> {
    ///     let device = Device::open(0)?;
    ///     // SAFETY: the trainer keeps its stream until the step is over, and uses no other.
    ///     Ok(unsafe { Stream::from_raw(&device, trainer) })
    /// }
    /// ```
    pub unsafe fn from_raw(device: &Device, stream: *mut c_void) -> Self {
        let stream = stream.cast::<sys::CUstream_st>();
        // SAFETY: the caller promises what cudarc asks for: a live stream of this context, and
        // order with its other users.
        let inner = unsafe { device.context().wrap_borrowed_stream(stream) };
        Self { inner }
    }

    /// Waits until everything that was enqueued so far is done.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`] where the driver fails or a launch failed while it ran.
    pub fn synchronize(&self) -> Result<()> {
        let done = self.inner.synchronize();
        done.map_err(|error| driver_error("cuStreamSynchronize", error))
    }

    /// The stream in cudarc, for memory and events.
    pub fn cudarc(&self) -> &Arc<CudaStream> {
        &self.inner
    }

    /// The `CUstream` or `cudaStream_t`.
    pub fn as_raw(&self) -> *mut c_void {
        self.inner.cu_stream().cast()
    }
}

/// A stream that a program made with cudarc itself.
impl From<Arc<CudaStream>> for Stream {
    fn from(inner: Arc<CudaStream>) -> Self {
        Self { inner }
    }
}
