# What may not ship is told by name: every fault fails its own check with status 3; what is sound passes, and gates hold it to numbers.
. "$TOP/tests/cli/tools.inc"
tiny tiny
write_text all.txt 800
head -n 500 all.txt > fit.txt
tail -n 300 all.txt > text.txt
fh build tiny -q -C work -o model.fhead --text fit.txt --tokens 6000 --target-containment 0.9 > /dev/null
forge() { python3 "$TOP/tests/cli/forge.py" "$@"; }
# results REPORT: "integrity=passed belonging=..." of all checks
results() { python3 -c 'import json, sys; print(*(c["check"] + "=" + c["result"] for c in json.load(open(sys.argv[1]))["checks"]))' "$1"; }
# no ARTIFACT CHECK PATTERN ARGS...: status 3, CHECK and no other fails, the last line matches PATTERN
no() {
    artifact=$1 check=$2 pattern=$3
    shift 3
    status=0
    fh validate "$artifact" -q --json "$@" > report.json 2> err.txt || status=$?
    [ $status = 3 ] || die "status $status, not 3: validate $artifact $* ($(cat err.txt))"
    failed=$(results report.json | tr ' ' '\n' | sed -n 's/=failed//p')
    [ "$failed" = "$check" ] || die "failed: '$failed', not $check: validate $artifact $* ($(cat err.txt))"
    tail -n 1 err.txt | grep -Eq -e "^fhtool: $artifact: failed: $check \(.*$pattern" || die "no '$pattern' in: $(cat err.txt)"
    python3 "$TOP/tests/cli/has_fields.py" passed:bool checks:list < report.json
    grep -q '"passed":false' report.json
}
quick='--no-anatomy --no-perplexity --no-divergence --tokens 2000'

# Sound: by itself, against its checkpoint, and measured
fh validate model.fhead -q --json > report.json
[ "$(results report.json)" = 'integrity=passed belonging=passed rows=passed permutation=passed parity=passed calibration=passed states=skipped promise=skipped' ] || die "$(results report.json)"
fh validate model.fhead -q --json --model tiny --text text.txt --tokens 3000 -n 8 --n-prompts 4 -C work > report.json
[ "$(results report.json | tr ' ' '\n' | grep -vc =passed)" = 0 ] || [ "$(results report.json | tr ' ' '\n' | grep -v =passed)" = promise=warning ] || die "$(results report.json)"
python3 "$TOP/tests/cli/has_fields.py" fingerprint:hex digest:hex passed:bool positions:int documents:int probes:int containment.share:unit containment.misses:int \
    containment.lower:unit containment.upper:unit top10.share:unit agreement:unit mass:unit kl.mean:num kl.p99.9:num 'kl.max:num' kl_dense.median:num 'curve[].probes:int' \
    'curve[].top1:unit' 'curve[].top1_lower:unit' 'by_margin[].margin:str' 'by_frequency[].in_text:str' 'by_entropy[].positions:int' anatomy.positions:int anatomy.by_encoding:int \
    'parts[].part:str' 'parts[].kl:num' perplexity.dense:num perplexity.flash:num perplexity.ratio:num divergence.prompts:int divergence.mean:num 'parity[].isa:str' \
    seconds:num < report.json 2> err.txt || grep -q 'p99.9' err.txt || die "$(cat err.txt)"
fh validate model.fhead -q > table.txt
grep -q '^ *integrity  *passed' table.txt || die "$(cat table.txt)"
# The same numbers for any number of threads and any kernels
for v in 'FH_ISA=ref' 'FH_X=1'; do
    env "$v" "$FHTOOL" validate model.fhead -q --json --text text.txt --tokens 1500 --no-divergence --threads 3 | sed 's/"seconds":.*//; s/"parity":.*"text":/"text":/' > "$v.json"
done
grep -q '"kl_dense":' FH_ISA=ref.json && same FH_ISA=ref.json FH_X=1.json

# No
forge model.fhead flipped.fhead flip
no flipped.fhead integrity 'section head.tokens: .* do not have the digest'
no flipped.fhead integrity 'head.tokens' --model tiny --text text.txt
tiny other --seed 2
no model.fhead belonging 'other has .*: it was made of another model' --model other
no model.fhead belonging 'another model' --model other --text text.txt $quick
forge model.fhead foreign.fhead fingerprint
no foreign.fhead belonging 'have the fingerprint'
no foreign.fhead belonging 'another model' --model tiny
fh build other -q -C work2 -o other.fhead --tokens 6000 --target-containment 0.9 > /dev/null
forge model.fhead swapped.fhead rows other.fhead
no swapped.fhead rows 'rows are not those of tiny; the first: token [0-9]+ .slot [0-9]+.: the head was swapped' --model tiny --text text.txt $quick
no swapped.fhead belonging 'its exact rows, in the order of the permutation' # without the model there is only its own word
forge model.fhead row.fhead row
no row.fhead rows '1 of 300 rows are not those of tiny' --model tiny
no row.fhead rows '1 of 300 rows are not those of its exact rows'
for how in permutation shuffle; do
    forge model.fhead moved.fhead $how
    no moved.fhead permutation 'stand in the slot of another token; the first: slot [0-9]+ is token [0-9]+.s and holds the row of token [0-9]+' --model tiny --text text.txt $quick
done
forge model.fhead unsorted.fhead unsorted
no unsorted.fhead permutation 'section head.permutation: slot [0-9]+ ' --model tiny --text text.txt
no unsorted.fhead permutation 'ids ascend in a cluster' --report unsorted.html
grep -q 'not to be shipped' unsorted.html
fh quantize -q -C work --centroids bf16 > /dev/null
fh calibrate -q -C work --target-containment 0.9 > /dev/null
fh pack -q -C work -o bf16.fhead > /dev/null
forge model.fhead stale.fhead calibration bf16.fhead
no stale.fhead calibration 'it is of another head .digest .*: calibrate again' --text text.txt $quick
forge model.fhead stale.fhead old-calibration bf16.fhead
no stale.fhead calibration 'hot list|other shape or encoding|probes'
forge model.fhead bare.fhead bare
fh validate bare.fhead -q --json | grep -q 'of this head as far as its shapes tell, on' || die 'an artifact of an earlier version'
forge model.fhead bold.fhead promise 0.999999
no bold.fhead promise '0.999999 is promised of the best token among the candidates; here it is 0' --hidden work/states.safetensors $quick

# Other encodings, and heads alone, which need their model to be measured; a head that is not tied
tiny apart --untied --seed 3
fh convert apart -q -C work3 > /dev/null
for how in 'bf16 f32' 'f32 f16' 'int4 int4'; do
    fh quantize -q -C work3 --tokens "${how% *}" --centroids "${how#* }" > /dev/null
    for kind in '' '--head-only --exact' --head-only; do
        fh pack -q -C work3 -o some.fhead $kind > /dev/null
        fh validate some.fhead -q --json > report.json
        fh validate some.fhead -q --json --model apart --text text.txt --tokens 300 --no-perplexity --no-divergence > report.json
        [ "$(results report.json)" = 'integrity=passed belonging=passed rows=passed permutation=passed parity=passed calibration=skipped states=passed promise=skipped' ] ||
            die "$how $kind: $(results report.json)"
        grep -q '"part":"int4 rows, all of them"' report.json
    done
    forge some.fhead moved.fhead permutation
    no moved.fhead permutation 'stand in the slot of another token' --model apart
done
fh validate some.fhead -q --json --hidden work/states.safetensors | grep -q 'there are no exact rows to measure against: give the model' || die 'a head alone is measured against nothing'

# States: not finite, of another width, of another type
python3 - << 'EOF'
import struct, sys, os
sys.path.insert(0, os.environ["TOP"] + "/tests/cli")
from make_tiny import write_safetensors
d = 64
values = [0.1 * (i % 7) for i in range(40 * d)]
for name, at in (("sound", None), ("nan", 17 * d + 3), ("inf", 39 * d)):
    v = list(values)
    if at is not None: v[at] = float(name)
    write_safetensors(name + ".safetensors", {"hidden": ("F32", [40, d], struct.pack(f"<{len(v)}f", *v))})
write_safetensors("narrow.safetensors", {"hidden": ("F32", [80, d // 2], struct.pack(f"<{len(values)}f", *values))})
EOF
no model.fhead states 'nan.safetensors: the state at position 17 is not finite' --hidden nan.safetensors
no model.fhead states 'inf.safetensors: the state at position 39 is not finite' --hidden inf.safetensors
no model.fhead states 'narrow.safetensors: states of width 32 for a head of width 64' --hidden narrow.safetensors
fh validate model.fhead -q --json --hidden sound.safetensors > report.json || [ $? = 3 ]
results report.json | grep -q 'states=passed'
fails 1 'missing.safetensors' fh validate model.fhead -q --hidden missing.safetensors
fails 1 'missing.fhead' fh validate missing.fhead
fails 1 'text.txt: ' fh validate text.txt

# Gates
fh validate model.fhead -q --json --text text.txt $quick --gate 'mass>=0' --gate 'kl<=1000' --gate 'containment_lower>=0.000001' > report.json
grep -q '"gates":\[{"check":"mass>=0","result":"passed"' report.json
gate() { # gate PATTERN ARGS...: status 3 with a report
    pattern=$1
    shift
    status=0
    fh validate model.fhead -q --json "$@" > report.json 2> err.txt || status=$?
    [ $status = 3 ] || die "status $status: $*"
    grep -Eq "failed: .*$pattern" err.txt || die "no '$pattern' in $(cat err.txt)"
    grep -q '"passed":false' report.json
}
gate 'agreement>=1.5 \(agreement is 0\.' --text text.txt $quick --gate 'agreement>=1.5'
gate 'mass<=0, top10>=2 \(' --text text.txt $quick --gate 'mass<=0' --gate 'kl>=0' --gate 'top10>=2'
gate 'perplexity_ratio<=2 \(perplexity_ratio was not measured' --text text.txt $quick --gate 'perplexity_ratio<=2'
gate 'containment>=0 \(containment was not measured' --gate 'containment>=0'
for g in 'containment' 'containment>0.5' 'containment>=' 'containment>=x' 'containment>=nan' '>=0.5' 'containment>=0.5x' ''; do
    fails 2 "is not of the form name>=value or name<=value" fh validate model.fhead --gate "$g"
done
fails 2 "there is no such number; there are containment, " fh validate model.fhead --gate 'contain>=0.5'
fails 2 'hidden stands instead of' fh validate model.fhead --hidden sound.safetensors --text text.txt
fails 2 'self: stands alone' fh validate model.fhead --text self --text text.txt

# Last words and prompts, plain and as rows
printf 'the of and to\nto in a is that\nword\n\nof and to in\n' > words.txt
printf '{"text": "the of and to"}\n{"text": "to in a is that", "domain": "x"}\n' > words.jsonl
fh validate model.fhead -q --json --last-words words.txt | python3 -c 'import json, sys; l = json.load(sys.stdin)["last_words"]; assert l["words"] == 3 and l["dense"] <= 3 and l["same"] <= 3, l'
fh validate model.fhead -q --json --last-words words.jsonl | grep -q '"last_words":{"words":2,'
fails 1 'has no line that ends in a word with something before it' fh validate model.fhead -q --last-words "$(printf 'one\n' > one.txt; echo one.txt)"
printf '{"prompt": "the of"}\n{"text": "and to"}\n' > prompts.jsonl
fh validate model.fhead -q --json --prompts prompts.jsonl -n 6 | grep -q '"divergence":{"prompts":2,"tokens":6,'
fh validate model.fhead -q --json --text self --tokens 500 --no-anatomy --no-divergence --no-perplexity | grep -q '"text":"self"'
fails 1 'prompts.txt: row 1: has no "prompt"' fh validate model.fhead -q --prompts "$(printf '{"x": 1}\n' > prompts.txt; echo prompts.txt)"

# The page: one file, nothing from outside, markup in names shown as text
cp model.fhead '<b>&x.fhead'
fh validate '<b>&x.fhead' -q --text text.txt --tokens 1500 -n 4 --n-prompts 2 --gate 'mass>=0' --report page.html > /dev/null
python3 - << 'EOF'
import html.parser, re
text = open("page.html", encoding="utf-8").read()
assert "&lt;b&gt;&amp;x.fhead" in text and "<b>&x" not in text
assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link|<img", text), "something from outside"
assert "default-src 'none'" in text and "prefers-color-scheme:dark" in text and "@media print" in text and "width=device-width" in text
void, stack = {"meta", "circle", "line", "polygon", "polyline", "br"}, []
class P(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
        if tag not in void: stack.append(tag)
    def handle_endtag(self, tag):
        if tag not in void: assert stack.pop() == tag, tag
P().feed(text)
assert not stack, stack
for word in ("Containment", "What each part costs", "Where it comes from", "Sizes", "By margin"): assert word in text, word
assert text.count("<svg") >= 3 and "NaN" not in text and "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan[a-z]*", "", text)
EOF
fails 1 'model.fhead: ' fh validate model.fhead -q --report model.fhead
cmp -s model.fhead '<b>&x.fhead' || die 'the artifact was written over'
fails 1 'nowhere/page.html: ' fh validate model.fhead -q --report nowhere/page.html
no_leftovers
