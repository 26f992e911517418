//! What may be wrong with the data, or surprise whoever trains on it.

use super::collector::EntropySum;
use super::formats::Format;
use super::read::Data;
use super::report::{Report, plural, usual_size};
use super::tally::Counts;
use crate::config::Interpolation;
use serde::Serialize;

/// Something to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// `warning`: the data may be wrong or train nothing; `note`: how it was read.
    pub level: &'static str,
    /// Which of the warnings this is.
    pub kind: &'static str,
    /// Of what the message counts.
    pub count: u64,
    /// In words.
    pub message: String,
}

/// The kinds that are no reason to worry.
const NOTES: [&str; 6] = [
    "continuous_rewards",
    "files_not_read",
    "length_in_bytes",
    "named_twice",
    "no_length",
    "untrained_responses",
];

struct Warnings(Vec<Warning>);

impl Warnings {
    /// Adds a warning if there is anything to warn of.
    fn add(&mut self, kind: &'static str, count: u64, message: impl FnOnce() -> String) {
        if count > 0 {
            self.0.push(Warning {
                level: if NOTES.contains(&kind) {
                    "note"
                } else {
                    "warning"
                },
                kind,
                count,
                message: message(),
            });
        }
    }
}

/// All warnings, those about reading first.
pub(super) fn warnings(
    data: &Data,
    counts: &Counts,
    report: &Report,
    interpolation: Interpolation,
) -> Vec<Warning> {
    let mut warnings = Warnings(vec![]);
    about_files(data, &mut warnings);
    about_columns(data, &mut warnings);
    about_groups(data, counts, report, &mut warnings);
    about_rewards(report, &mut warnings);
    about_entropies(data, &mut warnings);
    about_auto_k(report, &mut warnings);
    about_linear(report, interpolation, &mut warnings);
    warnings.0
}

fn about_files(data: &Data, warnings: &mut Warnings) {
    let broken = &data.broken;
    warnings.add("broken_lines", broken.count, || {
        let shown = broken.shown.join("; ");
        let more = if broken.count > broken.shown.len() as u64 {
            "; …"
        } else {
            ""
        };
        format!(
            "{} left out: {shown}{more}",
            plural(broken.count, "broken line")
        )
    });
    let empty = data.num_empty_files as u64;
    warnings.add("empty_files", empty, || plural(empty, "empty file"));
    let twice = data.files.named_twice as u64;
    warnings.add("named_twice", twice, || {
        format!("{} named more than once, read once", plural(twice, "file"))
    });
    for &(count, what) in &data.files.not_read {
        let count = count as u64;
        warnings.add("files_not_read", count, || {
            format!("{} not read {what}", plural(count, "file"))
        });
    }
    warnings.add("untrained_responses", data.untrained, || {
        let responses = plural(data.untrained, "response");
        format!("{responses} not counted, since the trainer left them out (failed, filtered, not the policy's)")
    });
}

fn about_columns(data: &Data, warnings: &mut Warnings) {
    let summed = &data.assumed_sum;
    warnings.add("summed_rewards", summed.len() as u64, || {
        let (names, first) = (summed.join(", "), &summed[0]);
        format!(
            "{} columns of rewards added up, each with weight 1: {names}. The files have no weights, and columns that \
             were only logged look the same (--reward {first},{}=0.5 takes others)",
            summed.len(),
            summed[1],
        )
    });
    let is_in_bytes =
        (data.layout.length.as_deref()).is_some_and(|name| is_text(data.format, name));
    warnings.add("length_in_bytes", u64::from(is_in_bytes), || {
        let name = data.layout.length.as_deref().unwrap_or_default();
        format!("the files have no token counts: bytes of `{name}` stand for tokens")
    });
    let has_none = u64::from(data.layout.length.is_none());
    warnings.add("no_length", has_none, || {
        "the files have no lengths: every response counts as one token (--length COLUMN)"
            .to_string()
    });
}

fn is_text(format: Format, name: &str) -> bool {
    (format.has_columns() && matches!(name, "output" | "completion" | "response"))
        || name.ends_with("(bytes)")
}

fn about_groups(data: &Data, counts: &Counts, report: &Report, warnings: &mut Warnings) {
    let sizes = report.group_sizes.iter();
    let singletons = sizes
        .filter(|size| size.size == 1)
        .map(|size| size.groups)
        .sum();
    warnings.add("singleton_groups", singletons, || {
        format!(
            "{} of one response: its advantage is its reward, there is nothing to compare it \
             with (is {} what names a group?)",
            plural(singletons, "group"),
            report.columns.grouped_by,
        )
    });
    let split = counts.split_over_files;
    warnings.add("split_groups", split, || {
        format!(
            "{} over several files, put together here",
            plural(split, "group")
        )
    });
    let split = counts.split_over_steps;
    warnings.add("groups_over_steps", split, || {
        let groups = plural(split, "group");
        format!("{groups} over several steps, counted at the step of the first response")
    });
    let usual = usual_size(&report.group_sizes).map_or(1, |size| size.size);
    let sizes = report.group_sizes.iter();
    let multiples = sizes.filter(|size| usual > 1 && size.size > usual && size.size % usual == 0);
    let merged = multiples.map(|size| size.groups).sum();
    warnings.add("merged_groups", merged, || {
        format!(
            "{} with a multiple of {usual} responses: a prompt that was drawn twice in a step \
             looks like one group (--group-size {usual} where groups are neighbors)",
            plural(merged, "group"),
        )
    });
    about_duplicates(data, counts, report, warnings);
    let equal = report.zero_variance_groups;
    warnings.add("zero_variance_groups", equal, || {
        format!(
            "{} ({}) with all rewards equal: no K makes them train",
            plural(equal, "group"),
            percent(equal, report.groups),
        )
    });
}

fn about_duplicates(data: &Data, counts: &Counts, report: &Report, warnings: &mut Warnings) {
    let has_names = matches!(data.format, Format::PrimeRlEpisodes | Format::PrimeRlTraces)
        || data.collector.groups.iter().any(|group| group.has_sessions);
    warnings.add("duplicated_rows", counts.duplicates, || {
        let (rows, share) = (
            plural(counts.duplicates, "row"),
            percent(counts.duplicates, report.responses),
        );
        if has_names {
            format!("{rows} ({share}) repeat the name of an earlier one: written twice")
        } else {
            format!(
                "{rows} ({share}) equal to an earlier one of the group, text, reward and length: \
                 either the policy is that sure, or rows were written twice"
            )
        }
    });
    let repeated = counts
        .fingerprints
        .windows(2)
        .filter(|pair| pair[0] == pair[1]);
    let repeated = repeated.count() as u64;
    warnings.add("repeated_groups", repeated, || {
        let groups = plural(repeated, "group");
        let why = match data.format {
            Format::Trl => ": TRL writes a generation again at each log until the next one",
            _ => ": the same rollouts were written more than once",
        };
        format!("{groups} with the responses of another group{why}")
    });
}

fn about_rewards(report: &Report, warnings: &mut Warnings) {
    let nonfinite = report.rewards.nonfinite;
    warnings.add("nonfinite_rewards", nonfinite, || {
        format!(
            "{} without a finite reward: left out of their groups' statistics, advantage 0",
            plural(nonfinite, "response"),
        )
    });
    let is_continuous = !report.rewards.binary && report.rewards.min != report.rewards.max;
    warnings.add("continuous_rewards", u64::from(is_continuous), || {
        "rewards are not binary: without the two-regime gate both signs act in a group".to_string()
    });
    let left_out = report.steps_left_out as u64;
    warnings.add("steps_left_out", left_out, || {
        format!(
            "{} without figures of their own, too many for {} K: is that column the step?",
            plural(left_out, "step"),
            report.by_k.len(),
        )
    });
}

fn about_entropies(data: &Data, warnings: &mut Warnings) {
    let entropies = data.collector.entropies.iter();
    let missing = entropies.map(EntropySum::num_left_out).sum();
    warnings.add("missing_entropies", missing, || {
        let responses = plural(missing, "response");
        format!("{responses} without a finite entropy, left out of the mean of their steps")
    });
    let negative = data.collector.negative_entropies;
    warnings.add("negative_entropies", negative, || {
        let responses = plural(negative, "response");
        format!("{responses} with an entropy below 0, which no policy over tokens has")
    });
}

/// Steps that are named; JSON has all.
const MAX_NAMED_STEPS: usize = 8;

fn about_auto_k(report: &Report, warnings: &mut Warnings) {
    let Some(replay) = &report.auto_k else {
        return;
    };
    let without = replay.steps_without_entropy;
    warnings.add("steps_without_entropy", without, || {
        let steps = replay.by_step.iter();
        let steps = steps.filter(|step| step.controller.is_none());
        let mut named: Vec<_> = steps.map(|step| step.step.to_string()).collect();
        if named.len() > MAX_NAMED_STEPS {
            named.truncate(MAX_NAMED_STEPS);
            named.push("…".to_string());
        }
        let colon = if named.is_empty() { "" } else { ": " };
        format!(
            "{} without an entropy keep the K before them{colon}{}",
            plural(without, "step"),
            named.join(", "),
        )
    });
    let is_only_one = report.steps as u64 - without == 1;
    warnings.add("one_step_with_entropy", u64::from(is_only_one), || {
        "one step with an entropy moves K once: that shows nothing of a course".to_string()
    });
}

/// The authors' code interpolates, the paper does not: on binary rewards a baseline between the two
/// makes both signs act, where the paper has one.
fn about_linear(report: &Report, interpolation: Interpolation, warnings: &mut Warnings) {
    if !report.rewards.binary {
        return;
    }
    let affected = report
        .by_k
        .iter()
        .filter(|by_k| by_k.linear_both_signs_groups > 0);
    let shown: Vec<_> = affected
        .clone()
        .map(|by_k| format!("{} at K = {}", by_k.linear_both_signs_groups, by_k.k))
        .collect();
    let count = affected
        .map(|by_k| by_k.linear_both_signs_groups)
        .max()
        .unwrap_or(0);
    warnings.add("linear_interpolation", count, || {
        let has = match interpolation {
            Interpolation::Linear => "has",
            Interpolation::InvertedCdf => "(the authors' code; not used here) would have",
        };
        format!(
            "linear interpolation {has} both signs in groups with binary rewards: {}",
            shown.join(", ")
        )
    });
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}
