//! NeMo-RL's `train_data_step*.jsonl`: each value a batch of one, the prompt known by the tokens
//! that the loss mask leaves out before the first that it does not.

use super::table::Described;
use super::{Format, ParseLine, Parsed, Reader, Source, estimate};
use crate::analyze::json::{Json, elements, fields, number, size};
use crate::analyze::options::Options;
use crate::analyze::record::{Record, hash, text_identity};

const COLUMNS: [&str; 7] = [
    "rewards",
    "filtered_rewards",
    "token_ids",
    "token_loss_mask",
    "sample_loss_mask",
    "content",
    "generation_logprobs",
];

struct NemoRl {
    /// With dynamic sampling `rewards` are those of all generations, in rows of their own order.
    reward: usize,
    with_labels: bool,
    neighbors: bool,
}

pub(super) fn source(keys: &[String], options: &Options) -> Result<Source, String> {
    let chosen = &options.columns;
    let columns = [
        ("--group", &chosen.group),
        ("--step", &chosen.step),
        ("--length", &chosen.length),
        ("--entropy", &chosen.entropy),
    ];
    for (flag, column) in columns {
        if column.is_some() {
            return Err(format!("expected no {flag} with {}", Format::NemoRl.name()));
        }
    }
    let reward = match &chosen.rewards[..] {
        [] => usize::from(keys.iter().any(|key| key == COLUMNS[1])),
        [term] if term.weight == 1.0 => COLUMNS[..2]
            .iter()
            .position(|name| *name == term.name)
            .ok_or("expected --reward rewards or filtered_rewards")?,
        _ => return Err("expected one --reward without weight".to_string()),
    };
    let has = |name: &str| keys.iter().any(|key| key == name);
    let has_tokens = COLUMNS[2..4].iter().all(|name| has(name));
    let has_entropy = has_tokens && has(COLUMNS[6]);
    let grouped_by = match options.group_size {
        Some(size) => format!("{size} neighboring responses"),
        None if has_tokens => "tokens of the prompt within a step".to_string(),
        None => "messages before the last within a step".to_string(),
    };
    let (length, prompt) = if has_tokens {
        ("token_loss_mask", "token_loss_mask")
    } else {
        ("content (bytes)", "content (bytes)")
    };
    Ok(Source {
        format: Format::NemoRl,
        reader: Reader::Lines(Box::new(NemoRl {
            reward,
            with_labels: options.by_group,
            neighbors: options.group_size.is_some(),
        })),
        described: Described {
            grouped_by,
            rewards: vec![(COLUMNS[reward].to_string(), 1.0)],
            length: Some(length.to_string()),
            prompt_length: Some(prompt.to_string()),
            step: None,
            entropy: has_entropy.then(|| estimate(COLUMNS[6])),
        },
    })
}

impl ParseLine for NemoRl {
    fn parse(
        &self,
        line: &[u8],
        step_of_file: Option<i64>,
        out: &mut Parsed,
    ) -> Result<(), String> {
        let mut row = [None; COLUMNS.len()];
        fields(line, |key, value| {
            if let Some(slot) = COLUMNS.iter().position(|name| name.as_bytes() == key) {
                row[slot] = single(value)?;
            }
            Ok(())
        })?;
        let Some(reward) = row[self.reward] else {
            // Generated, but not what dynamic sampling chose to train on.
            if row[0].is_some() {
                out.untrained += 1;
                return Ok(());
            }
            return Err(format!(
                "column `{}`: expected [number]",
                COLUMNS[self.reward]
            ));
        };
        let reward = scalar(reward).ok_or_else(|| {
            let found = reward.kind();
            format!(
                "column `{}`: expected [number], found {found}",
                COLUMNS[self.reward]
            )
        })?;
        let parts = match (row[2], row[3], row[5]) {
            (Some(Json::Array(ids)), Some(Json::Array(mask)), _) => by_tokens(ids, mask)?,
            (_, _, Some(Json::Array(messages))) => by_messages(messages)?,
            _ => {
                let expected = "`token_ids` and `token_loss_mask`, or `content`";
                return Err(format!("expected columns {expected}, found neither"));
            }
        };
        // A response that is left out of the loss has a part in its group's statistics.
        let counts = row[4].and_then(scalar) != Some(0.0);
        let step = hash(0, &step_of_file.unwrap_or(i64::MIN).to_le_bytes());
        let label = || first_message(row[5]).map(super::label);
        out.records.push(Record {
            group: hash(step, parts.prompt),
            label: (self.with_labels && !self.neighbors).then(|| label().unwrap_or_default()),
            step: step_of_file,
            reward,
            length: if counts { parts.length } else { 0 },
            prompt_length: parts.prompt_length,
            identity: text_identity(parts.all),
            entropy: match (row[6], parts.unit) {
                (Some(values), Unit::Tokens) => entropy(values, parts.length)?,
                _ => f64::NAN,
            },
        });
        Ok(())
    }
}

struct Parts<'a> {
    prompt: &'a [u8],
    all: &'a [u8],
    unit: Unit,
    length: u64,
    prompt_length: u64,
}

/// Of lengths.
enum Unit {
    Tokens,
    Bytes,
}

fn by_tokens<'a>(ids: &'a [u8], mask: &[u8]) -> Result<Parts<'a>, String> {
    let (mut prompt_length, mut length) = (0, 0);
    elements(mask, |value| {
        let counts = scalar(value).ok_or("column `token_loss_mask`: expected numbers")? != 0.0;
        length += u64::from(counts);
        prompt_length += u64::from(length == 0);
        Ok(())
    })?;
    let commas = ids.iter().enumerate().filter(|(_, byte)| **byte == b',');
    let end = commas
        .map(|(at, _)| at)
        .nth(prompt_length.saturating_sub(1) as usize);
    Ok(Parts {
        prompt: if prompt_length == 0 {
            &[]
        } else {
            &ids[..end.unwrap_or(ids.len())]
        },
        all: ids,
        unit: Unit::Tokens,
        length,
        prompt_length,
    })
}

fn by_messages(messages: &[u8]) -> Result<Parts<'_>, String> {
    let start = messages.as_ptr() as usize;
    let (mut last, mut num_messages) = (0, 0);
    let (mut length, mut prompt_length) = (0, 0);
    elements(messages, |value| {
        let (Json::String(text) | Json::Array(text) | Json::Object(text)) = value else {
            return Err("column `content`: expected messages".to_string());
        };
        last = text.as_ptr() as usize - start;
        num_messages += 1;
        prompt_length += length;
        length = size(value);
        Ok(())
    })?;
    if num_messages < 2 {
        return Err("column `content`: expected a prompt and a response".to_string());
    }
    Ok(Parts {
        prompt: &messages[..last],
        all: messages,
        unit: Unit::Bytes,
        length,
        prompt_length,
    })
}

/// The mean of −log p of the tokens that were drawn, whose expectation is the entropy; those of the
/// prompt are 0. NaN where there are fewer than drawn tokens.
fn entropy(log_probs: Json<'_>, length: u64) -> Result<f64, String> {
    let Json::Array(log_probs) = log_probs else {
        return Ok(f64::NAN);
    };
    let (mut sum, mut count) = (0.0, 0);
    elements(log_probs, |value| {
        count += 1;
        sum += scalar(value).ok_or("column `generation_logprobs`: expected numbers")?;
        Ok(())
    })?;
    if count < length {
        return Ok(f64::NAN);
    }
    Ok(-sum / length as f64)
}

/// The one element of a batch; `None` if it is empty.
fn single(value: Json<'_>) -> Result<Option<Json<'_>>, String> {
    let Json::Array(batch) = value else {
        return Ok(Some(value));
    };
    let mut found = None;
    let mut length = 0;
    elements(batch, |element| {
        found = Some(element);
        length += 1;
        if length > 1 {
            return Err("expected batches of one response".to_string());
        }
        Ok(())
    })?;
    Ok(found)
}

fn scalar(value: Json<'_>) -> Option<f64> {
    match value {
        Json::Number(text) => number(text),
        Json::Bool(value) => Some(f64::from(u8::from(value))),
        Json::Null => Some(f64::NAN),
        Json::String(_) | Json::Array(_) | Json::Object(_) => None,
    }
}

fn first_message(content: Option<Json<'_>>) -> Option<&[u8]> {
    let Some(Json::Array(messages)) = content else {
        return None;
    };
    let mut first = None;
    // Only whole lists come here.
    let _ = elements(messages, |value| {
        if let (Json::String(text), None) = (value, first) {
            first = Some(text);
        }
        Ok(())
    });
    first
}
