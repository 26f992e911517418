//! From the collected responses to counts, group by group.

use super::collector::{Collector, Row};
use super::methods::{Methods, Outcomes, standard_deviation};
use super::record::{Output, hash};
use super::tally::{Counts, GroupSummary, GroupView, Lengths};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// So many at a time, whatever the number of threads, so that sums do not depend on it.
const GROUPS_PER_TASK: usize = 2048;

/// What [`count`] needs to know besides the responses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) methods: &'a Methods,
    /// The first K of the methods at each step, by the step's index, where it changes.
    pub(super) k_by_step: Option<&'a [f64]>,
    pub(super) success_threshold: f64,
    pub(super) by_step: bool,
    pub(super) by_group: bool,
}

/// Brings the responses of a group together. Their order is that of their properties, so that no
/// result depends on the order of the files' lines.
pub(super) fn sort(collector: &mut Collector) {
    let key = |row: &Row| (row.group, row.identity, row.reward.to_bits(), row.length);
    collector.rows.par_sort_unstable_by_key(key);
}

/// Whether what looks like names of sessions is some: in a sorted collection an output stands there
/// once, or again as it was.
///
/// # Errors
/// [`Error::Invalid`] with the name of an output that two different responses have.
pub(super) fn check_sessions(data: &Collector) -> Result<()> {
    let name = |row: &Row| {
        let output = Output::from_bits(row.identity);
        (row.group, output.session(), output.index())
    };
    let facts = |row: &Row| (row.identity, row.length, row.reward.to_bits());
    let is_contradiction = |pair: &&[Row]| {
        let has_sessions = data.groups[pair[0].group as usize].has_sessions;
        has_sessions && name(&pair[0]) == name(&pair[1]) && facts(&pair[0]) != facts(&pair[1])
    };
    let Some(pair) = data.rows.par_windows(2).find_first(is_contradiction) else {
        return Ok(());
    };
    let (_, session, index) = name(&pair[0]);
    let expected = "each session and output of a group once";
    let found = format!(
        "…_{session}_{index} again with another reward, length or text (--group uid takes the \
         whole uid)"
    );
    Err(Error::invalid("uid", expected, found))
}

/// Counts over all groups of a sorted collection.
pub(super) fn count(data: &Collector, question: Question<'_>) -> Counts {
    let num_tasks = data.groups.len().div_ceil(GROUPS_PER_TASK);
    let tasks = (0..num_tasks).into_par_iter().with_max_len(1);
    let parts: Vec<Counts> = tasks
        .map(|task| {
            let start = task * GROUPS_PER_TASK;
            let end = (start + GROUPS_PER_TASK).min(data.groups.len());
            let first_of = |group: usize| {
                data.rows
                    .partition_point(|row| (row.group as usize) < group)
            };
            let rows = &data.rows[first_of(start)..first_of(end)];
            count_groups(data, rows, question)
        })
        .collect();
    let mut counts = Counts::default();
    parts.into_iter().for_each(|part| counts.add(part));
    counts.fingerprints.sort_unstable();
    counts
}

fn count_groups(data: &Collector, rows: &[Row], question: Question<'_>) -> Counts {
    let mut counts = Counts::default();
    let mut outcomes = Outcomes::new(question.methods.clone());
    let plain = &question.methods.plain;
    let mut latest_k = None;
    let mut view = GroupView::default();
    for rows in rows.chunk_by(|a, b| a.group == b.group) {
        let group = &data.groups[rows[0].group as usize];
        counts.duplicates += describe(rows, data, question.success_threshold, &mut view);
        let k = question.k_by_step.map(|k| k[group.step as usize]);
        if let Some(k) = k
            && latest_k.replace(k) != Some(k)
        {
            outcomes = Outcomes::new(question.methods.clone().with_first_k(k));
        }
        let outcome = outcomes.of(&view.rewards);
        counts.total.add_group(&view, outcome, plain);
        if question.by_step {
            let step = counts.steps.entry(group.step).or_default();
            step.add_group(&view, outcome, plain);
        }
        *counts.groups.entry(view.kind()).or_default() += 1;
        counts.split_over_files += u64::from(group.is_split_over_files);
        counts.split_over_steps += u64::from(group.is_split_over_steps);
        if question.by_group {
            counts.summaries.push(GroupSummary {
                step: group.step,
                size: view.num_responses(),
                mean: view.reward_sum() / view.num_finite() as f64,
                std: standard_deviation(&view.rewards),
                successes: view.successes,
                baselines: plain
                    .iter()
                    .map(|&k| outcome.verdicts[k].baseline)
                    .collect(),
            });
        }
        view.rewards
            .iter()
            .for_each(|&(reward, _)| counts.see(reward));
        if !group.has_sessions {
            counts
                .fingerprints
                .extend(fingerprint(rows, group.prompt_length));
        }
    }
    counts
}

/// Fills `view` with the responses of a group; returns how many are like one before them.
fn describe(rows: &[Row], data: &Collector, success_threshold: f64, view: &mut GroupView) -> u64 {
    let group = &data.groups[rows[0].group as usize];
    let prompt_length = u64::from(group.prompt_length);
    let has_identity = group.has_sessions || rows[0].identity != 0;
    let mut num_duplicates = 0;
    let mut responses: Vec<(f32, Lengths)> = Vec::with_capacity(rows.len());
    let mut last: Option<&Row> = None;
    for row in rows {
        let lengths = Lengths {
            responses: row.length.into(),
            prompts: prompt_length,
        };
        let session = |row: &Row| Output::from_bits(row.identity).session();
        match (last, responses.last_mut()) {
            (Some(last), Some(response)) if group.has_sessions && session(last) == session(row) => {
                // A session is one response, rewarded as its last output.
                num_duplicates += u64::from(last.identity == row.identity);
                response.0 = row.reward;
                response.1.add(&lengths);
            }
            _ => {
                let facts = |row: &Row| (row.identity, row.length, row.reward.to_bits());
                let is_duplicate = last.is_some_and(|last| facts(last) == facts(row));
                num_duplicates += u64::from(has_identity && is_duplicate);
                responses.push((row.reward, lengths));
            }
        }
        last = Some(row);
    }
    view.fill(responses, success_threshold);
    num_duplicates
}

impl GroupView {
    fn fill(&mut self, mut responses: Vec<(f32, Lengths)>, success_threshold: f64) {
        self.rewards.clear();
        self.lengths.clear();
        (self.nonfinite, self.successes) = (0, 0);
        self.nonfinite_lengths = Lengths::default();
        // + 0.0 makes one zero of two.
        responses.iter_mut().for_each(|(reward, _)| *reward += 0.0);
        responses.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        for (reward, lengths) in responses {
            if !reward.is_finite() {
                self.nonfinite += 1;
                self.nonfinite_lengths.add(&lengths);
                continue;
            }
            self.successes += u64::from(reward > success_threshold as f32);
            match (self.rewards.last_mut(), self.lengths.last_mut()) {
                (Some((last, count)), Some(sum)) if *last == reward => {
                    *count += 1;
                    sum.add(&lengths);
                }
                _ => {
                    self.rewards.push((reward, 1));
                    self.lengths.push(lengths);
                }
            }
        }
    }
}

/// The same for groups with the same responses; `None` where that would not be strange.
fn fingerprint(rows: &[Row], prompt_length: u32) -> Option<u64> {
    let has_several_texts = rows.iter().any(|row| row.identity != rows[0].identity);
    has_several_texts.then(|| {
        rows.iter().fold(u64::from(prompt_length), |seed, row| {
            let row = [row.identity, row.reward.to_bits(), row.length];
            hash(seed, &row.map(u32::to_le_bytes).concat())
        })
    })
}
