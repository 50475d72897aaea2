#!/bin/sh
# tests/device/run.sh DIR: everything of the CUDA head that needs a device, in under ten minutes; results go to DIR. Needs build/device (`make device-test`,
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
exit $bad
