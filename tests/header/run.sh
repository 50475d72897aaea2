#!/bin/sh
# tests/header/run.sh: the public header and the library as others meet them.  Speaks TAP.  Called by tests/run_check.sh with
# CC, CXX and TOP in the environment, after `make all`.
# shellcheck disable=SC2317 # functions are called through check
set -u
cd "${TOP:?}" || exit 1
dir=$(mktemp -d "${TMPDIR:-/tmp}/fh-header.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
number=0
bad=0
# check SENTENCE COMMAND...
check() {
    sentence=$1
    shift
    number=$((number + 1))
    if "$@" > "$dir/log" 2>&1; then
        echo "ok $number - $sentence"
    else
        echo "not ok $number - $sentence"
        sed 's/^/# /' "$dir/log"
        bad=1
    fi
}
strict='-Wall -Wextra -pedantic -Werror -Wstrict-prototypes -Wconversion'
strict_cxx='-Wall -Wextra -pedantic -Werror -Wconversion'
echo '#include <flashhead.h>' > "$dir/alone.c"
cp tests/header/use_library.c "$dir/use.cpp"
cp "$dir/alone.c" "$dir/alone.cpp"

# shellcheck disable=SC2086 # flags are lists of words
{
    check 'flashhead.h stands alone as C11' ${CC:-gcc} -std=c11 $strict -Iruntime -c "$dir/alone.c" -o "$dir/alone.o"
    check 'flashhead.h stands alone as C++17' ${CXX:-g++} -std=c++17 $strict_cxx -Iruntime -c "$dir/alone.cpp" -o "$dir/alone.o"
    check 'flashhead.h and base.h have the same statuses' ${CC:-gcc} -D_GNU_SOURCE -std=c11 -I. -c tests/header/status_same.c -o "$dir/same.o"
}

prefix=$dir/prefix
check 'make install fills DESTDIR and PREFIX' make --no-print-directory install "DESTDIR=$dir/stage" PREFIX=/opt/fh
check 'make install fills PREFIX' make --no-print-directory install "PREFIX=$prefix"
staged() {
    for f in bin/fhtool lib/libflashhead.a lib/libflashhead.so include/flashhead.h lib/pkgconfig/flashhead.pc; do
        test -s "$dir/stage/opt/fh/$f" || { echo "missing: $f"; return 1; }
    done
    grep -qx 'prefix=/opt/fh' "$dir/stage/opt/fh/lib/pkgconfig/flashhead.pc"
}
check 'the staged files name the prefix, not the stage' staged

flags() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" flashhead; }
# build LANGUAGE SOURCE WORDS-FOR-pkg-config...: compile, link and run
shared() {
    # shellcheck disable=SC2046,SC2086
    $1 $2 $3 $(flags --cflags) "$4" -o "$dir/shared" $(flags --libs) && LD_LIBRARY_PATH=$prefix/lib "$dir/shared"
}
static() {
    # shellcheck disable=SC2046
    ${CC:-gcc} -std=c11 $(flags --cflags) tests/header/use_library.c -o "$dir/static" "$prefix/lib/libflashhead.a" \
        $(flags --static --libs | tr ' ' '\n' | grep -v -e '^-lflashhead$' -e '^-L') && "$dir/static"
}
if command -v pkg-config > /dev/null; then
    check 'a C program links the shared library' shared "${CC:-gcc}" -std=c11 "$strict" tests/header/use_library.c
    check 'a C++ program links the shared library' shared "${CXX:-g++}" -std=c++17 "$strict_cxx" "$dir/use.cpp"
    check 'a C program links the static library with zstd and cJSON alone' static
    # An artifact of the smallest checkpoint at hand, made by the installed tool and read by a stranger.
    # shellcheck disable=SC2046,SC2086
    embed() {
        ${CC:-gcc} -std=c11 -Wall -Wextra -pedantic -Werror $(flags --cflags) tests/header/embed.c -o "$dir/embed" $(flags --libs) &&
            "$prefix/bin/fhtool" convert tests/golden/llama -C "$dir/work" -q &&
            "$prefix/bin/fhtool" pack --head-only -C "$dir/work" -o "$dir/head.fhead" -q &&
            LD_LIBRARY_PATH=$prefix/lib "$dir/embed" "$dir/head.fhead" 7 &&
            ! LD_LIBRARY_PATH=$prefix/lib "$dir/embed" no/such/file.fhead
    }
    check 'another engine embeds the head' embed
    # shellcheck disable=SC2046,SC2086
    example() {
        ${CC:-gcc} -std=c11 $strict $(flags --cflags) docs/examples/embed.c -o "$dir/example" $(flags --libs) &&
            LD_LIBRARY_PATH=$prefix/lib "$dir/example" "$dir/head.fhead" > "$dir/from_c" && cat "$dir/from_c" &&
            [ "$(wc -l < "$dir/from_c")" = 6 ] && grep -q '^next [0-9]' "$dir/from_c" &&
            ! LD_LIBRARY_PATH=$prefix/lib "$dir/example" no/such/file.fhead
    }
    check 'the example of the documentation runs' example
    from_python() {
        python3 docs/examples/embed.py "$dir/head.fhead" "$prefix/lib/libflashhead.so.0" > "$dir/from_python" &&
            diff "$dir/from_c" "$dir/from_python" &&
            ! python3 docs/examples/embed.py no/such/file.fhead "$prefix/lib/libflashhead.so.0"
    }
    if command -v python3 > /dev/null; then
        check 'Python gets the same through ctypes' from_python
    else
        number=$((number + 1))
        echo "ok $number - Python gets the same through ctypes # SKIP no python3"
    fi
else
    number=$((number + 1))
    echo "ok $number - programs link the library # SKIP no pkg-config"
fi

soname() { readelf -d build/libflashhead.so.0 | grep -q 'SONAME.*\[libflashhead\.so\.0\]'; }
check 'the shared library has its SONAME' soname
needed() {
    readelf -d build/libflashhead.so.0 | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' > "$dir/needed"
    ! grep -vE '^(libc|libm|libpthread|libzstd|libcjson|ld-linux-.*)\.so' "$dir/needed"
}
check 'the shared library needs libc, zstd and cJSON alone' needed
exported() {
    nm -D --defined-only build/libflashhead.so.0 | awk '$2 != "A" { print $3 }' | sed 's/@.*//' | sort > "$dir/exported"
    sed -n 's/^\(fh_[a-z0-9_]*\);$/\1/p' build/flashhead.map | sort > "$dir/declared"
    test -s "$dir/declared" && diff "$dir/declared" "$dir/exported"
}
check 'the shared library shows what the header declares and nothing else' exported
# What programs that are out there link against.  Lines may be added; one that goes or changes its meaning needs a new SOVERSION.
pinned() { LC_ALL=C sort "$dir/exported" | diff tests/header/symbols.txt -; }
check 'the shared library shows the symbols that are pinned in symbols.txt' pinned
own_names() { ! nm -g --defined-only build/libflashhead.a | awk 'NF == 3 { print $3 }' | grep -v '^fh_'; }
check 'the static library defines no name outside fh_' own_names
nothing_to_do() { make --no-print-directory all > "$dir/make" 2>&1 && ! grep -E '^  (CC|CXX|AR|LINK) ' "$dir/make"; }
check 'a second make makes nothing' nothing_to_do
echo "1..$number"
exit $bad
