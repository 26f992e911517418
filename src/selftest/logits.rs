//! Rows and batches of logits that own their tensors, made from a description.

use super::batch::{Description, LayoutKind, OwnedBatch};
use super::random::Random;
use super::tensor::OwnedTensor;
use crate::batch::{DType, Layout, LogProbsInput, Logits, LogitsBatch, LogitsLayout, Slot};
use crate::error::Result;
use crate::reference::{RowShard, SoftmaxStats};

/// Of rows without a token: not looked at, as a label in PyTorch.
const NO_TOKEN: i32 = -100;

/// What rows of logits are like; values follow from the seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsDescription {
    pub(super) dtype: DType,
    pub(super) vocab_size: usize,
    /// Elements between one row and the next.
    pub(super) gap: usize,
    pub(super) temperature: f64,
    pub(super) values: ValuesKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValuesKind {
    /// In [−4, 4), a few of them up to 16.
    Plain,
    /// The same, but that the rows take turns with a NaN, an infinity, or −∞ in a part of them.
    NotFinite,
    /// ±10⁴ and all between.
    Large,
}

impl ValuesKind {
    /// Fills row number `index`, whose token is `own`.
    fn fill(self, random: &mut Random, index: usize, own: usize, row: &mut [f32]) {
        let spread = if self == Self::Large { 20_000 } else { 8 };
        for x in row.iter_mut() {
            *x = random.grid(spread) - spread as f32 / 2.0;
        }
        if self != Self::Large {
            for _ in 0..row.len().div_ceil(500) {
                row[random.below(row.len())] = random.grid(16);
            }
        }
        if self != Self::NotFinite {
            return;
        }
        let place = random.below(row.len());
        match index % 6 {
            0 => row
                .iter_mut()
                .step_by(3)
                .for_each(|x| *x = f32::NEG_INFINITY),
            1 => row[own] = f32::NEG_INFINITY,
            2 => row.fill(f32::NEG_INFINITY),
            3 => row[place] = f32::NAN,
            4 => row[place] = f32::INFINITY,
            _ => {}
        }
    }
}

/// The rows of `log_probs_from_logits`, with derivatives for its backward pass.
#[derive(Debug)]
pub(super) struct OwnedRows {
    logits: OwnedTensor,
    vocab_size: usize,
    row_stride: usize,
    token_id: Vec<i32>,
    mask: Option<Vec<u8>>,
    temperature: f64,
    /// Zeros and what is not finite among them.
    pub(super) d_log_prob: Vec<f32>,
    pub(super) d_entropy: Option<Vec<f32>>,
}

impl OwnedRows {
    /// Masked rows and gaps hold NaN: nothing may come from them.
    pub(super) fn new(
        seed: u64,
        num_rows: usize,
        description: &RowsDescription,
        is_masked: bool,
        has_entropy_term: bool,
    ) -> Self {
        let random = &mut Random(seed);
        let &RowsDescription {
            vocab_size, gap, ..
        } = description;
        let row_stride = vocab_size + gap;
        let mask = is_masked.then(|| (0..num_rows).map(|_| u8::from(random.below(4) > 0)));
        let mask: Option<Vec<u8>> = mask.map(Iterator::collect);
        let mut token_id = vec![NO_TOKEN; num_rows];
        let mut values = vec![f32::NAN; num_rows * row_stride];
        for row in 0..num_rows {
            if mask.as_ref().is_none_or(|mask| mask[row] != 0) {
                let own = random.below(vocab_size);
                token_id[row] = own as i32;
                let columns = &mut values[row * row_stride..][..vocab_size];
                description.values.fill(random, row, own, columns);
            }
        }
        let given = [1.5, -0.75, 0.0, 0.25, -2.0, f32::NAN, 1.0, f32::INFINITY];
        let mut derivatives = || (0..num_rows).map(|_| random.pick(&given)).collect();
        Self {
            logits: OwnedTensor::new(description.dtype, values),
            vocab_size,
            row_stride,
            token_id,
            mask,
            temperature: description.temperature,
            d_log_prob: derivatives(),
            d_entropy: has_entropy_term.then(derivatives),
        }
    }

    pub(super) fn borrow(&self) -> LogProbsInput<'_> {
        LogProbsInput {
            logits: Logits {
                values: self.logits.borrow(),
                vocab_size: self.vocab_size,
                row_stride: self.row_stride,
                response_stride: None,
            },
            token_id: &self.token_id,
            mask: self.mask.as_deref(),
            temperature: self.temperature,
        }
    }
}

/// What a batch of logits is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogitsDescription {
    /// Everything but the logits; its log-ratios are kept, its log-probs are the logits'.
    pub(super) tokens: Description,
    pub(super) rows: RowsDescription,
    /// Slots belong to responses in any order, some to none; the layout has to be padded or masked.
    pub(super) is_indexed: bool,
}

/// A [`LogitsBatch`] that owns its tensors.
#[derive(Debug)]
pub(super) struct OwnedLogitsBatch {
    tokens: OwnedBatch,
    response: Option<Vec<i32>>,
    logits: OwnedTensor,
    vocab_size: usize,
    row_stride: usize,
    response_stride: Option<usize>,
    token_id: Vec<i32>,
    old_log_prob: Option<OwnedTensor>,
    ref_log_prob: OwnedTensor,
}

impl OwnedLogitsBatch {
    /// Rows without a token and gaps hold NaN: nothing may come from them.
    ///
    /// # Errors
    /// Those of [`crate::Groups`], and of a check of the batch.
    pub(super) fn new(description: &LogitsDescription) -> Result<Self> {
        let random = &mut Random(!description.tokens.seed);
        let tokens = OwnedBatch::new(&Description {
            dtype: DType::F32,
            ..description.tokens
        })?;
        let &RowsDescription {
            vocab_size, gap, ..
        } = &description.rows;
        let num_responses = description.tokens.num_rows;
        let elements = tokens.borrow().log_prob.len();
        let response = description.is_indexed.then(|| {
            let any = |_| random.below(num_responses + 1) as i32 - 1;
            (0..elements).map(any).collect()
        });
        let row_stride = vocab_size + gap;
        // Another one than the token tensors' rows would have.
        let is_strided = description.tokens.layout == LayoutKind::Strided;
        let response_stride = is_strided.then(|| description.tokens.width * row_stride + 7);
        let mut batch = Self {
            tokens,
            response,
            logits: OwnedTensor::F32(vec![]),
            vocab_size,
            row_stride,
            response_stride,
            token_id: vec![NO_TOKEN; elements],
            old_log_prob: None,
            ref_log_prob: OwnedTensor::F32(vec![f32::NAN; elements]),
        };
        batch.logits = OwnedTensor::F32(vec![f32::NAN; batch.num_logits()]);
        let slots = batch.borrow().slots()?;
        batch.fill_logits(description, &slots, random);
        batch.fill_log_probs(description, &slots);
        Ok(batch)
    }

    /// From the first logit to the last.
    fn num_logits(&self) -> usize {
        let batch = self.borrow();
        let num_slots = batch.layout.num_slots();
        let before_last = match (batch.layout, num_slots) {
            (_, 0) => return 0,
            (LogitsLayout::Responses(layout @ Layout::Padded { width, .. }), _) => {
                let by_default = self.tokens.row_stride() * self.row_stride;
                let response_stride = self.response_stride.unwrap_or(by_default);
                (layout.num_rows() - 1) * response_stride + (width - 1) * self.row_stride
            }
            _ => (num_slots - 1) * self.row_stride,
        };
        before_last + self.vocab_size
    }

    fn fill_logits(
        &mut self,
        description: &LogitsDescription,
        slots: &[Slot],
        random: &mut Random,
    ) {
        let rows = &description.rows;
        let mut values = vec![f32::NAN; self.logits.borrow().len()];
        for slot in slots.iter().filter(|slot| slot.is_valid) {
            let own = random.below(self.vocab_size);
            self.token_id[slot.token] = own as i32;
            let columns = &mut values[slot.row..][..self.vocab_size];
            rows.values.fill(random, slot.index, own, columns);
            let log_prob = self.tokens.borrow().log_prob.get(slot.token);
            if log_prob == f64::NEG_INFINITY {
                columns[own] = f32::NEG_INFINITY;
            }
        }
        self.logits = OwnedTensor::new(rows.dtype, values);
    }

    /// Moves the log-probs that the description made to those of the logits, with their
    /// differences.
    fn fill_log_probs(&mut self, description: &LogitsDescription, slots: &[Slot]) {
        let temperature = description.rows.temperature;
        let elements = self.token_id.len();
        let [mut old, mut reference] = [(); 2].map(|()| vec![f32::NAN; elements]);
        let batch = self.borrow();
        let tokens = self.tokens.borrow();
        for slot in slots.iter().filter(|slot| slot.is_valid) {
            let stats = SoftmaxStats::of_row(&RowShard {
                logits: batch.logits.row(slot.row),
                vocab_start: 0,
                token_id: self.token_id[slot.token] as usize,
                temperature,
            });
            let log_prob = stats.log_prob(temperature);
            let log_prob = if log_prob.is_finite() { log_prob } else { -1.0 };
            let below = |made: f64| match made - tokens.log_prob.get(slot.token) {
                difference if difference.is_finite() => (log_prob + difference) as f32,
                _ => log_prob as f32,
            };
            let made = tokens.old_log_prob.map_or(-1.0, |old| old.get(slot.token));
            old[slot.token] = below(made);
            let made = tokens.ref_log_prob.map_or(-1.0, |old| old.get(slot.token));
            reference[slot.token] = below(made);
        }
        let dtype = description.tokens.dtype;
        let has_old = description.tokens.has_old;
        self.old_log_prob = has_old.then(|| OwnedTensor::new(dtype, old));
        self.ref_log_prob = OwnedTensor::new(dtype, reference);
    }

    pub(super) fn borrow(&self) -> LogitsBatch<'_> {
        let tokens = self.tokens.borrow();
        LogitsBatch {
            layout: match &self.response {
                None => LogitsLayout::Responses(tokens.layout),
                Some(response) => LogitsLayout::Indexed {
                    response,
                    num_responses: tokens.layout.num_rows(),
                },
            },
            mask: tokens.mask,
            logits: Logits {
                values: self.logits.borrow(),
                vocab_size: self.vocab_size,
                row_stride: self.row_stride,
                response_stride: self.response_stride,
            },
            token_id: &self.token_id,
            old_log_prob: self.old_log_prob.as_ref().map(OwnedTensor::borrow),
            ref_log_prob: Some(self.ref_log_prob.borrow()),
            importance_weight: tokens.importance_weight,
            advantages: tokens.advantages,
        }
    }
}
