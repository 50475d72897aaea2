# --device: without a GPU the messages that say so, and the CPU in its place; on the emulated device the same answers as on the CPU.
. "$TOP/tests/cli/tools.inc"
build_tiny
write_text few.txt 4; fh hidden tiny --text few.txt -o states.safetensors -q > /dev/null
value() { python3 -c 'import json, sys; r = json.load(sys.stdin); print(eval(sys.argv[1], {"r": r}))' "$1"; }
answers='{k: r[k] for k in ("positions", "probes", "ids", "logits")}'

# No shared object, one that is none, one of something else
fails 1 'there is no libfhcuda\.so beside the program' env FH_CUDA_LIBRARY= sh -c 'cp "$FHTOOL" ./alone && exec ./alone query model.fhead --hidden states.safetensors --device cuda'
fails 1 'nowhere\.so: cannot be opened: ' env FH_CUDA_LIBRARY=/nowhere.so "$FHTOOL" query model.fhead --hidden states.safetensors --device cuda
echo nonsense > broken.so
fails 1 'broken\.so: cannot be opened: ' env FH_CUDA_LIBRARY=./broken.so "$FHTOOL" run model.fhead --ids 1 --device cuda
fails 1 'has no fh_cuda_backend: is it of this program' env FH_CUDA_LIBRARY="$(ldd "$FHTOOL" | sed -n 's/.* => \(.*libzstd[^ ]*\) .*/\1/p')" "$FHTOOL" run model.fhead --ids 1 --device cuda
# auto: the CPU, and one line that says why
fh query model.fhead --hidden states.safetensors --json > cpu.json
FH_CUDA_LIBRARY=/nowhere.so fh query model.fhead --hidden states.safetensors --device auto --json > auto.json 2> why
[ "$(grep -c 'the head runs on the CPU: /nowhere\.so: cannot be opened' why)" = 1 ] && [ "$(wc -l < why)" = 1 ] || die "auto says: $(cat why)"
same cpu.json auto.json
is_cpu=$(value 'r["device"]' < cpu.json); [ "$is_cpu" = cpu ] || die "device $is_cpu"
fails 2 "\-\-device: 'gpu' is none of cpu,cuda,auto" fh run model.fhead --ids 1 --device gpu
fails 2 'query: --curve is measured on the CPU' fh query model.fhead --hidden states.safetensors --curve 1,2 --device cuda
# validate looks at one where it is, says nothing where there is none, and must have it where it is told to
parity='[(p["isa"], p["variant"]) for p in r["parity"] if p["isa"] == "cuda"], r.get("device"), [c["result"] for c in r["checks"] if c["check"] == "parity"]'
fails 1 '/nowhere\.so: cannot be opened' env FH_CUDA_LIBRARY=/nowhere.so "$FHTOOL" validate model.fhead --device cuda
FH_CUDA_LIBRARY=/nowhere.so fh validate model.fhead --json > report.json 2> said
[ "$(value "$parity" < report.json)" = "([], None, ['passed'])" ] && [ ! -s said ] || die "without a device: $(value "$parity" < report.json) $(cat said)"
fh cluster -C work -q > /dev/null
cp work/clusters.safetensors here.safetensors
FH_CUDA_LIBRARY=/nowhere.so fh cluster -C work --device auto --json > auto.json 2> why
[ "$(grep -c 'the clustering runs on the CPU: /nowhere\.so: cannot be opened' why)" = 1 ] || die "auto says: $(cat why)"
[ "$(value 'r["device"]' < auto.json)" = cpu ] || die 'not on the CPU'
same here.safetensors work/clusters.safetensors
fails 1 'nowhere\.so: cannot be opened: ' env FH_CUDA_LIBRARY=/nowhere.so "$FHTOOL" cluster -C work --device cuda
fh calibrate -C work --target-containment 0.9 -q > /dev/null
cp work/calibration.json here.json
FH_CUDA_LIBRARY=/nowhere.so fh calibrate -C work --target-containment 0.9 --device auto --json > auto.json 2> why
[ "$(grep -c 'the calibration runs on the CPU: /nowhere\.so: cannot be opened' why)" = 1 ] || die "auto says: $(cat why)"
[ "$(value 'r["device"]' < auto.json)" = cpu ] || die 'not on the CPU'
same here.json work/calibration.json
fails 1 'nowhere\.so: cannot be opened: ' env FH_CUDA_LIBRARY=/nowhere.so "$FHTOOL" calibrate -C work --device cuda
fails 2 'bench: --device: goes with an artifact, tiny is a checkpoint' fh bench tiny --device cuda
fails 1 'nowhere\.so: cannot be opened: ' env FH_CUDA_LIBRARY=/nowhere.so "$FHTOOL" hidden tiny --text few.txt -o out.safetensors --device cuda
FH_CUDA_LIBRARY=/nowhere.so fh run model.fhead --ids 1 -n 2 --device auto 2> why > auto.txt
[ "$(grep -c 'head and body run on the CPU: /nowhere\.so: cannot be opened' why)" = 1 ] || die "auto says: $(cat why)"
# The real one, where it was built: on a machine without a driver it opens and says so
lib=$(dirname "$FHTOOL")/libfhcuda.so
if [ -e "$lib" ] && [ ! -e /dev/nvidiactl ]; then
    fails 1 '(there is no NVIDIA driver on this machine|no GPU that it sees)' fh query model.fhead --hidden states.safetensors --device cuda
fi

# The very sources of the CUDA head, on a device that the host emulates
FH_CUDA_LIBRARY=$(dirname "$FHTOOL")/libfhemu.so; export FH_CUDA_LIBRARY
if [ -e "$FH_CUDA_LIBRARY" ]; then
    for q in '' '--top-k 5' '--probes 3 --no-hot --top-k 2' '--probes 1000' '--dense' '--dense --top-k 3'; do
        # shellcheck disable=SC2086 # words
        { fh query model.fhead --hidden states.safetensors $q --json | value "$answers" > want; fh query model.fhead --hidden states.safetensors $q --device cuda --json > got.json; }
        value "$answers" < got.json > got
        same want got
        [ "$(value 'r["device"]' < got.json)" = 'an emulated device' ] || die 'not on the device'
    done
    for s in '' '--top-k 7' '--top-p 0.8 --min-p 0.01'; do
        # shellcheck disable=SC2086
        { fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --temperature 0.9 --seed 5 $s --json -q | value 'r["ids"]' > want; fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --temperature 0.9 --seed 5 $s --device cuda --json -q | value 'r["ids"]' > got; }
        same want got
    done
    for h in flash dense; do
        fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --head $h --json | value 'r["ids"]' > want
        fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --head $h --device auto --json | value 'r["ids"]' > got
        same want got
    done
    for c in '' '--metric euclidean --k 40' '--metric cosine --cap 7' '--start faiss --metric cosine' '--start random --restarts 2 --rounds 2 --seed 3' '--init model.fhead'; do
        # shellcheck disable=SC2086
        { fh cluster -C work $c -q > /dev/null; cp work/clusters.safetensors here.safetensors; fh cluster -C work $c --device cuda --json -q > got.json; }
        [ "$(value 'r["device"]' < got.json)" = 'an emulated device' ] || die 'not on the device'
        same here.safetensors work/clusters.safetensors
    done
    # a calibration writes the same bytes; what it cannot promise it says there too
    fh convert tiny -C small -q > /dev/null
    fh hidden -C small --tokens 600 -q > /dev/null
    for c in '--target-containment 0.4 --containment-k 3' '--target-containment 0.4 --probing adaptive --hot 5' '--target-agreement 0.3 --target-mass 0.2'; do
        # shellcheck disable=SC2086
        { fh calibrate -C small --max-cost 9 --confidence 0.6 $c -q > /dev/null; cp small/calibration.json here.json; fh calibrate -C small --max-cost 9 --confidence 0.6 $c --device cuda --json -q > got.json; }
        [ "$(value 'r["device"]' < got.json)" = 'an emulated device' ] || die 'not on the device'
        same here.json small/calibration.json
    done
    rc=0; fh calibrate -C small --target-containment 0.9999 --device cuda -q > got.json 2> why || rc=$?
    [ $rc = 3 ] && grep -Eq 'cannot be (promised|reached)' why || die "exit status $rc: $(cat why)"
    for d in '' '--device auto' '--device cuda'; do
        # shellcheck disable=SC2086
        fh validate model.fhead $d --json > report.json
        [ "$(value "$parity" < report.json)" = "([('cuda', '')], 'an emulated device', ['passed'])" ] || die "on the device: $(value "$parity" < report.json)"
        [ "$(value '[p["compared"] > 1000 and p["differ"] == 0 for p in r["parity"]]' < report.json | tr -d '[]' | tr -d ' ' | tr ',' '\n' | sort -u)" = True ] || die 'results differ'
        grep -q '; cuda (an emulated device): the same tokens and logits"' report.json || die 'the report does not say so'
    done
    fh validate model.fhead --device cpu --json > report.json
    [ "$(value "$parity" < report.json)" = "([], None, ['passed'])" ] || die "--device cpu: $(value "$parity" < report.json)"
    # the body of a checkpoint, its dense head here; every kind of cache; states alike
    for kv in f32 f16 int8; do
        fh run tiny --ids 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18 -n 30 --ignore-eos --kv-type $kv --json | value 'r["ids"]' > want
        fh run tiny --ids 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18 -n 30 --ignore-eos --kv-type $kv --device cuda --json | value 'r["ids"]' > got
        same want got
    done
    fh hidden tiny --text few.txt -o there.safetensors --device cuda --json > hidden.json
    [ "$(value 'r["device"]' < hidden.json)" = 'an emulated device' ] || die 'hidden is not on the device'
    python3 - states.safetensors there.safetensors << 'END' || die 'states differ'
import json, struct, sys
def hidden(path):
    b = open(path, 'rb').read(); n = struct.unpack('<Q', b[:8])[0]; t = json.loads(b[8:8 + n])['hidden']
    return struct.unpack('<%df' % ((t['data_offsets'][1] - t['data_offsets'][0]) // 4), b[8 + n + t['data_offsets'][0]:8 + n + t['data_offsets'][1]])
a, b = hidden(sys.argv[1]), hidden(sys.argv[2])
spread = (sum(x * x for x in a) / len(a)) ** 0.5
sys.exit(not (len(a) == len(b) and all(abs(x - y) <= 1e-4 * spread for x, y in zip(a, b))))
END
    # states of a work directory, which say where they were made; perplexity
    fh convert tiny -C there -q > /dev/null
    fh hidden -C there --text few.txt --tokens 60 --device cuda -q > /dev/null
    grep -aq '\\"device\\":\\"an emulated device\\"' there/states.safetensors || die 'the states do not say where they were made'
    for d in cpu cuda; do fh perplexity tiny --text few.txt --device $d --json -q > $d.json; done
    python3 -c 'import json; a, b = (json.load(open(f)) for f in ("cpu.json", "cuda.json")); assert b["device"] == "an emulated device" and abs(a["perplexity"] / b["perplexity"] - 1) < 1e-4' || die 'perplexity'
    # which kernel multiplies: measured, kept beside the artifact, read by the next run; what is no such file is told of and left alone
    fh bench model.fhead --device cuda --products --no-batches --runs 10 --json -q > bench.json
    [ "$(value 'len(r["products"]) >= 28 and all(p["tile_seconds"] > 0 and ("few_seconds" in p) == (p["rows"] <= 8) for p in r["products"])' < bench.json)" = True ] || die 'products'
    [ "$(value '[t["head"] for t in r["tokens"]] == ["flash", "dense"] and all(t["tpot_seconds"] > 0 and 0 < t["head_share"] < 1 for t in r["tokens"])' < bench.json)" = True ] || die 'tokens'
    [ -s model.fhead.an-emulated-device.products.json ] || die 'no products beside the artifact'
    fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --json | value 'r["ids"]' > want
    fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --device cuda --json 2> why > got.json
    value 'r["ids"]' < got.json > got; same want got
    [ ! -s why ] || die "says: $(cat why)"
    [ "$(value 'r["stats"]["attention"]["parts"] > 0 and r["stats"]["attention"]["done_again"] == 0' < got.json)" = True ] || die 'attention'
    sed -i 's/"rows": *2,/"rows": 0,/' model.fhead.an-emulated-device.products.json
    fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --device cuda --json 2> why | value 'r["ids"]' > got; same want got
    grep -q 'kernels are chosen without a measurement: .*products\.json: product [0-9]* is not one' why || die "says: $(cat why)"
    fails 2 'bench: --products: goes with a bundle on a GPU' fh bench model.fhead --products
fi
