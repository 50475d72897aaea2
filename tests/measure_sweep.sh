#!/bin/sh
# Sweeps the demo model as docs/measurements/sweep.md shows it and writes OUT.html, OUT.csv and OUT.json.  Needs FH_SHARED (WikiText-2) and a quiet
# machine; under fifteen minutes on two cores.  What WORKDIR holds of an earlier sweep is kept, times are taken again.
# usage: sh tests/measure_sweep.sh WORKDIR OUT
set -eu
[ $# -eq 2 ] || { sed -n 's/^# \(usage: .*\)/\1/p' "$0" >&2; exit 2; }
top=$(cd "$(dirname "$0")/.." && pwd)
text=${FH_SHARED:-$top/../shared}/data/wikitext-2/wiki.valid.tokens
[ -f "$text" ] || { echo "measure_sweep.sh: needs WikiText-2 in FH_SHARED" >&2; exit 1; }
"$top/build/fhtool" sweep "$top/demo/prose-7m" -C "$1" --k 512,1024,2048,4096 --probes 16,32,64,128,256,512 --bits int8,bf16 --text "$text" --again -o "$2"
