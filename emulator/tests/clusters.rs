//! Thread block clusters: what correct kernels compute, and the detectors of those that are not.
//!
//! All unsafe calls here are of launchers that run under the emulator, which checks each access
//! before it happens.

mod support;

use std::ffi::{CStr, c_char};

use qae_emulator::{Device, Error, FindingKind, Options, Order, Trace};
use support::*;

unsafe extern "C" {
    fn qae_emu_test_cluster_sum(
        input: *const f32,
        out: *mut f32,
        grid: *const u32,
        block: u32,
        cluster: u32,
    ) -> i32;
    fn qae_emu_test_swap_numbers(out: *mut f32) -> i32;
    fn qae_emu_test_barrier_bug(bug: *const c_char) -> i32;
    fn qae_emu_test_remote_bug(out: *mut f32, bug: *const c_char) -> i32;
    fn qae_emu_test_lone_barrier(out: *mut f32) -> i32;
    fn qae_emu_test_device_limits(
        num_sms: *mut i32,
        capability_major: *mut i32,
        max_shared: *mut usize,
    );
}

/// Runs a kernel with an output of `len` elements.
fn fill(
    device: &Device,
    len: usize,
    kernel: impl FnOnce(*mut f32) -> i32,
) -> Result<(Vec<f32>, Trace), Error> {
    let mut out = device.alloc::<f32>(len, "out")?;
    let trace = device.launch(|| kernel(out.as_mut_ptr()))?;
    Ok((out.download()?, trace))
}

fn cluster_sum(
    device: &Device,
    grid: [u32; 3],
    block: u32,
    cluster: u32,
) -> Result<(Vec<f32>, Trace), Error> {
    let len = (grid.iter().product::<u32>() * block) as usize;
    // Sums of these are exact in any order.
    let values: Vec<f32> = (0..len).map(|index| (index % 7) as f32).collect();
    let input = device.upload(&values, "in")?;
    // SAFETY: the emulator checks every access.
    fill(device, len, |out| unsafe {
        qae_emu_test_cluster_sum(input.as_ptr(), out, grid.as_ptr(), block, cluster)
    })
}

#[test]
fn clusters_sum_over_their_blocks() {
    for device in devices() {
        for (grid, block, cluster) in [
            ([8, 1, 1], 256, 8),
            ([16, 1, 1], 64, 8),
            ([6, 3, 2], 40, 3),
            ([4, 1, 1], 1, 4),
            ([5, 2, 1], 33, 1),
        ] {
            let (out, trace) = cluster_sum(&device, grid, block, cluster).unwrap();
            let size = (block * cluster) as usize;
            for (number, totals) in out.chunks(size).enumerate() {
                let expected: usize = (number * size..(number + 1) * size).map(|i| i % 7).sum();
                assert_eq!(
                    totals,
                    vec![expected as f32; size],
                    "{grid:?}, {block} threads"
                );
            }
            let launch = &trace.launches[0];
            assert_eq!((launch.grid, launch.block), (grid, [block, 1, 1]));
            assert_eq!(launch.bytes_read, 4 * out.len() as u64);
            assert_eq!(launch.shared_bytes, 4096 + 32);
        }
    }
}

#[test]
fn clusters_have_up_to_8192_threads() {
    let device = Device::new(Options {
        order: Order::Random(3),
        ..Options::default()
    });
    let (out, _) = cluster_sum(&device, [8, 1, 1], 1024, 8).unwrap();
    let expected: usize = (0..8192).map(|i| i % 7).sum();
    assert_eq!(out, vec![expected as f32; 8192]);
}

#[test]
fn blocks_read_each_other() {
    for device in devices() {
        // SAFETY: the emulator checks every access.
        let (out, _) = fill(&device, 256, |out| unsafe {
            qae_emu_test_swap_numbers(out)
        })
        .unwrap();
        let expected: Vec<f32> = (0..256).map(|i| ((i / 64) ^ 1) as f32).collect();
        assert_eq!(out, expected);
    }
}

#[test]
fn each_cluster_barrier_is_needed() {
    let run = |options| cluster_sum(&Device::new(options), [4, 1, 1], 64, 2);
    let (_, trace) = run(Options::default()).unwrap();
    let sites = trace.barrier_sites();
    assert_eq!(sites.len(), 2, "{sites:?}");
    for order in [Order::Sequential, Order::Random(1), Order::Random(2)] {
        for site in &sites {
            let error = run(Options {
                order,
                skip_barrier: Some(site.clone()),
                ..Options::default()
            })
            .expect_err("the barrier is needed");
            let kind = error.findings()[0].kind;
            assert!(
                matches!(
                    kind,
                    FindingKind::RemoteAccess
                        | FindingKind::SharedRace
                        | FindingKind::UninitializedRead
                ),
                "{site}: {error}"
            );
        }
    }
}

#[test]
fn misused_cluster_barriers_are_found() {
    for device in devices() {
        // SAFETY: the emulator checks every access.
        let run = |bug: &CStr| device.launch(|| unsafe { qae_emu_test_barrier_bug(bug.as_ptr()) });
        run(c"none").unwrap();
        run(c"barrier of one block").unwrap();
        for (bug, kind, words) in [
            (
                c"exit before",
                FindingKind::ExitBeforeBarrier,
                "thread 33 of block 1 has exited while 127 threads wait at cluster_wait",
            ),
            (
                c"block barrier instead",
                FindingKind::DivergentBarrier,
                "waits at cluster_wait (emulator/tests/kernels/clusters.cu:",
            ),
            (
                c"two arrivals",
                FindingKind::BarrierMisuse,
                "a second time without cluster_wait",
            ),
            (
                c"wait without arrival",
                FindingKind::BarrierMisuse,
                "without cluster_arrive",
            ),
            (
                c"exit between",
                FindingKind::BarrierMisuse,
                "thread 33 of block 1 exits between cluster_arrive and cluster_wait",
            ),
        ] {
            assert_finding(run(bug), kind, words);
        }
    }
}

#[test]
fn remote_accesses_in_the_wrong_moment_are_found() {
    for device in devices() {
        let run = |bug: &CStr| {
            // SAFETY: the emulator checks every access.
            fill(&device, 128, |out| unsafe {
                qae_emu_test_remote_bug(out, bug.as_ptr())
            })
            .map(|(_, trace)| trace)
        };
        run(c"none").unwrap();
        run(c"written behind a barrier").unwrap();
        for bug in [
            c"read at once",
            c"read behind a block barrier",
            c"two writes",
            c"written at once",
            c"stored between the halves",
            c"loaded between the halves",
        ] {
            assert_finding(run(bug), FindingKind::SharedRace, "`cell[0]` (2 elements)");
        }
        for (bug, words) in [
            (
                c"before the first barrier",
                "of block 0 before a cluster barrier",
            ),
            (c"no such block", "of block 2 of a cluster of 2"),
            (c"by the first block behind the last barrier", "of block 1"),
            (c"by the last block behind the last barrier", "of block 0"),
        ] {
            assert_finding(run(bug), FindingKind::RemoteAccess, words);
        }
    }
}

#[test]
fn clusters_of_impossible_shapes_are_refused() {
    let device = Device::new(Options::default());
    for (grid, cluster) in [
        ([8, 1, 1], 0),
        ([9, 1, 1], 9),
        ([6, 1, 1], 4),
        ([1, 8, 1], 2),
    ] {
        let result = cluster_sum(&device, grid, 32, cluster).map(|(_, trace)| trace);
        assert_finding(result, FindingKind::LaunchLimit, "in clusters of");
    }
}

#[test]
fn older_devices_have_no_clusters() {
    let device = Device::new(Options::sm80());
    cluster_sum(&Device::new(Options::sm90()), [2, 1, 1], 32, 1).unwrap();
    let result = cluster_sum(&device, [2, 1, 1], 32, 2).map(|(_, trace)| trace);
    assert_finding(result, FindingKind::Unsupported, "clusters need");
    // SAFETY: the emulator checks every access.
    let result = fill(&device, 32, |out| unsafe { qae_emu_test_lone_barrier(out) });
    assert_finding(
        result.map(|(_, trace)| trace),
        FindingKind::Unsupported,
        "a cluster barrier needs compute capability 9, here 8",
    );
}

#[test]
fn launchers_see_the_limits_of_the_device() {
    let limits = || {
        let (mut num_sms, mut major, mut max_shared) = (0, 0, 0);
        // SAFETY: the pointers are to live variables.
        unsafe { qae_emu_test_device_limits(&mut num_sms, &mut major, &mut max_shared) }
        (num_sms, major, max_shared)
    };
    assert_eq!(limits(), (4, 9, 232_448));
    let device = Device::new(Options {
        num_sms: 108,
        ..Options::sm80()
    });
    device
        .launch(|| {
            assert_eq!(limits(), (108, 8, 166_912));
            0
        })
        .unwrap();
}
