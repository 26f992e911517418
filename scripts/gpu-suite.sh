#!/usr/bin/env bash
# Proves and times the kernels on the GPU of this machine, from inside an unpacked bundle of
# scripts/gpu-bundle.sh:
#
#     gpu-bundle/scripts/gpu-suite.sh [OUT]      # OUT: ./out
#
# Writes OUT/<date>-<gpu>.json (see benches/records/README.md), logs to OUT/logs/, and prints a
# table. Ends within 8 minutes: every step has a time limit. A step that fails, runs out of time or
# has not what it needs is recorded as that, never as passed. Exit status 0: every step passed (but
# `ncu`, which is optional). Reads clocks and settings of the GPU and changes none.
#
# Needs bash, coreutils, python3 with PyTorch, nvidia-smi and compute-sanitizer; ncu is optional.
set -uo pipefail

out=${1:-out}
mkdir -p "$out/logs" || exit 1
logs=$(cd "$out/logs" && pwd)
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [[ ! -x bin/qae ]]; then
    echo "gpu-suite: bin/qae is missing; run this inside of what gpu-bundle.tar.gz unpacks to" >&2
    exit 1
fi
rm -f "$logs"/*

# Leaves half a minute of the 8 for writing the record.
total=450
steps=$logs/steps.tsv
: >"$steps"
not_passed=0

remaining() { echo $((total - SECONDS)); }

# record NAME STATUS EXIT SECONDS LIMIT REASON
record() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$steps"
    printf '%-22s %-10s %4s s  %s\n' "$1" "$2" "$4" "$6"
    if [[ $2 != passed && $1 != ncu ]]; then not_passed=1; fi
}

skip() { record "$1" skipped - 0 0 "$2"; }

# step NAME LIMIT EXPECTED COMMAND...: passes on exit status 0 if the output has a line that matches
# EXPECTED too: a tool that did nothing exits with 0 as well.
step() {
    local name=$1 limit=$2 expected=$3 start=$SECONDS status=passed reason="" code
    shift 3
    if (($(remaining) < limit)); then limit=$(remaining); fi
    if ((limit < 5)); then
        skip "$name" "no time left"
        return
    fi
    timeout --kill-after=3 "$limit" "$@" >"$logs/$name.out" 2>"$logs/$name.err" </dev/null
    code=$?
    if ((code == 124 || code == 137)); then
        status="timed out"
    elif ((code != 0)); then
        status=failed reason="see logs/$name.err and .out"
    elif grep -q '^no GPU' "$logs/$name.err"; then
        status=failed reason="tests were skipped as they found no GPU: see logs/$name.err"
    elif ! grep -qE "$expected" "$logs/$name.out" "$logs/$name.err"; then
        status=failed reason="no line matches: $expected"
    fi
    record "$name" "$status" "$code" $((SECONDS - start)) "$limit" "$reason"
    [[ $status == passed ]]
}

# Where toolkits are installed, if the shell does not say.
PATH=$PATH:/usr/local/cuda/bin
has() { command -v "$1" >/dev/null; }

# Where the test binary finds the repository's data.
QAE_DATA_DIR=$PWD
export QAE_DATA_DIR

step checksums 20 '^all match$' bash -c 'sha256sum --check --quiet SHA256SUMS && echo all match'
state=timestamp,clocks.sm,clocks.mem,temperature.gpu,power.draw
card=name,driver_version,vbios_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit
timeout 20 nvidia-smi --id=0 --query-gpu="$state,$card,persistence_mode,mig.mode.current" \
    --format=csv >"$logs/gpu-before.csv" 2>"$logs/gpu-before.err"

# Nothing else means anything on a machine where the kernels are wrong, or where there is no GPU and
# device tests pass because they have nothing to run on.
if step selftest 40 '[1-9][0-9]* cases, 0 mismatches' bin/qae selftest; then
    step device-tests 60 'test result: ok\. [1-9]' bin/cuda-tests
    step graph 15 'test result: ok\. [1-9]' bin/cuda-tests graph
    step repeat-bits 25 '"repeat_bits"' bin/gpu_bench --repeat-bits 100 --sizes 1m
    # `timeout` hands the signal on, and ends the sampler should this script be killed.
    timeout 90 nvidia-smi --id=0 --query-gpu="$state" --format=csv --loop-ms=1000 \
        >"$logs/gpu-during.csv" 2>/dev/null &
    sampler=$!
    step bench 80 '"loss_from_log_probs"' bin/gpu_bench
    kill "$sampler" 2>/dev/null
    if python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then
        # The size that matters most first, should time run out.
        step pytorch 130 '"kind": "pytorch"' python3 benches/pytorch/loss_from_log_probs.py \
            --sizes 16m,1m,64k,128m
    else
        skip pytorch "python3 has no PyTorch"
    fi

    if has ncu; then
        metrics=dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum
        step ncu 20 'dram__bytes_read' ncu --clock-control none --csv --metrics "$metrics" \
            --kernel-name regex:loss_from_log_probs --launch-skip 4 --launch-count 1 \
            bin/gpu_bench --sizes 16m --samples 1 --only f32/packed/dense
    else
        skip ncu "ncu is not on PATH"
    fi

    # What is left of the time, in equal parts.
    tools=(memcheck racecheck initcheck synccheck)
    for index in "${!tools[@]}"; do
        tool=${tools[index]}
        if ! has compute-sanitizer; then
            skip "$tool" "compute-sanitizer is not on PATH"
            continue
        fi
        clean='ERROR SUMMARY: 0 errors'
        if [[ $tool == racecheck ]]; then clean='RACECHECK SUMMARY: 0 hazards'; fi
        step "$tool" $(($(remaining) / (${#tools[@]} - index))) "$clean" \
            compute-sanitizer --tool "$tool" --error-exitcode 99 bin/qae selftest
    done
else
    for name in device-tests graph repeat-bits bench pytorch ncu memcheck racecheck initcheck \
        synccheck; do
        skip "$name" "the self-test did not pass"
    done
fi

python3 scripts/gpu-record.py --logs "$logs" --manifest MANIFEST.json --out "$out" || exit 1
exit "$not_passed"
