//! The functions of `runtime/abi.cpp`.

use std::ffi::c_void;

/// A device of the C++ side.
#[repr(C)]
pub(crate) struct Context(c_void);

/// Bytes of UTF-8, borrowed from whoever made it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Text {
    pub bytes: *const u8,
    pub length: usize,
}

impl Text {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            bytes: text.as_ptr(),
            length: text.len(),
        }
    }

    /// # Safety
    /// The bytes are still alive.
    pub(crate) unsafe fn to_owned(self) -> String {
        // SAFETY: the caller says the `length` bytes are alive.
        let bytes = unsafe { std::slice::from_raw_parts(self.bytes, self.length) };
        String::from_utf8_lossy(bytes).into_owned()
    }
}

#[repr(C)]
pub(crate) struct Options {
    pub random_order: u8,
    pub skips_barrier: u8,
    pub skipped_line: i32,
    pub num_sms: i32,
    pub capability_major: i32,
    pub seed: u64,
    pub max_shared_per_block: usize,
    pub skipped_file: Text,
}

#[repr(C)]
pub(crate) struct LaunchReport {
    pub kernel: Text,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub sectors_read: u64,
    pub sectors_written: u64,
    pub atomics: u64,
    pub barrier_sites: usize,
}

#[repr(C)]
pub(crate) struct BarrierSiteReport {
    pub file: Text,
    pub line: i32,
}

#[repr(C)]
pub(crate) struct FindingReport {
    pub kind: i32,
    pub has_thread: u8,
    pub block: [u32; 3],
    pub thread: [u32; 3],
    pub kernel: Text,
    pub message: Text,
}

unsafe extern "C" {
    pub(crate) fn qae_emulator_create(options: *const Options) -> *mut Context;
    pub(crate) fn qae_emulator_destroy(device: *mut Context);
    pub(crate) fn qae_emulator_allocate(
        device: *mut Context,
        bytes: usize,
        misalignment: usize,
        label: Text,
    ) -> *mut u8;
    pub(crate) fn qae_emulator_release(device: *mut Context, address: *mut u8);
    pub(crate) fn qae_emulator_shadow(device: *mut Context, address: *mut u8) -> *mut u8;
    pub(crate) safe fn qae_emulator_initialized() -> u8;
    pub(crate) safe fn qae_emulator_outside() -> u8;
    pub(crate) fn qae_emulator_make_current(device: *mut Context) -> *mut Context;
    pub(crate) fn qae_emulator_clear(device: *mut Context);
    pub(crate) fn qae_emulator_launch_count(device: *const Context) -> usize;
    pub(crate) fn qae_emulator_finding_count(device: *const Context) -> usize;
    pub(crate) fn qae_emulator_launch_report(
        device: *const Context,
        index: usize,
        report: *mut LaunchReport,
    );
    pub(crate) fn qae_emulator_barrier_site(
        device: *const Context,
        launch: usize,
        index: usize,
        report: *mut BarrierSiteReport,
    );
    pub(crate) fn qae_emulator_finding_report(
        device: *const Context,
        index: usize,
        report: *mut FindingReport,
    );
}
