//! Measures the emulator itself: barrier steps and accesses per second on one core.

use std::time::Instant;

use qae_emulator::{Device, Error, Options};

unsafe extern "C" {
    fn qae_emu_test_barrier_steps(out: *mut f32, steps: i32, grid: u32, block: u32) -> i32;
    fn qae_emu_test_looped_read(
        input: *const f32,
        out: *mut f32,
        repeats: i32,
        grid: u32,
        block: u32,
    ) -> i32;
    fn qae_emu_test_shared_steps(out: *mut f32, steps: i32, readers: u32, vectors: bool) -> i32;
}

fn main() -> Result<(), Error> {
    let device = Device::new(Options::default());
    for block in [32_u32, 256, 1024] {
        let mut out = device.alloc::<f32>(block as usize, "out")?;
        let steps = 20_000_000 / block;
        let start = Instant::now();
        device.launch(|| {
            // SAFETY: the emulator checks every access.
            unsafe { qae_emu_test_barrier_steps(out.as_mut_ptr(), steps.cast_signed(), 1, block) }
        })?;
        report("barrier steps", block, steps, start);
    }
    for block in [32_u32, 256, 1024] {
        let repeats = 10_000_000 / block;
        let input = device.upload(&vec![1.0_f32; (repeats * block) as usize], "in")?;
        let mut out = device.alloc::<f32>(block as usize, "out")?;
        let start = Instant::now();
        device.launch(|| {
            let repeats = repeats.cast_signed();
            // SAFETY: the emulator checks every access.
            unsafe { qae_emu_test_looped_read(input.as_ptr(), out.as_mut_ptr(), repeats, 1, block) }
        })?;
        report("loads", block, repeats, start);
    }
    for (what, readers, vectors) in [
        ("own shared words", 1, false),
        ("own shared vectors", 1, true),
        ("shared words of 8 readers", 8, false),
    ] {
        let (block, steps) = (256, 10_000_u32);
        let mut out = device.alloc::<f32>(block as usize, "out")?;
        let start = Instant::now();
        device.launch(|| {
            let steps = steps.cast_signed();
            // SAFETY: the emulator checks every access.
            unsafe { qae_emu_test_shared_steps(out.as_mut_ptr(), steps, readers, vectors) }
        })?;
        report(what, block, 16 * steps, start);
    }
    Ok(())
}

fn report(what: &str, block: u32, repeats: u32, start: Instant) {
    let rate = f64::from(block) * f64::from(repeats) / start.elapsed().as_secs_f64();
    println!(
        "{what}: {:.1} million per second with blocks of {block}",
        rate / 1e6
    );
}
