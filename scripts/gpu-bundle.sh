#!/usr/bin/env bash
# Packs what proves and times the kernels on a GPU machine that has no Rust and no network:
#
#     scripts/gpu-bundle.sh          # here: Rust, no GPU
#     tar xf gpu-bundle.tar.gz       # there, after copying the archive
#     gpu-bundle/scripts/gpu-suite.sh OUT
#
# Writes gpu-bundle/ and gpu-bundle.tar.gz to cargo's target directory: stripped binaries for every
# architecture with the CUDA runtime linked in, the data they read, the Python package as a wheel, its
# tests, the PyTorch programs, the wheels of benches/pytorch/peers.txt, and a manifest. Fails where a binary would not start on a machine
# with a driver and an older Linux, or where the archive is too large to be handed around. Needs no
# GPU and no CUDA installation; fetches wheels from PyPI.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
bundle=$target/gpu-bundle
archive=$bundle.tar.gz
# Of Ubuntu 22.04, RHEL 9 and everything newer.
newest_glibc=2.34
largest_bytes=$((64 << 20))

fail() {
    echo "gpu-bundle: $*" >&2
    exit 1
}

for tool in strip objdump python3 sha256sum tar gzip; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
done
# The bundle is for any GPU, whatever this shell builds for.
unset QAE_CUDA_ARCHITECTURES QAE_EMULATOR
variables=$(scripts/cuda-toolchain.sh)
eval "$variables"

mkdir -p "$target"
messages=$target/gpu-bundle.messages
# Without plots, whose letters need a newer glibc.
features=(--no-default-features --features cli,cuda)
cargo build --release --locked "${features[@]}" --bin qae --example gpu_bench \
    --message-format=json-render-diagnostics >"$messages"
cargo test --release --locked "${features[@]}" --test cuda --no-run \
    --message-format=json-render-diagnostics >>"$messages"

# executable KIND NAME: the path of a target that cargo built.
executable() {
    python3 - "$messages" "$1" "$2" <<'PYTHON'
import json, sys

path, kind, name = sys.argv[1:]
found = None
for line in open(path):
    message = json.loads(line)
    target = message.get("target", {})
    if message.get("executable") and (target["kind"], target["name"]) == ([kind], name):
        found = message["executable"]
if found is None:
    sys.exit(f"gpu-bundle: cargo built no {kind} {name}")
print(found)
PYTHON
}

# check_binary FILE: that it needs nothing that a GPU machine may lack.
check_binary() {
    local libraries newest
    libraries=$(objdump -p "$1" | awk '$1 == "NEEDED" { print $2 }')
    if grep -E '^lib(cudart|cuda|torch|c10|nvrtc|cublas)' <<<"$libraries" >&2; then
        fail "$1 needs these libraries; the CUDA runtime has to be linked in, the driver loaded"
    fi
    newest=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
    [[ $(printf '%s\n' "$newest" "$newest_glibc" | sort -V | tail -n 1) == "$newest_glibc" ]] ||
        fail "$1 needs glibc $newest, newer than $newest_glibc; build on an older Linux"
    echo "$newest"
}

rm -rf "$bundle" "$archive"
mkdir -p "$bundle"/{bin,scripts,benches/pytorch,python,tests,wheels}
# By digest, and without what they need: that is what the GPU machine has PyTorch for.
peers=benches/pytorch/peers.txt
python3 -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps \
    --only-binary=:all: --python-version 3.12 --dest "$bundle/wheels" --requirement "$peers" ||
    fail "the wheels of $peers could not be fetched"
glibc=0
for entry in "bin qae qae" "example gpu_bench gpu_bench" "test cuda cuda-tests"; do
    read -r kind name file <<<"$entry"
    built=$(executable "$kind" "$name")
    strip -o "$bundle/bin/$file" "$built"
    needed=$(check_binary "$bundle/bin/$file")
    glibc=$(printf '%s\n' "$glibc" "$needed" | sort -V | tail -n 1)
done
# One for every Python from 3.10 on.
QAE_CUDA=1 CARGO_TARGET_DIR=$(realpath "$target") python3 -m pip wheel --quiet \
    --disable-pip-version-check --no-deps --wheel-dir "$bundle/wheels" ./python ||
    fail "the wheel of the Python package could not be built"
python3 -m zipfile -e "$bundle"/wheels/qae-*.whl "$target/wheel"
needed=$(check_binary "$target/wheel/qae/_qae.abi3.so")
glibc=$(printf '%s\n' "$glibc" "$needed" | sort -V | tail -n 1)
rm -r "$target/wheel"
mkdir "$bundle/python/tests"
cp python/tests/*.py "$bundle/python/tests/"
# The same paths as in the repository, which the binaries look for from the working directory.
mkdir "$bundle/data"
cp data/trl-addition.safetensors "$bundle/data/"
cp -r tests/data "$bundle/tests/"
cp benches/pytorch/*.py "$bundle/benches/pytorch/"
cp scripts/gpu-suite.sh scripts/gpu-record.py "$bundle/scripts/"

sums=$(cd "$bundle" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum)
echo "$sums" >"$bundle/SHA256SUMS"
changed=$(git --no-optional-locks status --porcelain)
python3 - "$bundle" "$glibc" "${changed:+changed}" <<'PYTHON'
import datetime, json, os, pathlib, re, subprocess, sys

bundle, glibc, changed = pathlib.Path(sys.argv[1]), sys.argv[2], bool(sys.argv[3])


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


package = json.loads(output("cargo", "metadata", "--format-version=1", "--no-deps"))
version = next(entry["version"] for entry in package["packages"] if entry["name"] == "qae")
sums = (line.split(maxsplit=1) for line in (bundle / "SHA256SUMS").read_text().splitlines())
manifest = {
    "commit": output("git", "rev-parse", "HEAD"),
    "uncommitted_changes": changed,
    "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "qae": version,
    "rustc": output("rustc", "--version"),
    "nvcc": re.search(r"release [^\n]*", output(os.environ["NVCC"], "--version")).group(),
    "glibc_needed": glibc,
    "sha256": {path: digest for digest, path in sums},
}
(bundle / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
PYTHON

tar --create --gzip --file "$archive" --directory "$target" --owner=0 --group=0 gpu-bundle
bytes=$(stat --format %s "$archive")
echo "$archive: $(((bytes + 1048575) / 1048576)) MiB ($bytes bytes), needs glibc $glibc"
((bytes <= largest_bytes)) || fail "$archive is larger than $((largest_bytes >> 20)) MiB"
