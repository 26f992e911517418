//! The formats that trainers write, how each is told from the others, and how it is read.

mod caught;
mod csv_file;
mod json_lines;
mod nemo_rl;
mod parquet_file;
mod prime_rl;
mod table;

pub(crate) use caught::hide_caught_panics;

use super::chunks::{MAX_LINE, too_long};
use super::input::{Input, MAX_HEAD};
use super::json;
use super::options::Options;
use super::record::Record;
use crate::error::{Error, Result};
use std::borrow::Cow;
use table::{Described, Plan};

/// A format of rollout files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// verl's dump of rollouts or validation: `input`, `output`, `gts`, `score`, `step`, ….
    Verl,
    /// TRL's `completions_*.parquet`: `step`, `prompt`, `completion`, rewards, `advantage`.
    Trl,
    /// NeMo-RL's `train_data_step*.jsonl`.
    NemoRl,
    /// prime-rl's `traces.jsonl` of episodes, each with the traces of its agents.
    PrimeRlEpisodes,
    /// prime-rl's `traces.jsonl` of single traces (July and August 2026).
    PrimeRlTraces,
    /// prime-rl's `train_rollouts.jsonl` and other outputs of verifiers before its version 1 API.
    VerifiersRollouts,
    /// JSON lines whose columns the user names.
    JsonLines,
    /// CSV whose columns the user names.
    Csv,
    /// Parquet whose columns the user names.
    Parquet,
}

impl Format {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verl => "verl rollout dump (JSONL)",
            Self::Trl => "TRL completions (parquet)",
            Self::NemoRl => "NeMo-RL training data (JSONL)",
            Self::PrimeRlEpisodes => "prime-rl episodes (JSONL)",
            Self::PrimeRlTraces => "prime-rl traces (JSONL)",
            Self::VerifiersRollouts => "verifiers rollouts (JSONL)",
            Self::JsonLines => "JSONL",
            Self::Csv => "CSV",
            Self::Parquet => "parquet",
        }
    }

    /// Whether the user may say which column is what, group, step and entropy among them.
    pub(super) fn has_columns(self) -> bool {
        matches!(
            self,
            Self::Verl | Self::Trl | Self::JsonLines | Self::Csv | Self::Parquet
        )
    }
}

/// The formats whose columns are known and those where the user names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    Verl,
    Trl,
    Other,
}

/// Reads a line of a JSONL file.
pub(super) trait ParseLine: Send + Sync {
    /// Adds what the line holds to `out`, or says what is wrong with it.
    fn parse(&self, line: &[u8], step_of_file: Option<i64>, out: &mut Parsed)
    -> Result<(), String>;
}

/// What was read of some lines.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) records: Vec<Record>,
    /// Responses that the trainer itself left out: failed, not the policy's, filtered.
    pub(super) untrained: u64,
    /// Those of them that stand between the others of their group: the number of records before.
    pub(super) gaps: Vec<usize>,
}

impl Parsed {
    /// A response of the policy that failed, and stands where it would if it had not.
    fn fail(&mut self) {
        self.untrained += 1;
        self.gaps.push(self.records.len());
    }
}

/// Reads a file of rows and columns.
pub(super) trait ReadTable: Send + Sync {
    /// The parts of the file that can be read at the same time, in order.
    fn ranges(&self, input: &Input) -> Result<Vec<Range>, String>;

    /// Calls `take` with every row of a part.
    fn read(
        &self,
        input: &Input,
        range: &Range,
        take: &mut dyn FnMut(TableRow) -> Result<()>,
    ) -> Result<()>;
}

/// A row's number (CSV: the line where it begins), from 1, and what it holds or what is wrong.
pub(super) type TableRow = (u64, Result<Record, String>);

/// A part of a file of rows and columns.
#[derive(Debug, Clone)]
pub(super) struct Range {
    /// Of a parquet file.
    row_group: usize,
    /// Number of its first row.
    first: u64,
    /// For CSV an upper bound.
    pub(super) num_rows: u64,
    pub(super) num_bytes: u64,
}

/// How a file is read.
pub(super) enum Reader {
    Lines(Box<dyn ParseLine>),
    Table(Box<dyn ReadTable>),
}

/// A file whose format is known.
pub(super) struct Source {
    pub(super) format: Format,
    pub(super) reader: Reader,
    described: Described,
}

/// What the report says about the data's form.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Layout {
    /// What makes responses a group.
    pub grouped_by: String,
    /// What is added up to the reward.
    pub reward: String,
    /// What is taken for the length of a response; `None`: nothing, each counts as one.
    pub length: Option<String>,
    /// What is taken for the length of a prompt; `None`: nothing.
    pub prompt_length: Option<String>,
    /// Where the step stands; `None`: in the file's name, if anywhere.
    pub step: Option<String>,
    /// What is taken for the policy's entropy, a measurement or an estimate; `None`: nothing.
    pub entropy: Option<String>,
}

impl Source {
    pub(super) fn describe(&self) -> Layout {
        let described = self.described.clone();
        let rewards = described.rewards.iter();
        let terms = rewards.map(|(name, weight)| match *weight {
            1.0 => name.clone(),
            weight => format!("{weight} {name}"),
        });
        Layout {
            grouped_by: described.grouped_by,
            reward: terms.collect::<Vec<_>>().join(" + "),
            length: described.length,
            prompt_length: described.prompt_length,
            step: described.step,
            entropy: described.entropy,
        }
    }

    /// The rewards that are added up though nobody said so.
    pub(super) fn assumed_sum(&self, options: &Options) -> Vec<String> {
        let rewards = &self.described.rewards;
        if rewards.len() < 2 || !options.columns.rewards.is_empty() {
            return vec![];
        }
        rewards.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Format and columns, for messages.
    pub(super) fn summary(&self) -> String {
        let Layout {
            grouped_by, reward, ..
        } = self.describe();
        format!(
            "{} (group: {grouped_by}; reward: {reward})",
            self.format.name()
        )
    }

    /// Whether both files can be compared. A column of entropies may have been added midway.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let without_entropy = |source: &Self| Described {
            entropy: None,
            ..source.described.clone()
        };
        self.format == other.format && without_entropy(self) == without_entropy(other)
    }
}

/// Tells the format of a file; `None` if it has no rows at all.
///
/// # Errors
/// [`Error::File`] if it is none of the formats, or lacks a column.
pub(super) fn detect(input: &mut Input, options: &Options) -> Result<Option<Source>> {
    let head = input.head();
    let name = input.name();
    let refuse = |message: String| Error::file(&name, message);
    if let Some(what) = foreign(head) {
        return Err(refuse(what));
    }
    let text = head.strip_prefix(BOM).unwrap_or(head).trim_ascii_start();
    match text.first() {
        None => Ok(None),
        _ if head.starts_with(b"PAR1") => {
            let source = parquet_file::source(input, options);
            source.map(Some).map_err(refuse)
        }
        Some(b'[') if !options.skip_bad => Err(refuse(LIST.to_string())),
        Some(b'{' | b'[') => json_source(input, options).map(Some),
        _ if is_json_name(input) => json_source(input, options).map(Some),
        _ if options.skip_bad && has_json_line(input) => json_source(input, options).map(Some),
        _ if !input.is_head_all() && !text.contains(&b'\n') => Err(refuse(too_long())),
        _ => csv_file::source(head, options).map(Some).map_err(refuse),
    }
}

const LIST: &str =
    "expected one JSON object a line, found a list (`jq -c '.[]'` makes lines of it)";
const NO_LINE: &str = "expected a JSON object a line, found none";

/// Of UTF-8, which some programs put before the first line.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// What is said of compressed files, and that this program unpacks them.
pub(super) fn compressed(program: &str) -> String {
    format!("expected text or parquet, found compressed data (qae analyze <({program} FILE))")
}

/// What a file that cannot be read is instead.
fn foreign(head: &[u8]) -> Option<String> {
    match head {
        [0x1f, 0x8b, ..] => Some(compressed("zcat")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(compressed("zstdcat")),
        [b'B', b'Z', b'h', ..] => Some(compressed("bzcat")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some(compressed("xzcat")),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            Some("expected text or parquet, found an Arrow IPC (feather) file".to_string())
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("expected UTF-8, found UTF-16".to_string()),
        _ => None,
    }
}

fn is_json_name(input: &Input) -> bool {
    has_extension(input, &["jsonl", "ndjson", "json"])
}

fn has_extension(input: &Input, known: &[&str]) -> bool {
    let extension = input.path.extension().and_then(|name| name.to_str());
    extension.is_some_and(|extension| known.contains(&extension))
}

/// Of a file whose name does not say what it is, and whose first line is broken.
fn has_json_line(input: &Input) -> bool {
    let mut lines = input.head().split(|&byte| byte == b'\n');
    !has_extension(input, &["csv", "tsv"]) && lines.any(|line| line.starts_with(b"{"))
}

/// By the keys of the first line, or the first good one where others are left out.
fn json_source(input: &mut Input, options: &Options) -> Result<Source> {
    let name = input.name();
    let (mut start, mut number) = (0, 1);
    loop {
        let place = || format!("{name}:{number}");
        let rest = &input.head()[start..];
        let length = match memchr::memchr(b'\n', rest) {
            Some(at) => at + 1,
            None if input.is_head_all() => rest.len(),
            None if !options.skip_bad => return Err(Error::file(place(), too_long())),
            None if input.head().len() > MAX_HEAD => {
                let message = format!("expected a good line in the first {} MiB", MAX_HEAD >> 20);
                return Err(Error::file(name, message));
            }
            None => {
                input.extend_head(MAX_HEAD)?;
                continue;
            }
        };
        if length == 0 {
            let is_list = input.head().trim_ascii_start().starts_with(b"[");
            let message = if is_list { LIST } else { NO_LINE };
            return Err(Error::file(name, message));
        }
        let line = &rest[..length];
        let line = line.strip_prefix(BOM).unwrap_or(line).trim_ascii_end();
        match keys(line) {
            _ if line.is_empty() => {}
            Ok(keys) => {
                let source = source_of_keys(&keys, options);
                return source.map_err(|error| Error::file(place(), error));
            }
            Err(_) if options.skip_bad => {}
            Err(error) => return Err(Error::file(place(), error)),
        }
        start += length;
        number += 1;
    }
}

fn keys(line: &[u8]) -> Result<Vec<String>, String> {
    if line.len() > MAX_LINE {
        return Err(too_long());
    }
    let mut keys = vec![];
    json::fields(line, |key, _| {
        keys.extend(json::decode(key));
        Ok(())
    })?;
    Ok(keys)
}

fn source_of_keys(keys: &[String], options: &Options) -> Result<Source, String> {
    let has = |names: &[&str]| names.iter().all(|name| keys.iter().any(|key| key == name));
    let (format, columns) = if has(&["input", "output", "score"]) {
        (Format::Verl, Columns::Verl)
    } else if has(&["rewards", "idx"]) && (has(&["token_loss_mask"]) || has(&["content"])) {
        return nemo_rl::source(keys, options);
    } else if has(&["traces", "task"]) || has(&["traces", "env"]) {
        return prime_rl::source(Format::PrimeRlEpisodes, options);
    } else if has(&["nodes", "rewards", "task"]) {
        return prime_rl::source(Format::PrimeRlTraces, options);
    } else if has(&["example_id", "reward", "completion"]) {
        return prime_rl::source(Format::VerifiersRollouts, options);
    } else {
        (Format::JsonLines, Columns::Other)
    };
    let rewards: &[String] = match columns {
        Columns::Verl => &["score".to_string()],
        Columns::Trl | Columns::Other => &[],
    };
    let (plan, described) = Plan::new(columns, keys, rewards, options)?;
    Ok(Source {
        format,
        reader: Reader::Lines(Box::new(json_lines::JsonLines { plan })),
        described,
    })
}

/// What stands for the entropy of the policy where a file has the log-probs of what it drew.
fn estimate(log_probs: &str) -> String {
    format!("mean -log p of {log_probs} (an estimate)")
}

/// Refuses columns that are wanted and that nobody can tell from others.
fn check_unique(names: &[String], wanted: &[String]) -> Result<(), String> {
    for name in wanted {
        let found = names.iter().filter(|known| *known == name).count();
        if found > 1 {
            return Err(format!("expected one column `{name}`, found {found}"));
        }
    }
    Ok(())
}

/// A group's name for people, not longer than a line.
fn label(name: &[u8]) -> Box<str> {
    const MOST: usize = 120;
    let text: Cow<'_, str> = String::from_utf8_lossy(&name[..name.len().min(4 * MOST)]);
    text.chars().take(MOST).collect::<String>().into()
}
