#!/bin/sh
# make bench: every claim about speed, each beside a baseline in the same run.  Uses the demo model; FH_MODEL=DIR takes another checkpoint.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
fhtool=$top/build/fhtool
model=${FH_MODEL:-$top/demo/prose-7m}
work=$top/build/bench
mkdir -p "$work"
show() { printf '\n$ %s\n' "$*"; "$@"; }
# clustered DIR ROUTING HOW...: cluster and route in DIR; what it came to is kept for `beside`
clustered() {
    dir=$1 routing=$2
    shift 2
    printf '\ncluster %s, routing %s\n' "$*" "$routing"
    "$fhtool" cluster -C "$dir" "$@" -q > "$work/clustered"
    sed -n '/^objective/p; /^swaps/p; /^seconds/p; /^peak_bytes/p' "$work/clustered"
    case $* in *faiss*) mv "$work/clustered" "$work/published" ;; esac
    "$fhtool" route -C "$dir" --routing "$routing" -q > /dev/null
}
# Both by the published measure, mean cosine to the cluster's centroid.
beside() {
    awk 'FNR == 1 { f++ } /^objective/ { o[f] = $2 } /^seconds/ { s[f] = $2 } END { printf "\nexact swaps beside FAISS k-means with greedy balancing: %.2f of its time, objective %.4f, not %.4f\n", s[2] / s[1], o[2], o[1] }' \
        "$work/published" "$work/clustered"
}

echo '== heads: FlashHead beside the dense head and the memory speed of this machine'
"$fhtool" build "$model" -C "$work/stages" -o "$work/model.fhead" --text self -q > "$work/build.txt"
show "$fhtool" bench "$work/model.fhead" --hidden "$work/stages/states.safetensors" -q
echo
echo '== body and whole tokens: decoding beside reading its bytes, a prompt beside sgemm; then with caches of half and a quarter of the size'
for kv in f32 f16 int8; do show "$fhtool" bench --body "$model" --kv-type $kv -q; done
for isa in ref avx2; do
    echo
    echo "FH_ISA=$isa"
    FH_ISA=$isa "$fhtool" bench "$work/model.fhead" --hidden "$work/stages/states.safetensors" --threads 1 --no-batches --no-rivals -q | sed -n '/^heads/,/^parts/{/^parts/!p;}'
done

echo
echo '== clustering: exact swaps beside FAISS k-means with greedy balancing (the published method), containment on part C of the same states'
"$fhtool" convert "$model" -C "$work/cluster" -q > /dev/null
"$fhtool" hidden -C "$work/cluster" --text self --tokens 40000 -q > /dev/null
for how in '--start faiss --metric cosine --rounds 0' '--start coarse --metric cosine' '--start coarse --metric euclidean'; do
    case $how in *cosine*) routing=mean ;; *) routing=raw ;; esac
    # shellcheck disable=SC2086
    clustered "$work/cluster" $routing $how
    case $how in *coarse*cosine*) beside ;; esac
    "$fhtool" calibrate -C "$work/cluster" --target-containment 0.9 --hot 0 --max-cost 1 -q > "$work/calibrate.txt" || true
    sed -n '/^probes/p; /^bound/p; /^  probes/p; /^ *16 /p; /^ *64 /p; /^ *256 /p' "$work/calibrate.txt"
done

echo
echo '== learned routing: its products, beside sgemm above'
"$fhtool" cluster -C "$work/cluster" -q > /dev/null
show "$fhtool" route -C "$work/cluster" --routing learned -q

# The demo model is small; a synthetic head of 32768 x 1024 is as hard as a real one (docs/measurements/synthetic-heads.md).
python3 -c 'import numpy' 2> /dev/null || { echo; echo 'synthetic heads are left out: they need numpy'; exit 0; }
echo
echo '== a synthetic head of 32768 x 1024: clustering beside FAISS k-means with all K and greedy balancing; heads beside their rivals'
synthetic=$work/synthetic
python3 "$top/tests/make_synthetic.py" "$synthetic" --vocab 32768 --hidden 1024 --states "$synthetic.states" --count 2000
"$fhtool" convert "$synthetic" -C "$synthetic.work" -q > /dev/null
for how in '--start faiss --metric cosine --rounds 0' '--start coarse --metric cosine'; do
    # shellcheck disable=SC2086
    clustered "$synthetic.work" mean $how
    "$fhtool" pack -C "$synthetic.work" --head-only --exact --probes 128 -o "$synthetic.fhead" -q > /dev/null
    "$fhtool" query "$synthetic.fhead" --hidden "$synthetic.states" --no-hot --curve 16,64,128,256 -q
done
beside
show "$fhtool" bench "$synthetic.fhead" --hidden "$synthetic.states" -q
