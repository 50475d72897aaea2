# A recipe makes the artifact again, bit for bit; another base model is refused; diff says what moved, as meaning.
. "$TOP/tests/cli/tools.inc"
build_tiny 20000
how='--base-model me/tiny --license mit'
ok() { "$@" > out.txt 2> err.txt || die "$*: $(cat out.txt err.txt)"; }
publish() { ok fh publish "$1" --to reg --name "$2" --version 1 $how; }
again() { # again NAME ARTIFACT FLAGS...: from the assignment on, in any surroundings
    name=$1 artifact=$2; shift 2
    ok env "$@" "$FHTOOL" rebuild "reg/$name/1/recipe.json" --model tiny -C "rw-$name" -o "again-$name.fhead" --json
    same "$artifact" "again-$name.fhead"
    grep -q '"same":true' out.txt || die "$(cat out.txt)"
}

publish model.fhead tiny
again tiny model.fhead
rm -rf rw-tiny; again tiny model.fhead FH_ISA=ref
rm -rf rw-tiny; again tiny model.fhead OPENBLAS_CORETYPE=Nehalem OPENBLAS_NUM_THREADS=1
ok fh rebuild reg/tiny/1 --model tiny -C rw-tiny -o again-directory.fhead; same model.fhead again-directory.fhead
mkdir none; fails 1 'none/recipe.json' fh rebuild none --model tiny -C rw-tiny -o never.fhead; [ ! -e never.fhead ]
again tiny model.fhead LC_ALL=C # in the work directory of the run before
ok fh rebuild reg/tiny/1/recipe.json --model tiny -C rw-text --from text; grep -q '^same  *yes' out.txt
same model.fhead rw-text/rebuilt.fhead

# Of every make: means made again from the rows, learned and weighted centroids carried; other encodings; a head alone; more probes; no promise
variant() { # variant NAME FLAGS...
    name=$1; shift
    ok fh build tiny -q -C "w-$name" -o "$name.fhead" --tokens 20000 --target-containment 0.9 "$@"
    publish "$name.fhead" "$name"
    again "$name" "$name.fhead"
}
variant raw --routing raw --centroids int4 --rows int4
variant mean --routing mean --centroids f16 --rows bf16 --k 20 --start random --seed 5
variant weighted --routing weighted --centroids bf16 --rows f32 --hot 3
variant exact --head-only --exact --metric cosine
variant alone --head-only
ok fh pack -q -C w-alone -o more.fhead --head-only --probes 17; publish more.fhead more; again more more.fhead
ok fh pack -q -C w-alone -o fewer.fhead --head-only --probes 1; publish fewer.fhead fewer; again fewer fewer.fhead
ok fh convert -q tiny -C plain; ok fh quantize -q -C plain; ok fh pack -q -C plain -o plain.fhead; publish plain.fhead plain; again plain plain.fhead
fails 3 'is not calibrated' fh rebuild reg/plain/1/recipe.json --model tiny -C rw-plain --from text
write_text words.txt 900
variant text --text words.txt
fails 2 "the recipe's text is 'words.txt'" fh rebuild reg/text/1/recipe.json --model tiny -C rw-words --from text
ok fh rebuild reg/text/1/recipe.json --model tiny -C rw-words --from text --text words.txt
same text.fhead rw-words/rebuilt.fhead

# one whose promise is about the vLLM plugin
tiny wide --vocab 320
ok fh build wide --for vllm -q -C w-plugin -o plugin.fhead --tokens 20000 --target-containment 0.9; publish plugin.fhead plugin
for from in assignment text; do ok fh rebuild reg/plugin/1/recipe.json --model wide -C "rw-plugin-$from" --from $from; done

# Another base model, another revision, another carried file, other recipes
tiny other --seed 2
fails 3 'it is another model' fh rebuild reg/tiny/1/recipe.json --model other -C rw-other
cp -r tiny changed; sed -i 's/"bos_token_id": 0/"bos_token_id": 1/' changed/generation_config.json
fails 3 'its generation_config.json is not the one the recipe was made with' fh rebuild reg/tiny/1/recipe.json --model changed -C rw-changed
cp -r reg/tiny/1 t; printf x | dd of=t/recipe.safetensors bs=1 seek=600 conv=notrunc 2> /dev/null
fails 3 'recipe.safetensors: is not the file that the recipe names' fh rebuild t/recipe.json --model tiny -C rw-t
rm t/recipe.safetensors; fails 1 'recipe.safetensors: ' fh rebuild t/recipe.json --model tiny -C rw-t
cp reg/tiny/1/recipe.* t/; sed -i 's/"probes": [0-9]*,/"probes": 3,/' t/recipe.json
status=0; fh rebuild t/recipe.json --model tiny -C rw-t > out.txt 2> err.txt || status=$?
[ $status = 3 ] && grep -q 'not the same artifact' err.txt && grep -q '^same  *no' out.txt || die "$status: $(cat err.txt)"
echo '{}' > t/recipe.json; fails 1 'is it a recipe that fhtool wrote' fh rebuild t/recipe.json --model tiny -C rw-t
fails 2 'rebuild: --model is missing' fh rebuild reg/tiny/1/recipe.json
fails 2 'only --from text reads one' fh rebuild reg/tiny/1/recipe.json --model tiny --text words.txt
fails 1 'exists|is there already' fh rebuild reg/tiny/1/recipe.json --model tiny -C rw-tiny -o again-tiny.fhead --no-clobber
[ ! -e rebuild-work ] || die 'a work directory that was not asked for'

# diff
ok fh diff model.fhead reg/tiny/1 --json
python3 - << 'EOF'
import json
d = json.load(open("out.txt"))
assert d["same"] and d["same_model"] and not d["settings"] and not d["promise"] and not d["worst"], d
assert d["tokens"]["moved"] == 0 and d["clusters"]["same_tokens"] == d["clusters"]["a"], d
EOF
ok fh diff model.fhead mean.fhead --json --worst 5
python3 - << 'EOF'
import json
d = json.load(open("out.txt"))
rows = {s["what"]: (s["a"], s["b"]) for s in d["settings"]}
assert rows["routing"] == ("learned", "mean") and rows["k"] == (18, 20) and rows["tokens"] == ("int8", "bf16"), rows
assert not d["same"] and d["same_model"] and 0 < d["tokens"]["moved"] <= d["tokens"]["live"] == 287, d
assert len(d["worst"]) <= 5 and all(w["clusters_before_b"] > w["clusters_before_a"] or w["lost"] for w in d["worst"]), d["worst"]
lost = [w["lost"] for w in d["worst"]]
assert lost == sorted(lost, reverse=True), lost
EOF
ok fh diff model.fhead weighted.fhead --json
python3 -c 'import json; d = json.load(open("out.txt")); assert len(d["hot_added"]) == 3 and not d["hot_removed"] and d["tokens"]["moved"] == 0, d'
# on states: what query measures of each
ok fh diff model.fhead mean.fhead --hidden work/states.safetensors --json; mv out.txt states.json
fh query model.fhead --hidden work/states.safetensors --curve "$(fh inspect model.fhead --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["probes"])')" --json > a.json
fh query mean.fhead --hidden work/states.safetensors --curve "$(fh inspect mean.fhead --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["probes"])')" --json > b.json
python3 - << 'EOF'
import json
d = json.load(open("states.json"))
for side in "ab":
    point = json.load(open(side + ".json"))["curve"][0]
    rows = {r["what"]: r[side] for r in d["on_states"]}
    for what, key in (("containment", "top1"), ("agreement", "agreement"), ("mass", "mass"), ("kl", "kl")):
        assert abs(rows[what] - point[key]) <= 1e-9 * max(1, abs(point[key])), (side, what, rows, point)
n, rows = d["positions"]["all"], {r["what"]: r for r in d["on_states"]}
assert round((rows["containment"]["b"] - rows["containment"]["a"]) * n) == d["positions"]["gained"] - d["positions"]["lost"], d["positions"]
worst = [w["missed_b"] - w["missed_a"] for w in d["worst_on_states"]]
assert worst == sorted(worst, reverse=True) and all(x > 0 for x in worst) and sum(worst) <= d["positions"]["lost"], d["worst_on_states"]
EOF
fails 3 'neither .* has the dense head' fh diff alone.fhead alone.fhead --hidden work/states.safetensors
fh build other -q -C w-other -o other.fhead --tokens 20000 --target-containment 0.9 > /dev/null
ok fh diff model.fhead other.fhead; grep -q 'heads of different models' err.txt && grep -q '^same_model  *no' out.txt
fails 3 'heads of different models' fh diff model.fhead other.fhead --hidden work/states.safetensors
fh build wide -q -C w-wide -o wide.fhead --tokens 20000 --target-containment 0.9 > /dev/null
ok fh diff model.fhead wide.fhead; grep -q 'of different size' err.txt
fails 1 'no.fhead' fh diff model.fhead no.fhead
fails 2 'A B is missing' fh diff model.fhead
