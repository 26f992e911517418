//! What a file says of itself besides its tensors.

use super::names::{NUM_ITEMS, Names};
use crate::config_json::ConfigFile;
use crate::error::Result;
use crate::io::TensorFile;
use crate::io::strict_json;
use serde_json::{Map, Value};
use std::path::Path;

/// The name of the case and its configuration.
pub(super) fn read(file: &TensorFile, names: &Names) -> Result<(String, ConfigFile)> {
    let case = match file.metadata("case") {
        None => Map::new(),
        Some(text) => strict_json::object(text).map_err(|found| {
            file.error(format!(
                "metadata `case`: expected a JSON object, found {found}"
            ))
        })?,
    };
    let name = match case.get("name").and_then(Value::as_str) {
        Some(name) => name.to_string(),
        None => Path::new(file.path())
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
    };
    let mut config = match case.get(names.config) {
        None => ConfigFile::default(),
        Some(config) => strict_json::config_of(config)
            .map_err(|error| file.error(format!("metadata `case`.{}: {error}", names.config)))?,
    };
    if config.normalizer.batch_num_tokens.is_none() && file.has(NUM_ITEMS) {
        // TRL divides by the tokens of the whole generation, of which this batch may be a part.
        config.normalizer.batch_num_tokens = Some(file.f64s(NUM_ITEMS)?.first().copied());
    }
    Ok((name, config))
}
