//! Rows that own their tensors.

use qae::{LogProbsInput, Logits, Tensor};
use qae_test_support::Random;

/// Contiguous f32 rows.
#[derive(Clone)]
pub struct Rows {
    pub vocab_size: usize,
    pub logits: Vec<f32>,
    pub token_id: Vec<i32>,
    pub mask: Option<Vec<u8>>,
    pub temperature: f64,
}

impl Rows {
    /// The same row with each of `token_id` in turn.
    pub fn of_row(row: &[f32], token_id: &[i32]) -> Self {
        Self {
            vocab_size: row.len(),
            logits: row.repeat(token_id.len()),
            token_id: token_id.to_vec(),
            mask: None,
            temperature: 1.0,
        }
    }

    /// Logits in ±8 that are multiples of 2⁻¹², so that finite differences perturb exactly.
    pub fn random(seed: u64, num_rows: usize, vocab_size: usize) -> Self {
        let mut random = Random(seed);
        Self {
            vocab_size,
            logits: (0..num_rows * vocab_size)
                .map(|_| random.grid(16.0) - 8.0)
                .collect(),
            token_id: (0..num_rows)
                .map(|_| random.below(vocab_size) as i32)
                .collect(),
            mask: None,
            temperature: 1.0,
        }
    }

    pub fn input(&self) -> LogProbsInput<'_> {
        LogProbsInput {
            logits: Logits::contiguous(Tensor::F32(&self.logits), self.vocab_size),
            token_id: &self.token_id,
            mask: self.mask.as_deref(),
            temperature: self.temperature,
        }
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.vocab_size..][..self.vocab_size]
    }
}
