#!/usr/bin/env bash
# The virtual environment of the Python tests.
#
#   scripts/python-env.sh packages DIRECTORY   torch, TRL, verl, Liger (5 GB; once)
#   scripts/python-env.sh qae DIRECTORY        qae itself, with the emulated kernels
set -euo pipefail

usage() {
    sed -n 's/^# \{0,1\}//; 3,5p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

(($# == 2)) || usage
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$2

case $1 in
packages)
    [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement python/requirements-test.txt
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps verl==0.9.1
    ;;
qae)
    # What cargo has built already is used again.
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
    QAE_EMULATOR=1 "$venv/bin/pip" install --quiet --disable-pip-version-check \
        --no-deps --force-reinstall ./python
    ;;
*)
    usage
    ;;
esac
