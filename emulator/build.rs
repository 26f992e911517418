//! Compiles the runtime, the kernels of the repository and the planted-bug kernels of the tests.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let root = package
        .parent()
        .expect("the emulator lies in the repository");
    let kernels = root.join("kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for directory in [
        package.join("include"),
        package.join("runtime"),
        package.join("tests/kernels"),
        kernels.clone(),
    ] {
        println!("cargo:rerun-if-changed={}", directory.display());
    }

    let mut runtime = compiler(root, &package);
    runtime.files(sources(&package.join("runtime"), "cpp"));
    runtime.compile("qae_emulator_runtime");

    let mut units = sources(&package.join("tests/kernels"), "cu");
    units.extend(Some(kernels.join("all.cu")).filter(|unity| unity.exists()));
    let mut device = compiler(root, &package);
    device.define("QAE_EMULATOR", None).include(&kernels);
    for unit in units {
        device.file(wrap(&unit, &out));
    }
    device.compile("qae_emulator_kernels");

    // The ABI's header is C, whatever else includes it.
    cc::Build::new()
        .std("c99")
        .include(&kernels)
        .flag("-pedantic-errors")
        .warnings_into_errors(true)
        .file(package.join("tests/kernels/header.c"))
        .compile("qae_emulator_header");
}

fn compiler(root: &Path, package: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // Without optimization a test of a large vocabulary would take minutes.
        .opt_level(2)
        .include(package.join("include"))
        .flag("-ffp-contract=off")
        // Barrier sites and findings name files as seen from the root of the repository.
        .flag(format!("-ffile-prefix-map={}/=", root.display()))
        .flag("-Wno-unknown-pragmas")
        // Thread-local variables without a call in a program, and with a cheap one in a library
        // that is loaded late, for which there is little static room.
        .flag_if_supported("-mtls-dialect=gnu2")
        .extra_warnings(true);
    build
}

/// Writes a C++ file that includes a kernel source, as compilers take `.cu` for CUDA.
fn wrap(unit: &Path, out: &Path) -> PathBuf {
    let stem = unit.file_stem().expect("a source file has a name");
    let wrapper = out.join(stem).with_extension("cpp");
    fs::write(&wrapper, format!("#include \"{}\"\n", unit.display()))
        .expect("OUT_DIR can be written");
    wrapper
}

fn sources(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .expect("the directory is part of the crate")
        .map(|entry| entry.expect("the directory can be read").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    found
}
