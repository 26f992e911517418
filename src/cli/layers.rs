//! The layers of the configuration above the file's own, and which of them an error is about.

use super::args::StepArgs;
use super::flags::flag_of;
use super::printable::exact;
use super::step::in_file;
use crate::config_json::ConfigFile;
use crate::error::{Error, Result};
use crate::io::{Level, read_config};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// No number needs more characters than this, with an exponent.
const LONGEST_NUMBER: usize = 24;

/// `--config` below the flags.
pub(super) struct Layers {
    file: Option<(PathBuf, ConfigFile)>,
    flags: ConfigFile,
}

impl Layers {
    /// # Errors
    /// [`Error::File`] for a configuration that cannot be read.
    pub(super) fn read(args: &StepArgs) -> Result<Self> {
        let file = match &args.config {
            None => None,
            Some(path) => Some((path.clone(), read_file(path)?)),
        };
        let flags = args.overrides.to_config_file();
        Ok(Self { file, flags })
    }

    /// What overrides the configuration of the case.
    pub(super) fn merged(&self) -> ConfigFile {
        let file = self.file.as_ref().map(|(_, file)| file.clone());
        file.unwrap_or_default().overridden_by(&self.flags)
    }

    /// The temperature of a file's logits stays with the file, but a flag that does nothing is a
    /// mistake.
    ///
    /// # Errors
    /// [`Error::Invalid`] for `--temperature` with log-probs.
    pub(super) fn check_level(&self, level: Level) -> Result<()> {
        match self.flags.temperature {
            Some(temperature) if level == Level::LogProbs => Err(Error::invalid(
                "--temperature",
                "no such flag with log-probs, which contain the temperature already",
                exact(temperature),
            )),
            _ => Ok(()),
        }
    }

    /// `error` with the name of what it is about: the flag or the file that set the field, else the
    /// case.
    pub(super) fn blame(&self, case: &Path, error: Error) -> Error {
        let Some(field) = field_of(&error) else {
            return in_file(case, error);
        };
        let path = path_of(field);
        if let (true, Some(flag)) = (concerns(&self.flags, &path), flag_of(&path)) {
            return renamed(error, flag.to_string());
        }
        match &self.file {
            Some((file, config)) if concerns(config, &path) => in_file(file, renamed(error, path)),
            _ => in_file(case, renamed(error, path)),
        }
    }
}

fn read_file(path: &Path) -> Result<ConfigFile> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("expected a JSON file that can be read, found {error}");
        Error::file(path.display(), message)
    })?;
    read_config(&text).map_err(|error| in_file(path, error))
}

fn field_of(error: &Error) -> Option<&str> {
    match error {
        Error::Invalid { field, .. }
        | Error::Missing { field, .. }
        | Error::Unsupported { field, .. } => Some(field),
        _ => None,
    }
}

/// The name in the JSON form of a field of [`crate::Config`].
fn path_of(field: &str) -> String {
    match field {
        "tau_pos" | "tau_neg" | "seq_log_ratio_max" => format!("loss_params.{field}"),
        "gradient" => "inactive_gradient".to_string(),
        field => field.to_string(),
    }
}

/// Whether `layer` sets the field `path`, or what asks for it.
fn concerns(layer: &ConfigFile, path: &str) -> bool {
    sets(layer, path) || (path == "kl.kind" && sets(layer, "kl.coef"))
}

fn sets(layer: &ConfigFile, path: &str) -> bool {
    let value = serde_json::to_value(layer).unwrap_or(Value::Null);
    let pointer = format!("/{}", path.replace('.', "/"));
    value.pointer(&pointer).is_some()
}

/// The same under the name that the user gave it.
fn renamed(error: Error, name: String) -> Error {
    match error {
        Error::Invalid {
            expected, found, ..
        } => Error::invalid(name, shortened(&expected), shortened(&found)),
        Error::Missing { expected, .. } => Error::missing(name, expected),
        Error::Unsupported {
            expected, found, ..
        } => Error::unsupported(name, expected, found),
        error => error,
    }
}

/// `text` without numbers of hundreds of digits.
fn shortened(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.parse() {
        Ok(number) if word.len() > LONGEST_NUMBER => exact(number),
        _ => word.to_string(),
    });
    words.collect::<Vec<_>>().join(" ")
}
