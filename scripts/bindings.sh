#!/usr/bin/env bash
# Writes src/sys.rs, the Rust side of kernels/qae.h. With --check it changes nothing and fails when
# the file is out of date.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "$*" in
'') mode=--write ;;
--check) mode=--check ;;
*)
    echo "usage: scripts/bindings.sh [--check]" >&2
    exit 2
    ;;
esac

# The output depends on the version of libclang, so the pinned one is used.
variables=$(scripts/cuda-toolchain.sh)
eval "$variables"
cargo run --quiet --package qae-bindings -- "$mode" src/sys.rs
