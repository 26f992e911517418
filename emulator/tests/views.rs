//! Shared memory seen as elements of several widths, and how much of it there is.
//!
//! All unsafe calls here are of launchers that run under the emulator, which checks each access
//! before it happens.

mod support;

use bytemuck::Pod;
use qae_emulator::{Device, Error, FindingKind, Options, Trace};
use support::*;

unsafe extern "C" {
    fn qae_emu_test_narrow_view(
        input: *const u8,
        out: *mut u32,
        width: u32,
        with_barrier: bool,
    ) -> i32;
    fn qae_emu_test_joined_lines(out: *mut u32, with_barrier: bool) -> i32;
    fn qae_emu_test_misaligned_view(out: *mut f32, is_static: bool, first: i32) -> i32;
    fn qae_emu_test_dynamic_shared(out: *mut f32, shared_bytes: usize) -> i32;
}

/// Runs a kernel with an output of 64 elements.
fn fill<T: Pod>(
    device: &Device,
    kernel: impl FnOnce(*mut T) -> i32,
) -> Result<(Vec<T>, Trace), Error> {
    let mut out = device.alloc::<T>(64, "out")?;
    let trace = device.launch(|| kernel(out.as_mut_ptr()))?;
    Ok((out.download_raw(), trace))
}

#[test]
fn elements_of_any_width_are_told_apart() {
    for device in devices() {
        for width in [1_u32, 2, 4, 8] {
            let len = 64 * width as usize;
            let bytes: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
            let input = device.upload(&bytes, "in").unwrap();
            let run = |with_barrier| {
                // SAFETY: the emulator checks every access.
                fill(&device, |out| unsafe {
                    qae_emu_test_narrow_view(input.as_ptr(), out, width, with_barrier)
                })
            };
            let word = |byte: usize| u32::from_le_bytes(bytes[byte..byte + 4].try_into().unwrap());
            let expected: Vec<u32> = (0..64)
                .map(|thread| {
                    let byte = thread * width as usize;
                    let vector = byte / 16 * 16;
                    (0..4)
                        .map(|lane| word(vector + 4 * lane))
                        .fold(word(byte / 4 * 4) + 1, u32::wrapping_add)
                })
                .collect();
            assert_eq!(run(true).unwrap().0, expected, "elements of {width} bytes");
            assert_finding(
                run(false).map(|(_, trace)| trace),
                FindingKind::SharedRace,
                "shared `vectors[",
            );
        }
    }
}

#[test]
fn vectors_take_the_place_of_their_words() {
    for device in devices() {
        let run = |with_barrier| {
            // SAFETY: the emulator checks every access.
            fill(&device, |out| unsafe {
                qae_emu_test_joined_lines(out, with_barrier)
            })
        };
        let expected: Vec<u32> = (0..64).map(|t| ((t / 4) ^ 1) + 2 + t % 4).collect();
        assert_eq!(run(true).unwrap().0, expected);
        assert_finding(
            run(false).map(|(_, trace)| trace),
            FindingKind::SharedRace,
            "shared `vectors[",
        );
    }
}

#[test]
fn shared_vectors_must_be_aligned() {
    for device in devices() {
        let run = |is_static, first| {
            // SAFETY: the emulator checks every access.
            fill(&device, |out| unsafe {
                qae_emu_test_misaligned_view(out, is_static, first)
            })
            .map(|(_, trace)| trace)
        };
        run(false, 0).unwrap();
        run(false, 8).unwrap();
        assert_finding(run(false, 2), FindingKind::Misaligned, "`words[2]`");
        // The compiler aligns an array of floats as floats.
        assert_finding(run(true, 0), FindingKind::Misaligned, "`static_words[0]`");
    }
}

#[test]
fn blocks_have_the_shared_memory_of_their_device() {
    let smaller = Options {
        max_shared_per_block: 100_000,
        ..Options::default()
    };
    for (options, limit) in [
        (Options::sm90(), 232_448),
        (Options::sm80(), 166_912),
        (smaller, 100_000),
    ] {
        let device = Device::new(options);
        let run = |bytes| {
            // SAFETY: the emulator checks every access.
            fill(&device, |out| unsafe {
                qae_emu_test_dynamic_shared(out, bytes)
            })
            .map(|(_, trace)| trace)
        };
        assert_eq!(run(limit).unwrap().launches[0].shared_bytes, limit as u64);
        assert_finding(
            run(limit + 1),
            FindingKind::LaunchLimit,
            "bytes of dynamic shared memory",
        );
    }
}
