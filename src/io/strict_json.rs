//! JSON without silent losses: a second value of a key, and a value that reading would drop, are
//! errors.

use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Parses the object `text`; the error says where it stops being one.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(object))) => Ok(object),
        Ok(Strict(other)) => Err(kind(&other).to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses the configuration `text`.
///
/// # Errors
/// [`Error::Invalid`] names the field as [`ConfigFile::from_json`] does, also where that would
/// take the last of several values, an array for an object, or `null` for an absent field.
pub(crate) fn config(text: &str) -> Result<ConfigFile> {
    let object = object(text).map_err(|found| Error::invalid("config", "a JSON object", found))?;
    config_of(&Value::Object(object))
}

/// The same of a value that was parsed already.
pub(super) fn config_of(value: &Value) -> Result<ConfigFile> {
    if !value.is_object() {
        return Err(Error::invalid("config", "an object", kind(value)));
    }
    let file = ConfigFile::from_value(value)?;
    let kept = serde_json::to_value(&file)
        .map_err(|error| Error::invalid("config", "a JSON object", error))?;
    check_kept(value, Some(&kept), "")?;
    Ok(file)
}

/// serde takes an array for a struct and `null` for an absent option; neither is written back.
fn check_kept(given: &Value, kept: Option<&Value>, path: &str) -> Result<()> {
    match given {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            check_kept(value, kept.and_then(|kept| kept.get(name)), &path)
        }),
        Value::Null | Value::Array(_) if kept != Some(given) => {
            let expected = match given {
                Value::Null => "a value, or no such field",
                _ => "an object",
            };
            Err(Error::invalid(path, expected, kind(given)))
        }
        _ => Ok(()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A [`Value`] whose objects have each key once.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if object.contains_key(&key) {
                let message = format!("a second `{key}`");
                return Err(serde::de::Error::custom(message));
            }
            let Strict(value) = access.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut array = vec![];
        while let Some(Strict(value)) = access.next_element()? {
            array.push(value);
        }
        Ok(Value::Array(array))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

#[cfg(test)]
mod tests {
    use super::config;

    #[test]
    fn what_reading_would_drop_is_refused_by_name() {
        for (json, expected) in [
            ("[]", "config: expected a JSON object, found an array"),
            ("null", "config: expected a JSON object, found null"),
            ("7", "config: expected a JSON object, found a number"),
            (
                r#"{"baseline": []}"#,
                "baseline: expected an object, found an array",
            ),
            (
                r#"{"scale": null}"#,
                "scale: expected a value, or no such field, found null",
            ),
            (r#"{"kl": null}"#, "kl: expected an object, found null"),
            (
                r#"{"kl": {"coef": null}}"#,
                "kl.coef: expected a value, or no such field",
            ),
            (
                r#"{"epsilon": 1e-4, "epsilon": 1e-6}"#,
                "config: expected a JSON object, found a second `epsilon`",
            ),
            (
                r#"{"baseline": {"k": 0.2, "k": 0.4}}"#,
                "config: expected a JSON object, found a second `k`",
            ),
        ] {
            let message = config(json).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{json}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn null_stays_where_it_turns_something_off() {
        let file = config(
            r#"{"clip_low": null, "normalizer": {"batch_num_tokens": null}, "kl": {},
                "loss_params": {"seq_log_ratio_max": null, "kl_cov_ratio": [1, null]}}"#,
        )
        .unwrap();
        assert_eq!(file.clip_low, Some(None));
        assert_eq!(file.loss_params.seq_log_ratio_max, Some(None));
    }
}
