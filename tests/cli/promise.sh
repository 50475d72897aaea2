# Promises: agreement and mass beside containment, what settings cost, encodings chosen, rehearsals, audits.
. "$TOP/tests/cli/tools.inc"
build_tiny
fh convert tiny -q -C work > /dev/null
fh hidden -q -C work --tokens 12000 > /dev/null
value() { python3 -c 'import json, sys; r = json.load(sys.stdin); print(eval(sys.argv[1], {"r": r}))' "$1"; }
is() { got=$(value "$1" < report.json); [ "$got" = "$2" ] || die "$1 is $got, not $2: $(head -c 800 report.json)"; }
not_over_half='--max-cost 1'

fh calibrate -q -C work $not_over_half --target-containment 0.8 --containment-k 3 --target-agreement 0.7 --target-mass 0.3 --json > report.json
is '[(p["what"], p["k"], p["target"]) for p in r["promises"]]' "[('containment', 3, 0.8), ('agreement', None, 0.7), ('mass', None, 0.3)]"
is 'all(p["target"] <= p["bound"] < 1 and p["design_effect"] >= 1 and 0 < p["effective_positions"] < r["positions"] and 0 < p["heldout"] <= 1 for p in r["promises"])' True
is 'r["documents"] > 1 and r["bound"] == r["promises"][0]["bound"]' True
fh calibrate -q -C work $not_over_half --target-mass 0.5 --json > report.json
is 'r["target"], [p["what"] for p in r["promises"]]' "(None, ['mass'])"
fh calibrate -q -C work $not_over_half --target-containment 0.5 --containment-k 50 --json > report.json
is 'r["containment_k"]' 50
status=0
fh calibrate -q -C work --target-mass 0.999 --max-cost 0.2 > /dev/null 2> err.txt || status=$?
[ $status = 3 ] && grep -q '^fhtool: mass 0.999 cannot be' err.txt || die "status $status: $(cat err.txt)"
for v in 0 1 x; do fails 2 "\-\-target-mass: '$v' is not a number" fh calibrate -C work --target-mass $v; done

# A plan changes nothing and says what for
fh status -C work > before
fh calibrate -q -C work --plan $not_over_half --target-containment 0.9 --json > report.json
fh status -C work > after; same before after
is 'sum(p["for_targets"] for p in r["plan"]) <= 1 and len(r["plan"]) > 2' True
is 'all(a["step_bytes"] <= b["step_bytes"] for a, b in zip(r["plan"], r["plan"][1:]))' True
is 'all(p["step_microseconds"] > 0 and 0 <= p["kl"] and 0 < p["mass"] <= 1 and p["centroids"] in ("int8", "int4") for p in r["plan"])' True

# The cheapest by the clock is calibrated like any other; encodings are chosen, and chosen once
fh calibrate -q -C work $not_over_half --target-containment 0.8 --cheapest time --json > report.json
is 'r["probes"] >= 1 and r["bound"] >= 0.8' True
fh build tiny -q -C auto -o auto.fhead --tokens 12000 $not_over_half --target-containment 0.8 --centroids auto --rows auto --json > report.json
is 'r["calibrated"], r["tokens"] in ("int8", "int4")' '(True, True)'
fh build tiny -q -C auto -o again.fhead --tokens 12000 $not_over_half --target-containment 0.8 --centroids auto --rows auto --json > report.json
is '[s["stage"] for s in r["stages"] if s["ran"]]' '[]'
same auto.fhead again.fhead

# Rehearsals
fh rehearse -q -C work $not_over_half --tokens 12000 --draws 12 --draw-tokens 4000,6000 --targets 0.5,0.8 --containment-k 1,3 --json > report.json
is 'len(r["cells"]), len(r["draw_list"])' '(8, 96)'
is 'all(c["promised"] + c["too_little_text"] + c["out_of_reach"] == 12 and c["held"] == sum(d["promised"] and d["found"] >= d["target"] for d in r["draw_list"] if (d["draw_tokens"], d["containment_k"], d["target"]) == (c["draw_tokens"], c["containment_k"], c["target"])) for c in r["cells"])' True
is 'any(d["promised"] for d in r["draw_list"])' True
cp report.json first.json
fh rehearse -q -C work --threads 3 $not_over_half --tokens 12000 --draws 12 --draw-tokens 4000,6000 --targets 0.5,0.8 --containment-k 1,3 --json > report.json
for f in first report; do value 'r["draw_list"]' < $f.json > $f.list; done; same first.list report.list
python3 "$TOP/validate/promise.py" --read report.json | grep '^| 3 | 0.8 |' > table || die 'no table'
fails 2 'draws of 12000 positions leave nothing' fh rehearse -q -C work --tokens 12000 --draw-tokens 12000
fails 2 "rehearse: --targets: '1' is not a number" fh rehearse -C work --targets 0.5,1
fails 2 "rehearse: --containment-k: '0' in the list" fh rehearse -C work --containment-k 0

# Audits
fh run auto.fhead --ids 1,2,3 -n 40 --ignore-eos --probes 1000000 --audit 4 --json > report.json
is 'r["audit"]["states"], r["audit"]["containment"], r["audit"]["mass"] > 0.999' '(10, 1.0, True)'
fh run auto.fhead --ids 1,2,3 -n 40 --ignore-eos --probes 1 --no-hot --audit 1 --json > report.json
is 'r["audit"]["states"], 0 < r["audit"]["mass"] < 0.95, r["audit"]["agreement"] <= r["audit"]["containment"]' '(40, True, True)'
fh run auto.fhead --ids 1,2,3 -n 8 --ignore-eos --audit 2 2>&1 > /dev/null | grep -Eq '^audit of 4 states: the dense head.s answer in [0-4] \(' || die 'nothing is said of an audit'
fh run auto.fhead --ids 1,2,3 -n 8 --ignore-eos --json > report.json; is '"audit" in r' False
fails 2 'run: --audit: compares FlashHead with the dense head' fh run auto.fhead --ids 1 --audit 1 --head dense
fails 2 'run: --audit: tiny is a checkpoint' fh run tiny --ids 1 --audit 1
no_leftovers
