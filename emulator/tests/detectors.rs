//! Every detector fires on a planted bug, and the correct twin of the kernel passes.
//!
//! The kernels are in `kernels/`. All unsafe calls here are of launchers that run under the
//! emulator, which checks each access before it happens.

mod support;

use qae_emulator::{Buffer, Device, Error, FindingKind, Options, Trace};
use support::*;

fn shifted_copy(
    device: &Device,
    input: &Buffer<f32>,
    read_shift: i64,
    write_shift: i64,
) -> Result<Trace, Error> {
    let mut out = device.alloc::<f32>(100, "out")?;
    let trace = device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe {
            qae_emu_test_shifted_copy(
                input.as_ptr(),
                out.as_mut_ptr(),
                100,
                read_shift,
                write_shift,
            )
        }
    })?;
    assert_eq!(out.download()?, input.download()?);
    Ok(trace)
}

#[test]
fn global_accesses_out_of_bounds_are_found() {
    for device in devices() {
        let input = device.upload(&ramp(100), "in").unwrap();
        shifted_copy(&device, &input, 0, 0).unwrap();
        for (read, write, words) in [
            (1, 0, "byte 400 of `in` (400 bytes), is out of bounds"),
            (-1, 0, "byte -4 of `in` (400 bytes), is out of bounds"),
            (0, 1, "byte 400 of `out` (400 bytes), is out of bounds"),
            (0, -1, "byte -4 of `out` (400 bytes), is out of bounds"),
            (0, 1 << 40, "in no buffer, is out of bounds"),
        ] {
            let result = shifted_copy(&device, &input, read, write);
            assert_finding(result, FindingKind::OutOfBounds, words);
        }
    }
}

#[test]
fn findings_name_kernel_block_and_thread() {
    let device = Device::new(Options::default());
    let input = device.upload(&ramp(100), "in").unwrap();
    let error = shifted_copy(&device, &input, 1, 0).unwrap_err();
    let [finding] = error.findings() else {
        panic!("one finding in {error}")
    };
    assert_eq!(finding.kernel, "shifted_copy");
    assert_eq!(
        (finding.block, finding.thread),
        ([1, 0, 0], Some([35, 0, 0]))
    );
    assert!(
        error.to_string().starts_with(
            "OutOfBounds in shifted_copy, block [1, 0, 0], thread [35, 0, 0]: load of 4 bytes at 0x"
        ),
        "{error}"
    );
}

#[test]
fn released_buffers_are_out_of_bounds() {
    let device = Device::new(Options::default());
    let input = device.upload(&ramp(100), "in").unwrap();
    let mut released = device.alloc::<f32>(100, "released").unwrap();
    let address = released.as_mut_ptr();
    drop(released);
    let result = device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe { qae_emu_test_shifted_copy(input.as_ptr(), address, 100, 0, 0) }
    });
    assert_finding(result, FindingKind::OutOfBounds, "store of 4 bytes");
}

#[test]
fn uninitialized_global_reads_are_found() {
    for device in devices() {
        let input = device.alloc::<f32>(100, "never written").unwrap();
        let result = shifted_copy(&device, &input, 0, 0);
        assert_finding(
            result,
            FindingKind::UninitializedRead,
            "of `never written` (400 bytes)",
        );
    }
}

#[test]
fn downloads_of_uninitialized_bytes_fail() {
    let device = Device::new(Options::default());
    let input = device.upload(&ramp(100), "in").unwrap();
    let mut out = device.alloc::<f32>(102, "out").unwrap();
    device
        .launch(|| {
            // SAFETY: the emulator checks every access.
            unsafe { qae_emu_test_shifted_copy(input.as_ptr(), out.as_mut_ptr(), 100, 0, 1) }
        })
        .unwrap();
    assert!(!out.is_initialized(0) && out.is_initialized(1) && !out.is_initialized(101));
    let expected = Error::Uninitialized {
        label: "out".to_owned(),
        bytes: 8,
        first: 0,
        len: 102,
    };
    assert_eq!(out.download().unwrap_err(), expected);
    assert_eq!(out.download_raw()[0].to_bits(), 0xa5a5_a5a5);
    assert_eq!(out.download_raw()[1..101], ramp(100));
}

#[test]
fn misaligned_vectors_are_found() {
    for device in devices() {
        let input = device.upload(&ramp(256), "in").unwrap();
        let out = device.alloc::<f32>(256, "out").unwrap();
        let copy = |from: usize, to: usize| {
            device.launch(|| {
                // SAFETY: the emulator checks every access.
                unsafe { qae_emu_test_vector_copy(input.address_of(from), out.address_of(to), 32) }
            })
        };
        copy(0, 0).unwrap();
        copy(4, 8).unwrap();
        assert_finding(copy(1, 0), FindingKind::Misaligned, "load of 16 bytes");
        assert_finding(copy(0, 2), FindingKind::Misaligned, "store of 16 bytes");
    }
}

/// Runs a kernel that maps `input` to as many elements.
fn map(
    device: &Device,
    input: &[f32],
    kernel: impl FnOnce(*const f32, *mut f32) -> i32,
) -> Result<Vec<f32>, Error> {
    let input = device.upload(input, "in")?;
    let mut out = device.alloc::<f32>(input.len(), "out")?;
    device.launch(|| kernel(input.as_ptr(), out.as_mut_ptr()))?;
    out.download()
}

/// As `map`, for kernels without input.
fn fill(device: &Device, len: usize, kernel: impl FnOnce(*mut f32) -> i32) -> Result<Trace, Error> {
    let mut out = device.alloc::<f32>(len, "out")?;
    let trace = device.launch(|| kernel(out.as_mut_ptr()))?;
    out.download()?;
    Ok(trace)
}

#[test]
fn races_across_warps_are_found() {
    for device in devices() {
        for block in [64, 100, 1024] {
            let input = ramp(block);
            let reverse = |with_barrier| {
                // SAFETY: the emulator checks every access.
                map(&device, &input, |from, to| unsafe {
                    qae_emu_test_reverse(from, to, block as u32, with_barrier)
                })
            };
            let reversed: Vec<f32> = input.iter().rev().copied().collect();
            assert_eq!(reverse(true).unwrap(), reversed);
            // Without the barrier, the read comes before the write (nothing written yet) or after
            // it (a race), depending on the order of the threads.
            let error = reverse(false).unwrap_err();
            let kind = error.findings()[0].kind;
            assert!(
                matches!(
                    kind,
                    FindingKind::SharedRace | FindingKind::UninitializedRead
                ),
                "{error}"
            );
        }
    }
}

#[test]
fn writes_that_race_with_earlier_reads_are_found() {
    for device in devices() {
        let run = |with_barrier| {
            // SAFETY: the emulator checks every access.
            fill(&device, 64, |out| unsafe {
                qae_emu_test_overwrite_after_read(out, with_barrier)
            })
        };
        run(true).unwrap();
        assert_finding(run(false), FindingKind::SharedRace, "`cell[0]`");
    }
}

#[test]
fn races_inside_a_warp_are_found() {
    for device in devices() {
        for block in [32, 64, 40] {
            let input = ramp(block);
            let swap = |with_barrier| {
                // SAFETY: the emulator checks every access.
                map(&device, &input, |from, to| unsafe {
                    qae_emu_test_swap_neighbors(from, to, block as u32, with_barrier)
                })
            };
            let swapped: Vec<f32> = (0..block).map(|index| (index ^ 1) as f32).collect();
            assert_eq!(swap(true).unwrap(), swapped);
            let error = swap(false).unwrap_err();
            let kind = error.findings()[0].kind;
            assert!(
                matches!(
                    kind,
                    FindingKind::SharedRace | FindingKind::UninitializedRead
                ),
                "{error}"
            );
        }
    }
}

#[test]
fn barriers_of_half_a_warp_order_that_half() {
    for device in devices() {
        let swap = |distance| {
            // SAFETY: the emulator checks every access.
            map(&device, &ramp(64), |from, to| unsafe {
                qae_emu_test_swap_in_half_warps(from, to, distance)
            })
        };
        swap(8).unwrap();
        let error = swap(16).unwrap_err();
        let kind = error.findings()[0].kind;
        assert!(
            matches!(
                kind,
                FindingKind::SharedRace | FindingKind::UninitializedRead
            ),
            "{error}"
        );
    }
}

#[test]
fn shared_atomics_race_with_plain_reads_only() {
    for device in devices() {
        let values: Vec<u32> = (0..128).map(|index| index % 5).collect();
        let input = device.upload(&values, "in").unwrap();
        let mut out = device.alloc::<u32>(128, "out").unwrap();
        let mut histogram = |with_barrier| {
            // SAFETY: the emulator checks every access.
            device.launch(|| unsafe {
                qae_emu_test_histogram(input.as_ptr(), out.as_mut_ptr(), with_barrier)
            })
        };
        assert_finding(histogram(false), FindingKind::SharedRace, "`bins[");
        histogram(true).unwrap();
        assert_eq!(out.download().unwrap()[..6], [26, 26, 26, 25, 25, 0]);
    }
}

#[test]
fn uninitialized_shared_reads_are_found() {
    for device in devices() {
        let run = |written| {
            // SAFETY: the emulator checks every access.
            fill(&device, 64, |out| unsafe {
                qae_emu_test_partly_written(out, written)
            })
        };
        run(64).unwrap();
        assert_finding(
            run(63),
            FindingKind::UninitializedRead,
            "`tile[63]` (64 elements)",
        );
    }
}

#[test]
fn shared_memory_of_an_earlier_block_is_not_initialized() {
    let device = Device::new(Options::default());
    let run = |all_write| {
        // SAFETY: the emulator checks every access.
        fill(&device, 32, |out| unsafe {
            qae_emu_test_left_by_earlier_block(out, all_write)
        })
    };
    run(true).unwrap();
    assert_finding(
        run(false),
        FindingKind::UninitializedRead,
        "block [1, 0, 0]",
    );
}

#[test]
fn shared_accesses_out_of_bounds_are_found() {
    for device in devices() {
        let run = |shift| {
            // SAFETY: the emulator checks every access.
            fill(&device, 64, |out| unsafe {
                qae_emu_test_shifted_write(out, shift)
            })
        };
        run(0).unwrap();
        assert_finding(run(1), FindingKind::OutOfBounds, "`tile[64]` (64 elements)");
        assert_finding(
            run(-1),
            FindingKind::OutOfBounds,
            "`tile[-1]` (64 elements)",
        );
    }
}

#[test]
fn dynamic_shared_memory_holds_structs_and_has_the_size_of_the_launch() {
    const PAIR_BYTES: usize = 12;
    for device in devices() {
        for block in [1, 33, 1024] {
            let run = |bytes| {
                // SAFETY: the emulator checks every access.
                map(&device, &ramp(block), |from, to| unsafe {
                    qae_emu_test_reverse_pairs(from, to, block as u32, bytes)
                })
            };
            assert_eq!(
                run(PAIR_BYTES * block).unwrap(),
                vec![2.0 * (block - 1) as f32; block]
                    .iter()
                    .enumerate()
                    .map(|(index, last)| last - 2.0 * index as f32)
                    .collect::<Vec<_>>()
            );
            let error = run(PAIR_BYTES * block - 1).unwrap_err();
            assert_eq!(
                error.findings()[0].kind,
                FindingKind::OutOfBounds,
                "{error}"
            );
        }
    }
}

#[test]
fn divergent_barriers_are_found() {
    for device in devices() {
        let run = |variant| {
            // SAFETY: the emulator checks every access.
            fill(&device, 64, |out| unsafe {
                qae_emu_test_divergent(out, variant)
            })
        };
        run(0).unwrap();
        for (variant, words) in [
            (
                1,
                "while other threads wait at __syncthreads (emulator/tests/kernels/barriers.cu:",
            ),
            (
                2,
                "wait at __syncthreads (emulator/tests/kernels/barriers.cu:",
            ),
            (3, "have exited (thread "),
            (4, "waits at __a"),
            (5, "by a lane that its mask leaves out"),
        ] {
            assert_finding(run(variant), FindingKind::DivergentBarrier, words);
        }
    }
}

#[test]
fn leaving_before_a_barrier_is_found() {
    for device in devices() {
        let run = |leaving| {
            // SAFETY: the emulator checks every access.
            fill(&device, 64, |out| unsafe {
                qae_emu_test_exit_before_barrier(out, leaving)
            })
        };
        run(0).unwrap();
        for leaving in [1, 32, 63] {
            let words = format!(
                "has exited while {} threads wait at __syncthreads",
                64 - leaving
            );
            assert_finding(run(leaving), FindingKind::ExitBeforeBarrier, &words);
        }
    }
}

#[test]
fn shuffles_from_lanes_outside_the_mask_are_found() {
    for device in devices() {
        let run = |mask, source| {
            // SAFETY: the emulator checks every access.
            fill(&device, 32, |out| unsafe {
                qae_emu_test_shuffle_from(out, mask, source)
            })
        };
        run(u32::MAX, 20).unwrap();
        run(0xffff, 15).unwrap();
        assert_finding(run(0xffff, 20), FindingKind::InactiveLane, "reads lane 20");
    }
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let device = Device::new(Options::default());
    let reverse = |block| {
        // SAFETY: the emulator checks every access.
        map(&device, &[0.0; 2048], |from, to| unsafe {
            qae_emu_test_reverse(from, to, block, true)
        })
    };
    for block in [0, 1025] {
        let error = reverse(block).unwrap_err();
        assert_eq!(
            error.findings()[0].kind,
            FindingKind::LaunchLimit,
            "{error}"
        );
        assert_eq!(error.findings()[0].thread, None);
    }
    // SAFETY: the emulator checks every access.
    let error = map(&device, &[0.0; 64], |from, to| unsafe {
        qae_emu_test_reverse_pairs(from, to, 64, (227 << 10) + 1)
    });
    assert_eq!(
        error.unwrap_err().findings()[0].kind,
        FindingKind::LaunchLimit
    );
    // SAFETY: the emulator checks every access.
    let result = fill(&device, 32, |out| unsafe {
        qae_emu_test_too_much_static_shared(out)
    });
    assert_finding(
        result,
        FindingKind::LaunchLimit,
        "bytes of static shared memory",
    );
}

#[test]
fn a_status_without_findings_is_an_error() {
    let device = Device::new(Options::default());
    assert_eq!(device.launch(|| -3).unwrap_err(), Error::Status(-3));
    assert_eq!(device.launch(|| 0).unwrap(), Trace::default());
}

#[test]
fn a_launch_without_a_device_fails() {
    // SAFETY: without a device the launcher returns before it runs the kernel.
    let status = unsafe { qae_emu_test_exit_before_barrier(std::ptr::null_mut(), 0) };
    assert_eq!(status, 2);
}
