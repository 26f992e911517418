//! NVTX ranges, which name the launches in a timeline of Nsight Systems.

use std::ffi::CStr;

/// A range from its making to its drop; nothing without the feature `nvtx`.
#[derive(Debug)]
pub(super) struct Range {
    /// Held for its drop. Without a profiler it calls nothing.
    #[cfg(feature = "nvtx")]
    _range: nvtx::LocalRange,
}

impl Range {
    pub(super) fn new(name: &'static CStr) -> Self {
        #[cfg(not(feature = "nvtx"))]
        let _ = name;
        Self {
            #[cfg(feature = "nvtx")]
            _range: nvtx::LocalRange::new(name),
        }
    }
}
