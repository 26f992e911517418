//! A case through the operation that starts where the case does.

use super::backends::Chosen;
use super::difference::Difference;
use crate::backend::{Backend, LogProbsOutput, LogitsOutput, Run};
use crate::batch::{LogitsBatch, TokenBatch};
use crate::config::Config;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::io::{Batch, Case, Precision, Provenance, Results, write_output};
use crate::metrics::Metrics;
use std::path::Path;

/// What a report tells of a run.
pub(super) struct Outcome {
    pub(super) metrics: Metrics,
    /// Root of the sum of the squared gradient with respect to the log-probs.
    pub(super) gradient_norm: f64,
    /// The same with respect to the logits, from logits.
    pub(super) logits_gradient_norm: Option<f64>,
    pub(super) bytes_moved: u64,
    pub(super) seconds: Option<f64>,
    /// Where the backend does not compute in f64.
    pub(super) difference: Option<Difference>,
}

/// Runs `batch`, compares the result with the f64 reference if it is in f32, and writes it to `out`.
pub(super) fn run(
    chosen: &Chosen,
    case: &Case,
    config: &Config,
    batch: &Batch<'_>,
    out: Option<&Path>,
) -> Result<Outcome> {
    let backend = chosen.backend.name();
    let of = Provenance {
        case,
        config,
        backend: &backend,
        precision: chosen.precision,
    };
    match batch {
        Batch::LogProbs(batch) => run_log_probs(chosen, &of, batch, out),
        Batch::Logits(batch) => run_logits(chosen, &of, batch, out),
    }
}

fn run_log_probs(
    chosen: &Chosen,
    of: &Provenance<'_>,
    batch: &TokenBatch<'_>,
    out: Option<&Path>,
) -> Result<Outcome> {
    let run = chosen.backend.loss_from_log_probs(batch, of.config)?;
    let difference = match of.precision {
        Precision::F64 => None,
        Precision::F32 => {
            let reference = CpuBackend.loss_from_log_probs(batch, of.config)?;
            Some(Difference::between(&run.output, &reference.output))
        }
    };
    if let Some(out) = out {
        write_output(out, of, &Results::LogProbs(*batch, &run.output))?;
    }
    Ok(Outcome {
        metrics: run.output.metrics,
        gradient_norm: norm(&run.output.d_log_prob),
        logits_gradient_norm: None,
        bytes_moved: run.bytes_moved,
        seconds: run.seconds,
        difference,
    })
}

fn run_logits(
    chosen: &Chosen,
    of: &Provenance<'_>,
    batch: &LogitsBatch<'_>,
    out: Option<&Path>,
) -> Result<Outcome> {
    let run = chosen.backend.loss_from_logits(batch, of.config)?;
    let difference = match of.precision {
        Precision::F64 => None,
        Precision::F32 => {
            let reference = CpuBackend.loss_from_logits(batch, of.config)?;
            Some(Difference::between_logits(&run.output, &reference.output))
        }
    };
    if let Some(out) = out {
        write_logits(chosen, of, batch, &run, out)?;
    }
    Ok(Outcome {
        metrics: run.output.loss.metrics,
        gradient_norm: norm(&run.output.loss.d_log_prob),
        logits_gradient_norm: Some(norm(&run.output.d_logits)),
        bytes_moved: run.bytes_moved,
        seconds: run.seconds,
        difference,
    })
}

/// The loss reads only what it needs, but the file holds the log-prob and entropy of every row.
fn write_logits(
    chosen: &Chosen,
    of: &Provenance<'_>,
    batch: &LogitsBatch<'_>,
    run: &Run<LogitsOutput>,
    out: &Path,
) -> Result<()> {
    let input = of.case.log_probs_input(of.config);
    let input = input.ok_or_else(|| Error::missing("logits", "a case that starts from logits"))?;
    let log_probs: Run<LogProbsOutput> = chosen.backend.log_probs_from_logits(&input)?;
    let results = Results::Logits(*batch, &run.output, &log_probs.output);
    write_output(out, of, &results)
}

fn norm(gradient: &[f64]) -> f64 {
    let squares = gradient.iter().map(|value| value * value);
    squares.fold(0.0, |sum: f64, square| sum + square).sqrt()
}
