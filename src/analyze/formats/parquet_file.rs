//! Parquet, TRL's and others. Only the columns that are wanted are read, some rows at a time.

mod leaf;
mod meaning;

use super::caught::caught;
use super::table::{Field, Plan};
use super::{Columns, Format, Range, ReadTable, Reader, Source, TableRow};
use crate::analyze::input::Input;
use crate::analyze::options::Options;
use crate::error::{Error, Result as QaeResult};
use leaf::Leaf;
use parquet::basic::Type as Physical;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;
use std::fs::File;

/// Responses of many kilobytes each must not add up to much.
const ROWS_PER_BATCH: usize = 256;

struct ParquetFile {
    plan: Plan,
    /// The leaves of each column of the plan: several where it is a list of messages.
    leaves: Vec<Vec<usize>>,
}

pub(super) fn source(input: &Input, options: &Options) -> Result<Source, String> {
    let reader = open(input)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let names: Vec<String> = fields
        .iter()
        .map(|field| field.name().to_string())
        .collect();
    let has = |name: &str| names.iter().any(|known| known == name);
    let is_trl = ["step", "prompt", "completion", "advantage"]
        .into_iter()
        .all(has);
    let (format, columns, rewards) = if is_trl {
        (Format::Trl, Columns::Trl, trl_rewards(schema))
    } else {
        (Format::Parquet, Columns::Other, vec![])
    };
    let (plan, described) = Plan::new(columns, &names, &rewards, options)?;
    super::check_unique(&names, &plan.names)?;
    let leaves = (plan.names.iter())
        .map(|name| {
            let leaves = 0..schema.num_columns();
            leaves
                .filter(|&leaf| schema.get_column_root(leaf).name() == name)
                .collect()
        })
        .collect();
    Ok(Source {
        format,
        reader: Reader::Table(Box::new(ParquetFile { plan, leaves })),
        described,
    })
}

/// The columns of floats that follow the completion. TRL writes one for each reward function, always
/// floats, then what these have logged beside them, in any type: behind the first column of another
/// type there is no reward, before it nothing tells them apart.
fn trl_rewards(schema: &SchemaDescriptor) -> Vec<String> {
    let fields = schema.root_schema().get_fields();
    let names = fields.iter();
    let names = names
        .skip_while(|field| field.name() != "completion")
        .skip(1);
    let names = names.take_while(|field| field.name() != "advantage");
    let is_float = |physical| matches!(physical, Physical::DOUBLE | Physical::FLOAT);
    names
        .take_while(|field| field.is_primitive() && is_float(field.get_physical_type()))
        .map(|field| field.name().to_string())
        .collect()
}

fn message(error: ParquetError) -> String {
    let error = error.to_string();
    match error.split_once("Disabled feature at compile time: ") {
        Some((_, codec)) => format!("expected snappy, gzip, lz4, zstd or none, found {codec}"),
        None => format!("expected a whole parquet file: {error}"),
    }
}

fn open(input: &Input) -> Result<SerializedFileReader<File>, String> {
    let file = input.file().map_err(|error| match error {
        // Whoever is told knows the file's name.
        Error::File { message, .. } => message,
        error => error.to_string(),
    })?;
    let reader = caught(|| SerializedFileReader::new(file).map_err(message))?;
    if reader
        .metadata()
        .row_groups()
        .iter()
        .all(|rows| is_within(rows, input.size))
    {
        return Ok(reader);
    }
    Err("expected a whole parquet file, found columns outside of it".to_string())
}

/// Whether the file has the bytes that its footer promises, which reading takes for granted.
fn is_within(row_group: &RowGroupMetaData, size: u64) -> bool {
    let is_within = |column: &ColumnChunkMetaData| {
        let start = column
            .dictionary_page_offset()
            .unwrap_or(column.data_page_offset());
        let parts = [start, column.data_page_offset(), column.compressed_size()];
        let end = u64::try_from(start.saturating_add(column.compressed_size()));
        parts.iter().all(|&part| part >= 0) && end.is_ok_and(|end| end <= size)
    };
    row_group.num_rows() >= 0 && row_group.columns().iter().all(is_within)
}

impl ReadTable for ParquetFile {
    fn ranges(&self, input: &Input) -> Result<Vec<Range>, String> {
        let metadata = open(input)?;
        let row_groups = metadata.metadata().row_groups();
        let mut first: u64 = 1;
        let range = |(row_group, metadata): (usize, &RowGroupMetaData)| {
            let num_rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
            let start = first;
            first = first.saturating_add(num_rows);
            Range {
                row_group,
                first: start,
                num_rows,
                num_bytes: input.size / row_groups.len() as u64,
            }
        };
        Ok(row_groups.iter().enumerate().map(range).collect())
    }

    fn read(
        &self,
        input: &Input,
        range: &Range,
        take: &mut dyn FnMut(TableRow) -> QaeResult<()>,
    ) -> QaeResult<()> {
        let refuse = |error: String| Error::file(input.name(), error);
        let content = open(input).map_err(refuse)?;
        let columns = caught(|| self.columns(&content, range.row_group));
        let mut columns = columns.map_err(refuse)?;
        let mut number = range.first;
        let end = range.first.saturating_add(range.num_rows);
        while number < end {
            let wanted = (ROWS_PER_BATCH as u64).min(end - number) as usize;
            let read = caught(|| {
                columns
                    .iter_mut()
                    .try_for_each(|column| column.read(wanted))
            });
            read.map_err(refuse)?;
            for i in 0..wanted {
                let fields: Vec<_> = columns.iter().map(|column| column.field(i)).collect();
                take((number, self.plan.record(&fields, input.step)))?;
                number += 1;
            }
        }
        Ok(())
    }
}

impl ParquetFile {
    fn columns(
        &self,
        content: &SerializedFileReader<File>,
        row_group: usize,
    ) -> Result<Vec<Column>, String> {
        let row_group = content.get_row_group(row_group).map_err(message)?;
        let schema = content.metadata().file_metadata().schema_descr();
        let column = |leaves: &Vec<usize>| {
            let is_optional = |&leaf: &usize| schema.get_column_root(leaf).is_optional();
            Ok(Column {
                is_optional: leaves.first().is_some_and(is_optional),
                leaves: (leaves.iter())
                    .map(|&leaf| Leaf::new(&*row_group, leaf))
                    .collect::<Result<_, String>>()?,
                text: vec![],
                ends: vec![],
            })
        };
        self.leaves.iter().map(column).collect()
    }
}

/// A column of the plan, in a row group.
struct Column {
    leaves: Vec<Leaf>,
    /// The column itself may be null, not only what is in it.
    is_optional: bool,
    /// Of columns with several leaves or lists: the bytes of all values of a row together. Of
    /// numbers that no other type holds: their digits.
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Column {
    fn read(&mut self, num_rows: usize) -> Result<(), String> {
        for leaf in &mut self.leaves {
            leaf.read(num_rows)?;
        }
        self.text.clear();
        self.ends.clear();
        for row in 0..num_rows {
            match &self.leaves[..] {
                [leaf] if !leaf.is_list() => leaf.append_digits(row, &mut self.text)?,
                leaves => leaves
                    .iter()
                    .for_each(|leaf| leaf.append(row, &mut self.text)),
            }
            self.ends.push(self.text.len());
        }
        Ok(())
    }

    fn field(&self, row: usize) -> Field<'_> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        let bytes = &self.text[start..self.ends[row]];
        match &self.leaves[..] {
            [] => Field::Missing,
            [leaf] if !leaf.is_list() => leaf.scalar(row, bytes),
            leaves if self.is_optional && leaves.iter().all(|leaf| leaf.is_null(row)) => {
                Field::Null
            }
            leaves if leaves.iter().any(Leaf::is_text) => Field::Text(bytes),
            leaves => Field::List(leaves[0].length(row), bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    #[test]
    fn rewards_of_trl_end_at_the_first_column_of_another_type() {
        let rewards = |columns: &str| {
            let schema = format!(
                "message schema {{ optional double before; optional binary completion (UTF8); \
                 {columns} optional double advantage; optional double after; }}"
            );
            let schema = parse_message_type(&schema).unwrap();
            trl_rewards(&SchemaDescriptor::new(Arc::new(schema)))
        };
        assert_eq!(rewards("optional double a; optional double b;"), ["a", "b"]);
        for other in [
            "optional int64 n;",
            "optional binary text (UTF8);",
            "optional boolean ok;",
            "optional group list { optional double x; }",
        ] {
            let columns = format!("optional double a; {other} optional double logged;");
            assert_eq!(rewards(&columns), ["a"], "{other}");
        }
        assert_eq!(rewards(""), [""; 0]);
    }
}
