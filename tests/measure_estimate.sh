#!/bin/sh
# Holds estimate to bench as docs/measurements/estimate.md shows it: on the demo model, and on a generated checkpoint of Llama-3.2-1B's shape (its body
# is noise and its head a synthetic one: they say nothing, at the speed of a real model).  Needs numpy, 9 GB in SCRATCH and 4 GB of memory.  Making the models takes some ten
# minutes, and a machine that is busy does for that; measuring takes three, and a quiet one: `make` only makes them, and what is there is not made again.  What was made is
# removed in the end, KEEP=1 keeps it.
# usage: sh tests/measure_estimate.sh SCRATCH [make] > out
set -eu
[ $# -eq 1 ] || { [ $# -eq 2 ] && [ "$2" = make ]; } || { sed -n 's/^# \(usage: .*\)/\1/p' "$0" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"
PATH=$top/build:$PATH
TMPDIR=$PWD
FH_TESTS=$top/tests
export FH_TESTS TMPDIR
show() { printf '\n```\n$ %s\n' "$1"; sh -c "$1" 2> log || { cat log >&2; exit 1; }; printf '```\n'; }

ln -sfn "$top/demo/prose-7m" prose-7m
[ -e demo.fhead ] || show "fhtool build prose-7m -C demo -o demo.fhead --text self --target-containment 0.99 | grep -E '^(k|cap|probes|hot|rerank|total_seconds|stages|   .*) '"
[ -e llama/model.safetensors ] || show 'python3 $FH_TESTS/make_synthetic.py llama --vocab 128256 --hidden 2048 --layers 16 --heads 32 --kv-heads 8 --head-dim 64 --ffn 8192'
[ -e llama.fhead ] ||
    show "fhtool convert llama -C work -q > log && fhtool cluster -C work --start random --rounds 0 -q > log && fhtool route -C work --routing raw -q > log && fhtool pack -C work --probes 256 -o llama.fhead | grep -E '^(k|cap|probes|rerank|bytes) '"
[ "${2:-}" = make ] && exit

# compare MODEL ARTIFACT PROBES: estimated before, measured after, with all threads and with one
compare() {
    for threads in $(nproc) 1; do
        show "fhtool estimate $1 --probes $3 --threads $threads --json > $1-$threads.json; fhtool bench $2 --threads $threads --brief --no-rivals --no-batches --against-estimate $1-$threads.json | sed -n '/^against/,\$p'"
    done
}
echo '## The demo model'
compare prose-7m demo.fhead 30,64
printf "\n## Llama-3.2-1B's shape\n"
compare llama llama.fhead 256,512

printf '\n## What is said of them\n'
show "fhtool estimate prose-7m --probes 30,64 | sed '/^machines/,/^build/{/^build/!d;}'"
show "fhtool estimate llama --probes 256,512 | sed '/^machines/,/^build/{/^build/!d;}'"
show "fhtool estimate llama --no-measure --json | python3 -c 'import json, sys
for m in json.load(sys.stdin)[\"machines\"]: print(\"{name:31} {gigabytes_per_second:7.1f} GB/s  head {dense_head_microseconds:8.1f} -> {flash_head_microseconds:6.1f} us  model x{model_speedup_at_most:.2f} at most, {tokens_per_second_at_most:.0f} tokens/s\".format(**m))'"
[ "${KEEP:-}" ] || rm -rf demo demo.fhead work llama llama.fhead prose-7m log ./*.json
