//! What a loss makes of each slot, known before a row of logits is read, and how the rows are run.

use super::super::advantages::from_rewards;
use super::super::loss_from_log_probs::LossResults;
use super::super::softmax;
use crate::batch::{Element, LogitsBatch, LogitsLayout, Slot, Tensor};
use crate::config::{Config, Gradient};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::reference::{
    AdvantageOutput, Call, Derivatives, Gathered, Response, RowShard, SoftmaxStats, Tokens, Use,
    is_gspo, normalizer, response, rows_of, uses,
};
use rayon::prelude::*;

/// A batch that passed its check. A *position* is a place in the order of responses.
pub(super) struct Plan<'a> {
    pub batch: &'a LogitsBatch<'a>,
    pub config: &'a Config,
    pub gathered: Gathered,
    from_rewards: Option<AdvantageOutput>,
    normalizer: f64,
    /// By position.
    uses: Vec<Use>,
}

/// Results by position; 0 where a row is not read.
pub(super) struct Losses {
    pub log_prob: Vec<f64>,
    pub entropy: Vec<f64>,
    pub d_log_prob: Vec<f64>,
    /// dL/d entropy.
    d_entropy: Vec<f64>,
}

impl<'a> Plan<'a> {
    pub fn new(batch: &'a LogitsBatch<'a>, config: &'a Config) -> Result<Self> {
        let gathered = Gathered::new(batch)?;
        let tokens = gathered.tokens(batch);
        let mut plan = Self {
            batch,
            config,
            from_rewards: from_rewards(batch.advantages, &config.advantage)?,
            normalizer: normalizer(config, || tokens.counts()),
            uses: vec![],
            gathered,
        };
        let call = plan.call(plan.gathered.tokens(batch));
        let responses = (0..batch.layout.num_responses()).into_par_iter();
        let of_responses: Vec<_> = responses.map(|response| uses(&call, response)).collect();
        plan.uses = of_responses.concat();
        Ok(plan)
    }

    fn call<'c>(&'c self, tokens: Tokens<'c>) -> Call<'c> {
        Call {
            tokens,
            config: self.config,
            global_advantage: self.from_rewards.as_ref().map(|out| &out.advantage[..]),
            normalizer: self.normalizer,
        }
    }

    pub fn is_gspo(&self) -> bool {
        is_gspo(self.config)
    }

    /// Rows of logits that are read.
    pub fn rows_read(&self) -> usize {
        self.uses.iter().filter(|&&used| used != Use::None).count()
    }

    /// Those of them whose gradient is computed.
    pub fn rows_acting(&self) -> usize {
        self.uses.iter().filter(|&&used| used == Use::Acts).count()
    }

    /// The slots whose gradient is computed, ascending.
    pub fn active_slots(&self) -> Vec<u64> {
        let slots = self.gathered.slots.iter().zip(&self.uses);
        let active = slots.filter(|(_, used)| **used == Use::Acts);
        let mut indices: Vec<u64> = active.map(|(slot, _)| slot.index as u64).collect();
        // Positions are in the order of responses.
        indices.sort_unstable();
        indices
    }

    /// Whether each response acts, with its positions.
    pub fn responses(&self) -> impl Iterator<Item = (bool, std::ops::Range<usize>)> + '_ {
        let call = self.call(self.gathered.tokens(self.batch));
        let bounds = self.gathered.offsets.windows(2).enumerate();
        bounds.map(move |(row, bounds)| (call.acts(row), bounds[0] as usize..bounds[1] as usize))
    }

    /// Whether the gradient of each slot is written, whatever it is.
    fn is_written(&self) -> Vec<bool> {
        let all = self.config.gradient != Gradient::Untouched;
        let mut is_written = vec![all; self.batch.layout.num_slots()];
        for (acts, positions) in self.responses() {
            for slot in &self.gathered.slots[positions] {
                is_written[slot.index] |= acts;
            }
        }
        is_written
    }

    /// Computes the batch; its gradient with respect to the logits in `rows`, one for each slot,
    /// or for each of [`Self::active_slots`] while there are rows.
    pub fn run<D: Element>(&self, rows: Vec<&mut [D]>) -> (Losses, LossResults) {
        let mut rows = self.by_position(rows);
        let call = self.call(self.gathered.tokens(self.batch));
        let responses: Vec<Response<'_>> = (0..self.batch.layout.num_responses())
            .map(|row| Response::new(&call, row))
            .collect();
        let is_gspo = self.is_gspo();
        let stats: Vec<Option<SoftmaxStats>> = rows
            .par_iter_mut()
            .enumerate()
            .map(|(position, row)| {
                let stats = self.stats(position)?;
                if let Some(row) = row
                    && !is_gspo
                {
                    let derivatives = self.derivatives(&responses, position, &stats);
                    self.write(position, &stats, derivatives, row);
                }
                Some(stats)
            })
            .collect();
        let (losses, results) = self.losses(&stats);
        if is_gspo {
            rows.par_iter_mut()
                .zip(&stats)
                .enumerate()
                .for_each(|(position, (row, stats))| {
                    if let (Some(row), Some(stats)) = (row, stats) {
                        let derivatives = Derivatives {
                            log_prob: losses.d_log_prob[position],
                            entropy: losses.d_entropy[position],
                        };
                        self.write(position, stats, derivatives, row);
                    }
                });
        }
        (losses, results)
    }

    /// The rows of the positions that act; the others are filled with 0, where they are written.
    fn by_position<'t, D: Element>(&self, rows: Vec<&'t mut [D]>) -> Vec<Option<&'t mut [D]>> {
        let gradient = self.config.gradient;
        let num_slots = self.batch.layout.num_slots();
        let places = self.gathered.gradient_rows(&self.uses, gradient, num_slots);
        let mut by_position: Vec<_> = self.uses.iter().map(|_| None).collect();
        let mut others = vec![];
        let is_written = self.is_written();
        for (row, (slot, position)) in rows.into_iter().zip(places) {
            match position {
                Some(position) => by_position[position] = Some(row),
                None if is_written[slot] => others.push(row),
                None => {}
            }
        }
        others
            .into_par_iter()
            .for_each(|row| row.fill(D::round(0.0)));
        by_position
    }

    fn shard(&self, slot: &Slot) -> RowShard<'_> {
        RowShard {
            logits: self.batch.logits.row(slot.row),
            vocab_start: 0,
            token_id: self.batch.token_id[slot.token] as usize,
            temperature: self.config.temperature,
        }
    }

    fn stats(&self, position: usize) -> Option<SoftmaxStats> {
        let is_read = self.uses[position] != Use::None;
        is_read.then(|| softmax::stats(&self.shard(&self.gathered.slots[position])))
    }

    fn derivatives(
        &self,
        responses: &[Response<'_>],
        position: usize,
        stats: &SoftmaxStats,
    ) -> Derivatives {
        let offsets = &self.gathered.offsets;
        let row = offsets.partition_point(|&start| start as usize <= position) - 1;
        let t = position - offsets[row] as usize;
        let log_prob = stats.log_prob(self.config.temperature);
        responses[row].derivatives(t, log_prob, stats.entropy())
    }

    fn write<D: Element>(
        &self,
        position: usize,
        stats: &SoftmaxStats,
        derivatives: Derivatives,
        row: &mut [D],
    ) {
        let Derivatives { log_prob, entropy } = derivatives;
        if log_prob != 0.0 || entropy != 0.0 {
            let shard = self.shard(&self.gathered.slots[position]);
            softmax::backward(stats, &shard, log_prob, entropy, row);
        } else {
            // Left out, clipped, or without a term.
            row.fill(D::round(0.0));
        }
    }

    /// The loss of log-probs that are known, and its derivatives.
    fn losses(&self, stats: &[Option<SoftmaxStats>]) -> (Losses, LossResults) {
        let each = |value: &dyn Fn(&SoftmaxStats) -> f64| -> Vec<f64> {
            let values = stats.iter();
            values
                .map(|stats| stats.as_ref().map_or(0.0, value))
                .collect()
        };
        let mut losses = Losses {
            log_prob: each(&|stats| stats.log_prob(self.config.temperature)),
            entropy: each(&SoftmaxStats::entropy),
            d_log_prob: vec![0.0; stats.len()],
            d_entropy: vec![0.0; stats.len()],
        };
        let call = self.call(Tokens {
            log_prob: Tensor::F64(&losses.log_prob),
            entropy: Some(&losses.entropy),
            ..self.gathered.tokens(self.batch)
        });
        let layout = call.tokens.layout;
        let parts: Vec<Metrics> = rows_of(layout, &mut losses.d_log_prob)
            .into_par_iter()
            .zip(rows_of(layout, &mut losses.d_entropy))
            .enumerate()
            .map(|(row, (d_log_prob, d_entropy))| response(&call, row, d_log_prob, d_entropy))
            .collect();
        let mut results = LossResults::new(&parts, self.config, self.from_rewards.clone());
        results.metrics.entropy.get_or_insert_default();
        (losses, results)
    }

    /// Place of slot `index` in a token tensor with this row stride.
    pub fn place(&self, index: usize, row_stride: usize) -> usize {
        match self.batch.layout {
            LogitsLayout::Responses(layout) => layout.place(index, row_stride),
            LogitsLayout::Indexed { .. } => index,
        }
    }
}
