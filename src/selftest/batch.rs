//! Batches that own their tensors, made from a description.

use super::random::Random;
use super::tensor::OwnedTensor;
use crate::batch::{Advantages, DType, ImportanceWeight, Layout, TokenBatch};
use crate::error::Result;
use crate::groups::Groups;

/// Log-ratios that keep away from the bounds of the objectives, so that float32 decides as the
/// reference does.
const LOG_RATIOS: [f32; 8] = [-3.0, -0.5, -0.125, 0.0625, 0.125, 0.375, 0.875, 3.0];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayoutKind {
    Padded,
    Masked,
    Lengths,
    /// Row strides beyond the width, another one of the mask.
    Strided,
    Packed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightKind {
    None,
    PerToken,
    PerResponse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceKind {
    /// Rewards of 0 and 1 in groups of this form.
    Rewards(GroupKind),
    PerResponse,
    PerToken,
    /// Every advantage is 0.
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupKind {
    /// Equal groups of neighbors.
    Uniform(usize),
    /// Neighbors, sizes from 1 to about this.
    Ragged(usize),
    /// Scattered over the batch.
    Ids(usize),
    /// A group of this size beside small ones; the rows are a micro-batch, in any order.
    Large(usize),
}

/// What a batch is like; values follow from the seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Description {
    pub(super) seed: u64,
    pub(super) num_rows: usize,
    pub(super) width: usize,
    pub(super) layout: LayoutKind,
    pub(super) dtype: DType,
    pub(super) weight: WeightKind,
    pub(super) source: SourceKind,
    pub(super) has_old: bool,
    /// One token of each row has a log-prob of −∞.
    pub(super) has_infinities: bool,
}

#[derive(Debug)]
enum OwnedAdvantages {
    Rewards {
        rewards: Vec<f32>,
        groups: Groups,
        response_index: Option<Vec<i32>>,
    },
    PerResponse(Vec<f32>),
    PerToken(Vec<f32>),
}

/// A [`TokenBatch`] that owns its tensors.
#[derive(Debug)]
pub(super) struct OwnedBatch {
    num_rows: usize,
    width: usize,
    row_stride: usize,
    mask_row_stride: usize,
    lengths: Option<Vec<i32>>,
    offsets: Option<Vec<i64>>,
    mask: Option<Vec<u8>>,
    log_prob: OwnedTensor,
    old_log_prob: Option<OwnedTensor>,
    ref_log_prob: OwnedTensor,
    weight: WeightKind,
    weights: Vec<f32>,
    advantages: OwnedAdvantages,
}

impl OwnedBatch {
    /// Masked slots and gaps hold NaN: nothing may come from them.
    ///
    /// # Errors
    /// Those of [`Groups`].
    pub(super) fn new(description: &Description) -> Result<Self> {
        let random = &mut Random(description.seed);
        let &Description {
            num_rows, width, ..
        } = description;
        let is_strided = description.layout == LayoutKind::Strided;
        let row_stride = width + 3 * usize::from(is_strided);
        let mask_row_stride = width + 5 * usize::from(is_strided);
        let offsets = (description.layout == LayoutKind::Packed)
            .then(|| packed_offsets(random, num_rows, width));
        let lengths = (description.layout == LayoutKind::Lengths).then(|| {
            (0..num_rows)
                .map(|_| random.below(width + 1) as i32)
                .collect()
        });
        let mut batch = Self {
            num_rows,
            width,
            row_stride,
            mask_row_stride,
            lengths,
            offsets,
            mask: None,
            log_prob: OwnedTensor::F32(vec![]),
            old_log_prob: None,
            ref_log_prob: OwnedTensor::F32(vec![]),
            weight: description.weight,
            weights: vec![],
            advantages: OwnedAdvantages::PerResponse(vec![]),
        };
        if matches!(description.layout, LayoutKind::Masked | LayoutKind::Strided) {
            // The last row is masked entirely, if there are others.
            let last = (num_rows.max(2) - 1) * mask_row_stride;
            let slots = num_rows * mask_row_stride;
            let mask = (0..slots).map(|slot| u8::from(random.below(4) > 0 && slot < last));
            batch.mask = Some(mask.collect());
        }
        batch.fill(description, random)?;
        Ok(batch)
    }

    fn fill(&mut self, description: &Description, random: &mut Random) -> Result<()> {
        let slots = match &self.offsets {
            Some(offsets) => offsets.last().map_or(0, |&end| end as usize),
            None => self.num_rows * self.row_stride,
        };
        let valid = self.valid_slots(slots);
        let mut old: Vec<f32> = (0..slots).map(|_| -1.0 - random.grid(5)).collect();
        let mut log_prob: Vec<f32> = (old.iter())
            .map(|old| old + random.pick(&LOG_RATIOS))
            .collect();
        let mut reference: Vec<f32> = (log_prob.iter())
            .map(|x| x - 2.0 + random.grid(5))
            .collect();
        if description.has_infinities {
            (0..slots)
                .step_by(self.row_stride.max(1))
                .for_each(|slot| log_prob[slot] = f32::NEG_INFINITY);
        }
        for slot in (0..slots).filter(|&slot| !valid[slot]) {
            for tensor in [&mut old, &mut log_prob, &mut reference] {
                tensor[slot] = f32::NAN;
            }
        }
        let dtype = description.dtype;
        self.log_prob = OwnedTensor::new(dtype, log_prob);
        self.old_log_prob = description.has_old.then(|| OwnedTensor::new(dtype, old));
        self.ref_log_prob = OwnedTensor::new(dtype, reference);
        let weights = match description.weight {
            WeightKind::None => 0,
            WeightKind::PerToken => slots,
            WeightKind::PerResponse => self.num_rows,
        };
        self.weights = (0..weights).map(|_| 0.25 + random.grid(2)).collect();
        self.advantages = advantages(description, slots, random)?;
        Ok(())
    }

    /// Which slots are neither masked, nor behind a row's length, nor between rows.
    fn valid_slots(&self, slots: usize) -> Vec<bool> {
        let mut valid = vec![false; slots];
        let layout = self.layout();
        for row in (0..self.num_rows).map(|row| layout.row(row)) {
            for slot in 0..row.length {
                let mask = self.mask.as_ref();
                valid[row.start + slot] = mask.is_none_or(|mask| mask[row.mask_start + slot] != 0);
            }
        }
        valid
    }

    fn layout(&self) -> Layout<'_> {
        match &self.offsets {
            Some(offsets) => Layout::Packed { offsets },
            None => Layout::Padded {
                num_rows: self.num_rows,
                width: self.width,
                row_stride: self.row_stride,
                mask_row_stride: self.mask_row_stride,
                lengths: self.lengths.as_deref(),
            },
        }
    }

    /// Of the token tensors, if padded.
    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(super) fn borrow(&self) -> TokenBatch<'_> {
        TokenBatch {
            layout: self.layout(),
            mask: self.mask.as_deref(),
            log_prob: self.log_prob.borrow(),
            old_log_prob: self.old_log_prob.as_ref().map(OwnedTensor::borrow),
            ref_log_prob: Some(self.ref_log_prob.borrow()),
            importance_weight: match self.weight {
                WeightKind::None => None,
                WeightKind::PerToken => Some(ImportanceWeight::PerToken(&self.weights)),
                WeightKind::PerResponse => Some(ImportanceWeight::PerResponse(&self.weights)),
            },
            advantages: match &self.advantages {
                OwnedAdvantages::PerResponse(values) => Advantages::PerResponse(values),
                OwnedAdvantages::PerToken(values) => Advantages::PerToken(values),
                OwnedAdvantages::Rewards {
                    rewards,
                    groups,
                    response_index,
                } => Advantages::FromRewards {
                    rewards,
                    groups,
                    response_index: response_index.as_deref(),
                },
            },
        }
    }
}

/// Rows of 0 to `width` slots, the first of them empty.
fn packed_offsets(random: &mut Random, num_rows: usize, width: usize) -> Vec<i64> {
    let mut offsets = vec![0];
    let mut end = 0;
    for row in 0..num_rows {
        end += if row == 0 {
            0
        } else {
            random.below(width + 1) as i64
        };
        offsets.push(end);
    }
    offsets
}

fn advantages(
    description: &Description,
    slots: usize,
    random: &mut Random,
) -> Result<OwnedAdvantages> {
    let rows = description.num_rows;
    // Half of them are 0.
    let mut advantage = || random.pick(&[0.0, 0.0, 0.0, 1.5, -0.75, -2.0]);
    Ok(match description.source {
        SourceKind::Zero => OwnedAdvantages::PerResponse(vec![0.0; rows]),
        SourceKind::PerResponse => {
            OwnedAdvantages::PerResponse((0..rows).map(|_| advantage()).collect())
        }
        SourceKind::PerToken => {
            OwnedAdvantages::PerToken((0..slots).map(|_| advantage()).collect())
        }
        SourceKind::Rewards(kind) => {
            let is_micro_batch = matches!(kind, GroupKind::Large(_));
            let num_responses = if is_micro_batch { rows + 3000 } else { rows };
            let groups = groups(kind, num_responses, random)?;
            let rewards = (0..groups.num_responses()).map(|_| random.pick(&[0.0, 0.0, 1.0]));
            OwnedAdvantages::Rewards {
                rewards: rewards.collect(),
                response_index: is_micro_batch.then(|| {
                    let mut index = random.permutation(num_responses);
                    index.truncate(rows);
                    index
                }),
                groups,
            }
        }
    })
}

/// A partition of `num_responses`.
///
/// # Errors
/// Those of [`Groups`]: a uniform size that does not divide the number.
pub(super) fn groups(kind: GroupKind, num_responses: usize, random: &mut Random) -> Result<Groups> {
    match kind {
        GroupKind::Uniform(size) => Groups::uniform(num_responses, size),
        GroupKind::Ragged(size) => {
            let mut offsets = vec![0];
            let mut end = 0;
            while end < num_responses {
                end = num_responses.min(end + 1 + random.below(size));
                offsets.push(end as i32);
            }
            Groups::from_offsets(&offsets)
        }
        GroupKind::Ids(count) => {
            let ids: Vec<i64> = (0..num_responses)
                .map(|_| random.below(count) as i64 * 7 - 3)
                .collect();
            Groups::from_ids(&ids)
        }
        GroupKind::Large(size) => {
            let ids: Vec<i64> = (0..num_responses)
                .map(|i| if i < size { 0 } else { 1 + i as i64 / 4 })
                .collect();
            Groups::from_ids(&ids)
        }
    }
}
