//! The output tensors of `loss_from_logits`, before and after a launch.

use qae::batch::{DType, LogitsBatch};
use qae::params::{self, LogitsOutputs};
use qae::{Config, LogitsOutput, LossOutput, sys};

use super::gradient::{GradientMemory, expect_gaps_unwritten, failure};
use super::memory::Memory;
use super::outputs::ResponseMemory;
use super::slots::SlotPlaces;
use super::tensor::TensorMemory;
use super::{EmulatorBackend, Result, failed, read_words, whole};
use crate::Buffer;

const LOGITS_METRICS_WORDS: usize = size_of::<sys::qae_logits_metrics>() / 8;

/// The output tensors.
pub(super) struct LogitsOutputMemory {
    gradient: GradientMemory,
    tokens: Option<TokenMemory>,
    places: SlotPlaces,
    responses: ResponseMemory,
    metrics: Buffer<u64>,
}

/// What is written for each slot.
struct TokenMemory {
    d_log_prob: Option<TensorMemory>,
    log_prob: TensorMemory,
    entropy: TensorMemory,
    row_stride: Option<usize>,
}

impl LogitsOutputMemory {
    pub(super) fn new(
        memory: &Memory,
        backend: &EmulatorBackend,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<Self> {
        let tokens = match backend.logits.without_token_outputs {
            true => None,
            false => Some(TokenMemory::new(memory, backend, batch)?),
        };
        Ok(Self {
            gradient: GradientMemory::new(memory, backend, batch, config)?,
            tokens,
            places: SlotPlaces::in_tokens(batch.layout, None),
            responses: ResponseMemory::new(memory, batch.advantages, num_rows(batch))?,
            metrics: memory.alloc(LOGITS_METRICS_WORDS, "metrics")?,
        })
    }

    pub(super) fn buffers(&self, logits: &TensorMemory) -> LogitsOutputs {
        let gradient = &self.gradient;
        let tokens = self.tokens.as_ref();
        let d_log_prob = tokens.and_then(|tokens| tokens.d_log_prob.as_ref());
        let (slots, count) = gradient
            .list
            .as_ref()
            .map(|(slots, count)| (slots, count))
            .unzip();
        LogitsOutputs {
            gradient: gradient.target(logits),
            gradient_dtype: d_log_prob.map_or(DType::F32, TensorMemory::dtype),
            d_log_prob: d_log_prob.map(TensorMemory::view),
            log_prob: tokens.map(|tokens| tokens.log_prob.view()),
            entropy: tokens.map(|tokens| tokens.entropy.view()),
            token_row_stride: tokens.and_then(|tokens| tokens.row_stride),
            active_slots: slots.map(whole),
            active_slot_count: count.map(whole),
            baseline: self.responses.baseline.as_ref().map(whole),
            advantage: self.responses.advantage.as_ref().map(whole),
            active_rows: Some(whole(&self.responses.active_rows)),
            active_count: Some(whole(&self.responses.active_count)),
            metrics: whole(&self.metrics),
        }
    }

    /// The results, and which rows of the gradient were written.
    pub(super) fn download(
        &self,
        logits: &TensorMemory,
        batch: &LogitsBatch<'_>,
        config: &Config,
    ) -> Result<(LogitsOutput, Vec<bool>)> {
        // SAFETY: the buffer has the struct's words, all of them written and plain numbers.
        let metrics: sys::qae_logits_metrics =
            unsafe { read_words(&self.metrics.download().map_err(failed)?) };
        let responses = self.responses.download()?;
        let len = batch.token_id.len();
        let tokens = |tensor: Option<&TensorMemory>, label| match (tensor, &self.tokens) {
            (Some(tensor), Some(tokens)) => {
                tokens.download(tensor, label, batch, &self.places, len)
            }
            _ => Ok(vec![]),
        };
        let memory = self.tokens.as_ref();
        let active_slots = self.gradient.active_slots()?;
        let num_active = active_slots.len();
        let gradient = self.gradient.download(logits, batch, config, num_active)?;
        let output = LogitsOutput {
            loss: LossOutput {
                metrics: params::logits_metrics(&metrics, config.metrics_scope),
                d_log_prob: tokens(memory.and_then(|m| m.d_log_prob.as_ref()), "d_log_prob")?,
                baseline: responses.baseline,
                advantage: responses.advantage,
                active_rows: responses.active_rows,
            },
            log_prob: tokens(memory.map(|m| &m.log_prob), "log_prob")?,
            entropy: tokens(memory.map(|m| &m.entropy), "entropy")?,
            d_logits: gradient.values,
            active_slots,
        };
        Ok((output, gradient.written))
    }
}

impl TokenMemory {
    fn new(memory: &Memory, backend: &EmulatorBackend, batch: &LogitsBatch<'_>) -> Result<Self> {
        let row_stride = backend.gradient_row_stride;
        let len = SlotPlaces::in_tokens(batch.layout, row_stride).num_elements(1);
        let alloc =
            |dtype, label| TensorMemory::alloc(memory, dtype, len, label, backend.misalignment);
        let narrow = batch.old_log_prob.filter(|_| backend.narrow_gradient);
        let gradient_dtype = narrow.map_or(DType::F32, |tensor| tensor.dtype());
        let d_log_prob = match backend.logits.without_d_log_prob {
            true => None,
            false => Some(alloc(gradient_dtype, "d_log_prob")?),
        };
        Ok(Self {
            d_log_prob,
            log_prob: alloc(DType::F32, "log_prob")?,
            entropy: alloc(DType::F32, "entropy")?,
            row_stride,
        })
    }

    /// A tensor of this laid out as the batch's `len` elements. Every slot must have been written.
    fn download(
        &self,
        tensor: &TensorMemory,
        label: &str,
        batch: &LogitsBatch<'_>,
        places: &SlotPlaces,
        len: usize,
    ) -> Result<Vec<f64>> {
        let source = SlotPlaces::in_tokens(batch.layout, self.row_stride);
        let raw = tensor.download_raw();
        let mut values = vec![0.0; len];
        for slot in 0..places.num_slots {
            let from = source.start(slot);
            if tensor.count_written(from, 1) == 0 {
                return Err(failure(format!("{label}: slot {slot} was not written")));
            }
            values[places.start(slot)] = raw[from];
        }
        expect_gaps_unwritten(tensor, label, &source, 1)?;
        Ok(values)
    }
}

fn num_rows(batch: &LogitsBatch<'_>) -> usize {
    match batch.layout {
        qae::LogitsLayout::Responses(layout) => layout.num_rows(),
        qae::LogitsLayout::Indexed { num_responses, .. } => num_responses,
    }
}
