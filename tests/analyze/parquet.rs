//! Parquet columns whose values are not what is stored, and lists that name groups.

use crate::Files;
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type,
    Int64Type,
};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use qae::analyze::{Columns, Options, Report};
use std::sync::Arc;

type RowGroup<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

/// A file of one row group with these columns.
fn file(columns: &str, write: impl FnOnce(&mut RowGroup<'_>)) -> Vec<u8> {
    let schema = parse_message_type(&format!("message rows {{ {columns} }}")).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut file = SerializedFileWriter::new(vec![], Arc::new(schema), properties).unwrap();
    let mut row_group = file.next_row_group().unwrap();
    write(&mut row_group);
    row_group.close().unwrap();
    file.into_inner().unwrap()
}

/// Writes the next column; of one that may be null or a list also the levels.
fn column<T: DataType>(row_group: &mut RowGroup<'_>, values: &[T::T], levels: &[(i16, i16)]) {
    let mut column = row_group.next_column().unwrap().unwrap();
    let (repetition, definition): (Vec<_>, Vec<_>) = levels.iter().copied().unzip();
    let has_levels = !levels.is_empty();
    let definition = has_levels.then_some(&definition[..]);
    let repetition = has_levels.then_some(&repetition[..]);
    let writer = column.typed::<T>();
    writer.write_batch(values, definition, repetition).unwrap();
    column.close().unwrap();
}

fn read(content: &[u8]) -> Result<Report, String> {
    let options = Options {
        columns: Columns {
            group: Some("g".to_string()),
            rewards: vec!["r".parse().unwrap()],
            ..Columns::default()
        },
        ..Options::default()
    };
    Files::new(&[("a.parquet", content)]).report(&options)
}

/// Mean, smallest and largest reward of a column of this type.
fn rewards<T: DataType>(of: &str, values: &[T::T]) -> (Option<f64>, Option<f64>, Option<f64>) {
    let content = file(&format!("required int32 g; required {of};"), |row_group| {
        column::<Int32Type>(row_group, &vec![1; values.len()], &[]);
        column::<T>(row_group, values, &[]);
    });
    let rewards = read(&content).unwrap().rewards;
    (
        rewards.mean,
        rewards.min.map(f64::from),
        rewards.max.map(f64::from),
    )
}

fn fixed(bytes: &[u8]) -> FixedLenByteArray {
    ByteArray::from(bytes.to_vec()).into()
}

#[test]
fn decimals_have_their_point() {
    let expected = (Some(0.625), Some(0.0), Some(1.0));
    assert_eq!(
        rewards::<Int32Type>("int32 r (DECIMAL(9,2))", &[50, 100, 0, 100]),
        expected
    );
    assert_eq!(
        rewards::<Int64Type>("int64 r (DECIMAL(18,2))", &[50, 100, 0, 100]),
        expected
    );
    let values = [&[0, 0, 50], &[0, 0, 100], &[0, 0, 0], &[0, 0, 100]];
    let values = values.map(|bytes: &[u8; 3]| fixed(bytes));
    let of = "fixed_len_byte_array(3) r (DECIMAL(6,2))";
    assert_eq!(rewards::<FixedLenByteArrayType>(of, &values), expected);
    let values = [&[0xff_u8, 0x00] as &[u8], &[0x01, 0x00]].map(|bytes| bytes.to_vec().into());
    assert_eq!(
        rewards::<ByteArrayType>("binary r (DECIMAL(6,1))", &values),
        (
            Some(0.0),
            Some(f64::from(-25.6_f32)),
            Some(f64::from(25.6_f32))
        )
    );
}

#[test]
fn unsigned_integers_are_not_negative() {
    let large = f64::from(3e9_f32);
    assert_eq!(
        rewards::<Int32Type>("int32 r (INTEGER(32,false))", &[3_000_000_000_u32 as i32]),
        (Some(large), Some(large), Some(large))
    );
    let large = f64::from(1.2e19_f32);
    let value = 12_000_000_000_000_000_000_u64 as i64;
    assert_eq!(
        rewards::<Int64Type>("int64 r (UINT_64)", &[value]),
        (Some(large), Some(large), Some(large))
    );
}

/// The bytes of these are also digits.
#[test]
fn halves_are_numbers() {
    let half = half::f16::from_le_bytes(*b"11").to_f64();
    let of = "fixed_len_byte_array(2) r (FLOAT16)";
    assert_eq!(
        rewards::<FixedLenByteArrayType>(of, &[fixed(b"11")]),
        (Some(half), Some(half), Some(half))
    );
}

#[test]
fn decimals_that_are_too_long_are_named() {
    let of = "required int32 g; required fixed_len_byte_array(20) r (DECIMAL(40,2));";
    let content = file(of, |row_group| {
        column::<Int32Type>(row_group, &[1], &[]);
        column::<FixedLenByteArrayType>(row_group, &[fixed(&[0; 20])], &[]);
    });
    let error = read(&content).unwrap_err();
    assert!(
        error.contains("column `r`: expected decimals of at most 38 digits, found DECIMAL(40, 2)"),
        "{error}"
    );
}

const LIST: &str = "optional group g (LIST) { repeated group list { \
                    optional binary element (UTF8); } } required int32 r;";

/// Repetition and definition: of a value, of null among values, and instead of a list.
const FIRST: (i16, i16) = (0, 3);
const NEXT: (i16, i16) = (1, 3);
const FIRST_NULL: (i16, i16) = (0, 2);
const NEXT_NULL: (i16, i16) = (1, 2);
const EMPTY: (i16, i16) = (0, 1);
const NULL: (i16, i16) = (0, 0);

fn groups(rows: &[&[(i16, i16)]], texts: &[&str]) -> Result<u64, String> {
    let texts: Vec<ByteArray> = texts.iter().map(|text| (*text).into()).collect();
    let content = file(LIST, |row_group| {
        column::<ByteArrayType>(row_group, &texts, &rows.concat());
        column::<Int32Type>(row_group, &vec![1; rows.len()], &[]);
    });
    read(&content).map(|report| report.groups)
}

#[test]
fn lists_that_differ_in_nulls_name_different_groups() {
    let rows: [&[_]; 6] = [
        &[FIRST, NEXT_NULL, NEXT],
        &[FIRST, NEXT, NEXT_NULL],
        &[FIRST_NULL, NEXT, NEXT],
        &[FIRST, NEXT],
        &[EMPTY],
        &[FIRST_NULL],
    ];
    let texts = ["a", "b"].repeat(4);
    assert_eq!(groups(&rows, &texts), Ok(6));
    let twice = [rows, rows].concat();
    assert_eq!(groups(&twice, &texts.repeat(2)), Ok(6));
    let error = groups(&[&[FIRST, NEXT], &[NULL]], &["a", "b"]).unwrap_err();
    assert!(
        error.contains("a.parquet:row 2: column `g`: expected the name of a group, found null"),
        "{error}"
    );
}
