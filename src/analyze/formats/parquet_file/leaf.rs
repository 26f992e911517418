//! The values of one type of a column of a parquet file.

use super::meaning::{Meaning, append_decimal, big_endian};
use super::message;
use crate::analyze::formats::table::Field;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::file::reader::RowGroupReader;

/// A column of values of one type, in a row group.
pub(super) struct Leaf {
    max_definition: i16,
    max_repetition: i16,
    /// From this one on, an entry is an element of its list, if only null.
    element_definition: i16,
    meaning: Meaning,
    definition: Vec<i16>,
    repetition: Vec<i16>,
    values: Values,
    /// Where the values of each row of the batch begin, and where the last ones end.
    starts: Vec<usize>,
    /// The same of the levels: besides values, nulls and empty lists have one.
    level_starts: Vec<usize>,
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
    pub(super) fn new(row_group: &dyn RowGroupReader, leaf: usize) -> Result<Self, String> {
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
            element_definition: descriptor.repeated_ancestor_def_level(),
            meaning: Meaning::of(descriptor)?,
            definition: vec![],
            repetition: vec![],
            values,
            starts: vec![],
            level_starts: vec![],
        })
    }

    pub(super) fn is_list(&self) -> bool {
        self.max_repetition > 0
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.values, Values::Bytes(..))
    }

    pub(super) fn read(&mut self, num_rows: usize) -> Result<(), String> {
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
        self.level_starts.clear();
        let mut value = 0;
        for level in 0..num_levels {
            if !self.is_list() || self.repetition[level] == 0 {
                self.starts.push(value);
                self.level_starts.push(level);
            }
            value += usize::from(self.is_defined(level));
        }
        // Values that the levels do not announce are nobody's.
        let end = value.min(num_values);
        self.starts
            .iter_mut()
            .for_each(|start| *start = (*start).min(end));
        self.starts.push(end);
        self.level_starts.push(num_levels);
    }

    fn is_defined(&self, level: usize) -> bool {
        self.max_definition == 0 || self.definition[level] == self.max_definition
    }

    fn is_element(&self, level: usize) -> bool {
        self.element_definition == 0 || self.definition[level] >= self.element_definition
    }

    fn levels(&self, row: usize) -> std::ops::Range<usize> {
        self.level_starts[row]..self.level_starts[row + 1]
    }

    /// Of a list, nulls among it included.
    pub(super) fn length(&self, row: usize) -> usize {
        self.levels(row)
            .filter(|&level| self.is_element(level))
            .count()
    }

    /// Whether there is nothing at all, not even a list without elements, if the column may be null.
    pub(super) fn is_null(&self, row: usize) -> bool {
        self.max_definition > 0 && self.levels(row).all(|level| self.definition[level] == 0)
    }

    /// Where the value of a row is that is no list.
    fn at(&self, row: usize) -> Option<usize> {
        let start = self.starts[row];
        (start < self.starts[row + 1]).then_some(start)
    }

    /// The value of a row, with what [`Self::append_digits`] has made of it.
    pub(super) fn scalar<'a>(&'a self, row: usize, digits: &'a [u8]) -> Field<'a> {
        let Some(at) = self.at(row) else {
            return Field::Null;
        };
        if !digits.is_empty() {
            return Field::Number(digits);
        }
        match &self.values {
            Values::Bools(_, values) => Field::Bool(values[at]),
            Values::Int32s(_, values) if self.meaning == Meaning::Unsigned => {
                Field::Integer((values[at] as u32).into())
            }
            Values::Int32s(_, values) => Field::Integer(values[at].into()),
            Values::Int64s(_, values) => Field::Integer(values[at]),
            Values::Floats(_, values) => Field::Float(values[at].into()),
            Values::Doubles(_, values) => Field::Float(values[at]),
            Values::Bytes(_, values) => Field::Text(values[at].data()),
            Values::Fixed(_, values) => match (self.meaning, values[at].data()) {
                (Meaning::Half, &[low, high]) => {
                    Field::Float(half::f16::from_le_bytes([low, high]).into())
                }
                (_, bytes) => Field::Text(bytes),
            },
        }
    }

    /// Adds the digits of a number that no [`Field`] holds in another way; nothing for others.
    pub(super) fn append_digits(&self, row: usize, text: &mut Vec<u8>) -> Result<(), String> {
        let Some(at) = self.at(row) else {
            return Ok(());
        };
        match (self.meaning, &self.values) {
            (Meaning::Unsigned, Values::Int64s(_, values)) => {
                text.extend((values[at] as u64).to_string().bytes());
                Ok(())
            }
            (Meaning::Decimal { scale }, values) => {
                let unscaled = match values {
                    Values::Int32s(_, values) => values[at].into(),
                    Values::Int64s(_, values) => values[at].into(),
                    Values::Bytes(_, values) => big_endian(values[at].data())?,
                    Values::Fixed(_, values) => big_endian(values[at].data())?,
                    Values::Bools(..) | Values::Floats(..) | Values::Doubles(..) => return Ok(()),
                };
                append_decimal(unscaled, scale, text);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Adds the values of a row to `text`, and marks that no text has where there is none, so that
    /// no two lists are one text. An empty list is nothing.
    pub(super) fn append(&self, row: usize, text: &mut Vec<u8>) {
        let mut at = self.starts[row];
        for level in self.levels(row) {
            if self.is_list() && (1..self.max_repetition).contains(&self.repetition[level]) {
                text.extend([0xfe, self.repetition[level] as u8]);
            }
            if self.is_defined(level) {
                if at < self.starts[row + 1] {
                    self.append_value(at, text);
                    at += 1;
                }
            } else if self.max_repetition > 1 || self.is_element(level) {
                text.extend([0xff, self.definition[level] as u8]);
            }
        }
    }

    fn append_value(&self, at: usize, text: &mut Vec<u8>) {
        match &self.values {
            Values::Bools(_, values) => text.push(values[at].into()),
            Values::Int32s(_, values) => text.extend(values[at].to_le_bytes()),
            Values::Int64s(_, values) => text.extend(values[at].to_le_bytes()),
            Values::Floats(_, values) => text.extend(values[at].to_le_bytes()),
            Values::Doubles(_, values) => text.extend(values[at].to_le_bytes()),
            Values::Bytes(_, values) => text.extend(values[at].data()),
            Values::Fixed(_, values) => text.extend(values[at].data()),
        }
        text.push(0);
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
