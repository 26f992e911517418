//! Gradients with respect to logits, before and after a launch.

use qae::batch::LogitsBatch;
use qae::params::LogitsGradient;
use qae::{Config, Gradient};

use super::memory::Memory;
use super::slots::SlotPlaces;
use super::tensor::TensorMemory;
use super::{EmulatorBackend, Result, failed};
use crate::Buffer;

/// d loss / d logits.
pub(super) struct GradientMemory {
    /// `None`: it takes the logits' place.
    apart: Option<TensorMemory>,
    places: SlotPlaces,
    row_stride: Option<usize>,
    response_stride: Option<usize>,
    /// The slots of a compact gradient, and their count.
    pub(super) list: Option<(Buffer<i64>, Buffer<i64>)>,
}

/// Rows of a gradient after a launch.
pub(super) struct GradientRows {
    /// One after another, 0 where nothing was written.
    pub(super) values: Vec<f64>,
    /// Whether each was written.
    pub(super) written: Vec<bool>,
}

impl GradientMemory {
    pub(super) fn new(
        memory: &Memory,
        backend: &EmulatorBackend,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Self> {
        let placement = &backend.logits;
        let logits = &batch.logits;
        let is_compact = config.gradient == Gradient::Compact;
        let (row_stride, response_stride) = match placement.in_place {
            true => (None, None),
            false => (
                placement.gradient_row_stride,
                placement.gradient_response_stride,
            ),
        };
        let mut places = SlotPlaces::in_logits(batch.layout, logits, row_stride, response_stride);
        let num_slots = places.num_slots;
        if is_compact {
            let room = placement.compact_room.unwrap_or(num_slots);
            places = SlotPlaces::flat(room, row_stride.unwrap_or(logits.row_stride));
        }
        let alloc = || {
            let len = places.num_elements(logits.vocab_size);
            let skipped = placement.gradient_misalignment;
            TensorMemory::alloc(memory, logits.values.dtype(), len, "d_logits", skipped)
        };
        let list = || {
            let slots = memory.alloc(num_slots, "active_slots")?;
            Ok((slots, memory.alloc(1, "active_slot_count")?))
        };
        Ok(Self {
            apart: (!placement.in_place).then(alloc).transpose()?,
            places,
            row_stride,
            response_stride,
            list: is_compact.then(list).transpose()?,
        })
    }

    pub(super) fn active_slots(&self) -> Result<Vec<u64>> {
        let Some((slots, count)) = &self.list else {
            return Ok(vec![]);
        };
        let count = count.download().map_err(failed)?[0] as usize;
        let beyond = (count..slots.len()).find(|&index| slots.is_initialized(index));
        match beyond {
            None if count <= slots.len() => {}
            _ => {
                return Err(failure(format!(
                    "active_slots: {count} and more were written"
                )));
            }
        }
        let listed = &slots.download_raw()[..count];
        Ok(listed.iter().map(|&slot| slot as u64).collect())
    }

    /// Where the gradient of `logits` is written.
    pub(super) fn target(&self, logits: &TensorMemory) -> LogitsGradient {
        LogitsGradient {
            d_logits: self.apart.as_ref().unwrap_or(logits).view(),
            row_stride: self.row_stride,
            response_stride: self.response_stride,
        }
    }

    /// The rows of all slots or, if compact, the first `num_active` that there is room for.
    pub(super) fn download(
        &self,
        logits: &TensorMemory,
        batch: &LogitsBatch<'_>,
        config: &Config,
        num_active: usize,
    ) -> Result<GradientRows> {
        let vocab_size = batch.logits.vocab_size;
        let places = &self.places;
        let may_be_absent = config.gradient == Gradient::Untouched;
        let Some(tensor) = &self.apart else {
            let values = batch.logits.values;
            let before: Vec<f64> = (0..values.len()).map(|i| values.get(i)).collect();
            return changed_rows(logits, &before, places, vocab_size, may_be_absent);
        };
        let num_rows = match config.gradient {
            Gradient::Compact => num_active.min(places.num_slots),
            Gradient::ZeroFill | Gradient::Untouched => places.num_slots,
        };
        if tensor.count_written(0, tensor.view().len) > num_rows * vocab_size {
            return Err(failure(format!(
                "d_logits: more than {num_rows} rows were written"
            )));
        }
        written_rows(tensor, &places.first(num_rows), vocab_size, may_be_absent)
    }
}

/// The rows of a gradient, each of them wholly written or, where it may be, not at all.
pub(super) fn written_rows(
    tensor: &TensorMemory,
    places: &SlotPlaces,
    vocab_size: usize,
    may_be_absent: bool,
) -> Result<GradientRows> {
    expect_gaps_unwritten(tensor, "d_logits", places, vocab_size)?;
    let raw = tensor.download_raw();
    let mut values = vec![0.0; places.num_slots * vocab_size];
    let mut written = vec![];
    for (row, target) in values.chunks_exact_mut(vocab_size).enumerate() {
        let from = places.start(row);
        let count = tensor.count_written(from, vocab_size);
        written.push(count == vocab_size);
        if count == vocab_size {
            target.copy_from_slice(&raw[from..][..vocab_size]);
        } else if count > 0 || !may_be_absent {
            let what = format!("d_logits: {count} elements of row {row} were written");
            return Err(failure(what));
        }
    }
    Ok(GradientRows { values, written })
}

/// The rows of a gradient in the place of logits, which were `before`: a row that still holds them
/// was not written, unless they are 0. What lies between rows must be as it was.
pub(super) fn changed_rows(
    tensor: &TensorMemory,
    before: &[f64],
    places: &SlotPlaces,
    vocab_size: usize,
    may_be_absent: bool,
) -> Result<GradientRows> {
    let raw = tensor.download_raw();
    let is_same = |index: usize| raw[index].to_bits() == before[index].to_bits();
    let mut values = vec![0.0; places.num_slots * vocab_size];
    let mut written = vec![];
    let mut is_gap = vec![true; raw.len()];
    for (row, target) in values.chunks_exact_mut(vocab_size).enumerate() {
        let columns = places.start(row)..places.start(row) + vocab_size;
        is_gap[columns.clone()].fill(false);
        let changed = !columns.clone().all(is_same);
        written.push(changed);
        let is_zero = raw[columns.clone()].iter().all(|x| x.to_bits() == 0);
        if changed {
            target.copy_from_slice(&raw[columns]);
        } else if !is_zero && !may_be_absent {
            return Err(failure(format!("logits: row {row} was not overwritten")));
        }
    }
    match (0..raw.len()).find(|&index| is_gap[index] && !is_same(index)) {
        None => Ok(GradientRows { values, written }),
        Some(index) => Err(failure(format!("logits[{index}]: no row's, but changed"))),
    }
}

/// Nothing between the slots of a tensor may be written.
pub(super) fn expect_gaps_unwritten(
    tensor: &TensorMemory,
    label: &str,
    places: &SlotPlaces,
    slot_elements: usize,
) -> Result<()> {
    for slot in 1..places.num_slots {
        let end = places.start(slot - 1) + slot_elements;
        if tensor.count_written(end, places.start(slot) - end) > 0 {
            return Err(failure(format!(
                "{label}: something behind slot {} was written",
                slot - 1
            )));
        }
    }
    Ok(())
}

pub(super) fn failure(message: String) -> qae::Error {
    qae::Error::Backend {
        backend: "emulator",
        message,
    }
}
