//! A device: global memory, the order in which threads run, and the launches.

use std::mem::MaybeUninit;
use std::ptr;
use std::rc::Rc;

use bytemuck::Pod;

use crate::report::{BarrierSite, Error, Finding, FindingKind, Launch, Trace};
use crate::{Buffer, sys};

/// Bytes of a workspace that have to be zero: tickets and counters of both launches.
const WORKSPACE_HEAD: usize = 16640 + 1024;

/// The order in which the blocks of a grid and the runnable threads of a block run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By rank.
    #[default]
    Sequential,
    /// At random, the same for the same seed.
    Random(u64),
}

/// What a device is, and how it runs kernels.
#[derive(Clone, Debug)]
pub struct Options {
    /// The order of blocks and threads.
    pub order: Order,
    /// A `__syncthreads` to treat as absent, so that a test can prove that it is needed. Sites come
    /// from [`Trace::barrier_sites`].
    pub skip_barrier: Option<BarrierSite>,
    /// The number of streaming multiprocessors that launchers see.
    pub num_sms: i32,
    /// The major compute capability. Below 9 there are no clusters, mbarriers and bulk copies.
    pub capability_major: i32,
    /// Static and dynamic shared memory that a block may have.
    pub max_shared_per_block: usize,
}

impl Options {
    /// A device of compute capability 9.0, as an H100.
    #[must_use]
    pub fn sm90() -> Self {
        Self {
            order: Order::Sequential,
            skip_barrier: None,
            num_sms: 4,
            capability_major: 9,
            max_shared_per_block: 227 << 10,
        }
    }

    /// A device of compute capability 8.0, as an A100.
    #[must_use]
    pub fn sm80() -> Self {
        Self {
            capability_major: 8,
            max_shared_per_block: 163 << 10,
            ..Self::sm90()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::sm90()
    }
}

/// Owns the C++ side of a device. Buffers share it, so it outlives them.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) *mut sys::Context);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `qae_emulator_create`, and nothing else destroys it.
        unsafe { sys::qae_emulator_destroy(self.0) }
    }
}

/// An emulated GPU. It stays on the OS thread that made it; other threads make their own.
#[derive(Debug)]
pub struct Device {
    handle: Rc<Handle>,
}

impl Device {
    /// A device with empty memory.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let (random_order, seed) = match options.order {
            Order::Sequential => (0, 0),
            Order::Random(seed) => (1, seed),
        };
        let skipped = options.skip_barrier.as_ref();
        let options = sys::Options {
            num_sms: options.num_sms,
            capability_major: options.capability_major,
            max_shared_per_block: options.max_shared_per_block,
            random_order,
            seed,
            skips_barrier: skipped.is_some().into(),
            skipped_line: skipped.map_or(0, |site| site.line.cast_signed()),
            skipped_file: sys::Text::new(skipped.map_or("", |site| &site.file)),
        };
        // SAFETY: the options and the text in them are alive during the call, which copies them.
        let handle = Handle(unsafe { sys::qae_emulator_create(&options) });
        Self {
            handle: Rc::new(handle),
        }
    }

    /// A buffer of `len` elements that nothing has written: its bytes are poison, and a kernel that
    /// reads one before writing it fails.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has no room.
    pub fn alloc<T: Pod>(&self, len: usize, label: &str) -> Result<Buffer<T>, Error> {
        Buffer::new(Rc::clone(&self.handle), len, 0, label)
    }

    /// The same `misalignment` bytes, less than 256, behind a 256-byte boundary.
    pub(crate) fn alloc_bytes(
        &self,
        len: usize,
        misalignment: usize,
        label: &str,
    ) -> Result<Buffer<u8>, Error> {
        Buffer::new(Rc::clone(&self.handle), len, misalignment, label)
    }

    /// A workspace of this many bytes, zeroed in its head only: what lies behind must be written
    /// before it is read.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has no room.
    pub fn workspace(&self, bytes: u64) -> Result<Buffer<u8>, Error> {
        let mut buffer = self.alloc::<u8>(bytes as usize, "workspace")?;
        buffer.write(&vec![0; WORKSPACE_HEAD.min(buffer.len())]);
        Ok(buffer)
    }

    /// A buffer that holds `values`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has no room.
    pub fn upload<T: Pod>(&self, values: &[T], label: &str) -> Result<Buffer<T>, Error> {
        let mut buffer = self.alloc(values.len(), label)?;
        buffer.write(values);
        Ok(buffer)
    }

    /// Runs `call`, which calls launchers and returns their status, with this device as the one
    /// that they launch on.
    ///
    /// # Errors
    /// [`Error::Findings`] where a detector fired, [`Error::Status`] where `call` returned a status
    /// other than 0.
    pub fn launch(&self, call: impl FnOnce() -> i32) -> Result<Trace, Error> {
        let device = self.handle.0;
        // SAFETY: the handle keeps the device alive.
        unsafe { sys::qae_emulator_clear(device) }
        let status = {
            let _current = Current::enter(device);
            call()
        };
        let findings = self.findings();
        if !findings.is_empty() {
            return Err(Error::Findings(findings));
        }
        if status != 0 {
            return Err(Error::Status(status));
        }
        Ok(self.trace())
    }

    fn findings(&self) -> Vec<Finding> {
        let device = self.handle.0;
        // SAFETY: the handle keeps the device alive.
        let count = unsafe { sys::qae_emulator_finding_count(device) };
        (0..count)
            .map(|index| {
                let mut report = MaybeUninit::<sys::FindingReport>::uninit();
                // SAFETY: the index is below the count, and the call fills the report, whose texts
                // live until the device is cleared.
                unsafe {
                    sys::qae_emulator_finding_report(device, index, report.as_mut_ptr());
                    let report = report.assume_init();
                    Finding {
                        kind: FindingKind::from_number(report.kind),
                        message: report.message.to_owned(),
                        kernel: report.kernel.to_owned(),
                        block: report.block,
                        thread: (report.has_thread != 0).then_some(report.thread),
                    }
                }
            })
            .collect()
    }

    fn trace(&self) -> Trace {
        // SAFETY: the handle keeps the device alive.
        let count = unsafe { sys::qae_emulator_launch_count(self.handle.0) };
        Trace {
            launches: (0..count).map(|index| self.launch_report(index)).collect(),
        }
    }

    fn launch_report(&self, index: usize) -> Launch {
        let device = self.handle.0;
        let mut report = MaybeUninit::<sys::LaunchReport>::uninit();
        // SAFETY: the index is below the count, and the call fills the report, whose texts live
        // until the device is cleared.
        let (report, kernel) = unsafe {
            sys::qae_emulator_launch_report(device, index, report.as_mut_ptr());
            let report = report.assume_init();
            let kernel = report.kernel.to_owned();
            (report, kernel)
        };
        let barrier_sites = (0..report.barrier_sites)
            .map(|site| {
                let mut report = MaybeUninit::<sys::BarrierSiteReport>::uninit();
                // SAFETY: both indices are below their counts; the text lives as said above.
                unsafe {
                    sys::qae_emulator_barrier_site(device, index, site, report.as_mut_ptr());
                    let report = report.assume_init();
                    BarrierSite {
                        file: report.file.to_owned(),
                        line: report.line.cast_unsigned(),
                    }
                }
            })
            .collect();
        Launch {
            kernel,
            grid: report.grid,
            block: report.block,
            shared_bytes: report.shared_bytes,
            bytes_read: report.bytes_read,
            bytes_written: report.bytes_written,
            sectors_read: report.sectors_read,
            sectors_written: report.sectors_written,
            atomics: report.atomics,
            barrier_sites,
        }
    }
}

/// Makes a device current for this OS thread until dropped, also where the caller panics.
struct Current {
    before: *mut sys::Context,
}

impl Current {
    fn enter(device: *mut sys::Context) -> Self {
        // SAFETY: the caller holds the device until this guard is dropped.
        let before = unsafe { sys::qae_emulator_make_current(device) };
        Self { before }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: guards nest, so the device before is null or still held by its own guard's maker.
        unsafe { sys::qae_emulator_make_current(self.before) };
    }
}

/// The start of an allocation, `misalignment` bytes behind the start of a page, or none where the
/// device has no room.
pub(crate) fn allocate(
    handle: &Handle,
    bytes: usize,
    misalignment: usize,
    label: &str,
) -> Option<ptr::NonNull<u8>> {
    let label = sys::Text::new(label);
    // SAFETY: the handle keeps the device alive, and the call copies the label.
    let address = unsafe { sys::qae_emulator_allocate(handle.0, bytes, misalignment, label) };
    ptr::NonNull::new(address)
}
