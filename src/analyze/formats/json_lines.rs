//! JSONL with a response a line, verl's and others.

use super::table::{Field, MAX_COLUMNS, Plan};
use super::{ParseLine, Parsed};
use crate::analyze::json::{Json, decode, elements, fields};
use std::borrow::Cow;

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
        let Plan { names, absent, .. } = &self.plan;
        let mut row = [Field::Missing; MAX_COLUMNS];
        fields(line, |key, value| {
            let Some(key) = name_of(key) else {
                return Ok(());
            };
            let is_key = |name: &&String| name.as_bytes() == &*key;
            // As in Python, the last of several values of a key counts.
            if let Some(slot) = names.iter().position(|name| is_key(&name)) {
                row[slot] = field(value)?;
                return Ok(());
            }
            // The first row says how all are read.
            match absent.iter().find(is_key) {
                None => Ok(()),
                Some(name) => Err(format!(
                    "column `{name}`: expected in every row or in none, found here but not in the \
                     first row"
                )),
            }
        })?;
        let record = self.plan.record(&row[..names.len()], step_of_file)?;
        out.records.push(record);
        Ok(())
    }
}

/// The name that a key is; `None` if it has wrong escapes.
fn name_of(key: &[u8]) -> Option<Cow<'_, [u8]>> {
    if key.contains(&b'\\') {
        return Some(Cow::Owned(decode(key)?.into_bytes()));
    }
    Some(Cow::Borrowed(key))
}

fn field(value: Json<'_>) -> Result<Field<'_>, String> {
    Ok(match value {
        Json::Null => Field::Null,
        Json::Bool(value) => Field::Bool(value),
        Json::Number(text) => Field::Number(text),
        Json::String(text) => Field::Escaped(text),
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
