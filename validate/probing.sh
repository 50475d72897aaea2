#!/bin/sh
# Fixed and adaptive probing side by side on prose-7m, as docs/measurements/probing.md shows them: promised on WikiText's valid part, looked at on recorded states
# of its test part and of a book.  Needs FH_SHARED (WikiText-2, recorded states); times want a quiet machine.
# usage: sh validate/probing.sh [WORKDIR] > table
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
shared=$(cd "${FH_SHARED:-$top/../shared}" && pwd)
work=${1:-$top/build/probing}
mkdir -p "$work"
cd "$work"
PATH=$top/build:$PATH
states=$shared/models/prose-7m/reference
[ -e work/quantized.safetensors ] ||
    fhtool build "$top/demo/prose-7m" -q -C work -o self.fhead --text self --tokens 200000 --routing learned --target-containment 0.99 > self.txt
for target in 0.99 0.999 0.95; do
    for probing in fixed adaptive; do
        name=$probing-$target
        fhtool calibrate -q -C work --text "$shared/data/wikitext-2/wiki.valid.tokens" --tokens 100000 --target-containment $target --probing $probing \
            --json > "$name.json" 2> "$name.err" || { cat "$name.err" >&2; continue; }
        fhtool pack -q -C work -o "$name.fhead" > /dev/null
    done
    [ -e "fixed-$target.fhead" ] && [ -e "adaptive-$target.fhead" ] || continue
    case $target in 0.95) most=0.05 ;; 0.99) most=0.065 ;; *) most=0.14 ;; esac # one to two times what the fixed P reads
    fhtool calibrate -q -C work --text "$shared/data/wikitext-2/wiki.valid.tokens" --tokens 100000 --target-containment $target --probing adaptive --max-cost $most \
        --json > "capped-$target.json" && fhtool pack -q -C work -o "capped-$target.fhead" > /dev/null || continue
    for text in test voyage; do
        fhtool diff "fixed-$target.fhead" "adaptive-$target.fhead" -q --hidden "$states/$text.safetensors" --json > "$target-$text.json"
        fhtool diff "fixed-$target.fhead" "capped-$target.fhead" -q --hidden "$states/$text.safetensors" --json > "capped-$target-$text.json"
    done
    for probing in fixed adaptive capped; do
        fhtool bench "$probing-$target.fhead" -q --threads 1 --runs 100 --hidden "$states/test.safetensors" --no-rivals --no-batches --json > "$probing-$target-bench.json"
    done
done
python3 "$top/validate/probing.py" .
