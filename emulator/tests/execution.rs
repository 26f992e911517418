//! What correct kernels compute and how their traffic is counted.
//!
//! All unsafe calls here are of launchers that run under the emulator, which checks each access
//! before it happens.

mod support;

use half::{bf16, f16};
use qae_emulator::{Device, Error, FindingKind, Options, Order, Trace};
use support::*;

fn grid_sum(device: &Device, values: &[f32], block: u32) -> Result<(f32, Trace), Error> {
    let grid = u32::try_from(values.len()).unwrap() / block;
    let input = device.upload(values, "in")?;
    let mut partials = device.alloc::<f32>(grid as usize, "partials")?;
    let mut finished = device.upload(&[0_u32], "finished")?;
    let mut out = device.alloc::<f32>(1, "out")?;
    let trace = device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe {
            qae_emu_test_grid_sum(
                input.as_ptr(),
                partials.as_mut_ptr(),
                finished.as_mut_ptr(),
                out.as_mut_ptr(),
                grid,
                block,
            )
        }
    })?;
    assert_eq!(
        finished.download()?,
        [0],
        "the counter is ready for the next launch"
    );
    Ok((out.download()?[0], trace))
}

/// Values whose sum depends on the order of the additions.
fn rough(len: usize) -> Vec<f32> {
    (0..len)
        .map(|index| ((index * 7919) % 1013) as f32 * 0.1 - 50.0)
        .collect()
}

#[test]
fn the_last_block_sums_the_partials() {
    for block in [32, 64, 256, 1024] {
        for device in devices() {
            let (sum, trace) = grid_sum(&device, &ramp(4096), block).unwrap();
            assert_eq!(sum, (4095 * 4096 / 2) as f32);
            let grid = u64::from(4096 / block);
            assert_eq!(trace.bytes_read(), 4 * 4096 + 4 * grid);
            assert_eq!(trace.bytes_written(), 4 * grid + 4);
            assert_eq!(trace.atomics(), grid);
            assert_eq!(trace.launches[0].block, [block, 1, 1]);
            assert_eq!(trace.launches[0].shared_bytes, 132);
        }
    }
}

#[test]
fn the_order_of_threads_does_not_change_a_bit() {
    let values = rough(8192);
    let device = Device::new(Options::default());
    let (sum, trace) = grid_sum(&device, &values, 256).unwrap();
    for seed in 0..20 {
        let device = Device::new(Options {
            order: Order::Random(seed),
            ..Options::default()
        });
        let (other, other_trace) = grid_sum(&device, &values, 256).unwrap();
        assert_eq!(other.to_bits(), sum.to_bits());
        assert_eq!(other_trace.sectors_read(), trace.sectors_read());
    }
}

#[test]
fn each_barrier_of_a_reduction_is_needed() {
    let (_, trace) = grid_sum(&Device::new(Options::default()), &rough(1024), 256).unwrap();
    let sites = trace.barrier_sites();
    assert_eq!(sites.len(), 3, "{sites:?}");
    for site in sites {
        assert_eq!(site.file, "emulator/tests/kernels/barriers.cu");
        let options = Options {
            skip_barrier: Some(site.clone()),
            ..Options::default()
        };
        let error = grid_sum(&Device::new(options), &rough(1024), 256)
            .expect_err(&format!("nothing needs the barrier at {site}"));
        let kind = error.findings()[0].kind;
        assert!(
            matches!(
                kind,
                FindingKind::SharedRace | FindingKind::UninitializedRead
            ),
            "{site}: {error}"
        );
    }
}

#[test]
fn collectives_compute_what_cuda_defines() {
    for device in devices() {
        for count in [1_i32, 7, 32, 40, 64, 1000, 1024] {
            let len = count as usize;
            let mut out = device.alloc::<i32>(16 * len, "out").unwrap();
            let result = device.launch(|| {
                // SAFETY: the emulator checks every access.
                unsafe { qae_emu_test_all_collectives(out.as_mut_ptr(), count as u32) }
            });
            // Partial warps of these sizes lack lanes that a segment or an exclusive-or names.
            if count % 4 != 0 {
                assert_finding(result, FindingKind::InactiveLane, "reads lane");
                continue;
            }
            result.unwrap();
            let rows = out.download().unwrap();
            for t in 0..count {
                let first = t / 32 * 32;
                let lane = t - first;
                let lanes = (count - first).min(32);
                let odd = (0..lanes)
                    .filter(|lane| lane % 2 == 1)
                    .map(|lane| 1_i32 << lane);
                let expected = [
                    first + lanes - 1,
                    t / 4 * 4 + 1,
                    if lane < 2 { t } else { t - 2 },
                    if t % 4 < 1 { t } else { t - 1 },
                    if t % 4 > 2 { t } else { t + 1 },
                    t ^ 3,
                    first,
                    odd.fold(0, |mask, bit| mask | bit),
                    1,
                    0,
                    -lanes * (lanes - 1) / 2,
                    1 - lanes,
                    lanes - 1,
                    (count + 2) / 3,
                    1,
                    0,
                ];
                let column: Vec<i32> = (0..16).map(|row| rows[row * len + t as usize]).collect();
                assert_eq!(column, expected, "thread {t} of {count}");
            }
        }
    }
}

#[test]
fn atomics_give_the_same_result_in_any_order() {
    for device in devices() {
        let mut cells = device
            .upload(&[0_u32, 0, u32::MAX, 0, 0, 1], "cells")
            .unwrap();
        let mut wide = device.upload(&[0_u64], "wide").unwrap();
        let mut sum = device.upload(&[5_i32], "sum").unwrap();
        let trace = device
            .launch(|| {
                // SAFETY: the emulator checks every access.
                unsafe {
                    qae_emu_test_all_atomics(
                        cells.as_mut_ptr(),
                        wide.as_mut_ptr(),
                        sum.as_mut_ptr(),
                        5,
                    )
                }
            })
            .unwrap();
        assert_eq!(
            cells.download().unwrap(),
            [480, 479, 0, u32::MAX, 480 % 7, 1]
        );
        assert_eq!(wide.download().unwrap(), [480 << 32]);
        assert_eq!(sum.download().unwrap(), [-475]);
        assert_eq!(trace.atomics(), 480 * 8);
        assert_eq!(trace.bytes_read() + trace.bytes_written(), 0);
    }
}

#[test]
fn bytes_and_sectors_of_a_vector_copy_are_exact() {
    for device in devices() {
        for count in [1, 2, 31, 64, 1000] {
            let input = device.upload(&ramp(4 * count), "in").unwrap();
            let out = device.alloc::<f32>(4 * count, "out").unwrap();
            let trace = device
                .launch(|| {
                    // SAFETY: the emulator checks every access.
                    unsafe {
                        qae_emu_test_vector_copy(input.address(), out.address(), count as i64)
                    }
                })
                .unwrap();
            let bytes = 16 * count as u64;
            assert_eq!((trace.bytes_read(), trace.bytes_written()), (bytes, bytes));
            let sectors = bytes.div_ceil(32);
            assert_eq!(
                (trace.sectors_read(), trace.sectors_written()),
                (sectors, sectors)
            );
            assert_eq!(out.download().unwrap(), ramp(4 * count));
        }
    }
}

#[test]
fn strides_move_more_sectors_than_bytes_tell() {
    const COUNT: u64 = 256;
    for device in devices() {
        for (stride, sectors) in [(1, 32), (2, 64), (3, 96), (4, 128), (8, 256), (100, 256)] {
            let input = device
                .upload(&ramp((COUNT * stride) as usize), "in")
                .unwrap();
            let mut out = device.alloc::<f32>(COUNT as usize, "out").unwrap();
            let trace = device
                .launch(|| {
                    // SAFETY: the emulator checks every access.
                    unsafe {
                        qae_emu_test_strided_read(
                            input.as_ptr(),
                            out.as_mut_ptr(),
                            COUNT as i64,
                            stride as i64,
                        )
                    }
                })
                .unwrap();
            assert_eq!(trace.bytes_read(), 4 * COUNT);
            assert_eq!(trace.sectors_read(), sectors, "stride {stride}");
            assert_eq!(trace.sectors_written(), COUNT / 8);
        }
    }
}

#[test]
fn sectors_of_a_loop_are_counted_per_iteration() {
    for device in devices() {
        let input = device.upload(&ramp(5 * 160), "in").unwrap();
        let mut out = device.alloc::<f32>(160, "out").unwrap();
        let trace = device
            .launch(|| {
                // SAFETY: the emulator checks every access.
                unsafe { qae_emu_test_looped_read(input.as_ptr(), out.as_mut_ptr(), 5, 4, 40) }
            })
            .unwrap();
        assert_eq!(trace.bytes_read(), 4 * 800);
        assert_eq!(trace.sectors_read(), 100);
    }
}

#[test]
fn devices_of_several_os_threads_do_not_meet() {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                for _ in 0..5 {
                    let options = Options {
                        order: Order::Random(seed),
                        ..Options::default()
                    };
                    let (sum, _) = grid_sum(&Device::new(options), &ramp(2048), 128).unwrap();
                    assert_eq!(sum, (2047 * 2048 / 2) as f32);
                }
            });
        }
    });
}

#[test]
fn half_precision_conversions_agree_with_the_half_crate() {
    for bits in 0..=u16::MAX {
        let wide = qae_emu_test_f16_to_f32(bits);
        let brain = qae_emu_test_bf16_to_f32(bits);
        let (expected, expected_brain) = (
            f16::from_bits(bits).to_f32(),
            bf16::from_bits(bits).to_f32(),
        );
        assert!(
            wide == expected || wide.is_nan() && expected.is_nan(),
            "{bits:#x}"
        );
        assert!(
            brain == expected_brain || brain.is_nan() && expected_brain.is_nan(),
            "{bits:#x}"
        );
    }
    // A prime step visits all exponents and every pattern of the bits that are rounded away.
    for bits in (0..=u32::MAX)
        .step_by(4099)
        .chain((0x3300_0000..0x4780_0000).step_by(1021))
    {
        for bits in [bits, bits & 0xffff_f000, bits & 0xffff_f000 | 0x8000] {
            let value = f32::from_bits(bits);
            let narrow = f16::from_bits(qae_emu_test_f32_to_f16(value));
            let brain = bf16::from_bits(qae_emu_test_f32_to_bf16(value));
            if value.is_nan() {
                assert!(narrow.is_nan() && brain.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(
                    narrow.to_bits(),
                    f16::from_f32(value).to_bits(),
                    "{bits:#x}"
                );
                assert_eq!(
                    brain.to_bits(),
                    bf16::from_f32(value).to_bits(),
                    "{bits:#x}"
                );
            }
        }
    }
}
