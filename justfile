# Lists the recipes.
default:
    @just --list

# Everything that must hold before a commit lands.
check:
    bash .ci/run

# The tests that need no GPU.
test:
    cargo test --release --workspace

# The Python package, and its tests with the real trainers.
python:
    scripts/python-env.sh packages target/python
    scripts/python-env.sh qae target/python
    QAE_REQUIRE_EMULATOR=1 target/python/bin/python -m pytest python/tests

# Formats the Rust sources.
fmt:
    cargo fmt --all

# Registers, loops and residency of the kernels, compiled here.
sass *options:
    eval "$(scripts/cuda-toolchain.sh)" && scripts/check-sass.py --summary {{ options }}

# Regenerates src/sys.rs from kernels/qae.h.
bindings:
    scripts/bindings.sh

# Packs the tests and benchmarks that run on a GPU machine without Rust.
gpu-bundle:
    scripts/gpu-bundle.sh

# Line coverage of src/ without the parts that need a GPU.
coverage *options:
    scripts/coverage.sh {{ options }}
