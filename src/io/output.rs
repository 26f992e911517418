//! Results written to a safetensors file.

mod entry;
mod gradient;
mod metrics;
mod replace;

use self::entry::{Entry, serialize};
use self::gradient::{columns, row_sums};
#[cfg(feature = "analyze")]
pub(crate) use self::replace::check_place;
pub(crate) use self::replace::write_whole;
use super::case::Case;
use super::trl_metrics::Tokens;
use crate::backend::{LogProbsOutput, LogitsOutput, LossOutput};
use crate::batch::{LogitsBatch, TokenBatch};
use crate::config::{Config, Gradient};
use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use std::path::Path;

/// The dtype of the results: that in which the backend computed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The CPU path.
    F64,
    /// The kernels.
    F32,
}

/// What ran, and how.
#[derive(Debug, Clone, Copy)]
pub struct Provenance<'a> {
    /// The batch.
    pub case: &'a Case,
    /// The configuration that was used.
    pub config: &'a Config,
    /// The name of the backend.
    pub backend: &'a str,
    /// Its precision, which is that of the file.
    pub precision: Precision,
}

/// What came out of the arguments that went in.
#[derive(Debug, Clone, Copy)]
pub enum Results<'a> {
    /// Of `loss_from_log_probs`.
    LogProbs(TokenBatch<'a>, &'a LossOutput),
    /// Of `loss_from_logits`, and of `log_probs_from_logits` over all rows.
    Logits(LogitsBatch<'a>, &'a LogitsOutput, &'a LogProbsOutput),
}

/// Writes `results` to `path`, all of it or nothing.
///
/// The tensors have the names of the golden cases without `expected.`: `baseline`, `advantage`,
/// `loss`, `pg_loss`, `dlogp`, `metrics.*`, and `active_rows` (I32). Logits add `entropy_loss`;
/// `logp` and `entropy` of every row, masked ones and those of inactive responses included (`logp`
/// NaN where a masked row's token id lies outside the vocabulary); `dlogits` as the vocabulary
/// after the shape of `dlogp`, or, compact, \[rows, V\] with `active_slots` (I64);
/// `dlogits_row_l1`, `_l2`, `_sum`; and `dlogits_columns` where the file has
/// `dlogits_column_index`. The metadata entry `case` holds the configuration, the backend and the
/// version. What [`crate::Metrics`] does not hold (TRL's `clip_ratio_*` and `kl`, and
/// `zero_advantage_share`) is computed here.
///
/// # Errors
/// [`Error::File`] when the file cannot be written; nothing is left behind then.
pub fn write_output(path: &Path, of: &Provenance<'_>, results: &Results<'_>) -> Result<()> {
    let entries = match results {
        Results::LogProbs(batch, output) => {
            let tokens = Tokens::of_log_probs(of.case, batch);
            loss_entries(of, &tokens, output)
        }
        Results::Logits(batch, output, log_probs) => {
            let tokens = Tokens::of_logits(of.case, batch, log_probs);
            let mut entries = loss_entries(of, &tokens, &output.loss);
            entries.extend(logits_entries(of, output, log_probs));
            entries
        }
    };
    let description = serde_json::json!({
        "name": of.case.name(),
        "config": ConfigFile::from(of.config),
        "backend": of.backend,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let written = serialize(&entries, description.to_string())
        .map_err(|error| error.to_string())
        .and_then(|bytes| write_whole(path, &bytes));
    written.map_err(|message| Error::file(path.display(), message))
}

/// The entries that both levels have.
fn loss_entries<'a>(
    of: &Provenance<'_>,
    tokens: &Tokens<'_>,
    output: &'a LossOutput,
) -> Vec<Entry<'a>> {
    let precision = of.precision;
    let one = |name: &str, value: f64| Entry::floats(name, vec![1], vec![value], precision);
    let mut entries = vec![];
    for (name, values) in [
        ("baseline", &output.baseline),
        ("advantage", &output.advantage),
    ] {
        if let Some(values) = values {
            let shape = vec![values.len()];
            entries.push(Entry::floats(name, shape, values.as_slice(), precision));
        }
    }
    let shape = of.case.shape();
    let gradient = output.d_log_prob.as_slice();
    entries.push(Entry::floats("dlogp", shape, gradient, precision));
    entries.push(one("loss", output.metrics.loss));
    entries.push(one("pg_loss", output.metrics.pg_loss));
    for (name, value) in metrics::metrics(of.config, tokens, output) {
        entries.push(one(&format!("metrics.{name}"), value));
    }
    entries.push(Entry::rows("active_rows", &output.active_rows));
    entries
}

fn logits_entries<'a>(
    of: &Provenance<'_>,
    output: &'a LogitsOutput,
    log_probs: &'a LogProbsOutput,
) -> Vec<Entry<'a>> {
    let Some(logits) = of.case.logits() else {
        return vec![];
    };
    let shape = of.case.shape();
    let vocab_size = logits.view().vocab_size;
    let compact = of.config.gradient == Gradient::Compact;
    let floats = |name: &str, shape: &[usize], values: Vec<f64>| {
        Entry::floats(name, shape.to_vec(), values, of.precision)
    };
    let mut log_prob = log_probs.log_prob.clone();
    for &slot in &logits.without_token {
        log_prob[slot] = f64::NAN;
    }
    let num_slots = log_prob.len();
    let sums = row_sums(output, num_slots, vocab_size, compact);
    let entropy_loss = output
        .loss
        .metrics
        .entropy
        .map_or(0.0, |entropy| entropy.loss);
    let mut entries = vec![
        floats("entropy_loss", &[1], vec![entropy_loss]),
        floats("logp", &shape, log_prob),
        floats("entropy", &shape, log_probs.entropy.clone()),
        floats("dlogits_row_l1", &shape, sums.l1),
        floats("dlogits_row_l2", &shape, sums.l2),
        floats("dlogits_row_sum", &shape, sums.sum),
    ];
    if let Some((per_slot, values)) = columns(output, logits, vocab_size, compact) {
        let shape = [&shape[..], &[per_slot]].concat();
        entries.push(floats("dlogits_columns", &shape, values));
    }
    let rows = if compact {
        entries.push(Entry::slots("active_slots", &output.active_slots));
        vec![output.active_slots.len()]
    } else {
        shape
    };
    let gradient = output.d_logits.as_slice();
    let shape = [&rows[..], &[vocab_size]].concat();
    entries.push(Entry::floats("dlogits", shape, gradient, of.precision));
    entries
}
