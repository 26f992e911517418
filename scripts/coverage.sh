#!/usr/bin/env bash
# Line coverage of src/ by the tests that need no GPU, without src/cuda/ and src/sys.rs. Options go
# to `cargo llvm-cov`: --html, --open, --show-missing-lines, --fail-under-lines 90.
#
# Needs cargo-llvm-cov (installed from crates.io if absent) and llvm-cov and llvm-profdata of the
# LLVM that rustc was built with: the component llvm-tools of rustup, or Debian's package llvm-NN.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
tools=${CARGO_TARGET_DIR:-$root/target}/tools

if ! command -v cargo-llvm-cov >/dev/null; then
    export PATH=$tools/bin:$PATH
    command -v cargo-llvm-cov >/dev/null ||
        cargo install --quiet --locked --root "$tools" cargo-llvm-cov
fi

host=$(rustc -vV | sed -n 's/^host: //p')
if [[ ! -x $(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-cov ]]; then
    major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    if ! command -v "llvm-cov-$major" >/dev/null; then
        echo "coverage: run 'rustup component add llvm-tools' or 'apt-get install llvm-$major'" >&2
        exit 1
    fi
    LLVM_COV=$(command -v "llvm-cov-$major")
    LLVM_PROFDATA=$(command -v "llvm-profdata-$major")
    export LLVM_COV LLVM_PROFDATA
fi

excluded="^$root/((emulator|tools|tests|benches|examples|src/cuda)/|src/sys\.rs|build\.rs)"
cargo llvm-cov --release --workspace --ignore-filename-regex "$excluded" "$@"
