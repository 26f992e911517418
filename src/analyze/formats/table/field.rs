//! The value of a column in a row, whatever the file it stands in.

use crate::analyze::json;
use std::borrow::Cow;

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::analyze) enum Field<'a> {
    /// The row has no such column.
    Missing,
    Null,
    Bool(bool),
    /// As text.
    Number(&'a [u8]),
    Integer(i64),
    Float(f64),
    Text(&'a [u8]),
    /// A text of JSON, escapes untouched.
    Escaped(&'a [u8]),
    /// A list of so many values, and its bytes.
    List(usize, &'a [u8]),
    Object(&'a [u8]),
}

impl<'a> Field<'a> {
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Missing => "no such column",
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) | Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) | Self::Escaped(_) => "text",
            Self::List(..) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// A name, which texts, lists and numbers can be.
    pub(super) fn name(self) -> Option<Cow<'a, [u8]>> {
        Some(match self {
            Self::Missing | Self::Null => return None,
            Self::Bool(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Integer(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Float(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Number(bytes)
            | Self::Text(bytes)
            | Self::Escaped(bytes)
            | Self::List(_, bytes)
            | Self::Object(bytes) => Cow::Borrowed(bytes),
        })
    }

    pub(super) fn number(self) -> Option<f64> {
        match self {
            Self::Number(text) => number(text),
            Self::Integer(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            Self::Bool(value) => Some(f64::from(u8::from(value))),
            Self::Null => Some(f64::NAN),
            Self::Text(text) | Self::Escaped(text) => number_in_text(text),
            Self::Missing | Self::List(..) | Self::Object(_) => None,
        }
    }
}

/// The value of a number as JSON writes it, or in another way that tables have: `.5`, `1.`, `+1`,
/// `01`.
pub(in crate::analyze) fn number(text: &[u8]) -> Option<f64> {
    json::number(text).or_else(|| {
        // Words for what is not finite are no numbers here.
        let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
        number.is_finite().then_some(number)
    })
}

/// What numpy has, verl writes as text.
fn number_in_text(text: &[u8]) -> Option<f64> {
    match text {
        b"True" => Some(1.0),
        b"False" => Some(0.0),
        b"nan" => Some(f64::NAN),
        b"inf" => Some(f64::INFINITY),
        b"-inf" => Some(f64::NEG_INFINITY),
        text => json::number(text),
    }
}
