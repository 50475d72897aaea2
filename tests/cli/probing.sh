# Adaptive probing: the threshold is promised, packed, honoured by every command that runs a head, and refused by name where it is not known.
. "$TOP/tests/cli/tools.inc"
tiny tiny
write_text all.txt 1200
head -n 800 all.txt > fit.txt
tail -n 400 all.txt > other.txt
value() { python3 -c 'import json, sys; r = json.load(sys.stdin); print(eval(sys.argv[1], {"r": r}))' "$1"; }
is() { got=$(value "$1" < report.json); [ "$got" = "$2" ] || die "$1 is $got, not $2: $(head -c 1500 report.json)"; }
how='--tokens 9000 --target-containment 0.8 --max-cost 1'
fh build tiny -q -C fixed -o fixed.fhead --text fit.txt $how --json > fixed.json
fh build tiny -q -C work -o model.fhead --text fit.txt $how --probing adaptive --json > report.json
is 'r["requires"], r["threshold"] > 0, 1 <= r["mean_probes"] <= r["probes"], r["step_bytes"] < r["most_step_bytes"]' "(['threshold'], True, True, True)"
fh build tiny -q -C work -o model.fhead --text fit.txt $how --probing adaptive --json > report.json
is '[s["stage"] for s in r["stages"] if s["ran"]]' '[]'
python3 "$TOP/tests/fhead_reader.py" --verify model.fhead > reader.json || die "$(cat reader.json)"
cat work/calibration.json > report.json
is 'r["probing"], r["bound"] >= 0.8, 1 <= r["probed"]["mean"] <= r["probed"]["p99"] <= r["probed"]["max"] <= r["probes"]' "('adaptive', True, True)"

# Other numbers of threads and other kernels give the same answers, and as many probes
fh hidden tiny --text other.txt -o states.safetensors -q > /dev/null
fh query model.fhead --hidden states.safetensors --top-k 5 --json > one.json
for v in FH_ISA=ref FH_X=1; do
    env $v "$FHTOOL" query model.fhead --hidden states.safetensors --top-k 5 --threads 3 --json > report.json
    same one.json report.json
done
is '1 <= r["mean_probes"] <= r["probes"]' True
# On the text it was promised for, and on another of its kind
fh validate model.fhead -q --json --text other.txt --tokens 3000 --no-perplexity --no-divergence > report.json
is '[c["result"] for c in r["checks"] if c["check"] in ("integrity", "calibration")], r["containment"]["share"] >= 0.8' "(['passed', 'passed'], True)"
is '1 <= r["probed"]["mean"] <= r["probed"]["p99"] <= r["probes"] and r["step_bytes"] > 0 and r["anatomy"]["positions"] > 0' True
fh validate model.fhead -q --text other.txt --tokens 2000 --no-perplexity --no-divergence --report page.html > /dev/null
grep -q 'probed where the score is within' page.html || die 'the page says nothing of the threshold'
fh bench model.fhead -q --runs 10 --no-rivals --no-batches --hidden states.safetensors --json > report.json
is 'r["probed"]["mean"] <= r["probed"]["max"] and r["step_bytes"]["p10"] <= r["step_bytes"]["mean"] <= r["step_bytes"]["max"]' True
fh bench model.fhead --runs 10 --no-rivals --no-batches --json 2> said > report.json
grep -q 'the mean that calibration saw' said || die "$(cat said)"
is '"threshold" in r' False
fh perplexity model.fhead --text other.txt --head flash --json > report.json; is '1 <= r["mean_probes"] < r["probes"]' True
fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --temperature 1 --seed 3 --json > report.json; is 'len(r["ids"])' 12
fh run model.fhead --ids 1,2,3 -n 12 --ignore-eos --audit 2 --json > report.json; is 'r["audit"]["states"]' 6
fh diff fixed.fhead model.fhead --hidden states.safetensors --json > report.json
is 'any(s["what"] == "threshold" for s in r["settings"]) or "probes" in [s["what"] for s in r["on_states"]]' True
fh inspect model.fhead | grep -q '^threshold ' || die 'inspect says nothing of the threshold'

# A number of probes lifts the threshold: with the calibrated most the promise stands, with less it does not
fh query model.fhead --hidden states.safetensors --probes 3 --json > report.json; is 'r["probes"], "threshold" in r' '(3, False)'
most=$(value 'r["probes"]' < work/calibration.json)
fh pack -q -C work -o most.fhead --probes "$most" --json > report.json; is 'r["requires"], r["calibrated"]' '([], True)'
fh validate most.fhead -q --json > report.json; is '[c["result"] for c in r["checks"] if c["check"] == "calibration"]' "['passed']"
[ "$most" = 1 ] || { fh pack -q -C work -o less.fhead --probes $((most - 1)) --json > report.json 2> /dev/null; is 'r["calibrated"]' False; }

# Made again from its recipe; who does not know thresholds refuses
fh publish model.fhead --to reg --name tiny --version 1 --base-model me/tiny --license mit > /dev/null
fh rebuild reg/tiny/1/recipe.json --model tiny -C rw -o again.fhead > /dev/null; same model.fhead again.fhead
grep -q 'probes in the mean (every cluster whose score is within' reg/tiny/1/README.md || die 'the card says nothing of the threshold'
fails 1 'probes adaptively, by a threshold on scores, which that runtime does not know' fh export model.fhead --format vllm --model tiny -o out
fails 2 'that runtime probes a fixed number of clusters' fh build tiny -C v -o v.fhead --for vllm --probing adaptive
fails 2 "\-\-probing: 'some' is none of fixed,adaptive" fh calibrate -C work --probing some

# The CUDA head, on a device that the host emulates, probes the same clusters
emulated=$(dirname "$FHTOOL")/libfhemu.so
if [ -e "$emulated" ]; then
    answers='{k: r[k] for k in ("positions", "ids", "logits", "threshold", "mean_probes", "step_bytes")}'
    head -n 10 other.txt > some.txt; fh hidden tiny --text some.txt -o some.safetensors -q > /dev/null
    fh query model.fhead --hidden some.safetensors --top-k 5 --json | value "$answers" > want
    FH_CUDA_LIBRARY=$emulated fh query model.fhead --hidden some.safetensors --top-k 5 --device cuda --json > report.json
    value "$answers" < report.json > got; same want got; is 'r["device"]' 'an emulated device'
    FH_CUDA_LIBRARY=$emulated fh validate model.fhead -q --device cuda --json > report.json; is '[c["result"] for c in r["checks"] if c["check"] == "parity"]' "['passed']"
    FH_CUDA_LIBRARY=$emulated fh bench model.fhead -q --device cuda --no-batches --runs 10 --json > report.json
    is '[h["same_tokens"] for h in r["heads"] if h["what"] in ("flash", "flash apart")], 0 < r["heads"][0]["megabytes"] < r["heads"][2]["megabytes"]' '([1.0, 1.0], True)'
fi

# Rehearsals of it
fh rehearse -q -C work --max-cost 1 --text all.txt --tokens 12000 --draws 8 --draw-tokens 6000 --targets 0.5,0.8 --containment-k 1 --probing adaptive --json > report.json
is 'any(d["promised"] for d in r["draw_list"]), all(not d["promised"] or 1 <= d["mean_probes"] <= d["probes"] for d in r["draw_list"])' '(True, True)'

# Plans: of thresholds, and over sizes of clusters
fh calibrate -q -C work --plan --probing adaptive --max-cost 1 --target-containment 0.8 --json > report.json
is 'all(p["threshold"] > 0 and 1 <= p["mean_probes"] <= p["probes"] for p in r["plan"])' True
fh calibrate -q -C work --plan --caps 4,8 --max-cost 1 --target-containment 0.8 --json > report.json
is 'sum(p["for_targets"] for p in r["plan"]), {p["cap"] for p in r["plan"]} <= {4, 8}' '(1, True)'
is 'all(a["step_bytes"] <= b["step_bytes"] for a, b in zip(r["plan"], r["plan"][1:]))' True
fh build tiny -q -C caps -o caps.fhead --text fit.txt $how --caps 4,8,16 --json > report.json
is 'r["calibrated"], r["cap"] in (4, 8, 16), [s["stage"] for s in r["stages"] if s["ran"]][:3]' "(True, True, ['convert', 'hidden', 'plan'])"
value 'r["cap"]' < report.json > cap
fh build tiny -q -C caps -o again.fhead --text fit.txt $how --caps 4,8,16 --json > report.json
is '[s["stage"] for s in r["stages"] if s["ran"]]' "['plan']"
same caps.fhead again.fhead
fh build tiny -q -C one -o one.fhead --text fit.txt $how --cap "$(cat cap)" > /dev/null; same caps.fhead one.fhead
fails 2 'give one of them' fh build tiny -o x.fhead --cap 4 --caps 4,8
fails 2 'calibrate: --caps: goes with --plan' fh calibrate -C work --caps 4,8
fails 2 'plans on the states that are there' fh calibrate -C work --plan --caps 4,8 --text fit.txt
fails 2 "build: --caps: '0' in the list" fh build tiny -o x.fhead --caps 0
fails 3 'no setting of any of these clusters keeps the targets' fh build tiny -q -C caps -o x.fhead --text fit.txt --tokens 9000 --target-containment 0.999 --max-cost 0.05 --caps 4,8
no_leftovers
