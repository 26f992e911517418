#!/usr/bin/env bash
# Proves and times the kernels on the GPU of this machine, from inside an unpacked bundle of
# scripts/gpu-bundle.sh:
#
#     gpu-bundle/scripts/gpu-suite.sh [OUT [PART...]]      # OUT: ./out; every part
#
# Parts: check (device tests, graphs, equal bits), python (the Python package's tests on the GPU),
# sanitize (compute-sanitizer), tokens (benches from log-probs), logits (benches from logits). Each
# begins with the self-test, ends within 8 minutes, as every step has a time limit, and writes
# OUT/<date>-<gpu>-<part>.json (see benches/records/README.md), logs to OUT/logs/<part>/, and prints
# tables. A step that fails, runs out of time or has not what it needs is recorded as that, never as
# passed. Exit status 0: every step passed (but those of `ncu`, which are optional). Reads clocks and
# settings of the GPU and changes none.
#
# Needs bash, coreutils, python3 with PyTorch, nvidia-smi and compute-sanitizer; ncu is optional.
set -uo pipefail

all_parts=(check python sanitize tokens logits)
out=${1:-out}
parts=("${@:2}")
if ((${#parts[@]} == 0)); then parts=("${all_parts[@]}"); fi
for part in "${parts[@]}"; do
    if [[ " ${all_parts[*]} " != *" $part "* ]]; then
        echo "gpu-suite: $part is none of ${all_parts[*]}" >&2
        exit 2
    fi
done
mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [[ ! -x bin/qae ]]; then
    echo "gpu-suite: bin/qae is missing; run this inside of what gpu-bundle.tar.gz unpacks to" >&2
    exit 1
fi

# Leaves half a minute of the 8 for writing the record.
part_seconds=450
not_passed=0

remaining() { echo $((deadline - SECONDS)); }

# record NAME STATUS EXIT SECONDS LIMIT REASON
record() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$logs/steps.tsv"
    printf '%-22s %-10s %4s s  %s\n' "$1" "$2" "$4" "$6"
    if [[ $2 != passed && $1 != ncu* ]]; then not_passed=1; fi
}

skip() { record "$1" skipped - 0 0 "$2"; }

# step NAME LIMIT EXPECTED COMMAND...: passes on exit status 0 if the output has a line that matches
# EXPECTED too: a tool that did nothing exits with 0 as well.
step() {
    local name=$1 limit=$2 expected=$3 start=$SECONDS status=passed reason="" code
    shift 3
    if [[ -n $blocked ]]; then
        skip "$name" "$blocked"
        return 1
    fi
    if (($(remaining) < limit)); then limit=$(remaining); fi
    if ((limit < 5)); then
        skip "$name" "no time left"
        return 1
    fi
    timeout --kill-after=3 "$limit" "$@" >"$logs/$name.out" 2>"$logs/$name.err" </dev/null
    code=$?
    if ((code == 124 || code == 137)); then
        status="timed out"
    elif ((code != 0)); then
        status=failed reason="see logs/$part/$name.err and .out"
    elif grep -q '^no GPU' "$logs/$name.err"; then
        status=failed reason="tests were skipped as they found no GPU: see logs/$part/$name.err"
    elif ! grep -qE "$expected" "$logs/$name.out" "$logs/$name.err"; then
        status=failed reason="no line matches: $expected"
    fi
    record "$name" "$status" "$code" $((SECONDS - start)) "$limit" "$reason"
    [[ $status == passed ]]
}

# Where toolkits are installed, if the shell does not say.
PATH=$PATH:/usr/local/cuda/bin
has() { command -v "$1" >/dev/null; }

site=$(mktemp -d) || exit 1
trap 'rm -rf "$site"' EXIT

# Where the test binary finds the repository's data.
QAE_DATA_DIR=$PWD
export QAE_DATA_DIR

state=timestamp,clocks.sm,clocks.mem,temperature.gpu,power.draw
card=name,driver_version,vbios_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit

# Nothing else means anything on a machine where the kernels are wrong, or where there is no GPU and
# device tests pass because they have nothing to run on: then `blocked` says why the rest is
# skipped.
begin_part() {
    logs=$out/logs/$part
    rm -rf "$logs"
    mkdir -p "$logs"
    : >"$logs/steps.tsv"
    blocked=""
    deadline=$((SECONDS + part_seconds))
    printf '\n== %s\n' "$part"
    step checksums 20 '^all match$' bash -c 'sha256sum --check --quiet SHA256SUMS && echo all match'
    timeout 20 nvidia-smi --id=0 --query-gpu="$state,$card,persistence_mode,mig.mode.current" \
        --format=csv >"$logs/gpu-before.csv" 2>"$logs/gpu-before.err"
    step selftest 90 '[1-9][0-9]* cases, 0 mismatches' bin/qae selftest ||
        blocked="the self-test did not pass"
}

# with_states COMMAND...: samples the state of the GPU meanwhile.
with_states() {
    # `timeout` hands the signal on, and ends the sampler should this script be killed.
    timeout "$part_seconds" nvidia-smi --id=0 --query-gpu="$state" --format=csv --loop-ms=1000 \
        >"$logs/gpu-during.csv" 2>/dev/null &
    local sampler=$!
    "$@"
    kill "$sampler" 2>/dev/null
}

# What runs under PyTorch finds the wheels of the bundle too, the Python package among them: unpacked,
# since Triton reads the sources of its kernels.
pytorch_step() {
    local name=$1 wheel
    if [[ -z $blocked ]] && ! python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then
        skip "$name" "python3 has no PyTorch"
        return 1
    fi
    for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} step "$@"
}

counters=dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum
counters+=,sm__warps_active.avg.pct_of_peak_sustained_active
counters+=,smsp__issue_active.avg.pct_of_peak_sustained_active,smsp__inst_executed.sum
counters+=,l1tex__data_bank_conflicts_pipe_lsu.sum

# ncu_step NAME LIMIT KERNEL SKIPPED ARGUMENT...: the counters of one launch of KERNEL by gpu_bench.
ncu_step() {
    local name=$1 limit=$2 kernel=$3 skipped=$4
    shift 4
    if [[ -z $blocked ]] && ! has ncu; then
        skip "$name" "ncu is not on PATH"
        return
    fi
    step "$name" "$limit" 'dram__bytes_read' ncu --clock-control none --csv --metrics "$counters" \
        --kernel-name "regex:$kernel" --launch-skip "$skipped" --launch-count 1 bin/gpu_bench "$@"
}

check() {
    step device-tests 180 'test result: ok\. [1-9]' bin/cuda-tests
    step graph 30 'test result: ok\. [1-9]' bin/cuda-tests graph
    step repeat-bits 40 '"repeat_bits"' bin/gpu_bench --repeat-bits 100 --sizes 1m
    # Every size of clusters and rings that the kernels choose for the vocabularies of real models.
    step vocabularies 120 '"logits_check"' bin/gpu_bench --operation logits --rows 1024 --samples 1
}

python() {
    # Those that need no GPU passed before.
    pytorch_step python-tests 340 '[1-9][0-9]* passed' \
        python3 -m pytest -q -p no:cacheprovider python/tests -k cuda
}

sanitize() {
    local tools=(memcheck racecheck initcheck synccheck) index tool clean
    for index in "${!tools[@]}"; do
        tool=${tools[index]}
        if [[ -z $blocked ]] && ! has compute-sanitizer; then
            skip "$tool" "compute-sanitizer is not on PATH"
            continue
        fi
        clean='ERROR SUMMARY: 0 errors'
        if [[ $tool == racecheck ]]; then clean='RACECHECK SUMMARY: 0 hazards'; fi
        # What is left of the time, in equal parts.
        step "$tool" $(($(remaining) / (${#tools[@]} - index))) "$clean" \
            compute-sanitizer --tool "$tool" --error-exitcode 99 bin/qae selftest
    done
}

tokens() {
    local tokens=(--operation loss_from_log_probs)
    with_states step bench 90 '"loss_from_log_probs"' bin/gpu_bench "${tokens[@]}"
    # The size that matters most first, should time run out.
    pytorch_step pytorch 150 '"kind": "pytorch"' python3 benches/pytorch/loss_from_log_probs.py \
        --json --sizes 16m,1m,64k,128m
    ncu_step ncu 20 loss_from_log_probs 4 \
        "${tokens[@]}" --sizes 16m --samples 1 --only f32/packed/dense
}

logits() {
    # One run: the kernels and their peers under the same clocks.
    with_states pytorch_step bench 300 '"kind": "pytorch_logits"' python3 \
        benches/pytorch/loss_from_logits.py --json --gpu-bench bin/gpu_bench
    if [[ -z $blocked && ! -s $logs/bench.out ]]; then
        step bench-alone 120 '"loss_from_logits"' bin/gpu_bench --operation logits
    fi
    # Behind the launches that compare the result with f64, at this vocabulary and at four others,
    # and one that measures memory.
    local case=(--operation logits --samples 1 --only)
    ncu_step ncu-loss 60 '^loss_from_logits_cluster$' 6 "${case[@]}" bf16/dense/in-place
    ncu_step ncu-forward 60 '^log_probs_from_logits$' 11 "${case[@]}" bf16/forward
    ncu_step ncu-backward 60 '^log_probs_from_logits_backward$' 6 "${case[@]}" bf16/backward
}

status=0
for part in "${parts[@]}"; do
    not_passed=0
    begin_part
    "$part"
    python3 scripts/gpu-record.py --part "$part" --logs "$logs" --manifest MANIFEST.json \
        --out "$out" || exit 1
    if ((not_passed)); then status=1; fi
done
exit "$status"
