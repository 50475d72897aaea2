#!/bin/sh
# tests/run_check.sh ITEM...: run tests side by side (JOBS at a time), show what failed, and end with the line
# "N passed, N failed, N skipped".  An item is a test program (unit tests, fuzz replays), or one of the words
# header (tests/header), cli (tests/cli), cross (tests/cross.sh) and python (tests/check_*.py); build/cross/tests/NAME runs by CROSS_RUN.  Everything speaks TAP.  Called by the Makefile.
set -u
cd "${TOP:?}" || exit 1

# One item: the body below calls this script again with --one, under xargs.
if [ "${1:-}" = --one ]; then
    item=$2
    log=$FH_RESULTS/$(echo "$item" | tr / _)
    case $item in
        cli:*) set -- tests/run_cli.sh "${item#cli:}" ;;
        header) set -- tests/header/run.sh ;;
        cross) set -- tests/cross.sh ;;
        build/cross/*) set -- env FH_SHARED=/none ${CROSS_RUN:-} "$item" ;; # words; real models take minutes under qemu
        *.py) set -- python3 "$item" ;;
        */fuzz/fuzz_*) set -- "$item" "tests/fuzz/corpus/${item##*/fuzz_}" ;;
        *) set -- "$item" ;;
    esac
    CMOCKA_MESSAGE_OUTPUT=TAP timeout -k 10 "${FH_TEST_SECONDS:-600}" "$@" > "$log.out" 2>&1 < /dev/null
    rc=$?
    ok=$(grep -c '^ok ' "$log.out")
    skip=$(grep -ciE '^ok .*# *skip' "$log.out")
    cmocka_skip=$(grep -cE '^not ok [0-9]+ # SKIP' "$log.out") # how cmocka 1.1 spells it
    bad=$(($(grep -c '^not ok ' "$log.out") - cmocka_skip))
    plan=$(sed -n 's/^1\.\.\([0-9][0-9]*\).*/\1/p' "$log.out" | awk '{ n += $1 } END { print n + 0 }')
    ok=$((ok - skip))
    skip=$((skip + cmocka_skip))
    case $item in
        *.py)
            # A script may speak TAP; one that does not is one test.
            if [ $((ok + skip + bad)) = 0 ]; then
                case $rc in 0) ok=1 ;; 77) skip=1 ;; *) bad=1 ;; esac
            fi
            [ $rc = 77 ] && rc=0 ;;
    esac
    # A program that died took the tests it had not come to with it.
    missing=$((plan - ok - skip - bad))
    [ "$missing" -gt 0 ] && bad=$((bad + missing))
    if [ $rc != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    [ $((ok + skip + bad)) = 0 ] && bad=1
    echo "$ok $bad $skip" > "$log.count"
    {
        printf '%-44s %4d passed' "$item" "$ok"
        [ "$bad" = 0 ] || printf ', %d FAILED (exit status %d)' "$bad" "$rc"
        [ "$skip" = 0 ] || printf ', %d skipped' "$skip"
        echo
        if [ "$bad" != 0 ]; then
            tail -n 60 "$log.out" | sed 's/^/    /'
        else
            grep -iE '^(not )?ok .*# *skip' "$log.out" | sed 's/^/    /'
            case $item in *.py) [ "$skip" = 0 ] || tail -n 1 "$log.out" | sed 's/^/    /' ;; esac
        fi
    } > "$log.text"
    cat "$log.text"
    exit 0
fi

FH_RESULTS=$(mktemp -d "${TMPDIR:-/tmp}/fh-check.XXXXXX") || exit 1
export FH_RESULTS
trap 'rm -rf "$FH_RESULTS"' EXIT
trap 'exit 130' INT TERM HUP

items=
for item; do
    case $item in
        cli) for f in tests/cli/*.sh; do [ -f "$f" ] && f=${f##*/} && items="$items cli:${f%.sh}"; done ;;
        python)
            if [ "${NUMPY:-}" ]; then
                for f in tests/check_*.py; do [ -f "$f" ] && items="$items $f"; done
            else
                echo 'Python checks: left out, python3 with numpy is not there (make deps)'
            fi ;;
        *) items="$items $item" ;;
    esac
done
[ "${CMOCKA:-}" ] || echo 'unit tests: left out, cmocka is not there (make deps)'
for item in $items; do echo "$item"; done | xargs -P "${JOBS:-1}" -n 1 "$0" --one
cat "$FH_RESULTS"/*.count 2> /dev/null |
    awk '{ p += $1; f += $2; s += $3 } END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f != 0 || p == 0 }'
