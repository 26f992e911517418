//! Softmax statistics of rows of logits on the CPU, whole or in shards of the vocabulary.

use crate::errors::{Failure, Result};
use crate::host::{Copied, Host};
use crate::log_probs::{Backward, Forward, Inputs, Merge, Outputs, STATS_FIELDS};
use crate::outputs::Output;
use crate::rows::token_ids;
use qae::Tensor;
use qae::reference::{RowShard, SoftmaxStats};
use rayon::prelude::*;
use std::borrow::Cow;

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
            logits: match self.values {
                Tensor::F32(values) => Tensor::F32(&values[columns]),
                Tensor::Bf16(values) => Tensor::Bf16(&values[columns]),
                Tensor::F16(values) => Tensor::F16(&values[columns]),
            },
            vocab_start: self.inputs.vocab_start.unwrap_or(0),
            token_id: self.token_ids[row] as usize,
            temperature: self.inputs.temperature,
        }
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
    let of_shard = call.inputs.vocab_start.is_some();
    let stats = call
        .stats
        .filter(|_| of_shard)
        .map(|stats| host.widened(&stats));
    let d_log_prob = host.widened(&call.d_log_prob);
    let d_entropy = call.d_entropy.map(|view| host.widened(&view));
    host.write_each_row(call.d_logits, |row, gradient| {
        gradient.fill(0.0);
        let g = d_log_prob[row];
        let h = d_entropy.as_ref().map_or(0.0, |d_entropy| d_entropy[row]);
        if !rows.counts(row) || (g == 0.0 && h == 0.0) {
            return;
        }
        let shard = rows.shard(row);
        let stats = match &stats {
            Some(stats) => stats_at(stats, row),
            None => SoftmaxStats::of_row(&shard),
        };
        stats.backward(&shard, g, h, gradient);
    });
    Ok(())
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
