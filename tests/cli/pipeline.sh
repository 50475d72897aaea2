# From a checkpoint to text, stage by stage: every report has its fields, and `build` is the sequence of stages.
. "$TOP/tests/cli/tools.inc"
json() { # json FIELD... -- COMMAND...: run it, check the report's fields, keep it in report.json
    fields=
    while [ "$1" != -- ]; do fields="$fields $1"; shift; done
    shift
    fh "$@" --json -q > report.json || die "status $?: $*"
    python3 "$TOP/tests/cli/has_fields.py" $fields < report.json || die "the report of: $*"
}
tiny tiny
write_text text.txt 400
promise='--target-containment 0.9 --text text.txt --tokens 6000'
artifact='format:str vocab:int hidden:int k:int cap:int probes:int hot:int rerank:int step_bytes:num centroids:str tokens:str bundled:bool calibrated:bool fingerprint:hex digest:hex
          sections[].name:str sections[].offset:int sections[].bytes:int sections[].codec:str sections[].digest:hex'

json vocab:int hidden:int dtype:str tied:bool dead_rows:int fingerprint:hex -- convert tiny -C steps
grep -q '"vocab":300,"hidden":64,"dtype":"bf16","tied":true,.*"dead_rows":13,' report.json || die "facts: $(cat report.json)"
json tokens:int seconds:num attention_range[].low:num attention_range[].high:num attention_range[].constant:num attention_range[].wide:bool -- hidden -C steps --text text.txt --tokens 6000
json k:int cap:int objective:unit seconds:num peak_bytes:int -- cluster -C steps
json routing:str states:int loss:num? seconds:num -- route -C steps
json centroids:str tokens:str bytes:int error.mean:num error.p99:num error.max:num error.worst_text:str -- quantize -C steps
json probes:int hot:int hot_ids:list routing:str target:unit confidence:unit containment_k:int positions:int misses:int bound:unit heldout.containment:unit \
    heldout.positions:int curve[].probes:int curve[].top1:unit curve[].top3:unit curve[].top5:unit curve[].top10:unit curve[].agreement:unit \
    curve[].mass:num curve[].kl:num -- calibrate -C steps $promise
json $artifact -- pack -C steps -o steps.fhead
json $artifact -- inspect steps.fhead
json $artifact verified:bool -- verify steps.fhead
grep -q '"bundled":true,.*"calibrated":true' report.json
grep -aq '"made_by":.*"states":.*"attention_range":\[{"low":[-0-9.]*,"high":[-0-9.]*,"constant":[-0-9.]*,"wide":false}' steps.fhead || die 'the artifact has no range of attention scores'
fh status -C steps --json > status.json
python3 "$TOP/tests/cli/has_fields.py" stages[].stage:str stages[].file:str stages[].state:str < status.json
! grep -Eq 'missing|stale' status.json || die "something is missing or stale: $(cat status.json)"

# `build` does the same in one go; run again it runs no stage, and the bytes are the same each time.
fh build tiny -q -C once -o once.fhead $promise --json > report.json
python3 "$TOP/tests/cli/has_fields.py" $artifact stages[].ran:bool < report.json
[ "$(grep -o '"ran":true' report.json | wc -l)" = 6 ] || die "a first build runs six stages: $(cat report.json)"
same steps.fhead once.fhead
for f in head.safetensors model.json states.safetensors clusters.safetensors routing.safetensors quantized.safetensors calibration.json; do same "steps/$f" "once/$f"; done
lines=$(wc -l < once/log.jsonl)
ls -i once/*.safetensors once/*.json > before.txt
fh build tiny -q -C once -o again.fhead $promise --json > report.json
! grep -q '"ran":true' report.json || die "a second build runs something: $(cat report.json)"
ls -i once/*.safetensors once/*.json | cmp - before.txt || die 'a second build writes results again'
same steps.fhead again.fhead
[ "$(wc -l < once/log.jsonl)" = $((lines + 1)) ] || die 'only packing is logged the second time'
# The short way: what is missing is run with its defaults.
fh convert tiny -q -C short > /dev/null && fh calibrate -q -C short $promise > /dev/null && fh pack -q -C short -o short.fhead > /dev/null
fh verify short.fhead | grep -q '^calibrated  *yes'
# A model that moved is still the same model.
cp -r tiny moved && mv tiny gone
fh build moved -q -C once -o moved.fhead $promise --json > report.json
! grep -q '"ran":true' report.json && same moved.fhead once.fhead
mv gone tiny

# What comes after
json positions:int probes:int ids:list logits:list -- query once.fhead --hidden once/states.safetensors --top-k 3
json positions:int curve[].probes:int curve[].top1:unit curve[].kl:num -- query once.fhead --hidden once/states.safetensors --curve 1,2,18
json prompt_ids:list ids:list text:str stats.ttft_seconds:num stats.tpot_seconds:num stats.tokens_per_second:num stats.head_share:unit \
    -- run once.fhead --prompt 'the king' -n 8 --ignore-eos
json prompt_ids:list ids:list text:str -- run once.fhead --ids 1,2,3 -n 4 --head dense
json tokens:int perplexity:num -- perplexity once.fhead --text text.txt --window 64 --stride 32
json tokens:int perplexity:num missed:int missed_share:unit -- perplexity once.fhead --text text.txt --window 64 --stride 32 --head flash
json tokens:int attention_range[].high:num -- hidden tiny --text text.txt --window 32 --tokens 320 -o states.safetensors --logits
json sequences:int tokens:int -- hidden once.fhead --ids-file states.safetensors -o again.safetensors --logits
same states.safetensors again.safetensors
json isa:str machine[].samples:int heads[].microseconds:num heads[].share_of_roofline:num parts[].p90:num rivals[].flash_is_faster:num \
    batches[].clusters_read:num whole_model[].tokens_per_second:num -- bench once.fhead --runs 10
json body[].tokens:int body[].cached_tokens:int body[].share_of_roofline:num whole_model[].tokens_per_second:num -- bench once.fhead --body --kv-type f16 --runs 10
json body[].tokens_per_second:num whole_model[].milliseconds_per_token:num -- bench tiny --runs 10
# A rounded cache says nearly the same; the type is in the report.
for t in f32 f16 int8; do
    json kv_type:str perplexity:num -- perplexity once.fhead --text text.txt --window 64 --stride 32 --kv-type $t
    fh perplexity once.fhead --text text.txt --window 64 --stride 32 --kv-type $t --json | grep -q "\"kv_type\":\"$t\"" || die "kv_type $t"
    json stats.kv_bytes:int -- run once.fhead --ids 1,2,3 -n 4 --kv-type $t
    fh hidden once.fhead --ids-file states.safetensors --kv-type $t -o kv-$t.safetensors -q > /dev/null
done
! cmp -s kv-f32.safetensors kv-f16.safetensors && ! cmp -s kv-f16.safetensors kv-int8.safetensors || die '--kv-type changes nothing'
# Every P is the dense head where nothing was rounded.
fh build tiny -q -C plain -o plain.fhead $promise --rows bf16 --centroids f32 > /dev/null
fh query plain.fhead --hidden states.safetensors --probes 18 --json | sed 's/.*"ids"/"ids"/; s/,"logits".*//' > all.txt
fh query plain.fhead --hidden states.safetensors --dense --json | sed 's/.*"ids"/"ids"/; s/,"logits".*//' > dense.txt
same all.txt dense.txt

# And where they were rounded to 8 bits too, because the best are scored again; how many is in the file, and may be changed.
fh query once.fhead --hidden states.safetensors --probes 18 --json | sed 's/.*"ids"/"ids"/; s/,"logits".*//' > all.txt
same all.txt dense.txt
grep -Eq '"rerank": ?16' once/calibration.json || die 'calibrate says with how many rows it measured'
fh inspect once.fhead --json | grep -q '"rerank":16' || die 'pack takes what was calibrated'
fh pack -C once -o none.fhead --rerank 0 --json 2> notes.txt | grep -q '"rerank":0'
grep -q 'are of 16 rows scored again, the artifact.s are 0' notes.txt || die "no word on another --rerank: $(cat notes.txt)"
fails 2 '--rerank 4: needs the exact rows' fh pack -C once -o none.fhead --head-only --rerank 4
fh pack -q -C once -o again.fhead --head-only --exact --json | grep -q '"rerank":16'

# Four bits: the best 32 are scored again, and so every P is the dense head there too, on any instruction set.
json $artifact -- build tiny -C four -o four.fhead $promise --rows int4 --centroids int4
grep -q '"rerank":32,.*"centroids":"int4","tokens":"int4"' report.json || grep -q '"centroids":"int4","tokens":"int4".*"rerank":32' report.json || die "int4: $(cat report.json)"
fh verify four.fhead | grep -q '^verified  *yes'
fh query four.fhead --hidden states.safetensors --probes 18 --json > four.json
sed 's/.*"ids"/"ids"/; s/,"logits".*//' four.json > all.txt
same all.txt dense.txt
FH_ISA=ref fh query four.fhead --hidden states.safetensors --probes 18 --json > ref.json
same four.json ref.json
fh status -C four | grep -q '^ *calibrate .*current'

# Text and ids, there and back.
printf '%s\n' '"the king"' '"a\u0000b\n"' '""' > lines.jsonl
fh tokenize tiny --batch lines.jsonl > ids.jsonl
fh detokenize once.fhead --batch ids.jsonl > back.jsonl
same lines.jsonl back.jsonl

# The same content for people: one aligned line a field, tables for lists of objects.
fh inspect once.fhead > text.out
grep -Eq '^vocab  +300$' text.out && grep -Eq '^ +name +offset +bytes' text.out && grep -Eq '^ +head.tokens +[0-9]+' text.out || die "inspect for people: $(cat text.out)"
! grep -q '[{}]' text.out
fh calibrate -C once $promise > text.out 2> notes.txt
grep -Eq '^ +probes +top1 +top3' text.out
! grep -q '[^[:print:]]' text.out || die 'something that is not text in a report'
fh run once.fhead --prompt 'the' -n 3 --stats > text.out 2> notes.txt
grep -q '^the' text.out && grep -Eq '^[0-9]+ prompt tokens.*, 3 new; ' notes.txt

# Head-only: asks for its base model, takes the right one alone.
fh pack -q -C once -o head.fhead --head-only > /dev/null
json $artifact -- inspect head.fhead
grep -q '"bundled":false' report.json
fails 1 'head.fhead: .*--model' fh run head.fhead --ids 1,2 -n 3
fh run once.fhead --prompt 'the king' -n 12 --ignore-eos > bundled.txt
fh run head.fhead --model tiny --prompt 'the king' -n 12 --ignore-eos > based.txt
same bundled.txt based.txt
tiny other --seed 2
fails 3 'head.fhead: was made from another model than other \(fingerprint' fh run head.fhead --model other --ids 1,2 -n 3
fails 2 'tiny: ' fh run tiny --model tiny --ids 1,2 -n 3
no_leftovers
