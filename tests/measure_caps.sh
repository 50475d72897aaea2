#!/bin/sh
# What clusters of 8 to 128 tokens cost for equal agreement on the demo model, and what moving tokens saves, as docs/measurements/caps.md shows it.
# Needs FH_SHARED (recorded states); some ten minutes.  Counts alone: load does not matter.
# usage: sh tests/measure_caps.sh [WORKDIR] > docs/measurements/caps.md     (CAPS, MOVES: other lists than '8 16 32 64 128' and '0 1')
set -eu
name=caps
. "$(dirname "$0")/measure.inc"
caps=${CAPS:-8 16 32 64 128}
moves=${MOVES:-0 1}
fhtool convert "$model" -C states -q > log
[ -f states/states.safetensors ] || fhtool hidden -C states --text self --tokens 200000 > log
probes=$(python3 -c 'print(",".join(map(str, [*range(1, 129), *range(132, 257, 4)])))')
heads=
for cap in $caps; do
    k=$((16384 / cap))
    for m in $moves; do
        name=cap$cap-moves$m
        heads="$heads $name"
        [ -f "$name.voyage.json" ] && continue
        fhtool convert "$model" -C "$name" -q > log
        ln -sf ../states/states.safetensors "$name/states.safetensors"
        fhtool cluster -C "$name" --k $k -q > log
        fhtool route -C "$name" --moves "$m" --json -q > "$name.route.json"
        fhtool quantize -C "$name" -q > log
        fhtool pack -C "$name" --head-only --exact --probes 4 -o "$name.fhead" -q > log
        some=$(echo "$probes" | tr , '\n' | awk -v k=$k '$1 <= k' | paste -sd, -)
        for text in test voyage; do
            fhtool query "$name.fhead" --hidden "$states/$text.safetensors" --no-hot --curve "$some" --json -q > "$name.part"
            mv "$name.part" "$name.$text.json"
        done
    done
done
# shellcheck disable=SC2086 # names of heads have no spaces
python3 "$top/tests/table_caps.py" $heads
