//! From files to the collected responses: lines are read, parsed and collected at the same time.

use super::Progress;
use super::chunks::{Chunk, Chunks, too_long};
use super::collector::Collector;
use super::files::{self, Files};
use super::formats::{
    BOM, Format, Layout, ParseLine, Parsed, Range, ReadTable, Reader, Source, TableRow, detect,
};
use super::input::Input;
use super::options::Options;
use super::record::{Record, hash};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Broken lines that are shown; all are counted.
const MAX_SHOWN: usize = 5;

/// Rows of parquet and CSV files that are held at once, so that several files are read at once.
const MAX_HELD_ROWS: u64 = 500_000;

/// All that the files hold.
pub(super) struct Data {
    pub(super) collector: Collector,
    pub(super) format: Format,
    pub(super) layout: Layout,
    /// The rewards that are added up though nobody said so.
    pub(super) assumed_sum: Vec<String>,
    pub(super) files: Files,
    pub(super) num_files: usize,
    pub(super) num_empty_files: usize,
    pub(super) num_bytes: u64,
    /// Responses that the trainer itself left out.
    pub(super) untrained: u64,
    pub(super) broken: Broken,
}

/// Lines that were left out.
#[derive(Debug, Default)]
pub(super) struct Broken {
    pub(super) count: u64,
    /// The first of them, with file, line and reason.
    pub(super) shown: Vec<String>,
}

/// Reads the files that `paths` name.
pub(super) fn read(
    paths: &[std::path::PathBuf],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Data> {
    let mut files = files::find(paths)?;
    let (mut inputs, mut sources) = (vec![], vec![]);
    let mut empty = vec![];
    for path in std::mem::take(&mut files.inputs) {
        let mut input = Input::new(path)?;
        match detect(&mut input, options)? {
            None => empty.push(input.name()),
            Some(source) => {
                check_alike(&inputs, &sources, &input, &source)?;
                input.forget_head();
                inputs.push(input);
                sources.push(source);
            }
        }
    }
    let Some(first) = sources.first() else {
        return Err(nothing(&empty));
    };
    let (format, mut layout) = (first.format, first.describe());
    layout.entropy = entropies(&sources);
    let assumed_sum = first.assumed_sum(options);
    progress.begin(inputs.iter().map(|input| input.size).sum());
    let mut sink = Sink {
        collector: Collector::default(),
        broken: Broken::default(),
        untrained: 0,
        names: inputs.iter().map(Input::name).collect(),
        unit: match format {
            Format::Trl | Format::Parquet => "row ",
            _ => "",
        },
        options,
        progress,
        num_rows: 0,
        num_bytes: 0,
    };
    let num_files = inputs.len();
    let readers: Vec<_> = sources.into_iter().map(|source| source.reader).collect();
    read_all(&inputs, &readers, &mut sink)?;
    progress.end();
    Ok(Data {
        collector: sink.collector,
        format,
        layout,
        assumed_sum,
        files,
        num_files,
        num_empty_files: empty.len(),
        num_bytes: sink.num_bytes,
        untrained: sink.untrained,
        broken: sink.broken,
    })
}

/// All files that there are, are empty.
fn nothing(empty: &[String]) -> Error {
    let Some(first) = empty.first() else {
        return Error::invalid("PATH", "files with responses", "none");
    };
    let among = match empty.len() {
        1 => String::new(),
        count => format!(" (one of {count})"),
    };
    let message = format!("expected responses, found an empty file{among}");
    Error::file(first, message)
}

fn check_alike(inputs: &[Input], sources: &[Source], input: &Input, source: &Source) -> Result<()> {
    let Some((first, first_source)) = inputs.first().zip(sources.first()) else {
        return Ok(());
    };
    if first_source.is_like(source) {
        return Ok(());
    }
    let expected = format!("{} as {}", first_source.summary(), first.name());
    let message = format!("expected {expected}, found {}", source.summary());
    Err(Error::file(input.name(), message))
}

/// What is taken for the entropy in any of the files, each once.
fn entropies(sources: &[Source]) -> Option<String> {
    let names = sources
        .iter()
        .filter_map(|source| source.describe().entropy);
    let names: BTreeSet<_> = names.collect();
    let names: Vec<_> = names.into_iter().collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn read_all(inputs: &[Input], readers: &[Reader], sink: &mut Sink<'_>) -> Result<()> {
    let parsers = readers.iter().map(|reader| match reader {
        Reader::Lines(parser) => Some(&**parser),
        Reader::Table(_) => None,
    });
    match parsers.collect::<Option<Vec<_>>>() {
        Some(parsers) => read_lines(inputs, &parsers, sink),
        None => read_tables(inputs, readers, sink),
    }
}

/// Takes what was read, in the order of the files.
struct Sink<'a> {
    collector: Collector,
    broken: Broken,
    untrained: u64,
    names: Vec<String>,
    /// What a number in a message counts, besides lines.
    unit: &'static str,
    options: &'a Options,
    progress: &'a dyn Progress,
    /// Neighbors so far, which a response that failed is as well.
    num_rows: u64,
    num_bytes: u64,
}

impl Sink<'_> {
    fn record(&mut self, file: usize, mut record: Record) {
        if let Some(size) = self.options.group_size {
            let group = self.num_rows / size as u64;
            record.group = hash(0, &group.to_le_bytes());
            record.label = self.options.by_group.then(|| format!("{group}").into());
        }
        self.num_rows += 1;
        self.collector.push(file, record);
    }

    fn broken(&mut self, file: usize, line: u64, reason: &str) -> Result<()> {
        let place = format!("{}:{}{line}", self.names[file], self.unit);
        if !self.options.skip_bad {
            return Err(Error::file(place, reason));
        }
        self.broken.count += 1;
        if self.broken.shown.len() < MAX_SHOWN {
            self.broken.shown.push(format!("{place}: {reason}"));
        }
        Ok(())
    }

    fn bytes(&mut self, num_bytes: u64) {
        self.num_bytes += num_bytes;
        self.progress.advance(num_bytes);
    }
}

/// What was read of a chunk.
struct ParsedChunk {
    parsed: Parsed,
    num_lines: u64,
    /// Lines from 0 and what is wrong with them; all but the first few without words.
    broken: Vec<(u64, String)>,
}

/// While a batch of chunks is parsed on all threads, one of them reads the next and collects the
/// last.
fn read_lines(inputs: &[Input], parsers: &[&dyn ParseLine], sink: &mut Sink<'_>) -> Result<()> {
    let steps: Vec<_> = inputs.iter().map(|input| input.step).collect();
    let mut chunks = Chunks::new(inputs, rayon::current_num_threads());
    let mut lines = Lines { file: 0, line: 1 };
    let mut batch = chunks.batch(vec![])?;
    let mut done: (Vec<Chunk>, Vec<ParsedChunk>) = Default::default();
    let skip_bad = sink.options.skip_bad;
    loop {
        let (chunk_memory, parsed_chunks) = done;
        let (next, parsed) = rayon::join(
            || {
                collect(&chunk_memory, parsed_chunks, &mut lines, sink)?;
                if batch.is_empty() {
                    return Ok(vec![]);
                }
                chunks.batch(chunk_memory)
            },
            || {
                let chunks = batch.par_iter().with_max_len(1);
                let parse = |chunk: &Chunk| {
                    parse_chunk(chunk, parsers[chunk.file], steps[chunk.file], skip_bad)
                };
                chunks.map(parse).collect::<Vec<_>>()
            },
        );
        if batch.is_empty() {
            return next.map(drop);
        }
        done = (batch, parsed);
        batch = next?;
    }
}

/// Where the next line is.
struct Lines {
    file: usize,
    line: u64,
}

fn collect(
    chunks: &[Chunk],
    parsed: Vec<ParsedChunk>,
    lines: &mut Lines,
    sink: &mut Sink<'_>,
) -> Result<()> {
    for (chunk, part) in chunks.iter().zip(parsed) {
        if chunk.file != lines.file {
            *lines = Lines {
                file: chunk.file,
                line: 1,
            };
        }
        for (line, reason) in &part.broken {
            sink.broken(chunk.file, lines.line + line, reason)?;
        }
        let mut gaps = part.parsed.gaps.into_iter().peekable();
        for (index, record) in part.parsed.records.into_iter().enumerate() {
            while gaps.next_if_eq(&index).is_some() {
                sink.num_rows += 1;
            }
            sink.record(chunk.file, record);
        }
        sink.num_rows += gaps.count() as u64;
        sink.untrained += part.parsed.untrained;
        sink.bytes(chunk.num_read);
        lines.line += part.num_lines;
    }
    Ok(())
}

fn parse_chunk(
    chunk: &Chunk,
    parser: &dyn ParseLine,
    step: Option<i64>,
    skip_bad: bool,
) -> ParsedChunk {
    let mut part = ParsedChunk {
        parsed: Parsed::default(),
        num_lines: 0,
        broken: vec![],
    };
    if chunk.is_too_long {
        part.broken.push((0, too_long()));
        part.num_lines = 1;
        return part;
    }
    let mut rest = &chunk.bytes[..];
    // Once for all lines, unless one is at fault.
    let is_utf8 = std::str::from_utf8(rest).is_ok();
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        let (line, tail) = rest.split_at(end);
        rest = tail;
        let result = if is_utf8 || std::str::from_utf8(line).is_ok() {
            parse_line(line, parser, step, &mut part.parsed)
        } else {
            Err("expected UTF-8".to_string())
        };
        if let Err(reason) = result {
            let is_shown = part.broken.len() < MAX_SHOWN;
            let reason = if is_shown { reason } else { String::new() };
            part.broken.push((part.num_lines, reason));
            if !skip_bad {
                break;
            }
        }
        part.num_lines += 1;
    }
    part
}

fn parse_line(
    line: &[u8],
    parser: &dyn ParseLine,
    step: Option<i64>,
    parsed: &mut Parsed,
) -> Result<(), String> {
    let line = line.strip_prefix(BOM).unwrap_or(line).trim_ascii_end();
    if line.is_empty() {
        return Ok(());
    }
    let (num_records, num_gaps) = (parsed.records.len(), parsed.gaps.len());
    let untrained = parsed.untrained;
    let result = parser.parse(line, step, parsed);
    if result.is_err() {
        // An episode is left out whole.
        parsed.records.truncate(num_records);
        parsed.gaps.truncate(num_gaps);
        parsed.untrained = untrained;
    }
    result
}

/// A part of a file that can be read alone.
struct Part<'a> {
    file: usize,
    input: &'a Input,
    table: &'a dyn ReadTable,
    range: Range,
}

fn read_tables(inputs: &[Input], readers: &[Reader], sink: &mut Sink<'_>) -> Result<()> {
    let mut parts = vec![];
    for (file, (input, reader)) in inputs.iter().zip(readers).enumerate() {
        let Reader::Table(table) = reader else {
            continue;
        };
        let ranges = table.ranges(input);
        let ranges = ranges.map_err(|error| Error::file(input.name(), error))?;
        parts.extend(ranges.into_iter().map(|range| Part {
            file,
            input,
            table: &**table,
            range,
        }));
    }
    let mut rest = &parts[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(num_held(rest));
        rest = later;
        match now {
            [part] => part.stream(sink)?,
            parts => together(parts, sink)?,
        }
    }
    Ok(())
}

/// How many parts have few enough rows to be held at once; at least one.
fn num_held(parts: &[Part<'_>]) -> usize {
    let mut num_rows = 0;
    let is_within = |part: &&Part<'_>| {
        num_rows = part.range.num_rows.saturating_add(num_rows);
        num_rows <= MAX_HELD_ROWS
    };
    parts.iter().take_while(is_within).count().max(1)
}

/// Reads the parts on all threads, then collects them in order.
fn together(parts: &[Part<'_>], sink: &mut Sink<'_>) -> Result<()> {
    let read = |part: &Part<'_>| {
        let mut rows = vec![];
        let result = part.table.read(part.input, &part.range, &mut |row| {
            rows.push(row);
            Ok(())
        });
        (rows, result)
    };
    let read: Vec<_> = parts.par_iter().with_max_len(1).map(read).collect();
    for (part, (rows, result)) in parts.iter().zip(read) {
        for row in rows {
            part.take(row, sink)?;
        }
        result?;
        sink.bytes(part.range.num_bytes);
    }
    Ok(())
}

impl Part<'_> {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let take = &mut |row| self.take(row, sink);
        self.table.read(self.input, &self.range, take)?;
        sink.bytes(self.range.num_bytes);
        Ok(())
    }

    fn take(&self, (number, record): TableRow, sink: &mut Sink<'_>) -> Result<()> {
        match record {
            Ok(record) => {
                sink.record(self.file, record);
                Ok(())
            }
            Err(reason) => sink.broken(self.file, number, &reason),
        }
    }
}
