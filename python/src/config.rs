//! Configurations as JSON (see `qae::config_json`).

use crate::errors::{Failure, Result};
use qae::Config;
use qae::config_json::ConfigFile;

/// The configuration of a batch of this padded width.
pub(crate) fn resolve(json: &str, width: Option<usize>) -> Result<Config> {
    Ok(ConfigFile::from_json(json)?.resolve(width)?)
}

/// The same with every default spelled out, as JSON.
pub(crate) fn canonical(json: &str) -> Result<String> {
    let config = resolve(json, None)?;
    serde_json::to_string(&ConfigFile::from(&config))
        .map_err(|error| Failure::value("config", "a value that JSON holds", error))
}
