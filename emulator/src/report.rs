//! What a launch leaves: a trace where it is clean, findings where it is not.

use std::fmt;

/// What a detector has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// An access outside every buffer, or outside a shared array.
    OutOfBounds,
    /// A read of global or shared memory that nothing has written.
    UninitializedRead,
    /// An access whose address is no multiple of its size.
    Misaligned,
    /// Two accesses to shared memory, one of them a write, that no barrier orders.
    SharedRace,
    /// Threads that wait for each other at different barriers or collectives.
    DivergentBarrier,
    /// Threads that have exited while others of their block wait at a barrier.
    ExitBeforeBarrier,
    /// A shuffle that reads a lane which takes no part in it.
    InactiveLane,
    /// A launch that a CUDA device would refuse.
    LaunchLimit,
    /// An mbarrier or a cluster barrier used against its rules.
    BarrierMisuse,
    /// A wait at an mbarrier whose phase cannot complete.
    EndlessWait,
    /// An access to the shared memory of another block that may not have started, or that may have
    /// exited.
    RemoteAccess,
    /// A bulk copy that is still under way where it should be over.
    PendingCopy,
    /// A bulk copy that may not see what was written before it.
    MissingFence,
    /// A feature that a device of this compute capability lacks.
    Unsupported,
}

impl FindingKind {
    /// From the number of `FindingKind` in `runtime/context.hpp`.
    pub(crate) fn from_number(number: i32) -> Self {
        match number {
            0 => Self::OutOfBounds,
            1 => Self::UninitializedRead,
            2 => Self::Misaligned,
            3 => Self::SharedRace,
            4 => Self::DivergentBarrier,
            5 => Self::ExitBeforeBarrier,
            6 => Self::InactiveLane,
            7 => Self::LaunchLimit,
            8 => Self::BarrierMisuse,
            9 => Self::EndlessWait,
            10 => Self::RemoteAccess,
            11 => Self::PendingCopy,
            12 => Self::MissingFence,
            _ => Self::Unsupported,
        }
    }
}

/// One defect of a kernel, and where it showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which detector fired.
    pub kind: FindingKind,
    /// One line that names addresses, buffers, threads and call sites.
    pub message: String,
    /// The kernel that was running.
    pub kernel: String,
    /// Its `blockIdx`.
    pub block: [u32; 3],
    /// Its `threadIdx`; none where the launch itself was refused.
    pub thread: Option<[u32; 3]>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {}", self.kind, self.kernel)?;
        if let Some(thread) = self.thread {
            write!(f, ", block {:?}, thread {thread:?}", self.block)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a launch or a download failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Detectors fired.
    #[error("{}", in_lines(.0))]
    Findings(Vec<Finding>),
    /// A launcher refused its arguments without launching anything.
    #[error("the launcher returned status {0}, and no kernel left a finding")]
    Status(i32),
    /// A buffer to be downloaded has bytes that nothing has written.
    #[error("{bytes} bytes of `{label}` were never written, the first in element {first} of {len}")]
    Uninitialized {
        /// The buffer.
        label: String,
        /// How many of its bytes nothing has written.
        bytes: usize,
        /// The first element that has such a byte.
        first: usize,
        /// The length of the buffer in elements.
        len: usize,
    },
    /// The addresses of a device are used up.
    #[error("no room for the {bytes} bytes of `{label}`")]
    OutOfMemory {
        /// The buffer.
        label: String,
        /// Its size.
        bytes: usize,
    },
}

impl Error {
    /// The findings; empty for the other errors.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Findings(findings) => findings,
            _ => &[],
        }
    }
}

fn in_lines(findings: &[Finding]) -> String {
    const SHOWN: usize = 4;
    let mut lines: Vec<String> = findings
        .iter()
        .take(SHOWN)
        .map(Finding::to_string)
        .collect();
    if findings.len() > SHOWN {
        lines.push(format!("and {} more findings", findings.len() - SHOWN));
    }
    lines.join("\n")
}

/// The place of a `__syncthreads` in the sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarrierSite {
    /// The source file, as seen from the root of the repository.
    pub file: String,
    /// Its line.
    pub line: u32,
}

impl fmt::Display for BarrierSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What one kernel launch did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The name of the kernel.
    pub kernel: String,
    /// `gridDim`.
    pub grid: [u32; 3],
    /// `blockDim`.
    pub block: [u32; 3],
    /// Static and dynamic shared memory of one block.
    pub shared_bytes: u64,
    /// Bytes that loads from global memory asked for.
    pub bytes_read: u64,
    /// Bytes that stores to global memory wrote.
    pub bytes_written: u64,
    /// 32-byte sectors that the loads moved, coalesced per warp instruction.
    pub sectors_read: u64,
    /// 32-byte sectors that the stores moved, coalesced per warp instruction.
    pub sectors_written: u64,
    /// Atomics on global memory, which the figures above leave out.
    pub atomics: u64,
    /// The block barriers that were passed, in the order in which they first were.
    pub barrier_sites: Vec<BarrierSite>,
}

/// What the launches of one call did, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// One entry per kernel launch.
    pub launches: Vec<Launch>,
}

impl Trace {
    /// Bytes read by all launches.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.total(|launch| launch.bytes_read)
    }

    /// Bytes written by all launches.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.total(|launch| launch.bytes_written)
    }

    /// Sectors read by all launches.
    #[must_use]
    pub fn sectors_read(&self) -> u64 {
        self.total(|launch| launch.sectors_read)
    }

    /// Sectors written by all launches.
    #[must_use]
    pub fn sectors_written(&self) -> u64 {
        self.total(|launch| launch.sectors_written)
    }

    /// Global atomics of all launches.
    #[must_use]
    pub fn atomics(&self) -> u64 {
        self.total(|launch| launch.atomics)
    }

    /// The distinct block barriers that any launch passed, sorted.
    #[must_use]
    pub fn barrier_sites(&self) -> Vec<BarrierSite> {
        let mut sites: Vec<_> = self
            .launches
            .iter()
            .flat_map(|launch| launch.barrier_sites.clone())
            .collect();
        sites.sort();
        sites.dedup();
        sites
    }

    fn total(&self, figure: impl Fn(&Launch) -> u64) -> u64 {
        self.launches.iter().map(figure).sum()
    }
}
