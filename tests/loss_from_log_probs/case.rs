//! Batches that own their tensors, and every kind of configuration.

use qae::{
    Advantages, Aggregation, Config, DType, ImportanceWeight, Kl, KlEstimator, Layout, Objective,
    Tensor, TokenBatch,
};

/// Log-ratios that keep away from every bound, cap and clamp of [`objectives`] and [`kls`].
const LOG_RATIOS: [f32; 8] = [-3.0, -0.5, -0.125, 0.0625, 0.125, 0.375, 0.875, 3.0];

/// A padded batch.
#[derive(Clone)]
pub struct Case {
    pub num_rows: usize,
    pub width: usize,
    pub mask: Option<Vec<u8>>,
    pub log_prob: Vec<f32>,
    pub old_log_prob: Option<Vec<f32>>,
    pub ref_log_prob: Option<Vec<f32>>,
    pub weight: Weight,
    pub advantage: Advantage,
}

#[derive(Clone)]
pub enum Weight {
    None,
    PerToken(Vec<f32>),
    PerResponse(Vec<f32>),
}

#[derive(Clone)]
pub enum Advantage {
    PerToken(Vec<f32>),
    PerResponse(Vec<f32>),
}

impl Advantage {
    pub fn borrow(&self) -> Advantages<'_> {
        match self {
            Self::PerToken(values) => Advantages::PerToken(values),
            Self::PerResponse(values) => Advantages::PerResponse(values),
        }
    }
}

impl Case {
    /// One row on policy, all tokens valid.
    pub fn row(log_ratios: &[f32], advantage: f32) -> Self {
        Self {
            num_rows: 1,
            width: log_ratios.len(),
            mask: None,
            log_prob: log_ratios.iter().map(|delta| delta - 2.0).collect(),
            old_log_prob: Some(vec![-2.0; log_ratios.len()]),
            ref_log_prob: None,
            weight: Weight::None,
            advantage: Advantage::PerResponse(vec![advantage]),
        }
    }

    /// Advantages of both signs and 0, every second one; log-ratios of [`LOG_RATIOS`]; a mask; a
    /// reference policy. Values are multiples of 2⁻¹⁶, so that finite differences perturb exactly.
    pub fn random(seed: u64, num_rows: usize, width: usize) -> Self {
        let mut random = Random(seed);
        let slots = num_rows * width;
        let old: Vec<f32> = (0..slots).map(|_| -random.grid(4.0) - 4.0).collect();
        let pick = |random: &mut Random| LOG_RATIOS[random.below(LOG_RATIOS.len())];
        let log_prob: Vec<f32> = old.iter().map(|old| old + pick(&mut random)).collect();
        // Differences to the reference keep away from ±10 in k3, which is at 2.6 and −11.
        let reference = |log_prob: &f32, random: &mut Random| log_prob + random.grid(2.0) - 1.0;
        Self {
            num_rows,
            width,
            mask: Some((0..slots).map(|_| u8::from(random.below(4) > 0)).collect()),
            ref_log_prob: Some(log_prob.iter().map(|x| reference(x, &mut random)).collect()),
            log_prob,
            old_log_prob: Some(old),
            weight: Weight::None,
            advantage: Advantage::PerResponse(
                (0..num_rows)
                    .map(|row| (random.grid(4.0) - 2.0) * f32::from(u8::from(row % 2 == 0)))
                    .collect(),
            ),
        }
    }

    pub fn batch(&self) -> TokenBatch<'_> {
        TokenBatch {
            layout: Layout::padded(self.num_rows, self.width),
            mask: self.mask.as_deref(),
            log_prob: Tensor::F32(&self.log_prob),
            old_log_prob: self.old_log_prob.as_deref().map(Tensor::F32),
            ref_log_prob: self.ref_log_prob.as_deref().map(Tensor::F32),
            importance_weight: match &self.weight {
                Weight::None => None,
                Weight::PerToken(values) => Some(ImportanceWeight::PerToken(values)),
                Weight::PerResponse(values) => Some(ImportanceWeight::PerResponse(values)),
            },
            advantages: self.advantage.borrow(),
        }
    }

    pub fn is_valid(&self, slot: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[slot] != 0)
    }

    /// The advantage of a row, where each row has one.
    pub fn row_advantage(&self, row: usize) -> f64 {
        match &self.advantage {
            Advantage::PerResponse(values) => f64::from(values[row]),
            Advantage::PerToken(_) => panic!("the case has an advantage for each token"),
        }
    }

    /// Puts `value` into every tensor at `slot`.
    pub fn poison(&mut self, slot: usize, value: f32) {
        self.log_prob[slot] = value;
        for tensor in [&mut self.old_log_prob, &mut self.ref_log_prob]
            .into_iter()
            .flatten()
        {
            tensor[slot] = value;
        }
        for tensor in [
            match &mut self.weight {
                Weight::PerToken(values) => Some(values),
                _ => None,
            },
            match &mut self.advantage {
                Advantage::PerToken(values) => Some(values),
                Advantage::PerResponse(_) => None,
            },
        ]
        .into_iter()
        .flatten()
        {
            tensor[slot] = value;
        }
    }
}

/// Every objective, with and without each of its options.
pub fn objectives() -> Vec<Objective> {
    let clip = |low, high, dual_clip, ratio_cap| Objective::Clip {
        low,
        high,
        dual_clip,
        ratio_cap,
    };
    let (low, high) = (Some(0.2), Some(0.28));
    let gspo = |log_ratio_max| Objective::Gspo {
        low,
        high,
        log_ratio_max,
    };
    vec![
        clip(low, high, None, None),
        clip(low, high, Some(3.0), None),
        clip(low, high, None, Some(2.0)),
        clip(None, None, None, None),
        gspo(None),
        gspo(Some(0.25)),
        Objective::Cispo { low, high },
        Objective::Cispo { low: None, high },
        Objective::Sapo {
            tau_positive: 1.0,
            tau_negative: 1.05,
        },
        Objective::Reinforce,
    ]
}

/// Every KL term, and none.
pub fn kls() -> Vec<Option<Kl>> {
    let kl = |estimator, clamp| {
        Some(Kl {
            estimator,
            coef: 0.375,
            clamp,
        })
    };
    vec![
        None,
        kl(KlEstimator::K1, false),
        kl(KlEstimator::K2, false),
        kl(KlEstimator::K3, false),
        kl(KlEstimator::K3, true),
    ]
}

pub fn aggregations() -> [Aggregation; 4] {
    [
        Aggregation::TokenMean,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm { scale: 7.0 },
    ]
}

/// The default objective without its dual clip.
pub fn plain_clip() -> Config {
    Config {
        objective: objectives()[0],
        ..Config::default()
    }
}

/// A tensor of another dtype, owned.
pub enum Owned {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<half::bf16>),
    F16(Vec<half::f16>),
}

impl Owned {
    /// `values` rounded to `dtype`.
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        let each = values.iter().copied();
        match dtype {
            DType::F64 => Self::F64(each.map(f64::from).collect()),
            DType::F32 => Self::F32(values.to_vec()),
            DType::Bf16 => Self::Bf16(each.map(half::bf16::from_f32).collect()),
            DType::F16 => Self::F16(each.map(half::f16::from_f32).collect()),
        }
    }

    pub fn tensor(&self) -> Tensor<'_> {
        match self {
            Self::F64(values) => Tensor::F64(values),
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }

    /// The values that were rounded to, as f32.
    pub fn widened(&self) -> Vec<f32> {
        let tensor = self.tensor();
        (0..tensor.len()).map(|i| tensor.get(i) as f32).collect()
    }
}

/// A stream of pseudo-random numbers (splitmix64), the same on every platform.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..end.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In [0, end), a multiple of end · 2⁻¹⁶.
    pub fn grid(&mut self, end: f32) -> f32 {
        self.below(1 << 16) as f32 * end / 65536.0
    }
}
