# One artifact, whatever the number of threads, the directory, the instruction set, the locale and the surroundings.
. "$TOP/tests/cli/tools.inc"
tiny tiny
promise='--target-containment 0.9 --tokens 3000'
fh build tiny -q -C work -o first.fhead $promise > /dev/null
number=0
again() { # again ENVIRONMENT... -- FLAGS...: build elsewhere, compare
    number=$((number + 1))
    variables=
    while [ "$1" != -- ]; do variables="$variables $1"; shift; done
    shift
    mkdir -p "elsewhere/$number"
    env $variables "$FHTOOL" build tiny -q -C "elsewhere/$number" -o "elsewhere/$number.fhead" $promise "$@" > /dev/null 2> err.txt || die "$variables $*: $(cat err.txt)"
    same first.fhead "elsewhere/$number.fhead"
    for f in head clusters states routing quantized; do same "work/$f.safetensors" "elsewhere/$number/$f.safetensors"; done
    same work/calibration.json "elsewhere/$number/calibration.json"
}
again -- --threads 1
again -- --threads 2
again -- --threads 7
again FH_ISA=ref -- --threads 2
grep -q avx2 /proc/cpuinfo && again FH_ISA=avx2 --
grep -q avx512f /proc/cpuinfo && again FH_ISA=avx512 --
grep -q asimd /proc/cpuinfo && again FH_ISA=neon --
again OMP_NUM_THREADS=abc OPENBLAS_NUM_THREADS=3 --
again LC_ALL=de_DE.UTF-8 LANG=de_DE.UTF-8 TZ=Asia/Kathmandu --
again -u HOME -u TMPDIR -u PATH --
(umask 0777 && "$FHTOOL" build tiny -q -C elsewhere/umask -o elsewhere/umask.fhead $promise > /dev/null 2> err.txt) ||
    grep -q '^fhtool: ' err.txt || die "umask 0777: $(cat err.txt)"
[ "$(find . -name '.*.tmp' | wc -l)" = 0 ]
chmod -R u+rwX elsewhere
if [ -f elsewhere/umask.fhead ]; then same first.fhead elsewhere/umask.fhead; fi
# Through a link, a relative and an absolute name
ln -s tiny link
fh build "$PWD/link" -q -C elsewhere/link -o elsewhere/link.fhead $promise > /dev/null
same first.fhead elsewhere/link.fhead
fails 2 'FH_ISA|instruction set|sse9' env FH_ISA=sse9 "$FHTOOL" query first.fhead --hidden work/states.safetensors
no_leftovers
