//! Tensors of the host, taken over by a device.
//!
//! All unsafe calls here are of launchers that run under the emulator, which checks each access
//! before it happens, or adopt arrays that outlive the call.

mod support;

use bytemuck::Pod;
use qae_emulator::{Adopted, Device, Error, FindingKind, HostTensor, Options, Trace};
use support::*;

unsafe extern "C" {
    fn qae_emu_test_shifted_copy(
        input: *const f32,
        out: *mut f32,
        count: i64,
        read_shift: i64,
        write_shift: i64,
    ) -> i32;
    fn qae_emu_test_strided_read(input: *const f32, out: *mut f32, count: i64, stride: i64) -> i32;
}

/// `values` with this shape and these strides.
fn tensor<'a, T: Pod>(
    label: &'a str,
    values: &'a [T],
    shape: &'a [usize],
    strides: &'a [usize],
) -> HostTensor<'a> {
    HostTensor {
        label,
        address: values.as_ptr() as u64,
        element_bytes: size_of::<T>(),
        shape,
        strides,
        is_output: false,
    }
}

fn output<'a, T: Pod>(
    label: &'a str,
    values: &'a mut [T],
    shape: &'a [usize],
    strides: &'a [usize],
) -> HostTensor<'a> {
    HostTensor {
        address: values.as_mut_ptr() as u64,
        is_output: true,
        ..tensor(label, values, shape, strides)
    }
}

fn adopt(device: &Device, tensors: &[HostTensor<'_>]) -> Adopted {
    // SAFETY: every test holds its arrays until its end.
    unsafe { device.adopt(tensors) }.unwrap()
}

fn shifted_copy(
    device: &Device,
    adopted: &Adopted,
    [input, out]: [u64; 2],
    count: i64,
    [read_shift, write_shift]: [i64; 2],
) -> Result<Trace, Error> {
    let [input, out] = [input, out].map(|address| adopted.address(address).unwrap());
    device.launch(|| {
        // SAFETY: the emulator checks every access.
        unsafe {
            qae_emu_test_shifted_copy(
                input as *const f32,
                out as *mut f32,
                count,
                read_shift,
                write_shift,
            )
        }
    })
}

#[test]
fn results_come_back_and_the_rest_stays() {
    let input = ramp(100);
    let mut out = vec![-1.0_f32; 120];
    let device = Device::new(Options::default());
    let tensors = [
        tensor("in", &input, &[100], &[1]),
        output("out", &mut out[10..], &[110], &[1]),
    ];
    let addresses = [tensors[0].address, tensors[1].address];
    let adopted = adopt(&device, &tensors);
    let trace = shifted_copy(&device, &adopted, addresses, 100, [0, 0]).unwrap();
    assert_eq!(trace.bytes_written(), 400);
    // SAFETY: `out` is alive, and nobody uses it.
    unsafe { adopted.write_back() };
    assert_eq!(out[10..110], input);
    let rest = out[..10].iter().chain(&out[110..]);
    assert!(rest.clone().count() == 20 && rest.clone().all(|&value| value == -1.0));
}

#[test]
fn addresses_are_as_aligned_as_on_the_host() {
    let values = [0_u8; 1000];
    let device = Device::new(Options::default());
    for skipped in [0, 1, 77, 600] {
        let part = &values[skipped..skipped + 300];
        let adopted = adopt(&device, &[tensor("part", part, &[300], &[1])]);
        let address = adopted.address(part.as_ptr() as u64).unwrap();
        assert_eq!(address % 256, part.as_ptr() as u64 % 256);
        let last = adopted.address(part.as_ptr() as u64 + 299).unwrap();
        assert_eq!(last, address + 299);
        assert_eq!(adopted.address(part.as_ptr() as u64 + 300), None);
        assert_eq!(adopted.address(part.as_ptr() as u64 - 1), None);
    }
}

#[test]
fn what_surrounds_a_tensor_is_out_of_bounds() {
    // Neighbors on the host, far apart on the device.
    let mut memory = ramp(300);
    let (input, rest) = memory.split_at_mut(100);
    let (out, rest) = rest.split_at_mut(100);
    let device = Device::new(Options::default());
    let tensors = [
        tensor("in", input, &[100], &[1]),
        output("out", out, &[100], &[1]),
        tensor("behind", rest, &[100], &[1]),
    ];
    let addresses = [tensors[0].address, tensors[1].address];
    let adopted = adopt(&device, &tensors);
    shifted_copy(&device, &adopted, addresses, 100, [0, 0]).unwrap();
    for (shifts, words) in [
        ([1, 0], "byte 400 of `in` (400 bytes), is out of bounds"),
        ([-1, 0], "byte -4 of `in` (400 bytes), is out of bounds"),
        ([0, 1], "byte 400 of `out` (400 bytes), is out of bounds"),
        ([0, -1], "byte -4 of `out` (400 bytes), is out of bounds"),
    ] {
        let result = shifted_copy(&device, &adopted, addresses, 100, shifts);
        assert_finding(result, FindingKind::OutOfBounds, words);
    }
}

#[test]
fn gaps_between_rows_are_out_of_bounds() {
    let memory = ramp(64);
    let mut out = [0.0_f32; 16];
    let device = Device::new(Options::default());
    let tensors = [
        tensor("column", &memory[2..], &[16, 1], &[4, 7]),
        output("out", &mut out, &[16], &[1]),
    ];
    let adopted = adopt(&device, &tensors);
    let [input, target] = [0, 1].map(|i| adopted.address(tensors[i].address).unwrap());
    let run = |stride| {
        device.launch(|| {
            // SAFETY: the emulator checks every access.
            unsafe {
                qae_emu_test_strided_read(input as *const f32, target as *mut f32, 16, stride)
            }
        })
    };
    let between = "byte 4 of `column` (244 bytes), is out of bounds";
    assert_finding(run(1), FindingKind::OutOfBounds, between);
    run(4).unwrap();
    // SAFETY: `out` is alive, and nobody uses it.
    unsafe { adopted.write_back() };
    assert_eq!(out, std::array::from_fn(|row| memory[2 + 4 * row]));
}

#[test]
fn outputs_are_poison_unless_they_take_an_inputs_place() {
    let mut values = ramp(100);
    let mut out = [0.0_f32; 100];
    let device = Device::new(Options::default());
    let apart = [
        output("values", &mut values, &[100], &[1]),
        output("out", &mut out, &[100], &[1]),
    ];
    let addresses = [apart[0].address, apart[1].address];
    let adopted = adopt(&device, &apart);
    let result = shifted_copy(&device, &adopted, addresses, 100, [0, 0]);
    assert_finding(result, FindingKind::UninitializedRead, "`values`");

    let written = output("values", &mut values, &[100], &[1]);
    let place = written.address;
    let read = HostTensor {
        is_output: false,
        ..written.clone()
    };
    let adopted = adopt(&device, &[written, read]);
    shifted_copy(&device, &adopted, [place, place], 50, [50, 0]).unwrap();
    // SAFETY: `values` is alive, and nobody uses it.
    unsafe { adopted.write_back() };
    let moved: Vec<f32> = ramp(100)[50..]
        .iter()
        .chain(&ramp(100)[50..])
        .copied()
        .collect();
    assert_eq!(values, moved);
}

#[test]
fn tensors_that_overlap_are_one_memory() {
    let memory = ramp(100);
    let mut out = [0.0_f32; 80];
    let device = Device::new(Options::default());
    let tensors = [
        tensor("head", &memory[..80], &[80], &[1]),
        tensor("tail", &memory[20..], &[80], &[1]),
        tensor("head", &memory[..80], &[80], &[1]),
        tensor("empty", &memory[..0], &[0, 5], &[5, 1]),
        output("out", &mut out, &[80], &[1]),
    ];
    let adopted = adopt(&device, &tensors);
    let [head, tail, again, out_address] =
        [0, 1, 2, 4].map(|i| adopted.address(tensors[i].address).unwrap());
    assert_eq!((tail, again), (head + 80, head));
    assert!(out_address.abs_diff(head) > 4096);
    let addresses = [tensors[0].address, tensors[4].address];
    shifted_copy(&device, &adopted, addresses, 80, [20, 0]).unwrap();
    // SAFETY: `out` is alive, and nobody uses it.
    unsafe { adopted.write_back() };
    assert_eq!(out, memory[20..]);
}
