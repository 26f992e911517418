//! All responses, in sixteen bytes each, and their groups.

use super::record::{Identity, Record};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// A response, or one output of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Row {
    pub(super) group: u32,
    pub(super) reward: f32,
    pub(super) length: u32,
    /// A hash of the text or an [`Output`](super::record::Output), as [`Group::has_sessions`] says.
    pub(super) identity: u32,
}

/// A group, as its first response describes it.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Index among the steps.
    pub(super) step: u32,
    /// Where it was seen first.
    file: u32,
    pub(super) prompt_length: u32,
    pub(super) has_sessions: bool,
    pub(super) is_split_over_files: bool,
    pub(super) is_split_over_steps: bool,
}

/// Entropy of the policy at a step, weighted by length.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EntropySum {
    weighted: f64,
    weight: f64,
    /// Responses without one.
    missing: u64,
}

impl EntropySum {
    fn add(&mut self, entropy: f64, length: u32) {
        if !entropy.is_finite() {
            self.missing += 1;
            return;
        }
        let weight = f64::from(length.max(1));
        self.weighted += entropy * weight;
        self.weight += weight;
    }

    /// The mean; `None` where no response has an entropy.
    pub(super) fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.weighted / self.weight)
    }

    /// Responses that have no part in the mean.
    pub(super) fn num_left_out(&self) -> u64 {
        if self.weight > 0.0 { self.missing } else { 0 }
    }
}

/// Grows by every record.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pub(super) rows: Vec<Row>,
    pub(super) groups: Vec<Group>,
    /// What names each group, where records say so.
    pub(super) labels: Vec<Box<str>>,
    /// The steps in the order in which they were seen; `None` for all rows without one.
    pub(super) steps: Vec<Option<i64>>,
    pub(super) entropies: Vec<EntropySum>,
    /// Responses with an entropy below 0.
    pub(super) negative_entropies: u64,
    index: HashMap<u64, u32, BuildHasherDefault<AlreadyHashed>>,
    step_index: BTreeMap<Option<i64>, u32>,
}

impl Collector {
    /// Takes a record of file number `file`.
    pub(super) fn push(&mut self, file: usize, record: Record) {
        let (has_sessions, identity) = match record.identity {
            Identity::Text(hash) => (false, hash),
            Identity::Output(output) => (true, output.to_bits()),
        };
        let step = self.step(record.step);
        let length = saturated(record.length);
        self.entropies[step as usize].add(record.entropy, length);
        self.negative_entropies += u64::from(record.entropy < 0.0);
        let next = self.groups.len() as u32;
        let index = *self.index.entry(record.group).or_insert(next);
        if index == next {
            self.labels.extend(record.label);
            self.groups.push(Group {
                step,
                file: file as u32,
                prompt_length: saturated(record.prompt_length),
                has_sessions,
                is_split_over_files: false,
                is_split_over_steps: false,
            });
        } else {
            let group = &mut self.groups[index as usize];
            group.is_split_over_files |= group.file != file as u32;
            group.is_split_over_steps |= group.step != step;
        }
        self.rows.push(Row {
            group: index,
            // Trainers hold rewards in f32; what that cannot hold is not finite to them either.
            reward: record.reward as f32,
            length,
            identity,
        });
    }

    /// Indices of the steps, by their numbers.
    pub(super) fn steps_in_order(&self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.steps.len()).collect();
        order.sort_by_key(|&index| self.steps[index]);
        order
    }

    /// Gives up the memory that only more records would need.
    pub(super) fn finish(&mut self) {
        self.index = HashMap::default();
        self.step_index = BTreeMap::new();
        self.rows.shrink_to_fit();
    }

    fn step(&mut self, step: Option<i64>) -> u32 {
        // Rows of a step stand together, in nearly every file.
        if let Some((last, known)) = self.steps.len().checked_sub(1).zip(self.steps.last())
            && *known == step
        {
            return last as u32;
        }
        let next = self.steps.len() as u32;
        let index = *self.step_index.entry(step).or_insert(next);
        if index == next {
            self.steps.push(step);
            self.entropies.push(EntropySum::default());
        }
        index
    }
}

fn saturated(length: u64) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Keys are hashes already.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
