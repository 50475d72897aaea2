#!/bin/sh
# Measures the demo model as docs/measurements/small-model.md shows it.  Needs FH_SHARED (WikiText-2 and recorded states) and a quiet machine; about ten minutes.
# usage: sh tests/measure_small.sh [WORKDIR] > out
set -eu
name=measure
. "$(dirname "$0")/measure.inc"
ln -sfn "$model" prose-7m
ln -sfn "$shared" shared
show() { printf '\n```\n$ %s\n' "$1"; sh -c "$1" 2>/dev/null; printf '```\n'; }
states=shared/models/prose-7m/reference

echo '## The artifact'
show 'fhtool build prose-7m -C self -o self.fhead --text self --tokens 200000 --target-containment 0.99 | grep -E "^(k|cap|probes|hot|routing|bytes|total_seconds) "'
show 'fhtool calibrate -C self --text self --tokens 200000 --target-containment 0.99 | grep -E "^(probes|hot|positions|misses|bound|heldout|step_bytes|dense_bytes) "'
echo
echo '## On text that no stage saw'
own=$(fhtool inspect self.fhead --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["probes"])')
curve=$(printf '%s\n' 8 16 30 "$own" 64 128 | sort -nu | paste -sd ,)
for t in test voyage; do show "fhtool query self.fhead --hidden $states/$t.safetensors --curve $curve"; done
show "fhtool query self.fhead --hidden $states/test.safetensors --curve 30 --no-hot"
echo
echo '## Other heads at the same K, on the same states'
show "fhtool convert prose-7m -C published -q > log && fhtool cluster -C published --k 1024 --start faiss --metric cosine --rounds 0 -q > log && fhtool route -C published --routing mean -q > log && fhtool pack -C published -o published.fhead -q > log && fhtool query published.fhead --hidden $states/test.safetensors --curve 16,30,64,128"
show "fhtool convert prose-7m -C cosine -q > log && fhtool cluster -C cosine --k 1024 --metric cosine -q > log && fhtool route -C cosine --routing mean -q > log && fhtool pack -C cosine -o cosine.fhead -q > log && fhtool query cosine.fhead --hidden $states/test.safetensors --curve 16,30,64,128"
show "fhtool convert prose-7m -C rows -q > log && fhtool cluster -C rows --k 1024 -q > log && fhtool pack -C rows -o rows.fhead -q > log && fhtool query rows.fhead --hidden $states/test.safetensors --curve 16,30,64,128"
echo
echo '## Perplexity'
show 'fhtool perplexity self.fhead --text shared/data/wikitext-2/wiki.test.raw --window 512 --stride 256 --head dense'
show 'fhtool perplexity self.fhead --text shared/data/wikitext-2/wiki.test.raw --window 512 --stride 256 --head flash'
show 'fhtool perplexity self.fhead --text shared/data/wikitext-2/wiki.test.raw --window 512 --stride 256 --head flash --probes 256'
echo
echo '## Time'
show 'fhtool bench self.fhead --threads 1 --runs 200'
show 'fhtool bench self.fhead --threads 2 --runs 200'
