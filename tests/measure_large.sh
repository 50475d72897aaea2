#!/bin/sh
# Measures synthetic heads of the sizes of real models as docs/measurements/large-heads.md shows them: every command with what it printed,
# its time and its peak memory.  Needs numpy, a quiet machine, and for each shape about 12 bytes a weight on disk and 14 in memory (3.5 GB
# for the largest); what a shape made is removed after it, KEEP=1 keeps it.
# usage: sh tests/measure_large.sh SCRATCH [V:D:MODEL ...] > out      (default: the five shapes below; STATES=20000, PROBES=256)
set -eu
[ $# -ge 1 ] || { sed -n 's/^# \(usage: .*\)/\1/p' "$0" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
work=$1
shift
[ $# -gt 0 ] || set -- 128256:2048:Llama-3.2-1B 151936:1024:Qwen3-0.6B 262144:640:Gemma-3-270M 262144:1152:Gemma-3-1B 50304:2560:Pythia-2.8B
states=${STATES:-20000}
probes=${PROBES:-256}
mkdir -p "$work"
cd "$work"
PATH=$top/build:$PATH
FH_TESTS=$top/tests
export FH_TESTS
# Seconds and the most memory of the process, at the end of what it printed.
meter='import os, resource, subprocess, sys, time
began = time.monotonic()
rc = subprocess.run(["sh", "-c", sys.argv[1]], stderr=subprocess.PIPE)
took = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
sys.stdout.write("".join(line + "\n" for line in rc.stderr.decode(errors="replace").splitlines() if "needs about" in line or rc.returncode))
print(f"({took:.1f} s, peak {peak:.0f} MiB)")
sys.exit(rc.returncode)'
show() { printf '\n```\n$ %s\n' "$1"; python3 -c "$meter" "$1"; printf '```\n'; }

for shape in "$@"; do
    case $shape in [0-9]*:[0-9]*) ;; *) echo "measure_large.sh: '$shape' is no V:D or V:D:MODEL" >&2; exit 2 ;; esac
    v=${shape%%:*} rest=${shape#*:}
    d=${rest%%:*} name=
    [ "$rest" = "$d" ] || name=" (the size of ${rest#*:})"
    at=v$v-d$d
    p=$probes
    [ $((p * 16)) -lt "$v" ] || p=$((v / 256 + 1))
    curve=$((p / 4)),$((p / 2)),$p,$((2 * p))
    rm -rf "$at" "$at"-*
    printf '\n## %s x %s%s\n' "$v" "$d" "$name"
    show "python3 \$FH_TESTS/make_synthetic.py $at --vocab $v --hidden $d --states $at-states.safetensors --count $states"
    show "python3 \$FH_TESTS/make_synthetic.py $at --seed 2 --states $at-unseen.safetensors --count 4000"
    show "fhtool convert $at -C $at-rows | grep -E '^(vocab|hidden|dtype|seconds) '"
    printf '\nWithout states: exact swaps on unit rows, the objective of the fact sheet; then Euclidean ones, which is what `cluster` does by itself.\n'
    show "fhtool cluster -C $at-rows --cap 16 --metric cosine | grep -E '^(k|cap|objective|rounds|swaps|seconds|peak_bytes) '"
    show "fhtool route -C $at-rows --routing mean | grep -E '^(routing|seconds) '; fhtool pack -C $at-rows --head-only --exact --probes $p -o $at-cosine.fhead -q > $at-log && fhtool query $at-cosine.fhead --hidden $at-unseen.safetensors --no-hot --curve $curve"
    show "fhtool cluster -C $at-rows --cap 16 | grep -E '^(objective|metric|rounds|swaps|seconds|peak_bytes) '"
    printf '\nWith states: output-aware clusters, learned routing, int8.\n'
    show "fhtool convert $at -C $at-work -q > $at-log && cp $at-states.safetensors $at-work/states.safetensors"
    show "fhtool cluster -C $at-work --cap 16 | grep -E '^(objective|metric|rounds|swaps|seconds|peak_bytes) '"
    show "fhtool route -C $at-work | grep -E '^(routing|states|loss|loss_before|passes|target_seconds|target_gflops|pass_seconds|pass_gflops|seconds) '"
    show "fhtool quantize -C $at-work | grep -E '^(centroids|tokens|bytes|error|seconds) '"
    show "fhtool pack -C $at-work --head-only --exact --probes $p -o $at.fhead | grep -E '^(k|cap|probes|rerank|bytes|seconds) '"
    show "fhtool query $at.fhead --hidden $at-unseen.safetensors --no-hot --curve $curve"
    show "fhtool bench $at.fhead --hidden $at-unseen.safetensors"
    [ "${KEEP:-}" ] || rm -rf "$at" "$at"-* "$at.fhead"
done
