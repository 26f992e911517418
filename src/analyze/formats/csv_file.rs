//! CSV, or semicolons, tabs or bars between the columns, with a header.

use super::table::{Field, Plan};
use super::{BOM, Columns, Format, Range, ReadTable, Reader, Source, TableRow};
use crate::analyze::input::Input;
use crate::analyze::options::Options;
use crate::analyze::record::Record;
use crate::error::{Error, Result as QaeResult};
use csv::ByteRecord;
use std::io::Read;

/// In bytes, for an upper bound of the number of rows.
const SHORTEST_ROW: u64 = 16;

/// What may stand between columns; the first one of those that a header has equally often.
const DELIMITERS: [u8; 4] = [b'\t', b',', b';', b'|'];

/// Follows the content: a line of its own unless the content ends within quotes. No line of text is
/// the same, it is no UTF-8.
const END: &[u8] = b"\n\xffend\xff\n";

struct CsvFile {
    plan: Plan,
    /// Of each column of the plan, in the file.
    columns: Vec<usize>,
    num_columns: usize,
    delimiter: u8,
}

pub(super) fn source(head: &[u8], options: &Options) -> Result<Source, String> {
    let head = head.strip_prefix(BOM).unwrap_or(head);
    let delimiter = delimiter(head);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(head);
    let header = reader.headers().map_err(|error| message(&error))?;
    let names: Vec<String> = header.iter().map(|name| name.trim().to_string()).collect();
    if names.len() < 2 {
        return Err(
            "expected JSONL, CSV with a header, or parquet, found text with one column".to_string(),
        );
    }
    let (plan, described) = Plan::new(Columns::Other, &names, &[], options)?;
    super::check_unique(&names, &plan.names)?;
    let column = |name: &String| names.iter().position(|known| known == name);
    let columns = plan.names.iter().filter_map(column).collect();
    Ok(Source {
        format: Format::Csv,
        reader: Reader::Table(Box::new(CsvFile {
            plan,
            columns,
            num_columns: names.len(),
            delimiter,
        })),
        described,
    })
}

/// The most frequent one of the header, quotes left out.
fn delimiter(head: &[u8]) -> u8 {
    let (mut counts, mut is_quoted) = ([0; DELIMITERS.len()], false);
    for &byte in head {
        match byte {
            b'"' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            b'\n' => break,
            _ => {
                let known = DELIMITERS.iter().position(|&known| known == byte);
                known.into_iter().for_each(|i| counts[i] += 1);
            }
        }
    }
    let most = counts.iter().max();
    let first = counts.iter().position(|count| Some(count) == most);
    DELIMITERS[first.unwrap_or_default()]
}

impl ReadTable for CsvFile {
    fn ranges(&self, input: &Input) -> Result<Vec<Range>, String> {
        Ok(vec![Range {
            row_group: 0,
            first: 1,
            num_rows: input.size / SHORTEST_ROW + 1,
            num_bytes: input.size,
        }])
    }

    fn read(
        &self,
        input: &Input,
        _: &Range,
        take: &mut dyn FnMut(TableRow) -> QaeResult<()>,
    ) -> QaeResult<()> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .flexible(true)
            .buffer_capacity(1 << 20)
            .from_reader(input.open()?.chain(END));
        let mut row = ByteRecord::new();
        loop {
            match reader.read_byte_record(&mut row) {
                Ok(false) => return Ok(()),
                Ok(true) if row.len() == 1 && row[0] == *END.trim_ascii() => return Ok(()),
                Ok(true) => {
                    let line = row.position().map_or(1, csv::Position::line);
                    let Some(open) = row.as_slice().strip_suffix(END) else {
                        take((line, self.record(&row, input.step)))?;
                        continue;
                    };
                    let message = "expected the end of the quoted field, found the end of the file";
                    if memchr::memchr(b'\n', open).is_some() {
                        // All lines behind the quote became one field.
                        let place = format!("{}:{line}", input.name());
                        return Err(Error::file(place, message));
                    }
                    take((line, Err(message.to_string())))?;
                }
                Err(error) => {
                    if let csv::ErrorKind::Io(error) = error.kind() {
                        return Err(input.unreadable(error));
                    }
                    let line = error.position().map_or(1, csv::Position::line);
                    take((line, Err(message(&error))))?;
                }
            }
        }
    }
}

impl CsvFile {
    fn record(&self, row: &ByteRecord, step_of_file: Option<i64>) -> Result<Record, String> {
        if row.len() != self.num_columns {
            let (expected, found) = (self.num_columns, row.len());
            return Err(format!("expected {expected} columns, found {found}"));
        }
        if std::str::from_utf8(row.as_slice()).is_err() {
            return Err("expected UTF-8".to_string());
        }
        let fields: Vec<_> = self
            .columns
            .iter()
            .map(|&column| field(&row[column]))
            .collect();
        self.plan.record(&fields, step_of_file)
    }
}

fn message(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "expected UTF-8".to_string(),
        _ => error.to_string(),
    }
}

/// What programs write for numbers, nothing and truth values.
fn field(text: &[u8]) -> Field<'_> {
    match text.trim_ascii() {
        b"" | b"null" | b"None" | b"NA" | b"N/A" => Field::Null,
        b"nan" | b"NaN" => Field::Number(b"NaN"),
        b"inf" | b"Infinity" => Field::Number(b"Infinity"),
        b"-inf" | b"-Infinity" => Field::Number(b"-Infinity"),
        b"true" | b"True" | b"TRUE" => Field::Bool(true),
        b"false" | b"False" | b"FALSE" => Field::Bool(false),
        number if super::table::number(number).is_some() => Field::Number(number),
        _ => Field::Text(text),
    }
}
