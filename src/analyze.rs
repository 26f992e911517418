//! Which K? From the rollouts that trainers write to what quantile advantages would do to them.
//!
//! Formats are told apart by their content ([`Format`]). Of each response only group, reward and
//! length are kept; text is skipped over, not copied. Every figure about a method comes from the
//! reference's advantages.

mod auto_k;
mod chunks;
mod collector;
mod files;
mod formats;
mod input;
mod json;
mod methods;
mod options;
pub mod plot;
mod read;
mod recommend;
mod record;
mod report;
mod statistics;
mod tally;
mod warnings;

pub use auto_k::{AutoKReplay, AutoKReplayStep, Regimes};
pub use formats::{Format, Layout};
pub use options::{Columns, DEFAULT_K, EntropyLevel, Options, RewardTerm, RunFacts};
pub use recommend::Recommendation;
pub use report::{
    ByGroup, ByK, ByStep, GroupSize, KBaseline, Report, Rewards, Signs, StepByK, Successes,
};
pub use warnings::Warning;

pub(crate) use formats::hide_caught_panics;
pub(crate) use report::{plural, usual_size};

use crate::config::{AdvantageConfig, Gate, Interpolation};
use crate::error::{Error, Result};
use crate::reference::rank;
use collector::Collector;
use methods::Methods;
use read::Data;
use statistics::Question;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tally::{Counts, Kind, Lengths, StepTally, Sums, Tally, Total};

/// More steps than this are not a column of steps, and would be more than anyone reads.
const MAX_STEPS: usize = 50_000;

/// More figures than this, one for each K at each step, take hundreds of megabytes.
const MAX_STEP_FIGURES: usize = 1_000_000;

/// Is told how far reading is.
pub trait Progress: Sync {
    /// So many bytes will be read; pipes count as none.
    fn begin(&self, _num_bytes: u64) {}
    /// So many more were read.
    fn advance(&self, _num_bytes: u64) {}
    /// All were read.
    fn end(&self) {}
}

/// Nobody is told.
impl Progress for () {}

/// What was found in rollout files.
#[derive(Debug)]
pub struct Analysis {
    /// In figures.
    pub report: Report,
    options: Options,
    collector: Collector,
}

/// Reads files, and the rollout files of folders, and says what quantile advantages with each K
/// would do to them. The path `-` is standard input.
///
/// Uses rayon's current thread pool. Holds sixteen bytes for each response, and some more for each
/// group, and for each K at each step. Results do not depend on the number of threads.
///
/// # Errors
/// [`Error::Invalid`] for options out of range, files without responses, or without the steps and
/// entropies that [`Options::auto_k`] needs, and for what ends like the names of sessions, but names
/// several responses; [`Error::File`], with file and line, for what cannot be read: a broken line
/// (unless [`Options::skip_bad`]), an unknown format, a missing column, files of different formats.
///
/// ```
/// use qae::analyze::{Options, analyze};
///
/// let folder = tempfile::TempDir::new()?;
/// let path = folder.path().join("1.jsonl");
/// let row = |score| format!("{{\"input\":\"2+2?\",\"output\":\"4\",\"score\":{score},\"step\":1}}\n");
/// std::fs::write(&path, [row(1), row(0), row(0), row(0)].concat())?;
/// let analysis = analyze(&[path], &Options::default(), &())?;
/// let k = &analysis.report.by_k[3];
/// assert_eq!((k.k, k.hard_groups, k.signs.positive, k.signs.zero), (0.4, 1, 1, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn analyze(paths: &[PathBuf], options: &Options, progress: &dyn Progress) -> Result<Analysis> {
    options.check()?;
    let mut data = read::read(paths, options, progress)?;
    if data.collector.rows.is_empty() {
        let mut found = format!("none in {} files", data.num_files);
        if data.untrained > 0 {
            found += &format!(" ({} that the trainer left out)", data.untrained);
        }
        if data.broken.count > 0 {
            found += &format!(" ({} broken lines)", data.broken.count);
        }
        return Err(Error::invalid("PATH", "at least one response", found));
    }
    data.collector.finish();
    statistics::sort(&mut data.collector);
    statistics::check_sessions(&data.collector)?;
    let k = options.sorted_k();
    let methods = Methods::of(base(options), &k, options.interpolation);
    let question = Question {
        methods: &methods,
        k_by_step: None,
        success_threshold: options.success_threshold,
        by_step: data.collector.steps.len() <= most_steps(k.len()),
        by_group: options.by_group,
    };
    let counts = statistics::count(&data.collector, question);
    let auto_k = options.auto_k;
    let auto_k = auto_k.map(|config| auto_k::replay(config, &data, options));
    let report = report(&data, counts, &k, auto_k.transpose()?, options);
    Ok(Analysis {
        report,
        options: options.clone(),
        collector: data.collector,
    })
}

impl Analysis {
    /// Figures for other K of the same data, ascending; without those by step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a K outside (0, 1).
    pub fn by_k(&self, k: &[f64]) -> Result<Vec<ByK>> {
        let options = Options {
            k: k.to_vec(),
            ..self.options.clone()
        };
        options.check_k()?;
        let k = options.sorted_k();
        let methods = Methods::of(base(&options), &k, options.interpolation);
        let question = Question {
            methods: &methods,
            k_by_step: None,
            success_threshold: options.success_threshold,
            by_step: false,
            by_group: false,
        };
        let counts = statistics::count(&self.collector, question);
        Ok(by_k(&counts, &k, options.interpolation))
    }
}

/// Steps that have figures of their own.
fn most_steps(num_k: usize) -> usize {
    MAX_STEPS.min(MAX_STEP_FIGURES / num_k)
}

fn base(options: &Options) -> AdvantageConfig {
    AdvantageConfig {
        singleton: options.singleton,
        success_threshold: options.success_threshold,
        gate: Gate::Off,
        ..AdvantageConfig::default()
    }
}

fn report(
    data: &Data,
    mut counts: Counts,
    k: &[f64],
    auto_k: Option<AutoKReplay>,
    options: &Options,
) -> Report {
    // One copy of many steps is enough.
    let steps = std::mem::take(&mut counts.steps);
    let counts = &counts;
    let total = &counts.total.sums;
    let collector = &data.collector;
    let group_sizes = group_sizes(&counts.groups);
    let by_step = by_step(collector, steps, k);
    let mut report = Report {
        format: data.format.name(),
        columns: data.layout.clone(),
        files: data.num_files,
        bytes: data.num_bytes,
        responses: total.responses,
        groups: total.groups,
        steps: collector.steps.len(),
        broken_lines: data.broken.count,
        untrained_responses: data.untrained,
        rewards: rewards(counts, total, options.success_threshold),
        total_length: total.lengths.responses,
        zero_variance_groups: total.zero_variance_groups,
        success_histogram: success_histogram(&counts.groups),
        success_threshold: options.success_threshold,
        mean_baseline: signs(&counts.total.methods[Methods::MEAN], total.lengths),
        by_k: by_k(counts, k, options.interpolation),
        recommendation: recommend::recommend(options.run, &entropies(collector), &group_sizes),
        group_sizes,
        by_step,
        steps_left_out: if collector.steps.len() > most_steps(k.len()) {
            collector.steps.len()
        } else {
            0
        },
        by_group: options.by_group.then(|| by_group(collector, counts, k)),
        auto_k,
        warnings: vec![],
    };
    report.warnings = warnings::warnings(data, counts, &report, options.interpolation);
    report
}

/// Of the steps that have one, in order.
fn entropies(collector: &Collector) -> Vec<f64> {
    let order = collector.steps_in_order().into_iter();
    let mean = |index: usize| collector.entropies[index].mean();
    order.filter_map(mean).collect()
}

fn group_sizes(groups: &BTreeMap<Kind, u64>) -> Vec<GroupSize> {
    let mut sizes: Vec<GroupSize> = vec![];
    for (kind, &groups) in groups {
        let size = kind.size.into();
        match sizes.last_mut() {
            Some(last) if last.size == size => last.groups += groups,
            _ => sizes.push(GroupSize { size, groups }),
        }
    }
    sizes
}

fn success_histogram(groups: &BTreeMap<Kind, u64>) -> Vec<Successes> {
    let mut counts = BTreeMap::new();
    for (kind, groups) in groups {
        *counts.entry((kind.finite, kind.successes)).or_insert(0) += groups;
    }
    let entries = counts.into_iter();
    let successes = entries.map(|((size, successes), groups)| Successes {
        size: size.into(),
        successes: successes.into(),
        groups,
    });
    successes.collect()
}

fn rewards(counts: &Counts, total: &Sums, success_threshold: f64) -> Rewards {
    let is_success = |reward: &&f32| **reward > success_threshold as f32;
    let num_successes = counts.rewards.iter().filter(is_success).count();
    Rewards {
        binary: counts.rewards.len() - num_successes <= 1 && num_successes <= 1,
        min: counts.smallest_reward,
        max: counts.largest_reward,
        mean: ratio(total.reward, total.finite_responses),
        success_share: ratio(total.successes as f64, total.finite_responses),
        nonfinite: total.responses - total.finite_responses,
    }
}

fn by_k(counts: &Counts, k: &[f64], interpolation: Interpolation) -> Vec<ByK> {
    let Total {
        sums: total,
        methods,
    } = &counts.total;
    let one = |(i, &level): (usize, &f64)| {
        let tally = &methods[Methods::plain(i)];
        ByK {
            k: level,
            interpolation: match interpolation {
                Interpolation::InvertedCdf => "inverted_cdf",
                Interpolation::Linear => "linear",
            },
            hard_groups: tally.hard,
            easy_groups: tally.easy,
            hard_share: share(tally.hard, total.groups),
            easy_share: share(tally.easy, total.groups),
            signs: signs(tally, total.lengths),
            flips_from_previous: (i > 0).then_some(tally.flips),
            same_method_as: same_methods(counts, k, level, interpolation),
            both_signs_groups: tally.both_signs,
            linear_both_signs_groups: methods[Methods::linear(i)].both_signs,
            two_regime: signs(&methods[Methods::gated(i)], total.lengths),
        }
    };
    k.iter().enumerate().map(one).collect()
}

/// The other K that are the same method in every group.
fn same_methods(counts: &Counts, k: &[f64], level: f64, interpolation: Interpolation) -> Vec<f64> {
    let sizes = finite_sizes(&counts.groups);
    let is_same =
        |other: &&f64| **other != level && is_same_method(**other, level, &sizes, interpolation);
    k.iter().filter(is_same).copied().collect()
}

/// Responses with a finite reward in the groups where there is anything to compare.
fn finite_sizes(groups: &BTreeMap<Kind, u64>) -> BTreeSet<usize> {
    let sizes = groups.keys().map(|kind| kind.finite as usize);
    sizes.filter(|&size| size > 1).collect()
}

/// Whether two K have the same rank in all groups of these sizes. In linear interpolation K itself
/// counts.
fn is_same_method(a: f64, b: f64, sizes: &BTreeSet<usize>, interpolation: Interpolation) -> bool {
    match interpolation {
        Interpolation::InvertedCdf => sizes.iter().all(|&size| rank(a, size) == rank(b, size)),
        Interpolation::Linear => a == b,
    }
}

fn by_step(collector: &Collector, steps: BTreeMap<u32, StepTally>, k: &[f64]) -> Vec<ByStep> {
    let step = |(index, tally): (u32, StepTally)| {
        let sums = &tally.sums;
        ByStep {
            step: collector.steps[index as usize],
            responses: sums.responses,
            groups: sums.groups,
            mean_reward: ratio(sums.reward, sums.finite_responses),
            success_share: ratio(sums.successes as f64, sums.finite_responses),
            zero_variance_share: share(sums.zero_variance_groups, sums.groups),
            entropy: collector.entropies[index as usize].mean(),
            group_sizes: group_sizes(&tally.groups),
            success_histogram: success_histogram(&tally.groups),
            by_k: (k.iter().zip(&tally.by_k).enumerate())
                .map(|(i, (&k, tally))| step_by_k(k, i > 0, tally, sums))
                .collect(),
        }
    };
    let mut steps: Vec<_> = steps.into_iter().map(step).collect();
    steps.sort_by_key(|step| step.step);
    steps
}

fn step_by_k(k: f64, has_previous: bool, tally: &Tally, sums: &Sums) -> StepByK {
    StepByK {
        k,
        hard_groups: tally.hard,
        easy_groups: tally.easy,
        signs: signs(tally, sums.lengths),
        flips_from_previous: has_previous.then_some(tally.flips),
    }
}

fn by_group(collector: &Collector, counts: &Counts, k: &[f64]) -> Vec<ByGroup> {
    let groups = counts.summaries.iter().zip(&collector.labels);
    let groups = groups.map(|(group, label)| ByGroup {
        group: label.to_string(),
        step: collector.steps[group.step as usize],
        n: group.size,
        mean: group.mean.is_finite().then_some(group.mean),
        std_unbiased: group.std,
        successes: group.successes,
        baselines: (k.iter().zip(&group.baselines))
            .map(|(&k, &baseline)| KBaseline { k, baseline })
            .collect(),
    });
    groups.collect()
}

fn signs(tally: &Tally, lengths: Lengths) -> Signs {
    let active = tally.positive + tally.negative;
    let responses = active + tally.zero;
    Signs {
        positive: tally.positive,
        zero: tally.zero,
        negative: tally.negative,
        positive_share: share(tally.positive, responses),
        zero_share: share(tally.zero, responses),
        negative_share: share(tally.negative, responses),
        tokens_saved_share: share(tally.zero_length, lengths.responses),
        update_saved_share: share(tally.zero_total_length, lengths.responses + lengths.prompts),
        mean_abs_advantage: ratio(tally.abs_advantage, responses).unwrap_or(0.0),
        mean_abs_advantage_active: ratio(tally.abs_advantage, active),
    }
}

fn ratio(part: f64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part / whole as f64)
}

fn share(part: u64, whole: u64) -> f64 {
    ratio(part as f64, whole).unwrap_or(0.0)
}
