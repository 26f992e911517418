//! What goes wrong, as a Python exception of one line.

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a call did nothing, or not all.
pub(crate) enum Failure {
    /// The library's own.
    Library(qae::Error),
    /// No tensor, another dtype, an unknown argument.
    Type(String),
    /// What the build or the machine cannot do.
    Runtime(String),
    /// Raised by Python code that was called.
    Python(PyErr),
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A value, shape or stride.
    pub(crate) fn value(field: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self::Library(qae::Error::invalid(field, expected, found))
    }

    /// A dtype or a type.
    pub(crate) fn of_type(
        field: impl Display,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Self::Type(format!("{field}: expected {expected}, found {found}"))
    }
}

impl From<qae::Error> for Failure {
    fn from(error: qae::Error) -> Self {
        Self::Library(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        use qae::Error;
        match failure {
            Failure::Library(
                error @ (Error::Backend { .. } | Error::NoDevice(_) | Error::Cuda { .. }),
            ) => PyRuntimeError::new_err(error.to_string()),
            Failure::Library(error) => PyValueError::new_err(error.to_string()),
            Failure::Type(message) => PyTypeError::new_err(message),
            Failure::Runtime(message) => PyRuntimeError::new_err(message),
            Failure::Python(error) => error,
        }
    }
}

/// Runs the body of a function of the module: a panic is an exception that `except Exception`
/// catches, which PyO3's own is not.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T>) -> PyResult<T> {
    // A panic leaves nothing half-changed that outlives the call but output tensors, whose
    // contents are unspecified after any exception.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(PyErr::from),
        Err(panic) => Err(PyRuntimeError::new_err(format!(
            "qae: expected no panic, found \"{}\"",
            message_of(&*panic)
        ))),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
