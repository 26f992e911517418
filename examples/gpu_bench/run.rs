//! The cases, one after another, each as a line of JSON.

use super::Result;
use super::arguments::{Arguments, Operations};
use super::check::{check, differing};
use super::device::DeviceInputs;
use super::inputs::{Arrangement, Element, GROUP_SIZE, HostInputs, VARIANTS, Variant};
use super::logits;
use super::timing::{self, DeviceCopy, Samples};
use cudarc::driver::CudaSlice;
use half::bf16;
use qae::cuda::{self, Device, Stream};
use qae::{AdvantageConfig, Config, Groups, MetricsScope, Normalizer, cpu};
use serde_json::{Value, json};

/// Of all sets of a batch: a multiple of the largest cache, also for the fifth of it that launches
/// read which leave inactive responses alone.
const ROTATED_BYTES: usize = 1 << 30;

/// Batches of up to this many tokens are timed in a graph too: their launches take microseconds.
const MAX_GRAPH_TOKENS: usize = 1 << 20;

/// Largest copy, in bytes read.
const COPY_BYTES: usize = 1 << 30;

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = Device::open(arguments.device)?;
    // SAFETY: this program uses one stream, before the first allocation and after.
    unsafe { device.context().disable_event_tracking() };
    let stream = Stream::new(&device)?;
    print(describe(&device)?);
    if arguments.repeat_bits.is_none() && arguments.only.is_none() {
        print(copy(&device, &stream, arguments.samples)?);
    }
    if arguments.runs(Operations::LossFromLogProbs) {
        for &tokens in &arguments.sizes {
            for arrangement in [Arrangement::Packed, Arrangement::PaddedMask] {
                batch::<f32>(&device, &stream, arguments, tokens, arrangement)?;
            }
            batch::<bf16>(&device, &stream, arguments, tokens, Arrangement::Packed)?;
        }
    }
    if arguments.runs(Operations::Logits) {
        logits::run(&device, &stream, arguments)?;
    }
    Ok(())
}

pub fn print(line: Value) {
    println!("{line}");
}

fn describe(device: &Device) -> Result<Value> {
    let info = device.info()?;
    let (major, minor) = info.compute_capability;
    Ok(json!({
        "kind": "device",
        "name": info.name,
        "compute_capability": format!("{major}.{minor}"),
        "memory_bytes": info.memory_bytes,
        "driver_cuda": cuda::driver_version()?.to_string(),
        "kernels_cuda": cuda::CUDA_VERSION,
        "architectures": cuda::ARCHITECTURES,
        "qae": env!("CARGO_PKG_VERSION"),
    }))
}

fn copy(device: &Device, stream: &Stream, samples: usize) -> Result<Value> {
    let (free, _) = device.context().mem_get_info()?;
    let mut copy = DeviceCopy::new(stream, COPY_BYTES.min(free / 4))?;
    let times = copy.time(stream, samples)?;
    Ok(json!({ "kind": "copy", "bytes": copy.bytes(), "seconds": times.seconds }))
}

fn config(variant: &Variant, num_tokens: usize) -> Config {
    Config {
        advantage: AdvantageConfig {
            baseline: variant.baseline,
            ..AdvantageConfig::default()
        },
        normalizer: Normalizer::Value(num_tokens as f64),
        metrics_scope: MetricsScope::Active,
        gradient: variant.inactive_gradient,
        ..Config::default()
    }
}

/// Every variant of one batch.
fn batch<T: Element>(
    device: &Device,
    stream: &Stream,
    arguments: &Arguments,
    tokens: usize,
    arrangement: Arrangement,
) -> Result<()> {
    let name = |variant: &Variant| format!("{}/{}/{}", T::NAME, arrangement.name(), variant.name);
    let variants: Vec<_> = VARIANTS
        .iter()
        .filter(|variant| arguments.is_wanted(&name(variant)))
        .collect();
    let Some(first) = variants.first() else {
        return Ok(());
    };
    let host = HostInputs::<T>::new(tokens, arrangement);
    let num_tokens = host.num_tokens();
    let set_bytes = DeviceInputs::set_bytes(&host);
    let num_sets = if arguments.repeat_bits.is_some() {
        1
    } else {
        ROTATED_BYTES.div_ceil(set_bytes).max(2)
    };
    // And the poison.
    let needed = num_sets * set_bytes + tokens * size_of::<T>();
    // What the batch before has freed is free once the stream is done with it.
    stream.synchronize()?;
    let (free, _) = device.context().mem_get_info()?;
    if needed > free / 10 * 9 {
        let reason = format!("needs {needed} bytes of device memory, {free} are free");
        let names: Vec<_> = variants.iter().map(|variant| name(variant)).collect();
        print(json!({ "kind": "skipped", "slots": tokens, "cases": names, "reason": reason }));
        return Ok(());
    }
    let poison = stream.cudarc().clone_htod(&vec![T::poison(); tokens])?;
    let mut inputs = DeviceInputs::upload(stream, &host, num_sets, config(first, num_tokens))?;
    for variant in variants {
        let config = config(variant, num_tokens);
        inputs.set_config(stream, config)?;
        let groups = Groups::uniform(host.num_rows(), GROUP_SIZE)?;
        let advantages = cpu::advantages(&host.rewards, &groups, &config.advantage)?;
        let is_active: Vec<bool> = advantages.advantage.iter().map(|&a| a != 0.0).collect();
        let line = json!({
            "case": name(variant),
            "slots": tokens,
            "tokens": num_tokens,
            "rows": host.num_rows(),
            "active_rows": is_active.iter().filter(|&&is_active| is_active).count(),
        });
        let in_case = |error| format!("{} at {tokens} slots: {error}", name(variant));
        check(stream, &host, &mut inputs, &config, &is_active, &poison).map_err(in_case)?;
        match arguments.repeat_bits {
            Some(launches) => repeat_bits(stream, &mut inputs, &poison, launches, line)?,
            None => {
                let bytes = host.bytes(&is_active, config.gradient);
                time(stream, &mut inputs, arguments.samples, bytes, tokens, line)?;
            }
        }
    }
    Ok(())
}

/// One object of the fields of both.
pub fn with(mut line: Value, more: Value) -> Value {
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    line
}

fn time<T: Element>(
    stream: &Stream,
    inputs: &mut DeviceInputs<T>,
    samples: usize,
    bytes: u64,
    tokens: usize,
    line: Value,
) -> Result<()> {
    let report = |how: &str, times: Samples| {
        let more = json!({
            "kind": "loss_from_log_probs",
            "launched_by": how,
            "bytes": bytes,
            "launches_per_sample": times.launches_per_sample,
            "seconds": times.seconds,
        });
        print(with(line.clone(), more));
    };
    report("stream", timing::launches(stream, inputs, samples)?);
    if tokens <= MAX_GRAPH_TOKENS {
        report("graph", timing::replays(stream, inputs, samples)?);
    }
    Ok(())
}

fn repeat_bits<T: Element>(
    stream: &Stream,
    inputs: &mut DeviceInputs<T>,
    poison: &CudaSlice<T>,
    launches: usize,
    line: Value,
) -> Result<()> {
    let differing = differing(stream, inputs, poison, launches)?;
    let more = json!({ "kind": "repeat_bits", "launches": launches, "differing": differing });
    print(with(line.clone(), more));
    if differing > 0 {
        let case = line["case"].as_str().unwrap_or_default();
        return Err(format!("{case}: {differing} of {launches} launches gave other bits").into());
    }
    Ok(())
}
