//! Parquet, TRL's and others. Only the columns that are wanted are read, some rows at a time.

use super::caught::caught;
use super::table::{Field, Plan};
use super::{Columns, Format, Range, ReadTable, Reader, Source, TableRow};
use crate::analyze::input::Input;
use crate::analyze::options::Options;
use crate::error::{Error, Result as QaeResult};
use parquet::basic::Type as Physical;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
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
    let file = input.file().map_err(|error| error.to_string())?;
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
        let column = |leaves: &Vec<usize>| {
            let leaves = leaves.iter().map(|&leaf| Leaf::new(&*row_group, leaf));
            Ok(Column {
                leaves: leaves.collect::<Result<_, String>>()?,
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
    /// Of columns with several leaves or lists: the bytes of all values of a row together.
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
        if !self.is_scalar() {
            for row in 0..num_rows {
                for leaf in &self.leaves {
                    leaf.append(row, &mut self.text);
                }
                self.ends.push(self.text.len());
            }
        }
        Ok(())
    }

    fn is_scalar(&self) -> bool {
        matches!(&self.leaves[..], [leaf] if leaf.max_repetition == 0)
    }

    fn field(&self, row: usize) -> Field<'_> {
        match &self.leaves[..] {
            [] => Field::Missing,
            [leaf] if leaf.max_repetition == 0 => leaf.scalar(row),
            leaves => {
                let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
                let bytes = &self.text[start..self.ends[row]];
                if leaves
                    .iter()
                    .any(|leaf| matches!(leaf.values, Values::Bytes(..)))
                {
                    Field::Text(bytes)
                } else {
                    Field::List(leaves[0].num_values(row), bytes)
                }
            }
        }
    }
}

/// A column of values of one type, in a row group.
struct Leaf {
    max_definition: i16,
    max_repetition: i16,
    definition: Vec<i16>,
    repetition: Vec<i16>,
    values: Values,
    /// Where the values of each row of the batch begin, and where the last ones end.
    starts: Vec<usize>,
}

enum Values {
    Bools(ColumnReaderImpl<parquet::data_type::BoolType>, Vec<bool>),
    Int32s(ColumnReaderImpl<parquet::data_type::Int32Type>, Vec<i32>),
    Int64s(ColumnReaderImpl<parquet::data_type::Int64Type>, Vec<i64>),
    Floats(ColumnReaderImpl<parquet::data_type::FloatType>, Vec<f32>),
    Doubles(ColumnReaderImpl<parquet::data_type::DoubleType>, Vec<f64>),
    Bytes(
        ColumnReaderImpl<parquet::data_type::ByteArrayType>,
        Vec<ByteArray>,
    ),
    Fixed(
        ColumnReaderImpl<parquet::data_type::FixedLenByteArrayType>,
        Vec<FixedLenByteArray>,
    ),
}

impl Leaf {
    fn new(row_group: &dyn RowGroupReader, leaf: usize) -> Result<Self, String> {
        let metadata = row_group.metadata().column(leaf);
        let descriptor = metadata.column_descr();
        let values = match row_group.get_column_reader(leaf).map_err(message)? {
            ColumnReader::BoolColumnReader(reader) => Values::Bools(reader, vec![]),
            ColumnReader::Int32ColumnReader(reader) => Values::Int32s(reader, vec![]),
            ColumnReader::Int64ColumnReader(reader) => Values::Int64s(reader, vec![]),
            ColumnReader::FloatColumnReader(reader) => Values::Floats(reader, vec![]),
            ColumnReader::DoubleColumnReader(reader) => Values::Doubles(reader, vec![]),
            ColumnReader::ByteArrayColumnReader(reader) => Values::Bytes(reader, vec![]),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => Values::Fixed(reader, vec![]),
            ColumnReader::Int96ColumnReader(_) => {
                let name = descriptor.path().string();
                return Err(format!(
                    "column `{name}`: expected numbers or text, found INT96"
                ));
            }
        };
        Ok(Self {
            max_definition: descriptor.max_def_level(),
            max_repetition: descriptor.max_rep_level(),
            definition: vec![],
            repetition: vec![],
            values,
            starts: vec![],
        })
    }

    fn read(&mut self, num_rows: usize) -> Result<(), String> {
        let Self {
            definition,
            repetition,
            values,
            ..
        } = self;
        definition.clear();
        repetition.clear();
        let found = match values {
            Values::Bools(reader, values) => read(reader, num_rows, definition, repetition, values),
            Values::Int32s(reader, values) => {
                read(reader, num_rows, definition, repetition, values)
            }
            Values::Int64s(reader, values) => {
                read(reader, num_rows, definition, repetition, values)
            }
            Values::Floats(reader, values) => {
                read(reader, num_rows, definition, repetition, values)
            }
            Values::Doubles(reader, values) => {
                read(reader, num_rows, definition, repetition, values)
            }
            Values::Bytes(reader, values) => read(reader, num_rows, definition, repetition, values),
            Values::Fixed(reader, values) => read(reader, num_rows, definition, repetition, values),
        }?;
        self.index(found.num_levels, found.num_values);
        let num_found = self.starts.len() - 1;
        if num_found != num_rows {
            return Err(format!("expected {num_rows} more rows, found {num_found}"));
        }
        Ok(())
    }

    fn index(&mut self, num_levels: usize, num_values: usize) {
        self.starts.clear();
        let mut value = 0;
        for level in 0..num_levels {
            if self.max_repetition == 0 || self.repetition[level] == 0 {
                self.starts.push(value);
            }
            let is_defined =
                self.max_definition == 0 || self.definition[level] == self.max_definition;
            value += usize::from(is_defined);
        }
        // Values that the levels do not announce are nobody's.
        let end = value.min(num_values);
        self.starts
            .iter_mut()
            .for_each(|start| *start = (*start).min(end));
        self.starts.push(end);
    }

    fn num_values(&self, row: usize) -> usize {
        self.starts[row + 1] - self.starts[row]
    }

    fn scalar(&self, row: usize) -> Field<'_> {
        if self.num_values(row) == 0 {
            return Field::Null;
        }
        let at = self.starts[row];
        match &self.values {
            Values::Bools(_, values) => Field::Bool(values[at]),
            Values::Int32s(_, values) => Field::Integer(values[at].into()),
            Values::Int64s(_, values) => Field::Integer(values[at]),
            Values::Floats(_, values) => Field::Float(values[at].into()),
            Values::Doubles(_, values) => Field::Float(values[at]),
            Values::Bytes(_, values) => Field::Text(values[at].data()),
            Values::Fixed(_, values) => Field::Text(values[at].data()),
        }
    }

    /// Adds the values of a row to `text`.
    fn append(&self, row: usize, text: &mut Vec<u8>) {
        for at in self.starts[row]..self.starts[row + 1] {
            match &self.values {
                Values::Bools(_, values) => text.push(values[at].into()),
                Values::Int32s(_, values) => text.extend(values[at].to_le_bytes()),
                Values::Int64s(_, values) => text.extend(values[at].to_le_bytes()),
                Values::Floats(_, values) => text.extend(values[at].to_le_bytes()),
                Values::Doubles(_, values) => text.extend(values[at].to_le_bytes()),
                Values::Bytes(_, values) => text.extend(values[at].data()),
                Values::Fixed(_, values) => text.extend(values[at].data()),
            }
            // So that no two lists of texts are one text.
            text.push(0);
        }
    }
}

struct Found {
    num_levels: usize,
    num_values: usize,
}

fn read<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    num_rows: usize,
    definition: &mut Vec<i16>,
    repetition: &mut Vec<i16>,
    values: &mut Vec<T::T>,
) -> Result<Found, String> {
    values.clear();
    let found = reader.read_records(num_rows, Some(definition), Some(repetition), values);
    let (_, num_values, num_levels) = found.map_err(message)?;
    Ok(Found {
        num_levels,
        num_values,
    })
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
