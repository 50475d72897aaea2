#!/bin/sh
# Measures encodings of centroids and rows on the demo model as docs/measurements/stage1.md shows them.  Needs FH_SHARED (recorded states); about three minutes.
# usage: sh tests/measure_stage1.sh [WORKDIR] > out
set -eu
name=measure-stage1
. "$(dirname "$0")/measure.inc"
[ -f work/routing.safetensors ] || { fhtool convert "$model" -C work -q && fhtool hidden -C work -q && fhtool cluster -C work --k 1024 -q && fhtool route -C work -q; } > log
python3 -c 'print(",".join(map(str, sorted(set(list(range(26, 41, 2)) + list(range(44, 76, 4)) + list(range(80, 136, 6)) + [32, 64, 1024])))))' > list
echo '| text | centroids | rows | R | agreement at P = K | at P = 32 | at P = 64 | P, KB for 98 % | P, KB for 99 % | P, KB for 99.5 % |'
echo '|---|---|---|---|---|---|---|---|---|---|'
for text in ${TEXTS:-test voyage}; do
    for how in 'int8 int8 0' 'int8 int8 16' 'int4 int8 16' 'int4 int4 0' 'int4 int4 16' 'int4 int4 32'; do
        # shellcheck disable=SC2086 # three words
        set -- $how
        fhtool quantize -C work --centroids "$1" --tokens "$2" -q > log
        fhtool pack -C work -o one.fhead --rerank "$3" -q > log
        fhtool query one.fhead --hidden "$states/$text.safetensors" --curve "$(cat list)" --json -q | python3 -c '
import json, sys
points = json.load(sys.stdin)["curve"]
at = {p["probes"]: p["agreement"] for p in points}
need = lambda share: next(("%d, %.0f" % (p["probes"], p["step_bytes"] / 1e3) for p in points if p["agreement"] >= share and p["probes"] < 1024), "-")
print("|", " | ".join(sys.argv[1:] + [f"{100 * at[p]:.2f}" for p in (1024, 32, 64)] + [need(x) for x in (0.98, 0.99, 0.995)]), "|")' "$text" "$1" "$2" "$3"
    done
done
