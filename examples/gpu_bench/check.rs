//! Whether what is timed is right, and the same on every run.

use super::Result;
use super::device::DeviceInputs;
use super::inputs::{Arrangement, Element, GROUP_SIZE, HostInputs, WIDTH};
use super::timing::Rotation as _;
use cudarc::driver::CudaSlice;
use qae::cuda::Stream;
use qae::{Advantages, Config, Gradient, Groups, Layout, Objective, TokenBatch, cpu};
use rayon::prelude::*;
use std::ops::Range;

/// Rows at either end that are compared with f64: with a given normalizer no row depends on rows
/// of other groups.
const COMPARED_ROWS: usize = 64 * GROUP_SIZE;

/// Of a ratio near 1, in f32, with room to spare.
const RATIO_ERROR: f64 = 1e-5;

/// The loss of a token is of the order of 1, and rounded to f32.
const LOSS_TOLERANCE: f64 = 1e-6;

/// Launches on poisoned outputs: everything that must be written is, nothing else, and rows at both
/// ends agree with f64.
pub fn check<T: Element>(
    stream: &Stream,
    host: &HostInputs<T>,
    device: &mut DeviceInputs<T>,
    config: &Config,
    is_active: &[bool],
    poison: &CudaSlice<T>,
) -> Result<()> {
    device.poison(stream, poison)?;
    device.launch(stream, 0)?;
    let gradient = device.gradient(stream)?;
    let metrics = device.metrics(stream)?;
    metrics.check()?;
    let is_written = |row: usize| is_active[row] || config.gradient == Gradient::ZeroFill;
    let is_wrong = |&row: &usize| {
        let slots = &gradient[host.slots_of(row)];
        !slots.iter().all(|slot| slot.is_poison() != is_written(row))
    };
    if let Some(row) = (0..host.num_rows()).into_par_iter().find_first(is_wrong) {
        return Err(format!("row {row}: a slot is not written, or one too many").into());
    }
    let num_rows = host.num_rows();
    let compared = COMPARED_ROWS.min(num_rows);
    for rows in [0..compared, num_rows - compared..num_rows] {
        let (expected, loss) = expected(host, config, rows.clone())?;
        let start = host.slots_of(rows.start).start;
        let slots = rows.clone().filter(|&row| is_written(row));
        let slots = slots.flat_map(|row| host.slots_of(row));
        let slots = slots.filter(|&slot| !is_at_clip_bound(host, config, slot));
        let worst = largest(slots.map(|slot| gradient[slot].to_f64() - expected[slot - start]));
        let scale = largest(expected.iter().copied());
        if worst.is_nan() || worst > T::TOLERANCE * scale {
            let message = format!("rows {rows:?}: the gradient is off by {worst:e} of {scale:e}");
            return Err(message.into());
        }
        let is_whole = compared == num_rows;
        let difference = (metrics.loss - loss).abs();
        if is_whole && (difference.is_nan() || difference > LOSS_TOLERANCE) {
            return Err(format!("the loss is {}, not {loss}", metrics.loss).into());
        }
    }
    Ok(())
}

/// The largest magnitude; NaN where there is one.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    let larger = |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b };
    values.map(f64::abs).fold(0.0, larger)
}

/// Whether f32 and f64 may take the ratio to be on different sides of a bound, where the gradient
/// jumps.
fn is_at_clip_bound<T: Element>(host: &HostInputs<T>, config: &Config, slot: usize) -> bool {
    let Objective::Clip { low, high, .. } = config.objective else {
        return false;
    };
    let ratio = (host.log_prob[slot].to_f64() - host.old_log_prob[slot].to_f64()).exp();
    let bounds = [low.map(|low| 1.0 - low), high.map(|high| 1.0 + high)];
    let mut bounds = bounds.into_iter().flatten();
    bounds.any(|bound| (ratio - bound).abs() < RATIO_ERROR)
}

/// Gradient and loss of some rows, in f64.
fn expected<T: Element>(
    host: &HostInputs<T>,
    config: &Config,
    rows: Range<usize>,
) -> Result<(Vec<f64>, f64)> {
    let slots = host.slots_of(rows.start).start..host.slots_of(rows.end - 1).end;
    let offsets = &host.offsets[rows.start..=rows.end];
    let offsets: Vec<i64> = offsets.iter().map(|offset| offset - offsets[0]).collect();
    let groups = Groups::uniform(rows.len(), GROUP_SIZE)?;
    let batch = TokenBatch {
        layout: match host.arrangement {
            Arrangement::Packed => Layout::Packed { offsets: &offsets },
            Arrangement::PaddedMask => Layout::padded(rows.len(), WIDTH),
        },
        mask: host.mask.get(slots.clone()),
        log_prob: T::host(&host.log_prob[slots.clone()]),
        old_log_prob: Some(T::host(&host.old_log_prob[slots])),
        ref_log_prob: None,
        importance_weight: None,
        advantages: Advantages::FromRewards {
            rewards: &host.rewards[rows],
            groups: &groups,
            response_index: None,
        },
    };
    let output = cpu::loss_from_log_probs(&batch, config)?;
    Ok((output.d_log_prob, output.metrics.loss))
}

/// How many of `launches` launches differ from the first in a bit of the gradient or the metrics.
pub fn differing<T: Element>(
    stream: &Stream,
    device: &mut DeviceInputs<T>,
    poison: &CudaSlice<T>,
    launches: usize,
) -> Result<usize> {
    let mut run = || -> Result<(Vec<T>, Vec<u64>)> {
        device.poison(stream, poison)?;
        device.launch(stream, 0)?;
        Ok((device.gradient(stream)?, device.metric_words(stream)?))
    };
    let (first, first_words) = run()?;
    let mut differing = 0;
    for _ in 1..launches {
        let (gradient, words) = run()?;
        let is_same = bytemuck::cast_slice::<T, u8>(&gradient)
            == bytemuck::cast_slice::<T, u8>(&first)
            && words == first_words;
        differing += usize::from(!is_same);
    }
    Ok(differing)
}
