#!/bin/sh
# tests/device/run.sh DIR: everything of the CUDA backend that needs a device, in under ten minutes; results go to DIR. Needs build/device (`make device-test`,
# on a machine with nvcc;
# it may be carried here).  compute-sanitizer is used where it is.
set -u
cd "$(dirname "$0")/../.." || exit 1
dir=${1:?a directory for results}
mkdir -p "$dir"
program=$PWD/build/device/device-test
[ -x "$program" ] || { echo "$program is not there: make device-test" >&2; exit 1; }
bad=0
nvidia-smi > "$dir/nvidia-smi.txt" 2>&1
"$program" "$dir" > "$dir/device.txt" 2>&1 || bad=1
cat "$dir/device.txt"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        mkdir -p "$dir/$tool"
        timeout 90 compute-sanitizer --tool $tool --error-exitcode 3 "$program" --small "$dir/$tool" > "$dir/$tool.txt" 2>&1
        rc=$?
        echo "compute-sanitizer $tool: exit status $rc (124: not finished in time): $(grep 'ERROR SUMMARY' "$dir/$tool.txt")"
        case $rc in 0 | 124) ;; *) bad=1; head -n 40 "$dir/$tool.txt" ;; esac
    done
fi
# The same greedy text from the body there as from the one here.
for where in cuda cpu; do
    LD_LIBRARY_PATH="$PWD/build/device/lib" build/device/fhtool run demo/prose-7m --prompt 'The history of the city began in' -n 200 --ignore-eos --device $where --stats \
        > "$dir/text-$where" 2> "$dir/text-$where.stats" || bad=1
    tail -n 1 "$dir/text-$where.stats"
done
cmp "$dir/text-cuda" "$dir/text-cpu" && echo 'the same text' || bad=1
# A calibration of the demo model: the same bytes wherever states are multiplied.
fhtool=build/device/fhtool work=$dir/calibration
export LD_LIBRARY_PATH="$PWD/build/device/lib"
"$fhtool" convert demo/prose-7m -C "$work" -q > "$dir/convert.txt" && "$fhtool" hidden -C "$work" --tokens 40000 --device cuda -q > "$dir/hidden.txt" || bad=1
for where in cpu cuda; do
    "$fhtool" calibrate -C "$work" --target-containment 0.95 --device $where --json -q > "$dir/calibrate-$where.json" && cp "$work/calibration.json" "$work-$where" || bad=1
    grep -o '"\(probes\|device\|seconds\)":[^,}]*' "$dir/calibrate-$where.json" | tail -n 2 | tr '\n' ' '
done
cmp "$work-cuda" "$work-cpu" && echo 'the same calibration' || bad=1
rm -rf "$work"
# A whole clustering at the size of Llama-3.2-1B's head: the same bytes wherever near clusters are looked for. Needs Python with numpy for the rows.
if python3 -c 'import numpy' 2> /dev/null; then
    fhtool=$PWD/build/device/fhtool work=$dir/clustering
    python3 tests/make_synthetic.py "$work-head" --vocab 128256 --hidden 2048 && "$fhtool" convert "$work-head" -C "$work" -q > "$dir/convert.txt" || bad=1
    for where in cuda cpu; do
        "$fhtool" cluster -C "$work" --cap 16 --device $where --json -q > "$dir/cluster-$where.json" && mv "$work/clusters.safetensors" "$work-$where" || bad=1
        grep -o '"\(swaps\|device\|seconds\)":[^,}]*' "$dir/cluster-$where.json" | tr '\n' ' '
    done
    cmp "$work-cuda" "$work-cpu" && echo 'the same clusters' || bad=1
    rm -rf "$work" "$work-head" "$work-cuda" "$work-cpu"
else
    echo 'no Python with numpy: no whole clustering'
fi
exit $bad
