#!/bin/sh
# The whole job on a small real language model: install what is missing, build fhtool, make a calibrated artifact from text that the model says
# itself, check it, look at it, and let both heads answer one prompt.  Called by `make demo`.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
out=${DEMO_DIR:-$top/build/demo}
fhtool=$top/build/fhtool
show() { printf '\n$ %s\n' "$*"; }

mkdir -p "$out"
cd "$out"
show fhtool build demo/prose-7m -o prose-7m.fhead --text self --tokens 200000 --target-containment 0.99
"$fhtool" build "$top/demo/prose-7m" -C work -o prose-7m.fhead --text self --tokens 200000 --target-containment 0.99
show "fhtool verify prose-7m.fhead | tail -n 2"
"$fhtool" verify prose-7m.fhead | tail -n 2
show "fhtool inspect prose-7m.fhead | sed -n '/^sections/,\$p'"
"$fhtool" inspect prose-7m.fhead | sed -n '/^sections/,$p'
for head in dense flash; do
    show "fhtool run prose-7m.fhead --prompt 'The history of the city began in' -n 48 --head $head --stats"
    "$fhtool" run prose-7m.fhead --prompt 'The history of the city began in' -n 48 --head $head --stats
done
