//! Batches that own their tensors, with a configuration and a placement in device memory.

use half::{bf16, f16};
use qae::{
    Advantages, Config, DType, Groups, ImportanceWeight, Layout, Tensor, TokenBatch, batch::Row,
};
use qae_emulator::EmulatorBackend;

/// Everything of one call.
#[derive(Clone, Debug)]
pub struct Case {
    pub layout: Rows,
    pub mask: Option<Vec<u8>>,
    pub log_prob: Values,
    pub old_log_prob: Option<Values>,
    pub ref_log_prob: Option<Values>,
    pub weight: Weight,
    pub advantage: Source,
    pub config: Config,
    pub backend: EmulatorBackend,
}

#[derive(Clone, Debug)]
pub enum Rows {
    Padded {
        num_rows: usize,
        width: usize,
        row_stride: usize,
        mask_row_stride: usize,
        lengths: Option<Vec<i32>>,
    },
    Packed {
        offsets: Vec<i64>,
    },
}

#[derive(Clone, Debug)]
pub enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

#[derive(Clone, Debug)]
pub enum Weight {
    None,
    PerToken(Vec<f32>),
    PerResponse(Vec<f32>),
}

#[derive(Clone, Debug)]
pub enum Source {
    Rewards {
        rewards: Vec<f32>,
        groups: Groups,
        response_index: Option<Vec<i32>>,
    },
    PerResponse(Vec<f32>),
    PerToken(Vec<f32>),
}

impl Rows {
    /// Contiguous rows of one width.
    pub fn padded(num_rows: usize, width: usize) -> Self {
        Self::Padded {
            num_rows,
            width,
            row_stride: width,
            mask_row_stride: width,
            lengths: None,
        }
    }

    /// Rows of these lengths, back to back.
    pub fn packed(lengths: &[usize]) -> Self {
        let mut offsets = vec![0];
        for &length in lengths {
            offsets.push(offsets[offsets.len() - 1] + length as i64);
        }
        Self::Packed { offsets }
    }

    pub fn borrow(&self) -> Layout<'_> {
        match self {
            Self::Padded {
                num_rows,
                width,
                row_stride,
                mask_row_stride,
                lengths,
            } => Layout::Padded {
                num_rows: *num_rows,
                width: *width,
                row_stride: *row_stride,
                mask_row_stride: *mask_row_stride,
                lengths: lengths.as_deref(),
            },
            Self::Packed { offsets } => Layout::Packed { offsets },
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let layout = self.borrow();
        (0..layout.num_rows()).map(move |row| layout.row(row))
    }
}

impl Values {
    /// `values` rounded to `dtype`.
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        let each = values.iter().copied();
        match dtype {
            DType::F64 => panic!("the kernels take no f64"),
            DType::F32 => Self::F32(values.to_vec()),
            DType::Bf16 => Self::Bf16(each.map(bf16::from_f32).collect()),
            DType::F16 => Self::F16(each.map(f16::from_f32).collect()),
        }
    }

    pub fn tensor(&self) -> Tensor<'_> {
        match self {
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }

    pub fn set(&mut self, index: usize, value: f32) {
        match self {
            Self::F32(values) => values[index] = value,
            Self::Bf16(values) => values[index] = bf16::from_f32(value),
            Self::F16(values) => values[index] = f16::from_f32(value),
        }
    }

    /// In f32, which holds all of them.
    pub fn widened(&self) -> Vec<f32> {
        let tensor = self.tensor();
        (0..tensor.len()).map(|i| tensor.get(i) as f32).collect()
    }
}

impl Case {
    /// On policy in f32, every slot a token, an advantage for each row.
    pub fn on_policy(layout: Rows, advantages: Vec<f32>) -> Self {
        let slots = layout.borrow().num_elements();
        let log_prob: Vec<f32> = (0..slots).map(|i| -0.5 - (i % 13) as f32 / 8.0).collect();
        Self {
            layout,
            mask: None,
            old_log_prob: Some(Values::F32(log_prob.clone())),
            log_prob: Values::F32(log_prob),
            ref_log_prob: None,
            weight: Weight::None,
            advantage: Source::PerResponse(advantages),
            config: Config::default(),
            backend: EmulatorBackend::default(),
        }
    }

    /// As [`Self::on_policy`], with the log-ratios `log_ratio(slot)`.
    pub fn off_policy(
        layout: Rows,
        advantages: Vec<f32>,
        log_ratio: impl Fn(usize) -> f32,
    ) -> Self {
        let mut case = Self::on_policy(layout, advantages);
        let old = case.old_log_prob.as_ref().map_or(vec![], Values::widened);
        let moved: Vec<f32> = old
            .iter()
            .enumerate()
            .map(|(slot, old)| old + log_ratio(slot))
            .collect();
        case.log_prob = Values::F32(moved);
        case
    }

    pub fn batch(&self) -> TokenBatch<'_> {
        TokenBatch {
            layout: self.layout.borrow(),
            mask: self.mask.as_deref(),
            log_prob: self.log_prob.tensor(),
            old_log_prob: self.old_log_prob.as_ref().map(Values::tensor),
            ref_log_prob: self.ref_log_prob.as_ref().map(Values::tensor),
            importance_weight: match &self.weight {
                Weight::None => None,
                Weight::PerToken(values) => Some(ImportanceWeight::PerToken(values)),
                Weight::PerResponse(values) => Some(ImportanceWeight::PerResponse(values)),
            },
            advantages: match &self.advantage {
                Source::Rewards {
                    rewards,
                    groups,
                    response_index,
                } => Advantages::FromRewards {
                    rewards,
                    groups,
                    response_index: response_index.as_deref(),
                },
                Source::PerResponse(values) => Advantages::PerResponse(values),
                Source::PerToken(values) => Advantages::PerToken(values),
            },
        }
    }

    /// Whether each element of the token tensors is a valid token: masked slots, padding and the
    /// gaps between rows are not.
    pub fn valid(&self) -> Vec<bool> {
        let mut valid = vec![false; self.log_prob.tensor().len()];
        for row in self.layout.rows() {
            for t in 0..row.length {
                let counts = |mask: &Vec<u8>| mask[row.mask_start + t] != 0;
                valid[row.start + t] = self.mask.as_ref().is_none_or(counts);
            }
        }
        valid
    }

    /// Puts `value` into every token tensor at `slot`.
    pub fn poison(&mut self, slot: usize, value: f32) {
        self.log_prob.set(slot, value);
        let optional = [&mut self.old_log_prob, &mut self.ref_log_prob];
        for tensor in optional.into_iter().flatten() {
            tensor.set(slot, value);
        }
        if let Weight::PerToken(weights) = &mut self.weight {
            weights[slot] = value;
        }
        if let Source::PerToken(advantages) = &mut self.advantage {
            advantages[slot] = value;
        }
    }

    /// Puts NaN and infinities wherever no valid token stands: none may leave a trace.
    pub fn poison_invalid(&mut self) {
        let poisons = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for (slot, valid) in self.valid().into_iter().enumerate() {
            if !valid {
                self.poison(slot, poisons[slot % poisons.len()]);
            }
        }
    }
}
