# Where results go: replaced whole or not at all.  What was there stays where writing fails, and nothing half-written is left.
. "$TOP/tests/cli/tools.inc"
build_tiny
cp model.fhead good.fhead
pack() { fh pack -q -C work "$@" > out.txt; }
kept() { same model.fhead good.fhead; no_leftovers; }

# An output that exists is replaced, with its own inode; --no-clobber refuses
echo old > old.fhead; ln old.fhead other-name
pack -o old.fhead; same old.fhead good.fhead
[ "$(cat other-name)" = old ] || die 'written in place'
fails 1 'model.fhead: .*--no-clobber' fh pack -q -C work -o model.fhead --no-clobber
fails 1 'model.fhead: .*--no-clobber' fh build tiny -q -C nowhere -o model.fhead --no-clobber
[ ! -e nowhere ] || die 'a build that cannot end well begins'
pack -o new.fhead --no-clobber; same new.fhead good.fhead
kept

# Places that cannot be written to
fails 1 'work: is a directory: name a file in it' fh pack -q -C work -o work
fails 1 'new/: is a directory' fh pack -q -C work -o new/
fails 1 'no/such/x.fhead: .*directory .*does not exist' fh pack -q -C work -o no/such/x.fhead
fails 1 'good.fhead/x.fhead: ' fh pack -q -C work -o good.fhead/x.fhead
# Work whose result can go nowhere is not begun
fails 1 'no/such/x.fhead: .*directory .*does not exist' fh build tiny -q -C early -o no/such/x.fhead --target-containment 0.9
fails 1 'no/such/x.json: .*directory .*does not exist' fh sweep tiny -q -C early -o no/such/x
[ ! -e early/head.safetensors ] || die 'work that cannot end well begins'
fh build tiny -q -C fresh -o fresh/inside.fhead --tokens 6000 --target-containment 0.9 > /dev/null; [ -f fresh/inside.fhead ]
ln -s /no/such/place/x.fhead far; fails 1 'far: ' fh pack -q -C work -o far
ln -s loop2 loop1; ln -s loop1 loop2; fails 1 'loop1: .*(links|symbolic)' fh pack -q -C work -o loop1
mkfifo pipe; fails 1 'pipe: ' timeout 20 "$FHTOOL" pack -q -C work -o pipe
name=$(printf 'n%.0s' $(seq 300)); fails 1 'nnn: ' fh pack -q -C work -o "$name"
if [ "$(id -u)" != 0 ]; then
    cp model.fhead fixed.fhead; chmod 444 fixed.fhead; fails 1 'fixed.fhead: cannot replace' fh pack -q -C work -o fixed.fhead
    mkdir closed; chmod 555 closed; fails 1 'closed/x.fhead: cannot create' fh pack -q -C work -o closed/x.fhead
fi
# A link is followed and stays
ln -s target.fhead link.fhead; pack -o link.fhead
[ -L link.fhead ] && same target.fhead good.fhead
kept

# What is read is not written over
for f in work/quantized.safetensors work/head.safetensors work/model.json work/calibration.json tiny/model.safetensors tiny/config.json tiny/tokenizer.json; do
    cp "$f" before
    fails 1 "$(basename $f): .*(input|read|another name)" fh pack -q -C work -o "$f"
    same "$f" before
done
ln -s work/head.safetensors sly; fails 1 'sly: ' fh pack -q -C work -o sly
cp tiny/model.safetensors before
fails 1 'model.safetensors: ' fh build tiny -q -C work -o tiny/model.safetensors --tokens 6000 --target-containment 0.9
same tiny/model.safetensors before
fh hidden tiny --text tiny/config.json --window 16 -o ids.safetensors > /dev/null 2>&1
cp ids.safetensors before
fails 1 'ids.safetensors: .*(input|read|another name)' fh hidden tiny --ids-file ids.safetensors -o ids.safetensors
same ids.safetensors before
cp tiny/config.json before
fails 1 'config.json: ' fh hidden tiny --text tiny/config.json --window 16 -o tiny/config.json
same tiny/config.json before
kept

# A full disk, a file that may not grow, nobody who listens
if [ -c /dev/full ] && ! echo 2> /dev/null > /dev/full; then
    fails 1 '/dev/full: cannot write: No space left on device' fh pack -q -C work -o /dev/full
    for c in 'status -C work' 'inspect model.fhead --json' 'run model.fhead --ids 1,2 -n 3' 'query model.fhead --hidden work/states.safetensors' '-h' 'run -h' '--version' \
        'tokenize tiny --text abc' 'calibrate -q -C work --target-containment 0.9' 'bench model.fhead --runs 10'; do
        status=0; "$FHTOOL" $c > /dev/full 2> err.txt || status=$?
        [ $status = 1 ] && grep -q '^fhtool: standard output: No space left' err.txt || die "fhtool $c > /dev/full: status $status, $(cat err.txt)"
        status=0; "$FHTOOL" $c >&- 2> err.txt || status=$?
        [ $status = 1 ] && grep -q '^fhtool: standard output: ' err.txt || die "fhtool $c >&-: status $status, $(cat err.txt)"
    done
fi
status=0; "$FHTOOL" pack -q -C work -o closed.fhead >&- 2> err.txt || status=$?
[ $status = 1 ] && same closed.fhead good.fhead # the report was lost, the artifact was not
"$FHTOOL" pack -q -C work -o closed.fhead > /dev/null 2>&- 0<&-; same closed.fhead good.fhead
{ status=0; "$FHTOOL" query model.fhead --hidden work/states.safetensors 2> err.txt || status=$?; echo $status > status; } | head -n 1 > /dev/null
case $(cat status) in 0 | 1) ;; *) die "a reader that left: status $(cat status)" ;; esac
if (ulimit -f 8) 2> /dev/null; then
    for c in 'pack -q -C work -o model.fhead' 'convert -q tiny -C work' 'quantize -q -C work --tokens f32' 'hidden -q -C work --tokens 3000' "build tiny -q -C limited -o limited.fhead"; do
        status=0; (ulimit -f 8; exec "$FHTOOL" $c > /dev/null 2> err.txt) || status=$?
        [ $status = 1 ] && grep -Eq '^fhtool: .*: cannot write: File too large' err.txt || die "ulimit -f: $c: status $status, $(cat err.txt)"
        kept
    done
    [ ! -e limited.fhead ] || die 'an artifact past the limit'
fi
# the directory is usable after all that, and nothing in it changed
fh status -C work > text.out; ! grep -Eq 'stale|missing' text.out || die "$(cat text.out)"
pack -o again.fhead; same again.fhead good.fhead
# standard output as the artifact
fh pack -q -C work -o /dev/stdout > both 2> err.txt || true
[ ! -e /dev/.stdout.tmp ]
kept

# Work directories that are none
fails 1 'good.fhead: is not a directory: name another work directory' fh convert -q tiny -C good.fhead
fails 1 'good.fhead/work: ' fh convert -q tiny -C good.fhead/work
mkdir odd odd/lock; fails 1 'odd/lock: .*directory' fh convert -q tiny -C odd
rmdir odd/lock; mkfifo odd/lock; fails 1 'odd/lock: ' timeout 20 "$FHTOOL" convert -q tiny -C odd
rm odd/lock; ln -s ../good.fhead odd/lock; fails 1 'odd/lock: ' fh convert -q tiny -C odd
mkdir odd/head.safetensors; rm odd/lock; fails 1 'odd/head.safetensors: is a directory' fh convert -q tiny -C odd
fh convert -q tiny -C made/in/one/go > /dev/null
kept
