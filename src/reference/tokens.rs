//! The token tensors of a loss, whether its log-probs were given or come from logits.

use crate::batch::{Advantages, ImportanceWeight, Layout, Tensor, TokenBatch};

/// What a loss reads of each token, as [`TokenBatch`] has it.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub layout: Layout<'a>,
    pub mask: Option<&'a [u8]>,
    /// As the caller has them, or computed in f64.
    pub log_prob: Tensor<'a>,
    /// Of the policy, in nats; from logits only.
    pub entropy: Option<&'a [f64]>,
    pub old_log_prob: Option<Tensor<'a>>,
    pub ref_log_prob: Option<Tensor<'a>>,
    pub importance_weight: Option<ImportanceWeight<'a>>,
    pub advantages: Advantages<'a>,
}

impl<'a> From<&TokenBatch<'a>> for Tokens<'a> {
    fn from(batch: &TokenBatch<'a>) -> Self {
        Self {
            layout: batch.layout,
            mask: batch.mask,
            log_prob: batch.log_prob,
            entropy: None,
            old_log_prob: batch.old_log_prob,
            ref_log_prob: batch.ref_log_prob,
            importance_weight: batch.importance_weight,
            advantages: batch.advantages,
        }
    }
}

impl Tokens<'_> {
    /// Number of valid tokens of each row.
    pub fn counts(&self) -> Vec<usize> {
        let rows = 0..self.layout.num_rows();
        rows.map(|row| self.count_valid(row)).collect()
    }

    /// Number of valid tokens of a row.
    pub fn count_valid(&self, row: usize) -> usize {
        let slots = self.layout.row(row);
        match self.mask {
            None => slots.length,
            Some(mask) => mask[slots.mask_start..][..slots.length]
                .iter()
                .filter(|&&valid| valid != 0)
                .count(),
        }
    }
}
