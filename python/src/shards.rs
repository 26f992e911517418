//! Softmax statistics of rows of logits on the CPU, whole or in shards of the vocabulary.

use crate::errors::{Failure, Result};
use crate::host::{Copied, Host};
use crate::log_probs::{Backward, Forward, Inputs, Merge, Outputs, STATS_FIELDS};
use crate::outputs::Output;
use crate::rows::{LogitsView, token_ids};
use qae::cpu::log_probs_from_logits_backward_into;
use qae::reference::{RowShard, SoftmaxStats};
use qae::{LogProbsInput, Logits, LogitsMut, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The rows of a call, readable by all threads.
struct Rows<'a> {
    inputs: &'a Inputs,
    values: Tensor<'a>,
    token_ids: Cow<'a, [i32]>,
    mask: Option<&'a [u8]>,
}

impl<'a> Rows<'a> {
    fn new(inputs: &'a Inputs, copy: Option<&'a Copied>, host: &Host<'a>) -> Result<Self> {
        let this = Self {
            inputs,
            values: match copy {
                Some(copy) => copy.tensor(),
                None => host.tensor(&inputs.logits.tensor),
            },
            token_ids: token_ids(&inputs.token_ids, host),
            mask: host.read_some(&inputs.mask),
        };
        this.check_tokens()?;
        Ok(this)
    }

    /// As `LogProbsInput::check`: of a shard only all ranks together know the vocabulary.
    fn check_tokens(&self) -> Result<()> {
        let end = match self.inputs.vocab_start {
            None => self.inputs.logits.vocab_size,
            Some(_) => i32::MAX as usize,
        };
        let is_bad = |row: &usize| {
            let id = usize::try_from(self.token_ids[*row]);
            self.counts(*row) && id.map_or(true, |id| id >= end)
        };
        match (0..self.token_ids.len()).find(is_bad) {
            None => Ok(()),
            Some(row) => Err(Failure::value(
                format!("token_ids[{row}]"),
                format!("at least 0 and less than {end}"),
                self.token_ids[row],
            )),
        }
    }

    fn counts(&self, row: usize) -> bool {
        self.mask.is_none_or(|mask| mask[row] != 0)
    }

    fn shard(&self, row: usize) -> RowShard<'a> {
        let logits = &self.inputs.logits;
        let columns = logits.start(row)..logits.start(row) + logits.vocab_size;
        RowShard {
            logits: slice(self.values, columns),
            vocab_start: self.inputs.vocab_start.unwrap_or(0),
            token_id: self.token_ids[row] as usize,
            temperature: self.inputs.temperature,
        }
    }

    /// The gradient of all columns, response by response where they are unevenly spaced.
    fn whole_backward(
        &self,
        host: &Host<'_>,
        d_log_prob: Tensor<'_>,
        d_entropy: Option<Tensor<'_>>,
        d_logits: LogitsView,
    ) -> Result<()> {
        let logits = &self.inputs.logits;
        let num_rows = self.token_ids.len();
        let width = logits.width().or(d_logits.width()).unwrap_or(num_rows);
        let row_stride = d_logits.row_stride;
        let responses = 0..num_rows.checked_div(width).unwrap_or(0);
        for (response, values) in responses.zip(host.responses_mut(d_logits, width)) {
            let first = response * width;
            let here = first..first + width;
            let start = logits.start(first);
            let len = (width - 1) * logits.row_stride + logits.vocab_size;
            let input = LogProbsInput {
                logits: Logits {
                    values: slice(self.values, start..start + len),
                    vocab_size: logits.vocab_size,
                    row_stride: logits.row_stride,
                    response_stride: None,
                },
                token_id: &self.token_ids[here.clone()],
                mask: self.mask.map(|mask| &mask[here.clone()]),
                temperature: self.inputs.temperature,
            };
            let target = LogitsMut {
                values,
                row_stride: Some(row_stride),
                response_stride: None,
            };
            let d_log_prob = slice(d_log_prob, here.clone());
            let d_entropy = d_entropy.map(|d_entropy| slice(d_entropy, here));
            log_probs_from_logits_backward_into(&input, d_log_prob, d_entropy, target)?;
        }
        Ok(())
    }

    fn stats(&self, row: usize) -> Option<SoftmaxStats> {
        self.counts(row)
            .then(|| SoftmaxStats::of_row(&self.shard(row)))
    }
}

pub(crate) fn forward(call: Forward) -> Result<()> {
    // SAFETY: the caller holds the tensors until this returns, and changes them meanwhile no more
    // than under any operation of torch; `Tensors::of` has seen all of them.
    let host = unsafe { Host::new() };
    let rows = Rows::new(&call.inputs, None, &host)?;
    let num_rows = rows.token_ids.len();
    let stats: Vec<_> = (0..num_rows)
        .into_par_iter()
        .map(|row| rows.stats(row))
        .collect();
    write(&host, call.outputs, &stats, call.inputs.temperature);
    Ok(())
}

pub(crate) fn merge(call: Merge) -> Result<()> {
    // SAFETY: as in `forward`.
    let host = unsafe { Host::new() };
    let num_rows = call.num_rows();
    let mask = host.read_some::<u8>(&call.mask);
    let shards = host.widened(&call.shards);
    let merged = |row: usize| {
        let of_shard = |shard: usize| stats_at(&shards, shard * num_rows + row);
        let all = (0..call.shards.shape[0]).map(of_shard);
        let merged = all.reduce(|a, b| a.merge(b, call.temperature));
        merged.filter(|_| mask.is_none_or(|mask| mask[row] != 0))
    };
    let stats: Vec<_> = (0..num_rows).into_par_iter().map(merged).collect();
    write(&host, call.outputs, &stats, call.temperature);
    Ok(())
}

pub(crate) fn backward(call: Backward) -> Result<()> {
    // SAFETY: as in `forward`; in place, the logits are copied before they are written over.
    let host = unsafe { Host::new() };
    let copy = call
        .is_in_place
        .then(|| host.copy(&call.inputs.logits.tensor));
    let rows = Rows::new(&call.inputs, copy.as_ref(), &host)?;
    let d_log_prob = host.tensor(&call.d_log_prob);
    let d_entropy = call.d_entropy.map(|view| host.tensor(&view));
    let Some(stats) = call.stats.filter(|_| call.inputs.vocab_start.is_some()) else {
        return rows.whole_backward(&host, d_log_prob, d_entropy, call.d_logits);
    };
    let stats = host.widened(&stats);
    host.write_each_row(call.d_logits, |row, gradient| {
        gradient.fill(0.0);
        let g = d_log_prob.get(row);
        let h = d_entropy.map_or(0.0, |d_entropy| d_entropy.get(row));
        if rows.counts(row) && (g != 0.0 || h != 0.0) {
            stats_at(&stats, row).backward(&rows.shard(row), g, h, gradient);
        }
    });
    Ok(())
}

fn slice(tensor: Tensor<'_>, range: Range<usize>) -> Tensor<'_> {
    match tensor {
        Tensor::F64(values) => Tensor::F64(&values[range]),
        Tensor::F32(values) => Tensor::F32(&values[range]),
        Tensor::Bf16(values) => Tensor::Bf16(&values[range]),
        Tensor::F16(values) => Tensor::F16(&values[range]),
    }
}

fn stats_at(values: &[f64], index: usize) -> SoftmaxStats {
    let fields = &values[index * STATS_FIELDS..][..STATS_FIELDS];
    SoftmaxStats {
        max_logit: fields[0],
        sum_exp: fields[1],
        sum_exp_z: fields[2],
        own_logit: fields[3],
    }
}

/// Rows without statistics are masked: 0 in every result, and the statistics of no column.
fn write(host: &Host<'_>, outputs: Outputs, rows: &[Option<SoftmaxStats>], temperature: f64) {
    let write = |output: Option<Output>, value: &dyn Fn(&SoftmaxStats) -> f64| {
        let values = rows.iter().map(|stats| stats.as_ref().map_or(0.0, value));
        host.round(output, values);
    };
    write(outputs.log_prob, &|stats| stats.log_prob(temperature));
    write(outputs.entropy, &SoftmaxStats::entropy);
    write(outputs.log_sum_exp, &|stats| stats.log_sum_exp(temperature));
    let of_nothing = SoftmaxStats {
        max_logit: f32::MIN.into(),
        sum_exp: 0.0,
        sum_exp_z: 0.0,
        own_logit: f64::NEG_INFINITY,
    };
    let fields = rows.iter().flat_map(|stats| {
        let stats = stats.unwrap_or(of_nothing);
        [
            stats.max_logit,
            stats.sum_exp,
            stats.sum_exp_z,
            stats.own_logit,
        ]
    });
    host.round(outputs.stats, fields);
}
