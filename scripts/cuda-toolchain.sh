#!/usr/bin/env bash
# Installs nvcc, the SASS disassemblers and libclang from PyPI into .cuda/ and prints the
# variables that make the build use them:
#
#     eval "$(scripts/cuda-toolchain.sh)"
#
# Needs no GPU, no driver and no root. With QAE_USE_SYSTEM_CUDA=1 the CUDA toolkit on PATH
# (12.8 or newer) is used instead and only libclang is installed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$root/.cuda
python=$environment/bin/python

# nvcc refuses the PTX of a compiler of another release, so its five parts move together.
nvcc_packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    # The disassemblers read older releases; no 13.0 wheels of them exist.
    nvidia-cuda-cuobjdump==13.5.37
    nvidia-cuda-nvdisasm==13.5.37
)
packages=(libclang==18.1.1)

say() { echo "cuda-toolchain: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

case "$*" in
'') ;;
-h | --help)
    # The head of this file.
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit
    ;;
*)
    echo "usage: scripts/cuda-toolchain.sh [--help]" >&2
    exit 2
    ;;
esac

use_system_cuda() {
    local nvcc release
    nvcc=$(command -v nvcc) || fail "QAE_USE_SYSTEM_CUDA=1, but no nvcc is on PATH"
    nvcc=$(readlink -f "$nvcc")
    release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [[ $(printf '%s\n' 12.8 "$release" | sort -V | head -n 1) == 12.8 ]] ||
        fail "$nvcc is release $release; 12.8 or newer is needed"
    cuda_home=$(dirname "$(dirname "$nvcc")")
}

install() {
    # The stamp is written last, so an interrupted installation is repeated.
    local stamp=$environment/installed
    if [[ -f $stamp && $(<"$stamp") == "${packages[*]}" ]]; then
        return
    fi
    say "installing ${packages[*]} into $environment"
    rm -rf "$environment"
    python3 -m venv "$environment" >&2 || fail "python3 -m venv failed (Debian: python3-venv)"
    "$python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
    echo "${packages[*]}" >"$stamp"
}

if [[ ${QAE_USE_SYSTEM_CUDA:-} == 1 ]]; then
    use_system_cuda
    install
else
    packages+=("${nvcc_packages[@]}")
    install
fi

candidates=("$environment"/lib/python3*/site-packages)
site_packages=${candidates[0]}
cuda_home=${cuda_home:-$site_packages/nvidia/cu13}
# nvcc finds its headers from the path it was started by, so no link may be in it.
cuda_home=$(readlink -f "$cuda_home")

printf 'export CUDA_HOME=%q\n' "$cuda_home"
printf 'export NVCC=%q\n' "$cuda_home/bin/nvcc"
printf 'export LIBCLANG_PATH=%q\n' "$site_packages/clang/native"
# The libclang wheel has no headers of its own: stddef.h and the like come from gcc.
printf 'export BINDGEN_EXTRA_CLANG_ARGS=%q\n' "-isystem $(gcc -print-file-name=include)"
# shellcheck disable=SC2016 # the shell that evaluates the line expands $PATH
case ":$PATH:" in
*":$cuda_home/bin:"*) ;;
*) printf 'export PATH=%q:$PATH\n' "$cuda_home/bin" ;;
esac
