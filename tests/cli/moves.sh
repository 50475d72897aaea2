# Tokens that move: an assignment of the routing's own, which everything after it goes by, and what is made without is as it was.
. "$TOP/tests/cli/tools.inc"
tiny tiny
promise='--target-containment 0.9 --tokens 12000'
fh build tiny -q -C still -o still.fhead --cap 8 $promise > /dev/null
fh build tiny -q -C work -o moved.fhead --cap 8 $promise --moves 2 > /dev/null
for f in head states clusters; do same "still/$f.safetensors" "work/$f.safetensors"; done
fh route -q -C work --moves 2 --json > route.json
python3 "$TOP/tests/cli/has_fields.py" routing:str states:int loss:num moves:int swaps:int moved:int move_seconds:num < route.json
cat > read.py <<'P'
import array, json, struct, sys
def tensor(path, name):
    b = open(path, "rb").read()
    n, = struct.unpack("<Q", b[:8])
    t = json.loads(b[8:8 + n]).get(name)
    if t is None:
        return None
    at, end = t["data_offsets"]
    return array.array({"I32": "i", "U32": "I", "F32": "f"}[t["dtype"]], b[8 + n + at:8 + n + end])
P
python3 - <<'P'
import json
from read import tensor
report = json.load(open("route.json"))
was, now, order = tensor("work/clusters.safetensors", "assignment"), tensor("work/routing.safetensors", "assignment"), tensor("work/quantized.safetensors", "permutation")
assert tensor("still/routing.safetensors", "assignment") is None
assert sum(a != b for a, b in zip(was, now)) == report["moved"] > 0 and report["moves"] in (1, 2) and 2 * report["swaps"] >= report["moved"], report
count = lambda x: [sum(c == k for c in x) for k in range(max(was) + 1)]
assert count(was) == count(now)
cap = len(order) // (max(was) + 1)
home = {t: slot // cap for slot, t in enumerate(order) if t != 0xFFFFFFFF}
assert all(home[t] == c for t, c in enumerate(now)), "rows do not lie as tokens moved"
dead = json.load(open("work/model.json"))["dead"]
assert dead and all(was[t] == now[t] for t in dead), dead
P
# an artifact like any other: all clusters are the dense head, P = 1 finds what the routing says
fh verify moved.fhead | grep -q '^verified  *yes'
k=$(fh inspect moved.fhead --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["k"])')
fh query moved.fhead --hidden work/states.safetensors --probes "$k" --top-k 3 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["ids"])' > all.txt
fh query moved.fhead --hidden work/states.safetensors --dense --top-k 3 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["ids"])' > dense.txt
same all.txt dense.txt
fh diff still.fhead moved.fhead --json | python3 -c 'import json, sys; assert json.load(sys.stdin)["tokens"]["moved"] > 0'
# current, not made again; made again when it was another number of moves; calibration keeps it
fh build tiny -C work -o moved.fhead --cap 8 $promise --moves 2 --json 2> /dev/null | python3 -c 'import json, sys; ran = [s["stage"] for s in json.load(sys.stdin)["stages"] if s["ran"]]; assert not ran, ran'
fh build tiny -C work -o other.fhead --cap 8 $promise --json 2> /dev/null | python3 -c 'import json, sys; ran = [s["stage"] for s in json.load(sys.stdin)["stages"] if s["ran"]]; assert ran == ["route", "quantize", "calibrate"], ran'
same still.fhead other.fhead
fh build tiny -q -C work -o again.fhead --cap 8 $promise --moves 2 > /dev/null
same moved.fhead again.fhead
# what is missing or stale is made with the recorded number of moves
cp work/routing.safetensors kept && touch work/clusters.safetensors && fh cluster -q -C work --k 20 > /dev/null && fh quantize -q -C work > /dev/null
grep -aq '"moves.*":2' work/routing.safetensors || die 'the recorded moves'
fh cluster -q -C work --cap 8 > /dev/null && fh quantize -q -C work > /dev/null && same kept work/routing.safetensors
# calibration that learns itself moves as route was told to, and tries the other routings where tokens were before
fh convert -q tiny -C late > /dev/null && fh cluster -q -C late --cap 8 > /dev/null && fh route -q -C late --moves 2 > /dev/null && fh quantize -q -C late > /dev/null
grep -aq '"moves.*":2' late/routing.safetensors || die 'the recorded moves'
fh calibrate -C late $promise -v --json > late.json 2> late.err
python3 - <<'P'
import json
from read import tensor
taken = json.load(open("late.json"))["routing"]
was, now, order = tensor("late/clusters.safetensors", "assignment"), tensor("late/routing.safetensors", "assignment"), tensor("late/quantized.safetensors", "permutation")
assert taken == "learned" and now is not None, taken
cap = len(order) // (max(was) + 1)
home = {t: slot // cap for slot, t in enumerate(order) if t != 0xFFFFFFFF}
assert all(home[t] == c for t, c in enumerate(now)), "rows do not lie as tokens moved"
P
# the other routings are looked at where tokens were before: they cost what they cost where none moves
fh convert -q tiny -C stays > /dev/null && fh cluster -q -C stays --cap 8 > /dev/null && fh quantize -q -C stays > /dev/null && fh calibrate -C stays $promise -v > /dev/null 2> stays.err
fh calibrate -C still $promise -v > /dev/null 2> still.err && fh calibrate -C work $promise -v > /dev/null 2> work.err
for f in late stays still work; do grep -E 'routing (weighted|raw|mean), ' $f.err > $f.tried; [ "$(wc -l < $f.tried)" = 3 ] || die "$(cat $f.err)"; done
same late.tried stays.tried && same still.tried work.tried
fh pack -q -C late -o late.fhead > /dev/null && fh verify late.fhead > /dev/null
# made again from its recipe
fh publish moved.fhead --to reg --name tiny --version 1 --base-model me/tiny --license mit > /dev/null
for from in assignment text; do fh rebuild reg/tiny/1/recipe.json --model tiny -C "rw-$from" -o "$from.fhead" --from $from > /dev/null 2> err.txt || die "$(cat err.txt)"; same moved.fhead "$from.fhead"; done
# threads and instruction sets
for how in '--threads 1' '--threads 2' '--threads 7'; do fh route -q -C work --moves 2 $how > /dev/null && same kept work/routing.safetensors; done
FH_ISA=ref "$FHTOOL" route -q -C work --moves 2 > /dev/null && same kept work/routing.safetensors
# an assignment that is damaged is named
python3 - <<'P'
import json, struct
b = bytearray(open("work/routing.safetensors", "rb").read())
n, = struct.unpack("<Q", b[:8])
at = 8 + n + json.loads(b[8:8 + n])["assignment"]["data_offsets"][0]
b[at:at + 4] = struct.pack("<I", 1 << 20)
open("work/routing.safetensors", "wb").write(b)
P
fails 1 "routing.safetensors: token 0 is in cluster 1048576 of .*: run 'fhtool route' again" fh quantize -q -C work
fails 2 '\-\-moves: .* leave it out with --routing raw' fh route -q -C work --routing raw --moves 1
no_leftovers
