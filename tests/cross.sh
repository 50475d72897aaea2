#!/bin/sh
# tests/cross.sh: one artifact, two architectures.  Speaks TAP.  Called by tests/run_check.sh with TOP, FHTOOL (native), CROSS_RUN (qemu and
# its flags) and CROSS_LACKS (what is missing to build for AArch64; nothing: build/cross/fhtool is there).
# shellcheck disable=SC2086,SC2317 # CROSS_RUN is a list of words; functions are called through check
set -u
cd "${TOP:?}" || exit 1
if [ "${CROSS_LACKS:-}" ]; then
    echo "ok 1 - AArch64 # SKIP not here: $CROSS_LACKS (make cross-deps)"
    echo 1..1
    exit 0
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/fh-cross.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
number=0
bad=0
check() { # check SENTENCE COMMAND...
    sentence=$1
    shift
    number=$((number + 1))
    if "$@" > "$dir/log" 2>&1; then
        echo "ok $number - $sentence"
    else
        echo "not ok $number - $sentence"
        sed 's/^/# /' "$dir/log"
        bad=1
    fi
}
arm() { $CROSS_RUN build/cross/fhtool "$@"; }

make_artifact() {
    "$FHTOOL" convert tests/golden/llama -C "$dir/stages" -q && "$FHTOOL" hidden -C "$dir/stages" --text self --tokens 300 -q &&
        "$FHTOOL" cluster -C "$dir/stages" -q && cp -r "$dir/stages" "$dir/arm" && "$FHTOOL" pack -C "$dir/stages" -o "$dir/here.fhead" -q
}
same_bytes() {
    [ ! -e "$dir/arm/quantized.safetensors" ] && arm pack -C "$dir/arm" -o "$dir/arm.fhead" -q &&
        cmp "$dir/stages/routing.safetensors" "$dir/arm/routing.safetensors" && cmp "$dir/here.fhead" "$dir/arm.fhead"
}
same_answers() { # same_answers ISA FLAGS...
    isa=$1
    shift
    "$FHTOOL" query "$dir/here.fhead" --hidden "$dir/stages/states.safetensors" --json -q "$@" > "$dir/here.json" &&
        FH_ISA=$isa arm query "$dir/here.fhead" --hidden "$dir/stages/states.safetensors" --json -q "$@" > "$dir/arm.json" &&
        cmp "$dir/here.json" "$dir/arm.json" && grep -q '"logits"' "$dir/arm.json"
}
same_from_recipe() {
    "$FHTOOL" publish "$dir/here.fhead" --to "$dir/registry" --name llama --version 1 --base-model llama --license mit -q > /dev/null &&
        arm rebuild "$dir/registry/llama/1/recipe.json" --model tests/golden/llama -C "$dir/again" -o "$dir/again.fhead" -q && cmp "$dir/here.fhead" "$dir/again.fhead"
}
neon_is_what_runs() { arm --version | tee "$dir/version" && grep -q 'kernels neon' "$dir/version"; }
others_are_refused() { ! FH_ISA=avx2 arm query "$dir/here.fhead" --hidden "$dir/stages/states.safetensors"; }
same_tokens() {
    for f in "$FHTOOL" 'arm'; do
        $f run "$dir/here.fhead" --ids 5,6,7 -n 20 --ignore-eos --json -q > "$dir/run.json" || return 1
        grep -o '"ids":[^]]*' "$dir/run.json"
    done | sort -u > "$dir/ids" && [ "$(wc -l < "$dir/ids")" = 1 ] && [ "$(tr -cd , < "$dir/ids" | wc -c)" = 19 ]
}

check 'an artifact is made here' make_artifact
check 'NEON is what runs on AArch64' neon_is_what_runs
check 'from the clusters on, AArch64 makes the same bytes' same_bytes
check 'and so it does from the recipe of a release' same_from_recipe
check 'AArch64 verifies the artifact' arm verify "$dir/here.fhead"
check 'the best five tokens and their logits have the same bits' same_answers neon --top-k 5 --probes 3
check 'so have those of the plain C kernels' same_answers ref --top-k 5 --probes 3
check 'so have those of the dense head' same_answers neon --top-k 5 --dense
check 'the body speaks the same tokens' same_tokens
check 'kernels of another architecture are refused' others_are_refused
echo "1..$number"
exit $bad
