//! The launchers of the test kernels, and what the tests of the detectors share.
#![allow(dead_code, reason = "each test binary uses a part")]

use qae_emulator::{Device, Error, FindingKind, Options, Order, Trace};

unsafe extern "C" {
    pub fn qae_emu_test_shifted_copy(
        input: *const f32,
        out: *mut f32,
        count: i64,
        read_shift: i64,
        write_shift: i64,
    ) -> i32;
    pub fn qae_emu_test_vector_copy(input: u64, out: u64, count: i64) -> i32;
    pub fn qae_emu_test_strided_read(
        input: *const f32,
        out: *mut f32,
        count: i64,
        stride: i64,
    ) -> i32;
    pub fn qae_emu_test_looped_read(
        input: *const f32,
        out: *mut f32,
        repeats: i32,
        grid: u32,
        block: u32,
    ) -> i32;
    pub fn qae_emu_test_all_atomics(
        cells: *mut u32,
        wide: *mut u64,
        sum: *mut i32,
        grid: u32,
    ) -> i32;
    pub fn qae_emu_test_reverse(
        input: *const f32,
        out: *mut f32,
        block: u32,
        with_barrier: bool,
    ) -> i32;
    pub fn qae_emu_test_swap_neighbors(
        input: *const f32,
        out: *mut f32,
        block: u32,
        with_barrier: bool,
    ) -> i32;
    pub fn qae_emu_test_swap_in_half_warps(input: *const f32, out: *mut f32, distance: u32) -> i32;
    pub fn qae_emu_test_overwrite_after_read(out: *mut f32, with_barrier: bool) -> i32;
    pub fn qae_emu_test_partly_written(out: *mut f32, written: u32) -> i32;
    pub fn qae_emu_test_left_by_earlier_block(out: *mut f32, all_write: bool) -> i32;
    pub fn qae_emu_test_shifted_write(out: *mut f32, shift: i32) -> i32;
    pub fn qae_emu_test_histogram(input: *const u32, out: *mut u32, with_barrier: bool) -> i32;
    pub fn qae_emu_test_reverse_pairs(
        input: *const f32,
        out: *mut f32,
        block: u32,
        shared_bytes: usize,
    ) -> i32;
    pub fn qae_emu_test_too_much_static_shared(out: *mut f32) -> i32;
    pub fn qae_emu_test_grid_sum(
        input: *const f32,
        partials: *mut f32,
        finished: *mut u32,
        out: *mut f32,
        grid: u32,
        block: u32,
    ) -> i32;
    pub fn qae_emu_test_divergent(out: *mut f32, variant: i32) -> i32;
    pub fn qae_emu_test_exit_before_barrier(out: *mut f32, leaving: u32) -> i32;
    pub fn qae_emu_test_shuffle_from(out: *mut f32, mask: u32, source: i32) -> i32;
    pub fn qae_emu_test_all_collectives(out: *mut i32, block: u32) -> i32;
    pub fn qae_emu_test_barrier_steps(out: *mut f32, steps: i32, grid: u32, block: u32) -> i32;
    pub safe fn qae_emu_test_f16_to_f32(half: u16) -> f32;
    pub safe fn qae_emu_test_f32_to_f16(value: f32) -> u16;
    pub safe fn qae_emu_test_bf16_to_f32(half: u16) -> f32;
    pub safe fn qae_emu_test_f32_to_bf16(value: f32) -> u16;
}

/// Devices of every thread order that the tests run with.
pub fn devices() -> Vec<Device> {
    [Order::Sequential, Order::Random(1), Order::Random(2)]
        .map(|order| {
            Device::new(Options {
                order,
                ..Options::default()
            })
        })
        .into()
}

pub fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|index| index as f32).collect()
}

/// Asserts that the first finding is of `kind` and says `words`.
#[track_caller]
pub fn assert_finding(result: Result<Trace, Error>, kind: FindingKind, words: &str) {
    let error = result.expect_err("the planted bug is found");
    let first = error.findings().first().expect("a detector fired");
    assert_eq!(first.kind, kind, "{error}");
    assert!(first.to_string().contains(words), "{error}");
}
