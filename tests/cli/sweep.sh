# estimate, bench --against-estimate and sweep: reports, what is shared, what is not done again, misuse.
. "$TOP/tests/cli/tools.inc"
tiny tiny
TMPDIR=$PWD
export TMPDIR
fh estimate tiny --runs 10 --json -q > e.json
python3 "$TOP/tests/cli/has_fields.py" vocab:int k:int probes:int head_share.dense_bytes:unit body_bytes:num dense_bytes:num step_bytes:num kv.bytes_per_token:num \
    'stages[].flops_per_byte:num' machine.gigabytes_per_second:num machine.gflops:num 'expected[].head_speedup:num' 'expected[].model_speedup:num' 'curve[].probes:int' \
    'machines[].source:str' 'machines[].head_speedup_at_most:num' build.seconds:num build.peak_bytes:num < e.json
mkdir config
cp tiny/config.json config/
fh estimate config --no-measure --json > alone.json
python3 - <<'P'
import json
a, b = json.load(open("alone.json")), json.load(open("e.json"))
assert a["from"] == "config" and b["from"] == "config and headers" and "expected" not in a, a
assert all(a[k] == b[k] for k in ("vocab", "k", "dense_bytes", "step_bytes", "kv", "head_share")) or a["dtype"] != b["dtype"], (a, b)
P
fails 2 'probed' fh estimate tiny --probes 1,100
fails 2 'give one of them' fh estimate tiny --k 4 --cap 4
fails 2 'the vocabulary has' fh estimate tiny --k 1000
fails 2 'the vocabulary has' fh estimate tiny --cap 1000
fails 1 'nothing' fh estimate nothing
fh build tiny -q -C built -o model.fhead --tokens 6000 --target-containment 0.9 > /dev/null
fh pack -C built --head-only -o head.fhead -q > /dev/null
[ "$(fh estimate head.fhead --no-measure | sed -n 's/^model_type  *//p')" = llama ] || die 'what model a head is of is not said'
fh estimate model.fhead --runs 10 --json -q > own.json
fh bench model.fhead --runs 10 --brief --no-batches --no-rivals -q --json --against-estimate own.json > bench.json
python3 "$TOP/tests/cli/has_fields.py" 'against_estimate[].what:str' 'against_estimate[].estimated:num' 'against_estimate[].measured:num' \
    'against_estimate[].estimated_over_measured:num' < bench.json
fh estimate model.fhead --cap 4 --runs 10 --json -q > other.json
fails 2 "estimated with k" fh bench model.fhead --runs 10 --no-batches --no-rivals -q --against-estimate other.json
fails 2 'goes with the heads' fh bench tiny --runs 10 --against-estimate own.json -q
fails 1 'is it what' fh bench model.fhead --runs 10 --no-batches --no-rivals -q --against-estimate bench.json
fails 2 'no-measure' fh bench model.fhead --runs 10 --no-batches --no-rivals -q --against-estimate alone.json

sweep() { fh sweep tiny -C s --k 8,32 --probes 1,4,16 --bits int8,int4/bf16 --tokens 6000 --runs 10 --new-tokens 8 --prompt-tokens 4 -q "$@"; }
sweep --json > first.json
python3 "$TOP/tests/cli/has_fields.py" positions:int 'points[].agreement:unit' 'points[].head_microseconds:num' 'points[].ttft_milliseconds:num' \
    'points[].tpot_milliseconds:num' 'points[].tokens_per_second:num' 'points[].token_flops:num' 'points[].token_bytes:num' 'points[].peak_bytes:num' \
    'points[].frontier:bool' 'frontier[].name:str' seconds:num < first.json
python3 - <<'P'
import csv, json
points = json.load(open("first.json"))["points"]
# P = 16 passes K = 8 and is left out there
assert [(p["k"], p["centroids"], p["tokens"], p["probes"]) for p in points] == [
    (k, c, t, p) for k in (8, 32) for c, t in (("int8", "int8"), ("int4", "bf16")) for p in (1, 4, 16) if p <= k], points
for a, b in zip(points, points[1:]):
    if a["probes"] < b["probes"]:
        assert a["top1"] <= b["top1"] and a["step_bytes"] < b["step_bytes"] and a["mass"] <= b["mass"] + 1e-9, (a, b)
assert json.load(open("s/sweep.json"))["points"] == points
rows = list(csv.DictReader(open("s/sweep.csv", newline="")))
assert [r["probes"] for r in rows] == [str(p["probes"]) for p in points]
page = open("s/sweep.html", encoding="utf-8").read()
assert page.count("<svg") >= 4 and not any(word in page for word in ("src=", "href=", "@import", "url(")), "the page is not self-contained"
P
# Each head is a work directory of its own, and its quality is what query says of it on the positions that nothing was fitted on.
fh pack -C s/k32-int8 -o p.fhead --probes 4 -q > /dev/null
fh verify p.fhead -q > /dev/null
python3 - <<'P'
import json, struct
data = open("s/states.safetensors", "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + size])
def of(name): return data[8 + size + header[name]["data_offsets"][0]:8 + size + header[name]["data_offsets"][1]]
n, d = header["hidden"]["shape"]
hidden, part = of("hidden"), of("part")
rows = b"".join(hidden[4 * d * i:4 * d * (i + 1)] for i in range(n) if part[i] != 0)
head = json.dumps({"hidden": {"dtype": "F32", "shape": [len(rows) // (4 * d), d], "data_offsets": [0, len(rows)]}}).encode()
open("unseen.safetensors", "wb").write(struct.pack("<Q", len(head)) + head + rows)
P
fh query p.fhead --hidden unseen.safetensors --curve 1,4,16 --no-hot --json -q > query.json
python3 - <<'P'
import json
q, s = json.load(open("query.json")), json.load(open("first.json"))
mine = [p for p in s["points"] if p["k"] == 32 and p["tokens"] == "int8"]
assert q["positions"] == s["positions"], (q["positions"], s["positions"])
for a, b in zip(q["curve"], mine):
    assert all(abs(a[k] - b[k]) < 1e-6 for k in ("top1", "top3", "top10", "agreement", "mass", "kl")), (a, b)
    assert a["step_bytes"] == b["step_bytes"], (a, b)
P
fh status -C s/k32-int8 | grep -q stale && die 'what sweep left is stale'
[ ! -e s/k32-int8/timed.fhead ] || die 'the timed artifact was left'
# Nothing is done again.
find s -name '*.safetensors' -o -name quality.json -o -name times.json | sort | xargs stat -c '%n %Y %s %i' > before.txt
cp s/k8-int8/times.json times.json
sweep --json > second.json
find s -name '*.safetensors' -o -name quality.json -o -name times.json | sort | xargs stat -c '%n %Y %s %i' > after.txt
same before.txt after.txt
python3 -c '
import json
a, b = (json.load(open(f)) for f in ("first.json", "second.json"))
assert a["points"] == b["points"]'
# What was interrupted goes on: one head's results are gone, the others stay.
rm s/k8-int8/quality.json
sweep -o results > table.txt
grep -q 'high accuracy' table.txt || die 'no point has a name'
for f in results.json results.csv results.html; do [ -s $f ] || die "$f is not there"; done
same times.json s/k8-int8/times.json
# --again takes times alone.
stat -c '%n %i' s/k8-int8/quality.json s/k8/clusters.safetensors > before.txt
sweep --again > /dev/null
stat -c '%n %i' s/k8-int8/quality.json s/k8/clusters.safetensors > after.txt
same before.txt after.txt
cmp -s times.json s/k8-int8/times.json && die 'times were not taken again'
fails 2 'none of int8' fh sweep tiny -C s --bits int8,int7
fails 2 'whole number' fh sweep tiny -C s --k 1
fails 2 'whole number' fh sweep tiny -C s --probes 0
fails 2 'name fewer' fh sweep tiny -C s --k 8 --probes 9
no_leftovers
