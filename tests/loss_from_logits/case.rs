//! Batches that own their tensors, and every kind of configuration.

use qae::{Config, Layout, LogProbsInput, Logits, LogitsBatch, Objective, Tensor, reference};
use qae_test_support::{Advantage, Random, Weight, aggregations, kls, objectives};

/// Log-ratios that keep away from every bound, cap and clamp of [`objectives`] and [`kls`].
const LOG_RATIOS: [f64; 8] = [-3.0, -0.5, -0.125, 0.0625, 0.125, 0.375, 0.875, 3.0];

/// The temperature of [`Case::random`], and of [`config`].
pub const TEMPERATURE: f64 = 0.75;

/// A padded batch.
#[derive(Clone)]
pub struct Case {
    pub num_rows: usize,
    pub width: usize,
    pub vocab_size: usize,
    pub mask: Option<Vec<u8>>,
    pub logits: Vec<f32>,
    pub token_id: Vec<i32>,
    pub old_log_prob: Option<Vec<f32>>,
    pub ref_log_prob: Option<Vec<f32>>,
    pub weight: Weight,
    pub advantage: Advantage,
}

impl Case {
    /// Advantages of both signs and 0, every second one; log-ratios of [`LOG_RATIOS`] at
    /// [`TEMPERATURE`]; a mask; a reference policy. Logits are multiples of 2⁻¹⁴ in ±2, so that
    /// finite differences perturb exactly.
    pub fn random(seed: u64, num_rows: usize, width: usize, vocab_size: usize) -> Self {
        let mut random = Random(seed);
        let slots = num_rows * width;
        let mut case = Self {
            num_rows,
            width,
            vocab_size,
            mask: Some((0..slots).map(|_| u8::from(random.below(4) > 0)).collect()),
            logits: (0..slots * vocab_size)
                .map(|_| random.grid(4.0) - 2.0)
                .collect(),
            token_id: (0..slots)
                .map(|_| random.below(vocab_size) as i32)
                .collect(),
            old_log_prob: None,
            ref_log_prob: None,
            weight: Weight::None,
            advantage: Advantage::PerResponse(
                (0..num_rows)
                    .map(|row| (random.grid(4.0) - 2.0) * f32::from(u8::from(row % 2 == 0)))
                    .collect(),
            ),
        };
        let log_prob = case.log_probs(TEMPERATURE);
        let mut differing = |by: &dyn Fn(&mut Random) -> f64| -> Vec<f32> {
            let each = log_prob.iter();
            each.map(|x| (x - by(&mut random)) as f32).collect()
        };
        let log_ratio = |random: &mut Random| LOG_RATIOS[random.below(LOG_RATIOS.len())];
        case.old_log_prob = Some(differing(&log_ratio));
        case.ref_log_prob = Some(differing(&|random| f64::from(random.grid(2.0)) - 1.0));
        case
    }

    /// Of every slot, masked or not.
    pub fn log_probs(&self, temperature: f64) -> Vec<f64> {
        let input = LogProbsInput {
            logits: Logits::contiguous(Tensor::F32(&self.logits), self.vocab_size),
            token_id: &self.token_id,
            mask: None,
            temperature,
        };
        reference::log_probs_from_logits(&input).unwrap().log_prob
    }

    pub fn num_slots(&self) -> usize {
        self.num_rows * self.width
    }

    pub fn batch(&self) -> LogitsBatch<'_> {
        LogitsBatch {
            layout: Layout::padded(self.num_rows, self.width).into(),
            mask: self.mask.as_deref(),
            logits: Logits::contiguous(Tensor::F32(&self.logits), self.vocab_size),
            token_id: &self.token_id,
            old_log_prob: self.old_log_prob.as_deref().map(Tensor::F32),
            ref_log_prob: self.ref_log_prob.as_deref().map(Tensor::F32),
            importance_weight: self.weight.borrow(),
            advantages: self.advantage.borrow(),
        }
    }

    pub fn is_valid(&self, slot: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[slot] != 0)
    }

    /// The advantage of a slot's token.
    pub fn advantage_of(&self, slot: usize) -> f32 {
        match &self.advantage {
            Advantage::PerResponse(values) => values[slot / self.width],
            Advantage::PerToken(values) => values[slot],
        }
    }

    pub fn row_mut(&mut self, slot: usize) -> &mut [f32] {
        &mut self.logits[slot * self.vocab_size..][..self.vocab_size]
    }

    /// Puts `value` into every tensor at `slot`, but for its advantage.
    pub fn poison(&mut self, slot: usize, value: f32) {
        self.row_mut(slot).fill(value);
        let log_probs = [&mut self.old_log_prob, &mut self.ref_log_prob];
        for tensor in log_probs.into_iter().flatten() {
            tensor[slot] = value;
        }
        if let Weight::PerToken(weight) = &mut self.weight {
            weight[slot] = value;
        }
    }
}

/// The default at [`TEMPERATURE`].
pub fn config() -> Config {
    Config {
        temperature: TEMPERATURE,
        ..Config::default()
    }
}

pub fn is_gspo(objective: Objective) -> bool {
    matches!(objective, Objective::Gspo { .. })
}

/// Every combination, with an entropy bonus, without, and with a malus.
pub fn configs() -> Vec<Config> {
    let mut all = vec![];
    for objective in objectives() {
        for kl in kls() {
            for aggregation in aggregations() {
                for entropy_coef in [0.0, 0.25, -0.5] {
                    all.push(Config {
                        objective,
                        kl,
                        aggregation,
                        entropy_coef,
                        ..config()
                    });
                }
            }
        }
    }
    all
}
