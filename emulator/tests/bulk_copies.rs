//! Bulk copies and mbarriers: what correct kernels copy, and the detectors of those that are not.
//!
//! All unsafe calls here are of launchers that run under the emulator, which checks each access
//! before it happens.

mod support;

use std::ffi::{CStr, c_char};

use qae_emulator::{Buffer, Device, Error, FindingKind, Options, Trace};
use support::*;

unsafe extern "C" {
    fn qae_emu_test_double_chunks(
        input: *const u32,
        out: *mut u32,
        count: u32,
        grid: u32,
        block: u32,
    ) -> i32;
    fn qae_emu_test_copy_range(
        input: u64,
        out: u64,
        bytes: u32,
        shift: u32,
        is_static: bool,
    ) -> i32;
    fn qae_emu_test_load_bug(input: *mut u32, out: *mut u32, bug: *const c_char) -> i32;
    fn qae_emu_test_store_bug(out: *mut u32, bug: *const c_char) -> i32;
    fn qae_emu_test_store_for_next_block(out: *mut u32, waits: bool) -> i32;
    fn qae_emu_test_refill(input: *const u32, out: *mut u32, bug: *const c_char) -> i32;
    fn qae_emu_test_missed_phase(out: *mut u32) -> i32;
    fn qae_emu_test_invalid_mbarrier(out: *mut u32, arrivals: u32, shift: u32) -> i32;
}

const STAGE_WORDS: usize = 256;
const READERS: u32 = 96;

fn numbers(len: usize) -> Vec<u32> {
    (0..len as u32).collect()
}

#[test]
fn chunks_pass_through_a_ring_of_stages() {
    for device in devices() {
        for (count, grid, block) in [(0, 1, 64), (1, 1, 33), (2, 2, 64), (3, 1, 256), (33, 3, 64)] {
            let len = STAGE_WORDS * (count * grid) as usize;
            let input = device.upload(&numbers(len), "in").unwrap();
            let mut out = device.alloc::<u32>(len, "out").unwrap();
            let trace = device
                .launch(|| {
                    // SAFETY: the emulator checks every access.
                    unsafe {
                        qae_emu_test_double_chunks(
                            input.as_ptr(),
                            out.as_mut_ptr(),
                            count,
                            grid,
                            block,
                        )
                    }
                })
                .unwrap();
            let doubled: Vec<u32> = numbers(len).iter().map(|number| 2 * number).collect();
            assert_eq!(out.download().unwrap(), doubled);
            let bytes = 4 * len as u64;
            assert_eq!((trace.bytes_read(), trace.bytes_written()), (bytes, bytes));
            let sectors = bytes / 32;
            assert_eq!(
                (trace.sectors_read(), trace.sectors_written()),
                (sectors, sectors)
            );
        }
    }
}

/// Copies `bytes` from and to so many bytes behind the start of a buffer.
fn copy_range(
    from: usize,
    to: usize,
    bytes: u32,
    shift: u32,
    is_static: bool,
) -> Result<(Vec<u8>, Trace), Error> {
    let device = Device::new(Options::default());
    let values: Vec<u8> = (0..1024_u32).map(|index| index as u8).collect();
    let input = device.upload(&values, "in")?;
    let out = device.upload(&[0_u8; 1024], "out")?;
    let trace = device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe {
            qae_emu_test_copy_range(
                input.address_of(from),
                out.address_of(to),
                bytes,
                shift,
                is_static,
            )
        }
    })?;
    Ok((out.download()?, trace))
}

#[test]
fn sectors_of_a_copy_are_those_it_touches() {
    for (from, to, bytes, read, written) in [
        (0, 32, 16, 1, 1),
        (16, 0, 32, 2, 1),
        (16, 48, 64, 3, 3),
        (0, 16, 992, 31, 32),
    ] {
        let (out, trace) = copy_range(from, to, bytes, 32, false).unwrap();
        assert_eq!(trace.bytes_read(), u64::from(bytes));
        assert_eq!(
            (trace.sectors_read(), trace.sectors_written()),
            (read, written)
        );
        let bytes = bytes as usize;
        let copied: Vec<u8> = (from..from + bytes).map(|index| index as u8).collect();
        assert_eq!(out[to..to + bytes], copied);
        assert!(
            out[..to]
                .iter()
                .chain(&out[to + bytes..])
                .all(|&byte| byte == 0)
        );
    }
}

#[test]
fn misplaced_copies_are_found() {
    copy_range(16, 32, 64, 48, false).unwrap();
    for (from, to, bytes, shift, is_static, kind) in [
        (8, 0, 64, 0, false, FindingKind::Misaligned),
        (0, 4, 64, 0, false, FindingKind::Misaligned),
        (0, 0, 24, 0, false, FindingKind::Misaligned),
        (0, 0, 0, 0, false, FindingKind::Misaligned),
        (0, 0, 64, 8, false, FindingKind::Misaligned),
        // The compiler aligns an array of bytes as bytes.
        (0, 0, 64, 0, true, FindingKind::Misaligned),
        (976, 0, 64, 0, false, FindingKind::OutOfBounds),
        (0, 976, 64, 0, false, FindingKind::OutOfBounds),
        (0, 0, 64, 976, false, FindingKind::OutOfBounds),
    ] {
        let result = copy_range(from, to, bytes, shift, is_static);
        assert_finding(result.map(|(_, trace)| trace), kind, "bulk ");
    }
}

struct Loaded {
    input: Buffer<u32>,
    out: Buffer<u32>,
}

fn load_bug(device: &Device, bug: &CStr) -> Result<Loaded, Error> {
    let mut input = device.upload(&numbers(STAGE_WORDS), "in")?;
    let mut out = device.alloc::<u32>(STAGE_WORDS, "out")?;
    device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe { qae_emu_test_load_bug(input.as_mut_ptr(), out.as_mut_ptr(), bug.as_ptr()) }
    })?;
    Ok(Loaded { input, out })
}

fn assert_load_bug(device: &Device, bug: &CStr, kind: FindingKind, words: &str) {
    let result = load_bug(device, bug).map(|_| Trace::default());
    assert_finding(result, kind, words);
}

#[test]
fn loads_are_complete_for_those_who_wait() {
    for device in devices() {
        for bug in [
            c"none",
            c"a lane waits for its warp",
            c"a thread waits for its block",
        ] {
            let loaded = load_bug(&device, bug).unwrap();
            let sums: Vec<u32> = numbers(STAGE_WORDS)
                .iter()
                .map(|number| 4 * (number - number % 4) + 6)
                .collect();
            assert_eq!(loaded.out.download().unwrap(), sums, "{bug:?}");
            assert_eq!(loaded.input.download().unwrap(), numbers(STAGE_WORDS));
        }
    }
}

#[test]
fn loads_read_their_source_late() {
    for device in devices() {
        let loaded = load_bug(&device, c"source overwritten").unwrap();
        assert_eq!(loaded.out.download().unwrap()[0], 77 + 1 + 2 + 3);
    }
}

#[test]
fn loads_of_unwritten_bytes_are_found() {
    for device in devices() {
        let mut input = device.alloc::<u32>(STAGE_WORDS, "in").unwrap();
        input.write(&numbers(STAGE_WORDS - 1));
        let mut out = device.alloc::<u32>(STAGE_WORDS, "out").unwrap();
        let result = device.launch(|| {
            // SAFETY: the emulator checks every access.
            unsafe { qae_emu_test_load_bug(input.as_mut_ptr(), out.as_mut_ptr(), c"none".as_ptr()) }
        });
        assert_finding(
            result,
            FindingKind::UninitializedRead,
            "byte 1020 of `in` (1024 bytes), reads bytes that were never written",
        );
    }
}

/// For bugs that show as a read before a write or behind it, depending on the order of the threads.
fn assert_race_or_early_read(error: &Error) {
    let kind = error.findings()[0].kind;
    assert!(
        matches!(
            kind,
            FindingKind::SharedRace | FindingKind::UninitializedRead
        ),
        "{error}"
    );
}

#[test]
fn uses_of_a_stage_that_is_loading_are_found() {
    for device in devices() {
        assert_load_bug(
            &device,
            c"read before wait",
            FindingKind::UninitializedRead,
            "read of shared `tile[0]` (64 elements) by thread 0 does not wait",
        );
        assert_load_bug(
            &device,
            c"write before wait",
            FindingKind::SharedRace,
            "write of shared `tile[10]` (64 elements) by thread 0 does not wait",
        );
    }
}

#[test]
fn reads_by_threads_that_did_not_wait_are_found() {
    for bug in [c"a thread does not wait", c"wait at another mbarrier"] {
        assert_load_bug(
            &Device::new(Options::default()),
            bug,
            FindingKind::UninitializedRead,
            "by thread 70 does not wait for the bulk load that completes on mbarrier `full[0]`",
        );
    }
    for device in devices() {
        for bug in [
            c"a thread does not wait",
            c"a lane waits for itself",
            c"wait at another mbarrier",
            c"wait for the other parity",
        ] {
            let result = load_bug(&device, bug).map(|_| ());
            assert_race_or_early_read(&result.expect_err("the planted bug is found"));
        }
    }
}

#[test]
fn loads_over_a_stage_in_use_are_found() {
    for device in devices() {
        for bug in [
            c"no fence before load",
            c"fence by another thread",
            c"fence behind the barrier",
        ] {
            assert_load_bug(
                &device,
                bug,
                FindingKind::MissingFence,
                "have not called fence_async",
            );
        }
        let result = load_bug(&device, c"no barrier before load").map(|_| ());
        assert_race_or_early_read(&result.expect_err("the planted bug is found"));
    }
}

#[test]
fn misused_mbarriers_are_found() {
    for device in devices() {
        for (bug, words) in [
            (c"no barrier behind the mbarrier", "initializ"),
            (c"no mbarrier", "which it is not initialized to be"),
            (c"mbarrier initialized again", "touches an mbarrier"),
            (c"mbarrier overwritten", "touches an mbarrier"),
            (c"one arrival more", "more than the 1 arrivals of a phase"),
            (c"more expected than possible", "1048575 are possible"),
            (c"wait for no parity", "a parity of 2"),
        ] {
            assert_load_bug(&device, bug, FindingKind::BarrierMisuse, words);
        }
        assert_load_bug(
            &device,
            c"no fence of the mbarrier",
            FindingKind::MissingFence,
            "mbarrier `full[0]` (2 elements), whose initialization",
        );
    }
}

#[test]
fn phases_that_cannot_complete_are_found() {
    for device in devices() {
        for (bug, words) in [
            (
                c"too much expected",
                "lacks 0 arrivals and has copies of 1024 bytes for the 1040 that it expects",
            ),
            (c"too little expected", "for the 1008 that it expects"),
            (
                c"nothing expected",
                "lacks 1 arrivals and has copies of 1024 bytes for the 0 that it expects",
            ),
        ] {
            assert_load_bug(&device, bug, FindingKind::EndlessWait, words);
        }
    }
}

#[test]
fn loads_that_nobody_waits_for_are_found() {
    for device in devices() {
        assert_load_bug(
            &device,
            c"nobody waits",
            FindingKind::PendingCopy,
            "may land after its block has exited",
        );
    }
}

fn refill(device: &Device, bug: &CStr) -> Result<Vec<u32>, Error> {
    let input = device.upload(&numbers(2 * STAGE_WORDS), "in")?;
    let mut out = device.alloc::<u32>(2 * READERS as usize, "out")?;
    device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe { qae_emu_test_refill(input.as_ptr(), out.as_mut_ptr(), bug.as_ptr()) }
    })?;
    out.download()
}

#[test]
fn stages_are_loaded_again_behind_their_readers() {
    let sums = (0..2 * READERS).map(|index| {
        let first = index / READERS * STAGE_WORDS as u32;
        (index % READERS % 4..STAGE_WORDS as u32)
            .step_by(4)
            .map(|word| first + word)
            .sum()
    });
    let sums: Vec<u32> = sums.collect();
    for device in devices() {
        assert_eq!(refill(&device, c"none").unwrap(), sums);
        for (bug, kind) in [
            // The first phase of the load has not been waited for.
            (c"no wait for readers", FindingKind::BarrierMisuse),
            (c"lanes do not meet", FindingKind::SharedRace),
        ] {
            let result = refill(&device, bug).map(|_| Trace::default());
            assert_finding(result, kind, "");
        }
        let error = refill(&device, c"read behind the arrival").unwrap_err();
        assert_race_or_early_read(&error);
        assert_eq!(refill(&device, c"none").unwrap(), sums);
    }
}

#[test]
fn missed_phases_are_found() {
    for device in devices() {
        let mut out = device.alloc::<u32>(1, "out").unwrap();
        // SAFETY: the emulator checks every access.
        let result = device.launch(|| unsafe { qae_emu_test_missed_phase(out.as_mut_ptr()) });
        let kind = result.unwrap_err().findings()[0].kind;
        // A thread that comes after both phases waits for the third.
        assert!(matches!(
            kind,
            FindingKind::BarrierMisuse | FindingKind::EndlessWait
        ));
    }
}

#[test]
fn invalid_mbarriers_are_found() {
    let device = Device::new(Options::default());
    let init = |arrivals, shift| {
        let mut out = device.alloc::<u32>(32, "out").unwrap();
        device.launch(|| {
            // SAFETY: the emulator checks every access.
            unsafe { qae_emu_test_invalid_mbarrier(out.as_mut_ptr(), arrivals, shift) }
        })
    };
    let too_many = 1 << 20;
    assert_finding(init(0, 0), FindingKind::BarrierMisuse, "of 0 arrivals");
    assert_finding(init(too_many, 0), FindingKind::BarrierMisuse, "arrivals");
    // The compiler aligns an array of words as words.
    assert_finding(init(1, 0), FindingKind::Misaligned, "`words[0]`");
    assert_finding(init(1, 7), FindingKind::OutOfBounds, "`words[7]`");
}

fn store_bug(device: &Device, bug: &CStr) -> Result<Vec<u32>, Error> {
    let mut out = device.alloc::<u32>(2 * STAGE_WORDS, "out")?;
    device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe { qae_emu_test_store_bug(out.as_mut_ptr(), bug.as_ptr()) }
    })?;
    out.download()
}

#[test]
fn stores_write_what_was_there() {
    for device in devices() {
        for bug in [c"none", c"source overwritten behind a barrier"] {
            assert_eq!(store_bug(&device, bug).unwrap(), numbers(2 * STAGE_WORDS));
        }
        let mut changed = numbers(2 * STAGE_WORDS);
        changed[0] += 1;
        changed[STAGE_WORDS] += 1;
        assert_eq!(
            store_bug(&device, c"target read behind the store").unwrap(),
            changed
        );
    }
}

#[test]
fn misused_stores_are_found() {
    for device in devices() {
        for (bug, kind, words) in [
            (
                c"source not written",
                FindingKind::UninitializedRead,
                "`tile[7]`",
            ),
            (
                c"fence by the storing thread",
                FindingKind::MissingFence,
                "bulk store of 1024 bytes",
            ),
            (
                c"write behind the fence",
                FindingKind::MissingFence,
                "bulk store of 1024 bytes",
            ),
            (
                c"source overwritten",
                FindingKind::SharedRace,
                "races with a bulk store by thread 0",
            ),
            (
                c"newest source overwritten",
                FindingKind::SharedRace,
                "races with a bulk store by thread 0",
            ),
            (
                c"target written",
                FindingKind::PendingCopy,
                "store of 4 bytes",
            ),
            (
                c"target read",
                FindingKind::UninitializedRead,
                "load of 4 bytes",
            ),
            (
                c"target read behind its source",
                FindingKind::UninitializedRead,
                "load of 4 bytes",
            ),
            (
                c"overlapping targets",
                FindingKind::PendingCopy,
                "overlaps one that nothing has waited for",
            ),
            (
                c"no commit",
                FindingKind::SharedRace,
                "races with a bulk store by thread 0",
            ),
            (
                c"no wait",
                FindingKind::PendingCopy,
                "may read its source after its thread has exited",
            ),
            (
                c"no wait for the newest",
                FindingKind::PendingCopy,
                "may read its source after its thread has exited",
            ),
        ] {
            let result = store_bug(&device, bug).map(|_| Trace::default());
            assert_finding(result, kind, words);
        }
        assert_race_or_early_read(&store_bug(&device, c"no barrier before store").unwrap_err());
        assert_eq!(
            store_bug(&device, c"none").unwrap(),
            numbers(2 * STAGE_WORDS)
        );
        let bug = c"source overwritten by another thread";
        let error = store_bug(&device, bug).unwrap_err();
        assert_eq!(error.findings()[0].kind, FindingKind::SharedRace, "{error}");
    }
}

#[test]
fn other_blocks_see_a_store_that_was_waited_for() {
    let device = Device::new(Options::default());
    let run = |waits| {
        let mut out = device.alloc::<u32>(STAGE_WORDS + 1, "out").unwrap();
        device
            .launch(|| {
                // SAFETY: the emulator checks every access.
                unsafe { qae_emu_test_store_for_next_block(out.as_mut_ptr(), waits) }
            })
            .map(|trace| (out.download().unwrap()[STAGE_WORDS], trace))
    };
    assert_eq!(run(true).unwrap().0, 7);
    let result = run(false).map(|(_, trace)| trace);
    assert_finding(result, FindingKind::UninitializedRead, "load of 4 bytes");
}

#[test]
fn older_devices_have_no_bulk_copies() {
    let device = Device::new(Options::sm80());
    assert_load_bug(
        &device,
        c"none",
        FindingKind::Unsupported,
        "an mbarrier needs compute capability 9, here 8",
    );
    let result = store_bug(&device, c"none").map(|_| Trace::default());
    assert_finding(
        result,
        FindingKind::Unsupported,
        "a fence of the copies' proxy needs compute capability 9, here 8",
    );
}
