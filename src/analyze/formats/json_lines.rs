//! JSONL with a response a line, verl's and others.

use super::table::{Field, MAX_COLUMNS, Plan};
use super::{ParseLine, Parsed};
use crate::analyze::json::{Json, decode, elements, fields};

/// Reads the columns of a plan.
pub(super) struct JsonLines {
    pub(super) plan: Plan,
}

impl ParseLine for JsonLines {
    fn parse(
        &self,
        line: &[u8],
        step_of_file: Option<i64>,
        out: &mut Parsed,
    ) -> Result<(), String> {
        let names = &self.plan.names;
        let mut row = [Field::Missing; MAX_COLUMNS];
        fields(line, |key, value| {
            // As in Python, the last of several values of a key counts.
            if let Some(slot) = names.iter().position(|name| is_key(key, name)) {
                row[slot] = field(value)?;
            }
            Ok(())
        })?;
        let record = self.plan.record(&row[..names.len()], step_of_file)?;
        out.records.push(record);
        Ok(())
    }
}

fn is_key(key: &[u8], name: &str) -> bool {
    let is_escaped = |key: &[u8]| key.contains(&b'\\') && decode(key).is_some_and(|k| k == name);
    key == name.as_bytes() || (key.len() > name.len() && is_escaped(key))
}

fn field(value: Json<'_>) -> Result<Field<'_>, String> {
    Ok(match value {
        Json::Null => Field::Null,
        Json::Bool(value) => Field::Bool(value),
        Json::Number(text) => Field::Number(text),
        Json::String(text) => Field::Text(text),
        Json::Object(bytes) => Field::Object(bytes),
        Json::Array(bytes) => {
            let mut length = 0;
            elements(bytes, |_| {
                length += 1;
                Ok(())
            })?;
            Field::List(length, bytes)
        }
    })
}
