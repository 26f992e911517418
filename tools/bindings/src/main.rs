//! Generates the Rust bindings of `kernels/qae.h`, which `qae` keeps as `src/sys.rs`.
//!
//! `scripts/bindings.sh` provides the pinned libclang and calls this program:
//!
//! ```text
//! qae-bindings                 prints the bindings
//! qae-bindings --write FILE    writes them
//! qae-bindings --check FILE    fails when FILE differs from them
//! ```

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

/// The workspace, so that the program works from any directory.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Opens the generated file. C names keep their spelling, and what bindgen writes explains neither
/// itself nor its `unsafe`; every caller in `src/cuda/` does.
const PREAMBLE: &str = "\
// Generated from kernels/qae.h by scripts/bindings.sh; do not edit.

#![allow(missing_docs, dead_code)]
#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks)]

";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qae-bindings: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => print!("{}", generate()?),
        ["--write", file] => fs::write(file, generate()?)?,
        ["--check", file] => check(file, &generate()?)?,
        _ => return Err("usage: qae-bindings [--write FILE | --check FILE]".into()),
    }
    Ok(())
}

fn check(file: &str, expected: &str) -> Result<(), Box<dyn Error>> {
    let found = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    if found == expected {
        return Ok(());
    }
    let same = found
        .lines()
        .zip(expected.lines())
        .take_while(|(found, expected)| found == expected);
    let line = same.count() + 1;
    Err(format!(
        "{file} differs from kernels/qae.h at line {line}: run scripts/bindings.sh and commit the result"
    )
    .into())
}

fn generate() -> Result<String, Box<dyn Error>> {
    let root = Path::new(ROOT);
    let bindings = bindgen::Builder::default()
        .header(root.join("kernels/qae.h").display().to_string())
        .allowlist_item("[qQ][aA][eE]_.*")
        // Plain integers: C may store any value in an enum, which a Rust enum must never hold.
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        // Size and offset of every field, asserted when the crate is compiled.
        .layout_tests(true)
        .derive_default(true)
        .use_core()
        // Which comments clang attaches to which item differs between its versions.
        .generate_comments(false)
        .disable_header_comment()
        .rust_target(bindgen::RustTarget::stable(88, 0).map_err(|error| error.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rustfmt_configuration_file(Some(fs::canonicalize(root.join("rustfmt.toml"))?))
        .generate()?;
    Ok(format!("{PREAMBLE}{bindings}"))
}
