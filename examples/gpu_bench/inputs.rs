//! Rollouts as a trainer has them, made on the host from a fixed seed.

use bytemuck::Pod;
use cudarc::driver::DeviceRepr;
use half::bf16;
use qae::cuda::{DeviceSlice, DeviceSliceMut, DeviceTensor, DeviceTensorMut};
use qae::{Baseline, Gradient, Interpolation, Tensor};
use rayon::prelude::*;

/// Slots per response, on average where responses are packed.
pub const WIDTH: usize = 1024;
/// Responses per group.
pub const GROUP_SIZE: usize = 16;
/// Responses are shorter or longer than the average by at most this.
const SPREAD: u64 = 128;

/// Element types of the log-probs and of the gradient.
pub trait Element: DeviceRepr + Pod + Send + Sync {
    /// As in reports.
    const NAME: &str;
    /// What the gradient may differ from f64 by, relative to its largest value.
    const TOLERANCE: f64;
    fn from_f32(value: f32) -> Self;
    fn to_f64(self) -> f64;
    fn host(values: &[Self]) -> Tensor<'_>;
    fn input(values: DeviceSlice<'_, Self>) -> DeviceTensor<'_>;
    fn output(values: DeviceSliceMut<'_, Self>) -> DeviceTensorMut<'_>;

    /// All bits set: a NaN that no kernel computes.
    fn poison() -> Self {
        bytemuck::pod_read_unaligned(&[u8::MAX; 8][..size_of::<Self>()])
    }

    fn is_poison(&self) -> bool {
        bytemuck::bytes_of(self).iter().all(|&byte| byte == u8::MAX)
    }
}

macro_rules! element {
    ($element:ty, $variant:ident, $name:literal, $tolerance:literal, $from:expr) => {
        impl Element for $element {
            const NAME: &str = $name;
            const TOLERANCE: f64 = $tolerance;
            fn from_f32(value: f32) -> Self {
                $from(value)
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn host(values: &[Self]) -> Tensor<'_> {
                Tensor::$variant(values)
            }
            fn input(values: DeviceSlice<'_, Self>) -> DeviceTensor<'_> {
                DeviceTensor::$variant(values)
            }
            fn output(values: DeviceSliceMut<'_, Self>) -> DeviceTensorMut<'_> {
                DeviceTensorMut::$variant(values)
            }
        }
    };
}

element!(f32, F32, "f32", 1e-5, std::convert::identity);
// Half a unit in the last of 8 bits is 2e-3.
element!(bf16, Bf16, "bf16", 4e-3, bf16::from_f32);

/// Where the tokens of the responses stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// Back to back, of different lengths.
    Packed,
    /// [rows, WIDTH] with a mask that leaves out the end of most rows.
    PaddedMask,
}

impl Arrangement {
    pub fn name(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::PaddedMask => "padded+mask",
        }
    }
}

/// The same rewards make every response active with the mean as baseline, and leave out about 80 %
/// of them with the quantile: that the two differ in work is the point of the quantile.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    pub name: &'static str,
    pub baseline: Baseline,
    pub inactive_gradient: Gradient,
}

/// Leaves out about 80 % of the responses.
pub const QUANTILE: Baseline = Baseline::Quantile {
    k: 0.4,
    interpolation: Interpolation::InvertedCdf,
};

pub const VARIANTS: [Variant; 3] = [
    Variant {
        name: "dense",
        baseline: Baseline::Mean,
        inactive_gradient: Gradient::ZeroFill,
    },
    Variant {
        name: "inactive-80/zero-fill",
        baseline: QUANTILE,
        inactive_gradient: Gradient::ZeroFill,
    },
    Variant {
        name: "inactive-80/untouched",
        baseline: QUANTILE,
        inactive_gradient: Gradient::Untouched,
    },
];

/// One batch on the host.
pub struct HostInputs<T> {
    pub arrangement: Arrangement,
    /// [rows]
    pub rewards: Vec<f32>,
    /// [rows + 1], of packed responses; of padded ones, where each row starts.
    pub offsets: Vec<i64>,
    /// One for each slot; empty where all of them count.
    pub mask: Vec<u8>,
    pub log_prob: Vec<T>,
    pub old_log_prob: Vec<T>,
}

impl<T: Element> HostInputs<T> {
    pub fn new(num_slots: usize, arrangement: Arrangement) -> Self {
        let num_rows = num_slots / WIDTH;
        let old_log_prob = |slot: u64| uniform(3 * slot).ln();
        // Triangular in ±0.5: beyond both clip bounds for some tokens.
        let log_ratio = |slot: u64| 0.5 * (uniform(3 * slot + 1) - uniform(3 * slot + 2));
        let slots = (0..num_slots as u64).into_par_iter();
        let mut offsets: Vec<i64> = (0..=num_rows).map(|row| (row * WIDTH) as i64).collect();
        let mut mask = Vec::new();
        match arrangement {
            // Every other boundary moves, so that pairs of rows keep the total.
            Arrangement::Packed => {
                for (row, offset) in offsets.iter_mut().enumerate().skip(1).step_by(2) {
                    *offset += (random(row as u64) % (2 * SPREAD + 1)) as i64 - SPREAD as i64;
                }
            }
            Arrangement::PaddedMask => {
                let length = |row: usize| WIDTH - (random(row as u64) % (SPREAD + 1)) as usize;
                let is_token = |slot: usize| slot % WIDTH < length(slot / WIDTH);
                let slots = (0..num_slots).into_par_iter();
                mask = slots.map(|slot| u8::from(is_token(slot))).collect();
            }
        }
        Self {
            arrangement,
            rewards: (0..num_rows).map(reward).collect(),
            offsets,
            mask,
            log_prob: slots
                .clone()
                .map(|slot| T::from_f32(old_log_prob(slot) + log_ratio(slot)))
                .collect(),
            old_log_prob: slots.map(|slot| T::from_f32(old_log_prob(slot))).collect(),
        }
    }

    pub fn num_rows(&self) -> usize {
        self.rewards.len()
    }

    pub fn slots_of(&self, row: usize) -> std::ops::Range<usize> {
        self.offsets[row] as usize..self.offsets[row + 1] as usize
    }

    /// Tokens that count.
    pub fn num_tokens(&self) -> usize {
        if self.mask.is_empty() {
            return self.log_prob.len();
        }
        self.mask.par_iter().map(|&mask| usize::from(mask)).sum()
    }

    /// The fewest bytes that a launch can move: every element that the result depends on is read
    /// once, and every element of the result is written once.
    pub fn bytes(&self, is_active: &[bool], inactive_gradient: Gradient) -> u64 {
        let size = size_of::<T>();
        let of_row = |(row, &is_active): (usize, &bool)| {
            let slots = self.slots_of(row);
            let mask = self.mask.get(slots.clone());
            let tokens = mask.map_or(slots.len(), |mask| {
                mask.iter().map(|&mask| usize::from(mask)).sum()
            });
            let is_written = is_active || inactive_gradient == Gradient::ZeroFill;
            let read = if is_active {
                2 * size * tokens + mask.map_or(0, <[u8]>::len)
            } else {
                0
            };
            read + usize::from(is_written) * size * slots.len()
        };
        let tokens: usize = is_active.par_iter().enumerate().map(of_row).sum();
        let offsets = match self.arrangement {
            Arrangement::Packed => 8 * self.offsets.len(),
            Arrangement::PaddedMask => 0,
        };
        (tokens + offsets + 4 * self.rewards.len()) as u64
    }
}

/// 1 for a success. Of every five groups four have three responses, and one has four, that differ
/// from the rest: one response in five.
pub fn reward(response: usize) -> f32 {
    let (group, member) = (response / GROUP_SIZE, response % GROUP_SIZE);
    let num_rare = if group % 5 == 4 { 4 } else { 3 };
    let is_rare = (member * 5 + group) % GROUP_SIZE < num_rare;
    let is_hard = group.is_multiple_of(2);
    f32::from(u8::from(is_rare == is_hard))
}

/// SplitMix64 (Steele, Lea, Flood 2014) of `index`.
pub fn random(index: u64) -> u64 {
    let mut z = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// In (0, 1].
fn uniform(index: u64) -> f32 {
    ((random(index) >> 40) + 1) as f32 / (1 << 24) as f32
}
