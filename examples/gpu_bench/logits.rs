//! The operations on logits: correctness at the vocabularies of today's models, then times at one
//! large shape, with nothing of it in any cache.

mod check;
mod device;
mod inputs;

use super::Result;
use super::arguments::Arguments;
use super::inputs::{Element, GROUP_SIZE};
use super::run::{print, with};
use super::timing;
use check::{advantages, check, differing};
use device::DeviceBatch;
use half::bf16;
use inputs::{CASES, Case, HostLogits, Shape};
use qae::cuda::{Device, Stream};
use serde_json::{Value, json};

/// Llama 2, Llama 3, Qwen 2.5 and Gemma 3.
const VOCABULARIES: [usize; 4] = [32_000, 128_256, 151_936, 262_144];

/// Tokens of a response; `--rows` is a multiple of a group of them.
pub const WIDTH: usize = 64;

const WARM_UPS: usize = 2;

pub fn run(device: &Device, stream: &Stream, arguments: &Arguments) -> Result<()> {
    let groups_of = |width| Shape {
        num_responses: GROUP_SIZE,
        width,
        vocab: arguments.vocab,
    };
    if let Some(launches) = arguments.repeat_bits {
        let batch = Batch::<bf16>::new(device, stream, arguments, groups_of(2))?;
        return batch.map_or(Ok(()), |batch| batch.repeat_bits(launches));
    }
    for vocab in VOCABULARIES {
        let shape = Shape {
            vocab,
            ..groups_of(8)
        };
        let f32s = Batch::<f32>::new(device, stream, arguments, shape)?;
        f32s.map_or(Ok(()), Batch::check)?;
        let bf16s = Batch::<bf16>::new(device, stream, arguments, shape)?;
        bf16s.map_or(Ok(()), Batch::check)?;
    }
    let shape = Shape {
        num_responses: arguments.rows / WIDTH,
        ..groups_of(WIDTH)
    };
    let batch = Batch::<bf16>::new(device, stream, arguments, shape)?;
    batch.map_or(Ok(()), |batch| batch.time(arguments.samples))
}

/// One shape, with the cases that are wanted of it.
struct Batch<'a, T> {
    device: &'a Device,
    stream: &'a Stream,
    cases: Vec<Case>,
    host: HostLogits<T>,
    memory: DeviceBatch<T>,
}

impl<'a, T: Element> Batch<'a, T> {
    /// `None` where no case is wanted, or where they do not fit, which is printed.
    fn new(
        device: &'a Device,
        stream: &'a Stream,
        arguments: &Arguments,
        shape: Shape,
    ) -> Result<Option<Self>> {
        let is_wanted = |case: &&Case| arguments.is_wanted(&name::<T>(case));
        let cases: Vec<Case> = CASES.iter().filter(is_wanted).copied().collect();
        let Some(first) = cases.first() else {
            return Ok(None);
        };
        // What the batch before has freed is free once the stream is done with it.
        stream.synchronize()?;
        let (free, _) = device.context().mem_get_info()?;
        let needed = DeviceBatch::<T>::needed_bytes(&shape);
        if needed > free / 10 * 9 {
            let reason = format!("needs {needed} bytes of device memory, {free} are free");
            let names: Vec<_> = cases.iter().map(name::<T>).collect();
            let (slots, vocab) = (shape.num_rows(), shape.vocab);
            let line = json!({ "kind": "skipped", "slots": slots, "vocab": vocab });
            print(with(line, json!({ "cases": names, "reason": reason })));
            return Ok(None);
        }
        let host = HostLogits::new(shape);
        Ok(Some(Self {
            memory: DeviceBatch::upload(stream, &host, first)?,
            device,
            stream,
            cases,
            host,
        }))
    }

    /// The line of a case that was compared with f64, and which responses act.
    fn checked(&mut self, case: &Case) -> Result<(Value, Vec<bool>)> {
        self.memory.set_case(self.stream, case)?;
        let advantages = advantages(&self.host, case)?;
        let shape = self.host.shape;
        let error = check(self.stream, &self.host, &mut self.memory, case, &advantages);
        let in_case = |error| {
            let (rows, vocab) = (shape.num_rows(), shape.vocab);
            format!("{} at {rows} x {vocab}: {error}", name::<T>(case))
        };
        let is_active: Vec<bool> = advantages.iter().map(|&a| a != 0.0).collect();
        let active = is_active.iter().filter(|&&is_active| is_active).count();
        let line = json!({
            "case": name::<T>(case),
            "slots": shape.num_rows(),
            "tokens": shape.num_rows(),
            "rows": shape.num_rows(),
            "vocab": shape.vocab,
            "active_rows": active * shape.width,
            "in_place": case.in_place,
            "error": error.map_err(in_case)?,
        });
        Ok((line, is_active))
    }

    fn check(mut self) -> Result<()> {
        for case in std::mem::take(&mut self.cases) {
            let (line, _) = self.checked(&case)?;
            let operation = case.operation.name();
            print(with(
                line,
                json!({ "kind": "logits_check", "operation": operation }),
            ));
        }
        Ok(())
    }

    fn time(mut self, samples: usize) -> Result<()> {
        for case in std::mem::take(&mut self.cases) {
            let (line, is_active) = self.checked(&case)?;
            let peak_bytes = self.peak_bytes(&case)?;
            let seconds: Vec<f64> = (0..WARM_UPS + samples)
                .map(|_| self.sample(&case))
                .collect::<Result<_>>()?;
            let more = json!({
                "kind": case.operation.name(),
                "launched_by": "stream",
                "bytes": self.host.bytes(&case, &is_active),
                "peak_bytes": peak_bytes,
                "launches_per_sample": 1,
                "seconds": seconds[WARM_UPS..],
            });
            print(with(line, more));
        }
        Ok(())
    }

    /// Seconds of one launch that finds its logits as they were, and cold caches. The host is ahead
    /// of the device, which is still restoring them.
    fn sample(&mut self, case: &Case) -> Result<f64> {
        self.memory.restore(self.stream, case)?;
        self.memory.flush(self.stream)?;
        timing::seconds(self.stream, || Ok(self.memory.launch(self.stream, case)?))
    }

    /// Device memory beyond the inputs: the outputs and the workspace, and whatever a launch takes
    /// from the device.
    fn peak_bytes(&mut self, case: &Case) -> Result<usize> {
        let free = || -> Result<usize> {
            self.stream.synchronize()?;
            Ok(self.device.context().mem_get_info()?.0)
        };
        let before = free()?;
        self.memory.launch(self.stream, case)?;
        let taken = before.saturating_sub(free()?);
        Ok(self.memory.extra_bytes(case) + taken)
    }

    fn repeat_bits(mut self, launches: usize) -> Result<()> {
        for case in std::mem::take(&mut self.cases) {
            let (line, _) = self.checked(&case)?;
            let differing = differing(self.stream, &mut self.memory, &case, launches)?;
            let operation = case.operation.name();
            let more = json!({
                "kind": "repeat_bits",
                "operation": operation,
                "launches": launches,
                "differing": differing,
            });
            print(with(line, more));
            if differing > 0 {
                let name = name::<T>(&case);
                let message = format!("{name}: {differing} of {launches} launches gave other bits");
                return Err(message.into());
            }
        }
        Ok(())
    }
}

fn name<T: Element>(case: &Case) -> String {
    format!("{}/{}", T::NAME, case.name)
}
