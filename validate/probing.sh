#!/bin/sh
# Fixed and adaptive probing side by side on prose-7m: promised on WikiText's valid part, judged on its test part and on a book, as docs/measurements/probing.md
# shows it.  Needs FH_SHARED (WikiText-2, books); times want a quiet machine.
# usage: sh validate/probing.sh [WORKDIR] > table
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
shared=$(cd "${FH_SHARED:-$top/../shared}" && pwd)
work=${1:-$top/build/probing}
mkdir -p "$work"
cd "$work"
PATH=$top/build:$PATH
wiki=$shared/data/wikitext-2 book=$shared/data/books/voyage-of-the-beagle.txt
[ -e work/quantized.safetensors ] || fhtool build "$top/demo/prose-7m" -q -C work -o self.fhead --text self --tokens 200000 --routing learned --target-containment 0.99 > self.txt
[ -e test.safetensors ] || fhtool hidden "$top/demo/prose-7m" -q --text "$wiki/wiki.test.tokens" --tokens 20000 -o test.safetensors > /dev/null
for target in 0.95 0.99 0.999; do
    for probing in fixed adaptive; do
        name=$probing-$target
        fhtool calibrate -q -C work --text "$wiki/wiki.valid.tokens" --tokens 100000 --target-containment $target --probing $probing --json > "$name.json" 2> "$name.err" || { cat "$name.err" >&2; continue; }
        fhtool pack -q -C work -o "$name.fhead" > /dev/null
        for text in test book; do
            [ $text = test ] && file=$wiki/wiki.test.tokens || file=$book
            fhtool validate "$name.fhead" -q --json --text "$file" --tokens 40000 --no-anatomy --no-perplexity --no-divergence > "$name-$text.json" 2> /dev/null || :
        done
        fhtool bench "$name.fhead" -q --threads 1 --runs 100 --hidden test.safetensors --no-rivals --no-batches --json > "$name-bench.json"
    done
done
python3 "$top/validate/probing.py" .
