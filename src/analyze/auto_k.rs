//! Automatic K over the entropies of a dump: which K it would have set at each step, and what these
//! do to the responses.

use super::collector::Collector;
use super::methods::Methods;
use super::options::Options;
use super::read::Data;
use super::report::Signs;
use super::statistics::{self, Question};
use super::tally::{Counts, Lengths, StepTally, Tally};
use super::{MAX_STEPS, base, finite_sizes, is_same_method, signs};
use crate::auto_k::{AutoK, AutoKConfig, AutoKStep, KBound};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// Automatic K, replayed over the entropies of the steps, ascending.
///
/// The policy was trained with another K, so that its entropy does not answer: this is which K the
/// controller would have set, not where the entropy would have gone. As [`ByK::signs`], figures are
/// those without a gate.
///
/// [`ByK::signs`]: super::ByK::signs
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AutoKReplay {
    /// What the controller was made with.
    pub config: AutoKConfig,
    /// Steps without an entropy, at which K stays what it was.
    pub steps_without_entropy: u64,
    /// Steps whose K is held at `min_k`.
    pub held_at_min: u64,
    /// Steps whose K is held at `max_k`.
    pub held_at_max: u64,
    /// Smallest K of a step.
    pub smallest_k: f64,
    /// Largest K of a step.
    pub largest_k: f64,
    /// K of the last step.
    pub last_k: f64,
    /// Steps at which [`AutoKReplayStep::method_changed`].
    pub method_changes: u64,
    /// Over all steps, each with its K.
    pub automatic: Regimes,
    /// Over all steps with `initial_k`, to compare with.
    pub fixed: Regimes,
    /// Groups that are hard with one of the two and easy with the other.
    pub flips_from_fixed: u64,
    /// One for each step, ascending; none where there are
    /// [too many](super::Report::steps_left_out), all of which the totals have.
    pub by_step: Vec<AutoKReplayStep>,
}

/// A step of the replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AutoKReplayStep {
    /// Its number.
    pub step: i64,
    /// Responses.
    pub responses: u64,
    /// Groups.
    pub groups: u64,
    /// What the controller did before the advantages; `None` without an entropy.
    pub controller: Option<AutoKStep>,
    /// The level of the step's advantages.
    pub k: f64,
    /// Whether K and the one before it (at first `initial_k`) are different methods for the group
    /// sizes of the data: another ⌈K·G⌉ for one of them; with linear interpolation any other K.
    pub method_changed: bool,
    /// With K.
    pub automatic: Regimes,
    /// With `initial_k`.
    pub fixed: Regimes,
    /// Groups that are hard with one of the two and easy with the other.
    pub flips_from_fixed: u64,
}

/// What quantile advantages do to some groups.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Regimes {
    /// Groups where failures reach up to the quantile: successes act.
    pub hard_groups: u64,
    /// The other groups: failures act.
    pub easy_groups: u64,
    /// What happens to the responses.
    #[serde(flatten)]
    pub signs: Signs,
}

/// In the order of [`Methods::only`].
const AUTOMATIC: usize = 0;
const FIXED: usize = 1;

/// # Errors
/// [`Error::Invalid`] for responses without a step, for no entropy at all, and, with its step, for
/// one that the controller refuses.
pub(super) fn replay(config: AutoKConfig, data: &Data, options: &Options) -> Result<AutoKReplay> {
    let collector = &data.collector;
    check_steps(data)?;
    let course = course(config, data)?;
    let mut k_by_step = vec![config.initial_k; collector.steps.len()];
    for point in &course {
        k_by_step[point.index] = point.k;
    }
    let levels = [config.initial_k; 2];
    let counts = statistics::count(
        collector,
        Question {
            methods: &Methods::only(base(options), &levels, options.interpolation),
            k_by_step: Some(&k_by_step),
            success_threshold: options.success_threshold,
            by_step: true,
            by_group: false,
        },
    );
    Ok(report(config, &course, counts, options))
}

/// A step, and the K that it gets.
struct Point {
    /// Among the steps of the collector.
    index: usize,
    step: i64,
    controller: Option<AutoKStep>,
    previous_k: f64,
    k: f64,
}

fn course(config: AutoKConfig, data: &Data) -> Result<Vec<Point>> {
    let Collector {
        steps, entropies, ..
    } = &data.collector;
    let mut auto_k = AutoK::new(config)?;
    let mut course = vec![];
    for index in data.collector.steps_in_order() {
        let step = steps[index].unwrap_or_default();
        let previous_k = auto_k.k();
        let controller = match entropies[index].mean() {
            Some(entropy) => Some(auto_k.step(entropy).map_err(|error| at_step(error, step))?),
            None => None,
        };
        course.push(Point {
            index,
            step,
            controller,
            previous_k,
            k: auto_k.k(),
        });
    }
    if auto_k.steps() == 0 {
        let found = match &data.layout.entropy {
            Some(name) => format!("no finite one in {name}"),
            None if data.format.has_columns() => {
                "none in the files (--entropy COLUMN names the column)".to_string()
            }
            None => "none in the files, nor log-probs to estimate it from".to_string(),
        };
        return Err(Error::invalid("auto_k", "an entropy at each step", found));
    }
    Ok(course)
}

fn check_steps(data: &Data) -> Result<()> {
    let found = match &data.collector.steps[..] {
        [None] => "none in the files",
        steps if steps.contains(&None) => "some without one",
        _ => return Ok(()),
    };
    let hint = if data.format.has_columns() {
        "--step COLUMN names the column"
    } else {
        "names of files and folders may have it, as in step_7"
    };
    let found = format!("{found} ({hint})");
    Err(Error::invalid(
        "auto_k",
        "the training step of each response",
        found,
    ))
}

/// The controller knows its own steps only.
fn at_step(error: Error, step: i64) -> Error {
    match error {
        Error::Invalid {
            expected, found, ..
        } => Error::invalid(format!("entropy of step {step}"), expected, found),
        error => error,
    }
}

fn report(config: AutoKConfig, course: &[Point], counts: Counts, options: &Options) -> AutoKReplay {
    let Counts {
        total,
        mut steps,
        groups,
        ..
    } = counts;
    let sizes = finite_sizes(&groups);
    let changes =
        |point: &Point| !is_same_method(point.previous_k, point.k, &sizes, options.interpolation);
    let held = |bound| {
        let moves = course.iter().filter_map(|point| point.controller);
        moves.filter(|step| step.held_at == Some(bound)).count() as u64
    };
    let k = || course.iter().map(|point| point.k);
    AutoKReplay {
        config,
        steps_without_entropy: course.iter().filter(|p| p.controller.is_none()).count() as u64,
        held_at_min: held(KBound::Min),
        held_at_max: held(KBound::Max),
        smallest_k: k().fold(f64::INFINITY, f64::min),
        largest_k: k().fold(f64::NEG_INFINITY, f64::max),
        last_k: k().next_back().unwrap_or(config.initial_k),
        method_changes: course.iter().filter(|point| changes(point)).count() as u64,
        automatic: regimes(&total.methods[AUTOMATIC], total.sums.lengths),
        fixed: regimes(&total.methods[FIXED], total.sums.lengths),
        flips_from_fixed: total.methods[FIXED].flips,
        by_step: if course.len() > MAX_STEPS {
            vec![]
        } else {
            let step = |point| replay_step(point, changes(point), &mut steps);
            course.iter().map(step).collect()
        },
    }
}

fn replay_step(
    point: &Point,
    method_changed: bool,
    steps: &mut BTreeMap<u32, StepTally>,
) -> AutoKReplayStep {
    // All groups of a step may have begun at another one.
    let tally = steps.remove(&(point.index as u32)).unwrap_or_default();
    let at = |method: usize| tally.by_k.get(method).copied().unwrap_or_default();
    AutoKReplayStep {
        step: point.step,
        responses: tally.sums.responses,
        groups: tally.sums.groups,
        controller: point.controller,
        k: point.k,
        method_changed,
        automatic: regimes(&at(AUTOMATIC), tally.sums.lengths),
        fixed: regimes(&at(FIXED), tally.sums.lengths),
        flips_from_fixed: at(FIXED).flips,
    }
}

fn regimes(tally: &Tally, lengths: Lengths) -> Regimes {
    Regimes {
        hard_groups: tally.hard,
        easy_groups: tally.easy,
        signs: signs(tally, lengths),
    }
}
