//! What the values of a parquet column are, where their storage does not tell.

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::schema::types::ColumnDescriptor;

/// Most digits of a decimal that 16 bytes hold.
const MAX_DIGITS: i32 = 38;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Stored,
    Unsigned,
    /// An integer without its decimal point.
    Decimal {
        scale: usize,
    },
    /// 16-bit floating point.
    Half,
}

impl Meaning {
    pub(super) fn of(column: &ColumnDescriptor) -> Result<Self, String> {
        use ConvertedType::{DECIMAL, UINT_8, UINT_16, UINT_32, UINT_64};
        let decimal = |scale, precision| decimal(column, scale, precision);
        match (column.logical_type_ref(), column.converted_type()) {
            (Some(LogicalType::Decimal(of)), _) => decimal(of.scale, of.precision),
            (None, DECIMAL) => decimal(column.type_scale(), column.type_precision()),
            (Some(LogicalType::Integer(of)), _) if !of.is_signed => Ok(Self::Unsigned),
            (None, UINT_8 | UINT_16 | UINT_32 | UINT_64) => Ok(Self::Unsigned),
            (Some(LogicalType::Float16), _) => Ok(Self::Half),
            _ => Ok(Self::Stored),
        }
    }
}

fn decimal(column: &ColumnDescriptor, scale: i32, precision: i32) -> Result<Meaning, String> {
    let is_stored = matches!(
        column.physical_type(),
        Physical::INT32 | Physical::INT64 | Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY
    );
    match usize::try_from(scale) {
        Ok(scale) if is_stored && precision <= MAX_DIGITS && scale <= MAX_DIGITS as usize => {
            Ok(Meaning::Decimal { scale })
        }
        _ => Err(format!(
            "column `{}`: expected decimals of at most {MAX_DIGITS} digits, found \
             DECIMAL({precision}, {scale})",
            column.path().string()
        )),
    }
}

/// The value of a decimal's bytes.
pub(super) fn big_endian(bytes: &[u8]) -> Result<i128, String> {
    let mut value = [0; 16];
    let Some(start) = value.len().checked_sub(bytes.len()) else {
        let found = bytes.len();
        return Err(format!(
            "expected decimals of at most 16 bytes, found {found}"
        ));
    };
    let is_negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    value.fill(if is_negative { 0xff } else { 0 });
    value[start..].copy_from_slice(bytes);
    Ok(i128::from_be_bytes(value))
}

/// Adds a number as JSON writes it.
pub(super) fn append_decimal(unscaled: i128, scale: usize, text: &mut Vec<u8>) {
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if unscaled < 0 {
        text.push(b'-');
    }
    text.extend(whole.bytes());
    if scale > 0 {
        text.push(b'.');
        text.extend(fraction.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_has_its_point() {
        for (bytes, scale, expected) in [
            (&[50_u8] as &[u8], 2, "0.50"),
            (&[0xff], 2, "-0.01"),
            (&[0x01, 0x00], 0, "256"),
            (&[0xff, 0x00], 1, "-25.6"),
            (&[], 3, "0.000"),
            (&[0x7f; 16], 38, "1.69473963133173273960190490760135540607"),
        ] {
            let mut text = vec![];
            append_decimal(big_endian(bytes).unwrap(), scale, &mut text);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
        assert!(big_endian(&[0; 17]).is_err());
    }
}
