//! The one error type of the crate: each variant names the field, what was expected, what was found.

use std::fmt::Display;

/// What can go wrong, found before any launch and before any output is written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument, tensor or configuration field has an unacceptable value, shape, dtype or stride.
    #[error("{field}: expected {expected}, found {found}")]
    Invalid {
        /// The argument, tensor or field, by the name the caller used.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Something the computation needs was not given.
    #[error("{field}: expected {expected}, found nothing")]
    Missing {
        /// The argument, tensor or field that is absent.
        field: String,
        /// What it should have been.
        expected: String,
    },
    /// A method that exists in the field, but that this build does not compute.
    #[error("{field}: {found} is not supported (supported: {expected})")]
    Unsupported {
        /// The configuration field.
        field: String,
        /// What is supported instead.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// A file could not be read, understood or written.
    #[error("{path}: {message}")]
    File {
        /// The file's path as given.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The device counted values that it had to leave out (see [`crate::Metrics::check`]).
    #[error("{field}: expected finite values in range, found {count} that were left out")]
    LeftOut {
        /// What kind of value.
        field: &'static str,
        /// How many of them.
        count: u64,
    },
    /// A backend found something wrong while it ran.
    #[error("{backend}: {message}")]
    Backend {
        /// Which backend.
        backend: &'static str,
        /// What it found, in one line.
        message: String,
    },
    /// No usable GPU: the reason, such as an absent driver or no device.
    #[error("CUDA device: {0}")]
    NoDevice(String),
    /// The CUDA driver or a launch reported an error.
    #[error("{call}: CUDA error {code} ({name})")]
    Cuda {
        /// The call that failed.
        call: &'static str,
        /// The numeric error code of the driver.
        code: i32,
        /// Its name.
        name: String,
    },
}

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(field: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self::Invalid {
            field: field.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An [`Error::Missing`].
    pub fn missing(field: impl Display, expected: impl Display) -> Self {
        Self::Missing {
            field: field.to_string(),
            expected: expected.to_string(),
        }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(field: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self::Unsupported {
            field: field.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An [`Error::File`].
    pub fn file(path: impl Display, message: impl Display) -> Self {
        Self::File {
            path: path.to_string(),
            message: message.to_string(),
        }
    }
}

/// The result of the crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
