#!/bin/sh
# tests/run_cli.sh [NAME...]: run tests/cli/NAME.sh (all of them without a name), each in an empty directory of its own, and
# print a line in TAP for each.  A test is run by `sh -eu` with FHTOOL, TOP, WORK and FH_SHARED in its environment; exit status
# 0 passes, 77 skips (the last line of its output says why), anything else fails.  Where NAME.out exists, standard output must
# equal it.
set -u
TOP=${TOP:-$(cd "$(dirname "$0")/.." && pwd)}
FHTOOL=${FHTOOL:-$TOP/build/fhtool}
FH_SHARED=${FH_SHARED:-../shared}
case $FH_SHARED in /*) ;; *) FH_SHARED=$TOP/$FH_SHARED ;; esac
export TOP FHTOOL FH_SHARED
unset FH_ISA
export LC_ALL=C
# shellcheck disable=SC2046 # names of tests have no spaces
[ $# -gt 0 ] || set -- $(cd "$TOP/tests/cli" && for f in *.sh; do [ -f "$f" ] && echo "${f%.sh}"; done)

bad=0
number=0
for name; do
    number=$((number + 1))
    test=$TOP/tests/cli/$name.sh
    out=$(mktemp -d "${TMPDIR:-/tmp}/fh-cli.XXXXXX") || exit 1
    WORK=$out/work
    export WORK
    mkdir "$WORK"
    (cd "$WORK" && exec sh -eu "$test") > "$out/stdout" 2> "$out/stderr" < /dev/null
    rc=$?
    if [ $rc = 77 ]; then
        echo "ok $number - $name # SKIP $(cat "$out/stdout" "$out/stderr" | tail -n 1)"
    elif [ $rc != 0 ]; then
        echo "not ok $number - $name"
        cat "$out/stdout" "$out/stderr" | sed 's/^/# /'
        echo "# exit status $rc"
        bad=1
    elif [ -f "$TOP/tests/cli/$name.out" ] && ! diff -u "$TOP/tests/cli/$name.out" "$out/stdout" > "$out/diff"; then
        echo "not ok $number - $name"
        sed 's/^/# /' "$out/diff"
        bad=1
    else
        echo "ok $number - $name"
    fi
    chmod -R u+rwx "$out" 2> /dev/null
    rm -rf "$out"
done
exit $bad
