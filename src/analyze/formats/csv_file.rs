//! CSV, or tabs between the columns, with a header.

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

struct CsvFile {
    plan: Plan,
    /// Of each column of the plan, in the file.
    columns: Vec<usize>,
    delimiter: u8,
}

pub(super) fn source(head: &[u8], options: &Options) -> Result<Source, String> {
    let head = head.strip_prefix(BOM).unwrap_or(head);
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let delimiter = if line.contains(&b'\t') { b'\t' } else { b',' };
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
    let column = |name: &String| names.iter().position(|known| known == name);
    let columns = plan.names.iter().filter_map(column).collect();
    Ok(Source {
        format: Format::Csv,
        reader: Reader::Table(Box::new(CsvFile {
            plan,
            columns,
            delimiter,
        })),
        described,
    })
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
        let mut content = Counted {
            content: input.open()?,
            num_quotes: 0,
        };
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .buffer_capacity(1 << 20)
            .from_reader(&mut content);
        let mut row = ByteRecord::new();
        let (mut line, mut has_line_break) = (1, false);
        loop {
            match reader.read_byte_record(&mut row) {
                Ok(false) => break,
                Ok(true) => {
                    line = row.position().map_or(line, csv::Position::line);
                    has_line_break = memchr::memchr(b'\n', row.as_slice()).is_some();
                    take((line, self.record(&row, input.step)))?;
                }
                Err(error) => {
                    if let csv::ErrorKind::Io(error) = error.kind() {
                        return Err(input.unreadable(error));
                    }
                    line = error.position().map_or(line, csv::Position::line);
                    take((line, Err(message(&error))))?;
                }
            }
        }
        drop(reader);
        // A quote that nothing closes makes one field of all lines that follow it. An odd quote
        // within a field does not.
        if content.num_quotes % 2 == 1 && has_line_break {
            let message = "expected the end of the quoted field, found the end of the file";
            return Err(Error::file(format!("{}:{line}", input.name()), message));
        }
        Ok(())
    }
}

impl CsvFile {
    fn record(&self, row: &ByteRecord, step_of_file: Option<i64>) -> Result<Record, String> {
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
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("expected {expected_len} columns, found {len}"),
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
        number if crate::analyze::json::number(number).is_some() => Field::Number(number),
        _ => Field::Text(text),
    }
}

/// Counts the quotes that pass.
struct Counted {
    content: Box<dyn Read + Send>,
    num_quotes: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.content.read(buffer)?;
        let quotes = memchr::memchr_iter(b'"', &buffer[..length]).count();
        self.num_quotes += quotes as u64;
        Ok(length)
    }
}
