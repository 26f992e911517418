//! The end of a command: its text or its error, and the exit status.

use super::printable::printable;
use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Prints the text of a command that succeeded (status 0), or its error as one line (status 1).
pub fn emit(result: Result<String>) -> ExitCode {
    match result.and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = printable(&error.to_string());
            // Nobody is left to tell if stderr cannot be written to, and `eprintln!` would panic.
            let _ = writeln!(std::io::stderr(), "qae: {line}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // A reader that has seen enough (`qae step … | head`) is no failure.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| {
            let message = format!("expected to write the report, found {error}");
            Error::file("standard output", message)
        }),
    }
}
