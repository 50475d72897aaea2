#!/bin/sh
# What each lever brings on the demo model, alone and together: agreement against bytes read, as docs/measurements/levers.md and levers.svg show it.
# Needs FH_SHARED (recorded states); a few minutes.  Counts alone: load does not matter.
# usage: sh tests/measure_levers.sh [WORKDIR] > docs/measurements/levers.md     (writes docs/measurements/levers.svg too)
set -eu
name=levers
. "$(dirname "$0")/measure.inc"
fhtool convert "$model" -C states -q > log
[ -f states/states.safetensors ] || fhtool hidden -C states --text self --tokens 200000 > log
# head NAME CLUSTER_FLAGS ROUTING ENCODING: the artifact NAME.fhead and what it gives on the recorded states, NAME.test.json and NAME.voyage.json
head_of() {
    [ -f "$1.voyage.json" ] && return
    fhtool convert "$model" -C "$1" -q > log
    cp states/states.safetensors "$1/"
    # shellcheck disable=SC2086 # flags are words
    fhtool cluster -C "$1" --k 1024 $2 -q > log
    fhtool route -C "$1" --routing "$3" -q > log
    fhtool quantize -C "$1" --centroids "$4" --tokens "$4" -q > log
    fhtool pack -C "$1" --head-only --exact --probes 32 -o "$1.fhead" -q > log
    for text in test voyage; do fhtool query "$1.fhead" --hidden "$states/$text.safetensors" --no-hot --curve 4,8,16,32,64,128,256,512 --json > "$1.$text.json"; done
}
published='--start faiss --metric cosine --rounds 0'
head_of published "$published" mean int8
head_of published-learned "$published" learned int8
head_of cosine '--metric cosine' mean int8
head_of cosine-learned '--metric cosine' learned int8
head_of rows '--metric euclidean' raw int8
head_of output '--metric output' raw int8
head_of output-learned '--metric output' learned int8
head_of int4 '--metric output' learned int4
python3 "$top/tests/plot_levers.py" "$top/docs/measurements/levers.svg" published cosine rows output published-learned cosine-learned output-learned int4
