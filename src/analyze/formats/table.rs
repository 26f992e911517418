//! Formats with one response a row and a column for each property.

mod field;
mod names;

pub(super) use field::{Field, number};

use super::Columns;
use crate::analyze::json::text_length;
use crate::analyze::options::Options;
use crate::analyze::record::{Identity, Output, Record, hash, text_identity};
use names::Names;

/// Most columns that a row is asked for.
pub(super) const MAX_COLUMNS: usize = 24;

/// Which of the wanted columns is what.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// The wanted columns, by the names in the file.
    pub(super) names: Vec<String>,
    /// Columns that would be wanted as well, but that the first row lacks.
    pub(super) absent: Vec<String>,
    group: GroupBy,
    rewards: Vec<(usize, f64)>,
    step: Option<usize>,
    length: Option<usize>,
    prompt_length: Option<usize>,
    text: Option<usize>,
    entropy: Option<usize>,
    with_labels: bool,
}

#[derive(Debug, Clone, Copy)]
enum GroupBy {
    /// Its value within a step.
    Column(usize),
    /// verl's `uid`, which ends in `_{session}_{output}` where agents made it.
    Uid(usize),
    /// Somebody else counts neighbors.
    Neighbors,
}

const UID_SEED: u64 = 1;
const SESSION_SEED: u64 = 2;
const PROMPT_SEED: u64 = 3;

/// Columns with the length of a response in tokens, by the names that are in use.
const LENGTHS: [&str; 4] = [
    "response_length",
    "completion_length",
    "num_tokens",
    "response_tokens",
];

impl Plan {
    /// The plan for a file with these columns and what there is to say about it, or why there is
    /// none.
    pub(super) fn new(
        kind: Columns,
        columns: &[String],
        reward_columns: &[String],
        options: &Options,
    ) -> Result<(Self, Described), String> {
        let mut names = Names {
            known: columns,
            wanted: vec![],
            absent: vec![],
        };
        let chosen = &options.columns;
        let (prompt_name, text_names): (_, &[&str]) = match kind {
            Columns::Verl => ("input", &["output"]),
            Columns::Trl => ("prompt", &["completion"]),
            Columns::Other => ("prompt", &["response", "completion", "output"]),
        };
        let text = text_names.iter().find_map(|name| names.find(name));
        let step = names.chosen_or(&chosen.step, &["step", "global_step"])?;
        let (group, grouped_by) = names.group(kind, prompt_name, step, options)?;
        let rewards = names.rewards(reward_columns, options)?;
        let (length, length_name) = match &chosen.length {
            Some(name) => (Some(names.get(name)?), Some(name.clone())),
            None => {
                let tokens = LENGTHS.iter().find_map(|name| names.find(name));
                let length = tokens.or(text);
                (length, length.map(|slot| names.wanted[slot].clone()))
            }
        };
        let is_text = length.is_some() && length == text;
        let prompt_names: &[&str] = if is_text {
            &[prompt_name]
        } else {
            &["prompt_length", "prompt_tokens"]
        };
        let prompt_length = prompt_names.iter().find_map(|name| names.find(name));
        let entropy = names.chosen_or(&chosen.entropy, &["entropy", "mean_entropy"])?;
        let described = Described {
            grouped_by,
            rewards: rewards.clone(),
            length: length_name,
            prompt_length: prompt_length.map(|slot| names.wanted[slot].clone()),
            step: step.map(|slot| names.wanted[slot].clone()),
            entropy: entropy.map(|slot| names.wanted[slot].clone()),
        };
        if names.wanted.len() > MAX_COLUMNS {
            return Err(format!("expected at most {MAX_COLUMNS} columns to read"));
        }
        let slot = |term: &(String, f64)| {
            let slot = names.wanted.iter().position(|name| *name == term.0);
            (slot.unwrap_or_default(), term.1)
        };
        let plan = Self {
            rewards: rewards.iter().map(slot).collect(),
            names: names.wanted,
            absent: names.absent,
            group,
            step,
            length,
            prompt_length,
            text,
            entropy,
            with_labels: options.by_group,
        };
        Ok((plan, described))
    }

    /// The response of a row with these values of [`Self::names`].
    pub(super) fn record(
        &self,
        row: &[Field<'_>],
        step_of_file: Option<i64>,
    ) -> Result<Record, String> {
        let step = match self.step {
            None => step_of_file,
            Some(slot) => Some(self.integer(row, slot)?),
        };
        // Without any length, responses count the same.
        let length = self.length.map_or(Ok(1), |slot| self.size(row, slot))?;
        let mut record = Record {
            group: 0,
            label: None,
            step,
            reward: self.reward(row)?,
            length,
            prompt_length: self
                .prompt_length
                .map_or(Ok(0), |slot| self.size(row, slot))?,
            identity: (self.text.and_then(|slot| row[slot].name()))
                .map_or(Identity::Text(0), |text| text_identity(&text)),
            entropy: self
                .entropy
                .map_or(Ok(f64::NAN), |slot| self.number(row, slot))?,
        };
        self.name_group(row, &mut record)?;
        Ok(record)
    }

    fn name_group(&self, row: &[Field<'_>], record: &mut Record) -> Result<(), String> {
        let (GroupBy::Column(slot) | GroupBy::Uid(slot)) = self.group else {
            return Ok(());
        };
        let name = row[slot].name();
        let name = name.ok_or_else(|| self.unexpected(row, slot, "the name of a group"))?;
        let is_uid = matches!(self.group, GroupBy::Uid(_));
        let session = if is_uid { session_of(&name) } else { None };
        let (seed, name) = match session {
            None if is_uid => (UID_SEED, &name[..]),
            None => {
                let step = record.step.unwrap_or(i64::MIN).to_le_bytes();
                (hash(PROMPT_SEED, &step), &name[..])
            }
            Some((name, output)) => {
                let output = match record.identity {
                    Identity::Text(hash) => output.with_text(hash),
                    Identity::Output(_) => output,
                };
                record.identity = Identity::Output(output);
                (SESSION_SEED, name)
            }
        };
        record.group = hash(seed, name);
        record.label = self.with_labels.then(|| super::label(name));
        Ok(())
    }

    /// The weighted sum. As in TRL, a term that was not computed counts nothing; a response
    /// without any term has no reward.
    fn reward(&self, row: &[Field<'_>]) -> Result<f64, String> {
        if let [(slot, weight)] = self.rewards[..] {
            return Ok(weight * self.number(row, slot)?);
        }
        let (mut sum, mut has_any) = (0.0, false);
        for &(slot, weight) in &self.rewards {
            let term = weight * self.number(row, slot)?;
            if !term.is_nan() {
                sum += term;
                has_any = true;
            }
        }
        Ok(if has_any { sum } else { f64::NAN })
    }

    /// A number; NaN for null.
    fn number(&self, row: &[Field<'_>], slot: usize) -> Result<f64, String> {
        let number = row[slot].number();
        number.ok_or_else(|| self.unexpected(row, slot, "a number"))
    }

    fn integer(&self, row: &[Field<'_>], slot: usize) -> Result<i64, String> {
        let exact = match row[slot] {
            Field::Integer(value) => Some(value),
            Field::Number(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok()),
            _ => None,
        };
        let value = exact.or_else(|| match row[slot] {
            // pandas makes floats of integers beside missing values.
            Field::Number(_) | Field::Float(_) => {
                let value = row[slot].number()?;
                (value.fract() == 0.0 && value.abs() < 2_f64.powi(53)).then_some(value as i64)
            }
            _ => None,
        });
        value.ok_or_else(|| self.unexpected(row, slot, "an integer"))
    }

    /// Tokens as the number says, or the size of a text or list.
    fn size(&self, row: &[Field<'_>], slot: usize) -> Result<u64, String> {
        match row[slot] {
            Field::Text(text) => Ok(text.len() as u64),
            Field::Escaped(text) => Ok(text_length(text)),
            Field::List(_, bytes) if Some(slot) == self.text => Ok(bytes.len() as u64),
            Field::List(length, _) => Ok(length as u64),
            Field::Object(bytes) => Ok(bytes.len() as u64),
            Field::Null => Ok(0),
            Field::Number(_) | Field::Integer(_) | Field::Float(_) => {
                let value = self.number(row, slot)?;
                let is_count = (0.0..=f64::from(u32::MAX)).contains(&value);
                is_count
                    .then_some(value as u64)
                    .ok_or_else(|| self.unexpected(row, slot, "a length of at least 0"))
            }
            Field::Missing | Field::Bool(_) => Err(self.unexpected(row, slot, "a length")),
        }
    }

    fn unexpected(&self, row: &[Field<'_>], slot: usize, expected: &str) -> String {
        let found = match row[slot] {
            Field::Number(text) | Field::Text(text) | Field::Escaped(text) if text.len() <= 40 => {
                format!("`{}`", String::from_utf8_lossy(text))
            }
            Field::Integer(value) => format!("`{value}`"),
            Field::Float(value) => format!("`{value}`"),
            other => other.kind().to_string(),
        };
        format!(
            "column `{}`: expected {expected}, found {found}",
            self.names[slot]
        )
    }
}

/// What the report says about the columns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Described {
    pub(super) grouped_by: String,
    pub(super) rewards: Vec<(String, f64)>,
    pub(super) length: Option<String>,
    pub(super) prompt_length: Option<String>,
    pub(super) step: Option<String>,
    pub(super) entropy: Option<String>,
}

/// The prefix, session and output of verl's `{uid}_{session}_{output}`.
fn session_of(uid: &[u8]) -> Option<(&[u8], Output)> {
    let number = |text: &[u8]| {
        let text = std::str::from_utf8(text).ok()?;
        // A sign would be read as well.
        text.starts_with(|c: char| c.is_ascii_digit())
            .then(|| text.parse().ok())?
    };
    let mut parts = uid.rsplitn(3, |&byte| byte == b'_');
    let index = number(parts.next()?)?;
    let session = number(parts.next()?)?;
    Some((parts.next()?, Output::new(session, index)?))
}
