#!/bin/sh
# Measures body and whole tokens beside llama.cpp for docs/measurements/decode.md: prose-7m, and random weights of Llama-3.2-1B's shape, bf16 and Q8_0.
# Needs a quiet machine, 10 GB in SCRATCH, 8 GB of memory, cmake, python3 with venv and pip; about half an hour, of which building llama.cpp takes most.
# usage: sh tests/measure_decode.sh SCRATCH > out
# LLAMA_BENCH=PROGRAM takes a llama-bench that is there already; without it llama-cpp-python's source is fetched with pip and built in SCRATCH.
# SHAPES='prose' or SHAPES='1b' measures one of the two; TURNS=1 nothing but the turns.  KV=1 measures the types of the key-value cache on WikiText too (FH_SHARED).
set -eu
[ $# = 1 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
shared=${FH_SHARED:-$top/../shared}
mkdir -p "$1"
scratch=$(cd "$1" && pwd)
cd "$scratch"
PATH=$top/build:$PATH
threads=$(nproc)
# What memory gives a virtual machine changes by the minute, so both take turns, whoever was second being first next: tokens a second of either program, dense heads.
turns() { # turns FILE TOKENS THREADS
    printf '\n```\n$ for i in 1 2 3; do ./llama-bench -m %s -p 0 -n %s -t %s -r 1; fhtool run %s --head dense --ids 1,2,3,4,5,6,7,8 -n %s --threads %s --ignore-eos --json; done, and in the other order\n' "$1" "$2" "$3" "$1" "$2" "$3"
    theirs() { ./llama-bench -m "$1" -p 0 -n "$2" -t "$3" -r 1 -o json 2> /dev/null | sed -n 's/.*"avg_ts": *\([0-9.]*\).*/\1/p'; }
    ours() { fhtool run "$1" --head dense --ids 1,2,3,4,5,6,7,8 -n "$2" --threads "$3" --ignore-eos --json -q 2> /dev/null | sed -n 's/.*"tokens_per_second":\([0-9.]*\).*/\1/p'; }
    for _ in 1 2 3; do
        first=$(theirs "$@"); second=$(ours "$@")
        echo "$first $second"
        first=$(ours "$@"); second=$(theirs "$@")
        echo "$second $first"
    done | awk '{ printf "llama.cpp %8.1f   fhtool %8.1f   ratio %.2f\n", $1, $2, $2 / $1; r[NR] = $2 / $1 }
        END { for (i = 1; i <= NR; i++) for (j = i + 1; j <= NR; j++) if (r[j] < r[i]) { t = r[i]; r[i] = r[j]; r[j] = t }
              printf "tokens a second; median ratio %.2f\n", (r[int((NR + 1) / 2)] + r[int(NR / 2) + 1]) / 2 }'
    printf '```\n'
}
show() { printf '\n```\n$ %s\n' "$1"; sh -c "$1" 2>/dev/null || echo "(failed)"; printf '```\n'; }

[ -x venv/bin/python ] || { python3 -m venv venv && venv/bin/pip install -q numpy gguf; } >&2
if [ -z "${LLAMA_BENCH:-}" ]; then
    LLAMA_BENCH=$scratch/llama/bin/llama-bench
    if [ ! -x "$LLAMA_BENCH" ]; then
        {
            venv/bin/pip download -q --no-deps --no-binary llama-cpp-python llama-cpp-python -d source
            tar xzf source/llama_cpp_python-*.tar.gz -C source
            cmake -S source/llama_cpp_python-*/vendor/llama.cpp -B llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
                -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
            nice -n 19 cmake --build llama -j2 --target llama-bench
        } >&2
    fi
fi
ln -sfn "$LLAMA_BENCH" llama-bench
ln -sfn "$top/demo/prose-7m" prose-7m

# One file for both programs, and an artifact made from the bf16 one.  What clusters say does not matter for the time a token takes.
[ -f prose-bf16.gguf ] || venv/bin/python "$top/tests/golden/make_gguf.py" prose-7m prose-bf16.gguf >&2
[ -f prose-q8_0.gguf ] || venv/bin/python "$top/tests/golden/make_gguf.py" prose-7m prose-q8_0.gguf --type q8_0 >&2
for type in bf16 q8_0; do
    case ${SHAPES:-prose 1b} in *1b*) [ -f 1b-$type.gguf ] || venv/bin/python "$top/tests/make_llama.py" 1b-$type.gguf --type $type >&2 ;; esac
done
for shape in ${SHAPES:-prose 1b}; do
    [ -f $shape.fhead ] || {
        fhtool convert $shape-bf16.gguf -C $shape.work -q
        fhtool cluster -C $shape.work --start random --rounds 0 -q
        fhtool route -C $shape.work --routing mean -q
        fhtool pack -C $shape.work -o $shape.fhead -q
    } > /dev/null 2>&1
done

for shape in ${SHAPES:-prose 1b}; do
    printf '\n## %s\n' "$([ $shape = prose ] && echo prose-7m || echo "The shape of Llama-3.2-1B")"
    for type in bf16 q8_0; do
        [ -n "${TURNS:-}" ] || show "fhtool bench --body $shape-$type.gguf -q | sed -n '/^machine/,\$p'"
        [ -n "${TURNS:-}" ] || show "./llama-bench -m $shape-$type.gguf -p 256 -n 0 -t $threads -r 5 | sed -n '/^|/p'"
        for t in "$threads" 1; do turns $shape-$type.gguf "$([ $shape = prose ] && echo 500 || echo 32)" "$t"; done
    done
    [ -n "${TURNS:-}" ] || show "fhtool bench --body $shape.fhead -q | sed -n '/^whole_model/,\$p'"
done
[ -z "${TURNS:-}" ] || exit 0
printf '\n## Contexts: decoding on top of 16 to 32768 tokens, caches of half and a quarter of the size\n'
case ${SHAPES:-prose 1b} in *1b*)
    for t in f32 f16 int8; do show "fhtool bench --body 1b-bf16.gguf --kv-type $t -q | sed -n '/^body/,/^whole/{/^whole/d;p}'"; done ;;
esac
if [ -n "${KV:-}" ]; then
    ln -sfn "$shared/data/wikitext-2/wiki.test.raw" wiki.test.raw
    printf '\n## What a rounded cache costs\n'
    for t in f32 f16 int8; do show "fhtool perplexity prose-7m --text wiki.test.raw --kv-type $t"; done
fi
printf '\n## States of 100,000 tokens of WikiText\n'
[ ! -d "$shared/data/wikitext-2" ] || {
    ln -sfn "$shared/data/wikitext-2/wiki.test.raw" wiki.test.raw
    fhtool convert prose-7m -C text.work -q > /dev/null
    show "fhtool hidden -C text.work --text wiki.test.raw --tokens 100000"
    show "fhtool calibrate -C text.work --text wiki.test.raw --tokens 100000 | grep -E '^(probes|bound|seconds) '"
}
