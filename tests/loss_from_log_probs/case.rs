//! Batches that own their tensors, and every kind of configuration.

use qae::{Config, ImportanceWeight, Layout, Tensor, TokenBatch};
use qae_test_support::{Advantage, Random, Weight, objectives};

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

/// The default objective without its dual clip.
pub fn plain_clip() -> Config {
    Config {
        objective: objectives()[0],
        ..Config::default()
    }
}
