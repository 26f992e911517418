//! Built-in cases of every operation, layout and kernel variant, for comparing what runs on the
//! machine at hand with [`crate::reference`]. Public only so that tests can run the same cases on
//! other backends; not part of the library's interface.

mod batch;
mod cases;
mod compare;
mod logits;
mod random;
mod subject;
mod tensor;

pub use crate::params::RowPolicy;
pub use cases::cases;
pub use subject::{LogProbsCall, Placement, Subject};

use crate::batch::{DType, Factor, GradientRows, Tensor};
use crate::config::{AdvantageConfig, Config};
use crate::error::Result;
use crate::groups::Groups;
use crate::reference;
use batch::OwnedBatch;
use compare::Comparison;
use logits::{OwnedLogitsBatch, OwnedRows};
use std::fmt::{Display, Formatter};
use tensor::OwnedTensor;

/// Of results that were computed in float32 (unit roundoff 6e-8, a handful of operations each),
/// relative to the largest value of a tensor.
pub const F32_TOLERANCE: f64 = 2e-6;

/// How many times that the results from logits may be off: a log-prob is a sum over thousands of
/// exponentials, and what follows from it carries its error.
const LOGITS_FACTOR: f64 = 5.0;

/// One call with its arguments.
#[derive(Debug)]
pub struct Case {
    name: String,
    call: Call,
}

#[derive(Debug)]
enum Call {
    Advantages {
        rewards: Vec<f32>,
        groups: Groups,
        config: AdvantageConfig,
    },
    Loss {
        batch: Box<OwnedBatch>,
        config: Config,
        narrow_gradient: bool,
    },
    LogProbs {
        rows: Box<OwnedRows>,
        shards: Option<Vec<usize>>,
        placement: Placement,
    },
    LossFromLogits {
        batch: Box<OwnedLogitsBatch>,
        config: Config,
        placement: Placement,
    },
    Scale {
        gradient: GradientRows<OwnedTensor>,
        factor: f64,
        row_gradient: Option<Vec<f32>>,
        placement: Placement,
    },
}

/// How a case went: the tensor or number that is closest to its tolerance, or beyond it.
#[derive(Debug)]
pub struct Outcome {
    /// The case.
    pub case: String,
    /// Which tensor or number.
    pub field: String,
    /// Its error relative to its largest value.
    pub error: f64,
    /// What the error may be.
    pub tolerance: f64,
    /// Whether it is at most that, and everything counted is equal.
    pub is_ok: bool,
}

impl Case {
    /// What is special about it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs it on `subject` and on the reference. A call that fails is a mismatch.
    ///
    /// # Errors
    /// Those of the reference, which accepts every built-in case.
    pub fn run(&self, subject: &dyn Subject) -> Result<Outcome> {
        let comparison = match &self.call {
            Call::Advantages {
                rewards,
                groups,
                config,
            } => run_advantages(subject, rewards, groups, config),
            Call::Loss {
                batch,
                config,
                narrow_gradient,
            } => run_loss(subject, batch, config, *narrow_gradient),
            Call::LogProbs {
                rows,
                shards,
                placement,
            } => run_log_probs(subject, rows, shards.as_deref(), placement),
            Call::LossFromLogits {
                batch,
                config,
                placement,
            } => run_loss_from_logits(subject, batch, config, placement),
            Call::Scale {
                gradient,
                factor,
                row_gradient,
                placement,
            } => {
                let factor = Factor {
                    value: *factor,
                    row_gradient: row_gradient.as_deref().map(Tensor::F32),
                };
                run_scale(subject, gradient, &factor, placement)
            }
        };
        Ok(comparison?.into_outcome(&self.name))
    }
}

fn run_advantages(
    subject: &dyn Subject,
    rewards: &[f32],
    groups: &Groups,
    config: &AdvantageConfig,
) -> Result<Comparison> {
    let expected = reference::advantages(rewards, groups, config)?;
    let mut comparison = Comparison::new(subject.tolerance());
    match subject.advantages(rewards, groups, config) {
        Err(error) => comparison.failed(&error),
        Ok((found, active)) => {
            comparison.advantages(&found, &expected);
            comparison.equal("active", &active, &non_zero(&expected.advantage));
        }
    }
    Ok(comparison)
}

fn run_loss(
    subject: &dyn Subject,
    batch: &OwnedBatch,
    config: &Config,
    narrow_gradient: bool,
) -> Result<Comparison> {
    let batch = batch.borrow();
    let expected = reference::loss_from_log_probs(&batch, config)?;
    let mut comparison = Comparison::new(subject.tolerance());
    match subject.loss_from_log_probs(&batch, config, narrow_gradient) {
        Err(error) => comparison.failed(&error),
        Ok(found) => {
            let gradient = narrow_gradient.then(|| batch.log_prob.dtype());
            let log_prob = |slot| batch.log_prob.get(slot);
            comparison.loss(log_prob, &found, &expected, gradient.map(unit_roundoff));
        }
    }
    Ok(comparison)
}

fn run_log_probs(
    subject: &dyn Subject,
    rows: &OwnedRows,
    shards: Option<&[usize]>,
    placement: &Placement,
) -> Result<Comparison> {
    let call = LogProbsCall {
        input: rows.borrow(),
        d_log_prob: &rows.d_log_prob,
        d_entropy: rows.d_entropy.as_deref(),
        shards,
    };
    let LogProbsCall {
        input,
        d_log_prob,
        d_entropy,
        ..
    } = call;
    let expected = reference::log_probs_from_logits(&input)?;
    let d_logits = reference::log_probs_from_logits_backward(&input, d_log_prob, d_entropy)?;
    let mut comparison = Comparison::new(LOGITS_FACTOR * subject.tolerance());
    match subject.log_probs_from_logits(&call, placement) {
        Err(error) => comparison.failed(&error),
        Ok((found, gradient)) => {
            comparison.log_probs(&found, &expected);
            let rounding = unit_roundoff(input.logits.values.dtype());
            let finite = d_log_prob.iter().filter(|g| g.is_finite());
            let largest = finite.fold(0.0, |max: f32, g| max.max(g.abs()));
            comparison.d_logits(&gradient, &d_logits, largest.into(), rounding);
        }
    }
    Ok(comparison)
}

fn run_loss_from_logits(
    subject: &dyn Subject,
    batch: &OwnedLogitsBatch,
    config: &Config,
    placement: &Placement,
) -> Result<Comparison> {
    let batch = batch.borrow();
    let expected = reference::loss_from_logits(&batch, config)?;
    let mut comparison = Comparison::new(LOGITS_FACTOR * subject.tolerance());
    match subject.loss_from_logits(&batch, config, placement) {
        Err(error) => comparison.failed(&error),
        Ok(found) => {
            let old = batch.old_log_prob.filter(|_| placement.narrow_gradient);
            let narrow = old.map(|old| unit_roundoff(old.dtype()));
            let rounding = unit_roundoff(batch.logits.values.dtype());
            comparison.loss_from_logits(&found, &expected, narrow, rounding);
        }
    }
    Ok(comparison)
}

fn run_scale(
    subject: &dyn Subject,
    gradient: &GradientRows<OwnedTensor>,
    factor: &Factor<'_>,
    placement: &Placement,
) -> Result<Comparison> {
    let gradient = GradientRows::contiguous(
        gradient.values.borrow(),
        gradient.num_rows,
        gradient.num_columns,
    );
    let expected = reference::scale_gradient(&gradient, factor)?;
    let mut comparison = Comparison::new(subject.tolerance());
    match subject.scale_gradient(&gradient, factor, placement) {
        Err(error) => comparison.failed(&error),
        Ok(found) => {
            let dtype = placement.scaled_dtype(gradient.values.dtype());
            comparison.scaled(&found, &expected, unit_roundoff(dtype));
        }
    }
    Ok(comparison)
}

/// The largest relative error of rounding to a dtype.
fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2.0_f64.powi(-53),
        DType::F32 => 2.0_f64.powi(-24),
        DType::F16 => 2.0_f64.powi(-11),
        DType::Bf16 => 2.0_f64.powi(-8),
    }
}

fn non_zero(advantages: &[f64]) -> Vec<u32> {
    let all = advantages.iter().enumerate();
    all.filter(|(_, advantage)| **advantage != 0.0)
        .map(|(response, _)| response as u32)
        .collect()
}

/// How all cases went.
#[derive(Debug)]
pub struct Report {
    /// What ran them.
    pub subject: String,
    /// One for each case, in order.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// How many cases are beyond their tolerance.
    pub fn num_mismatches(&self) -> usize {
        self.outcomes
            .iter()
            .filter(|outcome| !outcome.is_ok)
            .count()
    }
}

/// Runs all cases on `subject`.
///
/// # Errors
/// Those of the reference, which accepts every built-in case.
pub fn run(subject: &dyn Subject) -> Result<Report> {
    let outcomes = cases().into_iter().map(|case| case.run(subject));
    Ok(Report {
        subject: subject.name(),
        outcomes: outcomes.collect::<Result<_>>()?,
    })
}

impl Display for Report {
    /// A table, and a line that sums it up.
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let width = |text: fn(&Outcome) -> &str| {
            let lengths = self.outcomes.iter().map(|outcome| text(outcome).len());
            lengths.max().unwrap_or(0)
        };
        let case = width(|outcome| &outcome.case);
        let field = width(|outcome| &outcome.field);
        let header = ("case", "worst in", "error", "tolerance");
        writeln!(
            f,
            "{:case$}  {:field$}  {:>9}  {:>9}  ok",
            header.0, header.1, header.2, header.3
        )?;
        for outcome in &self.outcomes {
            let verdict = if outcome.is_ok { "ok" } else { "MISMATCH" };
            writeln!(
                f,
                "{:case$}  {:field$}  {:>9.1e}  {:>9.1e}  {verdict}",
                outcome.case, outcome.field, outcome.error, outcome.tolerance
            )?;
        }
        let (total, mismatches) = (self.outcomes.len(), self.num_mismatches());
        let name = &self.subject;
        writeln!(f, "{name}: {total} cases, {mismatches} mismatches")
    }
}
