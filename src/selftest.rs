//! Built-in cases of every operation, layout and kernel variant, for comparing what runs on the
//! machine at hand with [`crate::reference`]. Public only so that tests can run the same cases on
//! other backends; not part of the library's interface.

mod batch;
mod cases;
mod compare;
mod random;

pub use cases::cases;

use crate::backend::{Backend, LossOutput};
use crate::batch::{DType, TokenBatch};
use crate::config::{AdvantageConfig, Config};
use crate::cpu::{self, CpuBackend};
use crate::error::Result;
use crate::groups::Groups;
use crate::reference::{self, AdvantageOutput};
use batch::OwnedBatch;
use compare::Comparison;
use std::fmt::{Display, Formatter};

/// Of results that were computed in float32 (unit roundoff 6e-8, a handful of operations each),
/// relative to the largest value of a tensor.
pub const F32_TOLERANCE: f64 = 2e-6;

/// What the cases can be run on.
pub trait Subject {
    /// What runs, for a report.
    fn name(&self) -> String;

    /// What its results may differ by, relative to the largest value of a tensor; 0: nothing.
    fn tolerance(&self) -> f64;

    /// Baselines and advantages, and the responses whose advantage is not 0.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)>;

    /// Loss and gradient; the latter in the dtype of the log-probs where `narrow_gradient` says so
    /// and the subject can do it.
    ///
    /// # Errors
    /// Whatever keeps it from running.
    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        narrow_gradient: bool,
    ) -> Result<LossOutput>;
}

impl Subject for CpuBackend {
    fn name(&self) -> String {
        Backend::name(self)
    }

    fn tolerance(&self) -> f64 {
        0.0
    }

    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        let output = cpu::advantages(rewards, groups, config)?;
        let active = non_zero(&output.advantage);
        Ok((output, active))
    }

    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        _narrow_gradient: bool,
    ) -> Result<LossOutput> {
        cpu::loss_from_log_probs(batch, config)
    }
}

#[cfg(feature = "cuda")]
impl Subject for std::cell::RefCell<crate::cuda::CudaBackend> {
    fn name(&self) -> String {
        self.borrow().name()
    }

    fn tolerance(&self) -> f64 {
        F32_TOLERANCE
    }

    fn advantages(
        &self,
        rewards: &[f32],
        groups: &Groups,
        config: &AdvantageConfig,
    ) -> Result<(AdvantageOutput, Vec<u32>)> {
        self.borrow().advantages(rewards, groups, config)
    }

    fn loss_from_log_probs(
        &self,
        batch: &TokenBatch<'_>,
        config: &Config,
        narrow_gradient: bool,
    ) -> Result<LossOutput> {
        self.borrow_mut().narrow_gradient = narrow_gradient;
        let run = self.borrow().loss_from_log_probs(batch, config)?;
        Ok(run.output)
    }
}

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
            } => {
                let expected = reference::advantages(rewards, groups, config)?;
                match subject.advantages(rewards, groups, config) {
                    Err(error) => Comparison::failed(&error),
                    Ok((found, active)) => {
                        let mut comparison = Comparison::new(subject.tolerance());
                        comparison.advantages(&found, &expected);
                        comparison.equal("active", &active, &non_zero(&expected.advantage));
                        comparison
                    }
                }
            }
            Call::Loss {
                batch,
                config,
                narrow_gradient,
            } => {
                let batch = batch.borrow();
                let expected = reference::loss_from_log_probs(&batch, config)?;
                match subject.loss_from_log_probs(&batch, config, *narrow_gradient) {
                    Err(error) => Comparison::failed(&error),
                    Ok(found) => {
                        let gradient = narrow_gradient.then(|| batch.log_prob.dtype());
                        let mut comparison = Comparison::new(subject.tolerance());
                        comparison.loss(&batch, &found, &expected, gradient.map(unit_roundoff));
                        comparison
                    }
                }
            }
        };
        Ok(comparison.into_outcome(&self.name))
    }
}

/// The largest relative error of rounding to a dtype.
fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
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
