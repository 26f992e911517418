//! `examples/cpp` runs, on the emulated kernels.

use std::env;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a command and returns what it printed.
fn run(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the command starts");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stderr}");
    String::from_utf8(stdout).expect("UTF-8")
}

#[test]
fn the_cpp_example_computes_what_it_derives_by_hand() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the emulator lies in the repository");
    let example = root.join("examples/cpp");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cpp-example");
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut compile = Command::new(compiler);
    compile
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"])
        .arg("-I")
        .arg(example.join("emulated"))
        .arg("-I")
        .arg(root.join("kernels"))
        .arg(example.join("loss.cpp"))
        .arg("-o")
        .arg(&program)
        // The emulated launchers have names of their own.
        .args(["", "_workspace_bytes"].map(|suffix| {
            let name = format!("loss_from_log_probs{suffix}");
            format!("-Wl,--defsym=qae_{name}=qae_emu_{name}")
        }))
        // The library's own build script put them there.
        .arg(concat!("-L", env!("OUT_DIR")))
        .args(["-lqae_emulator_kernels", "-lqae_emulator_runtime"]);
    run(&mut compile);
    assert_eq!(
        run(&mut Command::new(program)),
        "loss 0.122222, 2 of 8 responses active, 3 of 18 tokens\nas derived by hand\n"
    );
}
