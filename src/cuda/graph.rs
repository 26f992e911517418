//! Launches recorded once and replayed with the cost of one.

use super::launch::driver_error;
use super::stream::Stream;
use crate::error::{Error, Result};
use cudarc::driver::{CudaGraph, sys};

/// The launches of one or more operations on fixed tensors.
pub struct Graph {
    inner: CudaGraph,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl Graph {
    /// Records what `launches` enqueues on `stream`, without running it. Nothing may wait or
    /// allocate meanwhile: make tensors, metrics and workspace before. In a context with
    /// event tracking (cudarc's default once it has made a stream) launches are refused; call
    /// `CudaContext::disable_event_tracking` before the tensors are allocated.
    ///
    /// # Errors
    /// - What `launches` returns; the capture is ended then, too.
    /// - [`Error::Missing`] if nothing was enqueued.
    /// - [`Error::Cuda`] where the stream cannot be captured (the legacy default stream cannot) or
    ///   the driver fails.
    pub fn capture(stream: &Stream, launches: impl FnOnce() -> Result<()>) -> Result<Self> {
        // Other threads of a trainer may allocate while this one records.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begun = stream.cudarc().begin_capture(mode);
        begun.map_err(|error| driver_error("cuStreamBeginCapture", error))?;
        let recorded = launches();
        let graph = stream
            .cudarc()
            .end_capture(sys::CUgraphInstantiate_flags(0));
        recorded?;
        let graph = graph.map_err(|error| driver_error("cuStreamEndCapture", error))?;
        let inner = graph.ok_or_else(|| Error::missing("graph", "at least one launch"))?;
        Ok(Self { inner })
    }

    /// Enqueues all launches on the stream that they were captured on.
    ///
    /// # Safety
    /// The graph holds addresses, no borrows: every tensor, the metrics and the workspace of every
    /// captured launch must still be where they were, and other uses of them must be ordered by the
    /// stream.
    ///
    /// # Errors
    /// [`Error::Cuda`] where the driver fails.
    pub unsafe fn replay(&self) -> Result<()> {
        let launched = self.inner.launch();
        launched.map_err(|error| driver_error("cuGraphLaunch", error))
    }
}
