# export, import and verify of directories for the vLLM plugin: what is carried how, what is refused by name, what is there afterwards.  Every rule of
# that runtime: tests/check_vllm_dir.py.
. "$TOP/tests/cli/tools.inc"
tiny tiny --vocab 304 --no-tokenizer
promise='--tokens 6000 --target-containment 0.9'
fh build tiny -q --for vllm -C work -o model.fhead $promise --json > report.json
for fact in '"k":19' '"cap":16' '"hot":0' '"rerank":0' '"centroids":"bf16"' '"tokens":"bf16"' '"calibrated":true' '"routing":"learned"'; do
    grep -q "$fact" report.json || die "build --for vllm: no $fact: $(cat report.json)"
done
grep -q '"calibrated":true,"runtime":"vllm"' report.json && grep -Eq '"runtime": ?"vllm"' work/calibration.json || die 'the calibration says which runtime it is for'
fh build tiny -q --for vllm -C work -o again.fhead $promise --json > report.json
! grep -q '"ran":true' report.json || die "a second build runs something: $(cat report.json)"
same model.fhead again.fhead
export_to() { fh export --format vllm model.fhead --model tiny -o "$@" -q; }
exported() { export_to "$@" > /dev/null; }

# The fields of the reports
export_to out --json > report.json
python3 "$TOP/tests/cli/has_fields.py" dir:str format:str architecture:str vocab:int hidden:int k:int cap:int probes:int special:int promised:bool fingerprint:hex artifact:hex link:str files:int \
    bytes:int seconds:num < report.json
fh verify out --json -q > report.json
python3 "$TOP/tests/cli/has_fields.py" format:str architecture:str vocab:int hidden:int k:int cap:int probes:int probes_said:bool special:int fingerprint:hex artifact:hex promise.bound:unit \
    affinity:unit verified:bool seconds:num < report.json
fh import --format vllm out -C back --json -q > report.json
python3 "$TOP/tests/cli/has_fields.py" format:str k:int cap:int probes:int special:int objective:unit affinity:unit fingerprint:hex seconds:num < report.json
fh status -C back | grep -Eq '^ *route .*current' || die "what was imported is current: $(fh status -C back)"

# What is carried over, and how
: > tiny/pytorch_model.bin; mkdir tiny/onnx; : > tiny/onnx/x.json; : > tiny/.hidden.json
echo '{}' > tiny/tokenizer_config.json; echo x > tiny/chat_template.jinja; echo x > tiny/merges.txt; echo x > tiny/LICENSE; mkfifo tiny/fifo.json
exported carried
ls carried | tr '\n' ' ' > names.txt
[ "$(cat names.txt)" = 'LICENSE chat_template.jinja config.json flash_head_assets generation_config.json merges.txt model.safetensors tokenizer_config.json ' ] || die "carried: $(cat names.txt)"
[ "$(stat -c %h carried/model.safetensors)" = 1 ] || die 'a copy is a copy'
exported hard --link hard
[ hard/model.safetensors -ef tiny/model.safetensors ] && [ ! -L hard/model.safetensors ] || die 'hard links'
[ ! hard/merges.txt -ef tiny/merges.txt ] || die 'small files are copied'
exported sym --link sym
[ -L sym/model.safetensors ] && [ sym/model.safetensors -ef tiny/model.safetensors ] || die 'symbolic links'
case $(readlink sym/model.safetensors) in /*) ;; *) die 'symbolic links have the whole path' ;; esac
fh verify sym -q > /dev/null
rm -r tiny/onnx tiny/fifo.json tiny/.hidden.json tiny/pytorch_model.bin
# A Hub cache: files that are links to blobs.
mkdir -p hub/blobs hub/snapshots/1
for f in tiny/*; do mv "$f" "hub/blobs/$(basename "$f")0"; ln -s "../../blobs/$(basename "$f")0" "hub/snapshots/1/$(basename "$f")"; done
rm -r tiny; mv hub/snapshots/1 hub/snapshots/tiny
fh export --format vllm model.fhead --model hub/snapshots/tiny/ -o hubbed --link hard -q > /dev/null
[ hubbed/model.safetensors -ef hub/blobs/model.safetensors0 ] && [ ! -L hubbed/model.safetensors ] || die 'a hard link to the blob itself'
[ ! -L hubbed/merges.txt ] || die 'links are followed'
mkdir tiny; cp -L hub/snapshots/tiny/* tiny
# Of an exported directory too
fh export --format vllm model.fhead --model out -o second -q > /dev/null
for f in config.json flash_head_assets/clustering_cache.safetensors flash_head_assets/clustering_config.json model.safetensors; do same "out/$f" "second/$f"; done

# Which weights that runtime reads is said where it is not what we read.
cp -r out both; echo '{"weight_map":{}}' > both/model.safetensors.index.json
fh verify both > /dev/null 2> notes.txt; grep -q 'warning: both/model.safetensors.index.json: that runtime goes by the index' notes.txt || die "$(cat notes.txt)"
fh export --format vllm model.fhead --model both -o single -q > /dev/null; [ ! -e single/model.safetensors.index.json ] || die 'the index that was not read is not carried'

# An older export is replaced, whole; anything else that is there never is.
echo more > out/more.txt
exported out
[ ! -e out/more.txt ] || die 'an export is replaced whole'
fails 1 'out: is there already and --no-clobber' export_to out --no-clobber
mkdir precious; echo mine > precious/file
fails 1 'precious: is there already and is not empty' export_to precious
mkdir -p precious/flash_head_assets; cp out/flash_head_assets/*.json precious/flash_head_assets
fails 1 'precious: is there already and is not empty' export_to precious
[ "$(cat precious/file)" = mine ]
mkdir empty; exported empty; fh verify empty -q > /dev/null
echo x > file
fails 1 'file: is there and is no directory' export_to file
fails 1 'nowhere/out: cannot create: the directory nowhere does not exist' export_to nowhere/out
fails 1 'tiny: holds what is read' export_to tiny
fails 1 '\.: holds what is read' export_to .
cp -r out self
fails 1 'self: holds what is read \(self\)' fh export --format vllm model.fhead --model self -o self -q
cp model.fhead self/m.fhead
fails 1 'self: holds what is read \(self/m.fhead\)' fh export --format vllm self/m.fhead --model tiny -o self -q
fails 2 'empty path' export_to ''

# Misuse
fails 2 'export: --format is missing' fh export model.fhead --model tiny -o x
fails 2 'export: --format: .*vllm' fh export --format onnx model.fhead --model tiny -o x
fails 2 'export: --model is missing' fh export --format vllm model.fhead -o x
fails 2 'export: -o is missing' fh export --format vllm model.fhead --model tiny
fails 2 'export: --link: .*hard' export_to x --link soft
fails 2 '\-\-probes: 20 of 19 clusters' export_to x --probes 20
fails 2 'import: --format is missing' fh import out
fails 2 'build: --hot: that runtime has no hot list' fh build tiny --for vllm -C w -o x --hot 5
fails 2 'build: --rerank: that runtime does not score' fh build tiny --for vllm -C w -o x --rerank 5
fails 2 'build: --centroids and --rows: that runtime works in bf16' fh build tiny --for vllm -C w -o x --rows int8
fails 2 '304 tokens are no multiple of 17: --cap can be 2, 4, 8, 16, 19, 38' fh build tiny -q --for vllm -C w -o x --k 17
fails 2 'no multiple of 3: --cap can be' fh build tiny -q --for vllm -C w -o x --cap 3
fails 2 'query: --for vllm: that runtime gives one token' fh query model.fhead --hidden work/states.safetensors --for vllm --top-k 2
fails 2 'works in bf16, and quantize made int8 and int8' fh calibrate -q -C back --for vllm

# A release of one is rebuilt to the same bytes, with centroids made unit ones of means too, and says whose promise it is.
for routing in learned raw; do
    fh build tiny -q --for vllm --routing $routing -C asked-$routing -o asked.fhead --tokens 6000 --target-containment 0.5 > /dev/null
    fh publish asked.fhead --to registry --name $routing --version 1 --base-model b --license mit -q > /dev/null
    fh rebuild registry/$routing/1/recipe.json --model tiny -C rebuilt-$routing -o rebuilt.fhead -q > /dev/null || die "rebuilt: $routing"
    same asked.fhead rebuilt.fhead
done
fh rebuild registry/raw/1/recipe.json --from text --model tiny -C from-text -o rebuilt.fhead -q > /dev/null
same asked.fhead rebuilt.fhead
grep -q 'as the vLLM plugin flash-head computes' registry/raw/1/README.md || die 'the card says whose promise it is'
tr -d ' \n' < registry/raw/1/recipe.json | grep -q '"--for","vllm"' || die 'the recipe says whom it is for'

# Another model, another calibration, none; an artifact that is none
fh build tiny -q -C own -o own.fhead $promise > /dev/null
fails 3 'own.fhead: is calibrated for fhtool.s own rules .hot list of [0-9]+, 16 rows scored again' fh export --format vllm own.fhead --model tiny -o x -q
fails 2 'query: --for vllm: .* holds int8 and int8' fh query own.fhead --hidden work/states.safetensors --for vllm
fh route -q -C work --routing raw > /dev/null && fh quantize -q -C work --centroids bf16 --tokens bf16 > /dev/null
fails 2 'routes by cosine: run .fhtool route --unit' fh calibrate -q -C work --for vllm
fh pack -q -C work -o raw.fhead --probes 5 > /dev/null 2>&1
fails 3 'raw.fhead: is not calibrated' fh export --format vllm raw.fhead --model tiny -o x -q
fh export --format vllm raw.fhead --model tiny -o probed --probes 5 --json 2> notes.txt | grep -q '"probes":5,"special":1,"promised":false'
grep -q 'the directory promises nothing' notes.txt
fh verify probed -q > /dev/null
fh route -q -C work --routing mean --unit > /dev/null && fh quantize -q -C work --centroids bf16 --tokens bf16 > /dev/null && fh calibrate -q -C work --for vllm --target-containment 0.5 > /dev/null
fh pack -q -C work -o mean.fhead > /dev/null && fh export --format vllm mean.fhead --model tiny -o mean -q > /dev/null && fh verify mean -q | grep -Eq '^affinity +1$' || die 'unit means belong'
tiny other --vocab 304 --seed 2 --no-tokenizer
fails 3 'model.fhead: was made from another model than other \(fingerprint' fh export --format vllm model.fhead --model other -o x -q
cp out/flash_head_assets/clustering_cache.safetensors keep; cp -r out mixed; cp other/model.safetensors mixed
fails 3 'mixed: the clustering was made for another head' fh verify mixed -q
printf garbage > bad.fhead
fails 1 'bad.fhead: ' fh export --format vllm bad.fhead --model tiny -o x -q
cp model.fhead bent.fhead; printf 'X' | dd of=bent.fhead bs=1 seek=20000 conv=notrunc 2> /dev/null
fails 1 'bent.fhead: section' fh export --format vllm bent.fhead --model tiny -o x -q
fails 1 'tiny/config.json: has no "flash_head_cache_dir"' fh verify tiny -q
fails 1 'config.json: has no "flash_head_cache_dir"' fh import --format vllm tiny -C none -q

# What that runtime cannot hold, each by name
change() { # change DIR PYTHON: a copy of tiny with another config, c
    rm -rf "$1"; cp -r tiny "$1"
    python3 -c "import json,sys; c=json.load(open('$1/config.json')); exec(sys.argv[1]); json.dump(c,open('$1/config.json','w'))" "$2"
}
cannot() { message=$1 dir=$2; fails 1 "$message" fh export --format vllm model.fhead --model "$dir" -o x -q; fails 1 "$message" fh build "$dir" -q --for vllm -C w -o x.fhead; [ ! -e w/model.json ] || die 'convert ran'; }
change arch 'c["architectures"]=["MistralForCausalLM"]'
cannot "arch: architecture 'MistralForCausalLM' is none that the vLLM plugin knows: LlamaForCausalLM, Qwen3ForCausalLM, .*Gemma3ForCausalLM" arch
change arch 'del c["architectures"]'
cannot "architecture '' is none" arch
change capped 'c["architectures"]=["Gemma3ForCausalLM"]; c["model_type"]="gemma2"; c["final_logit_softcapping"]=30.0; c["head_dim"]=16; c["query_pre_attn_scalar"]=16'
fails 1 'capped: final_logit_softcapping is 30: vLLM would cap the token ids' fh build capped -q --for vllm -C w -o x.fhead
change ids 'json.dump({"eos_token_id": [0, 304]}, open("ids/generation_config.json", "w"))'
fails 3 "ids/generation_config.json: 'eos_token_id' is 304, which is no token: there are 304" fh export --format vllm model.fhead --model ids -o x -q
fails 1 'is a GGUF file: the vLLM plugin takes a directory' fh build "$TOP/tests/golden/gguf/tiny.gguf" -q --for vllm -C w -o x.fhead
python3 - << 'END'
import json, os, shutil, struct
def read(d):
    b = open(d + '/model.safetensors', 'rb').read(); n = struct.unpack('<Q', b[:8])[0]
    return json.loads(b[8:8 + n]), b[8 + n:]
def write(d, h, data):
    shutil.rmtree(d, ignore_errors=True); shutil.copytree('tiny', d)
    t = json.dumps(h).encode(); open(d + '/model.safetensors', 'wb').write(struct.pack('<Q', len(t)) + t + data)
h, data = read('tiny'); h.pop('__metadata__', None)
# a bias
b = dict(h); b['lm_head.weight'] = {**h['model.embed_tokens.weight']}; at = len(data); v = 304
size = h['model.embed_tokens.weight']['data_offsets']; rows = data[size[0]:size[1]]
b['lm_head.weight'] = {'dtype': 'BF16', 'shape': [v, 64], 'data_offsets': [at, at + len(rows)]}
b['lm_head.bias'] = {'dtype': 'BF16', 'shape': [v], 'data_offsets': [at + len(rows), at + len(rows) + 2 * v]}
write('bias', b, data + rows + bytes(2 * v))
# the head under a name that is not looked for
w = {('language_model.' + k if k.startswith('model.') else k): t for k, t in h.items()}
write('wrapped', w, data)
# two heads, of which that runtime takes the other
p = {('model.' + k[len('model.'):]): t for k, t in h.items()}
p['model.lm_head.weight'] = {'dtype': 'BF16', 'shape': [v, 64], 'data_offsets': [at, at + len(rows)]}
c = json.load(open('tiny/config.json'))
write('two', p, data + rows[::-1])
c['tie_word_embeddings'] = True
json.dump(c, open('two/config.json', 'w'))
END
fails 1 "bias: the head has a bias \('lm_head.bias'\)" fh build bias -q --for vllm -C w -o x.fhead
cannot_find() { fails 1 "$1" fh build "$2" -q --for vllm -C w -o x.fhead; }
cannot_find "wrapped: the head is 'language_model.model.embed_tokens.weight', and the vLLM plugin looks for it under other names: lm_head.weight, model.lm_head.weight" wrapped
status=0; fh build two -q --for vllm -C w -o x.fhead > out.txt 2> err.txt || status=$?
[ $status != 0 ] && grep -Eq "two.*'model.lm_head.weight'" err.txt || die "two heads: $status $(cat err.txt)"
tiny odd --vocab 301 --no-tokenizer
fails 2 '301 tokens are no multiple of 4: --cap can be 7, 43' fh build odd -q --for vllm -C w2 -o x.fhead
tiny small --vocab 60 --no-tokenizer
fails 1 'small: the head has 60 rows of 64: the vLLM plugin takes the larger number for the vocabulary' fh build small -q --for vllm -C w3 -o x.fhead
fh build odd -q -C odd-work -o odd.fhead --tokens 6000 --target-containment 0.5 > /dev/null
fails 1 'odd.fhead: 301 tokens in 18 clusters of up to 17: that runtime needs V = K \* cap exactly' fh export --format vllm odd.fhead --model odd -o x --probes 3 -q
fh build tiny -q -C four -o four.fhead --centroids int4 --tokens 6000 --target-containment 0.5 > /dev/null
fails 1 'int4 centroids are stored without their mean' fh export --format vllm four.fhead --model tiny -o x --probes 3 -q
tiny dead --vocab 304
fh build dead --for vllm -q -C dead-work -o dead.fhead --tokens 6000 --target-containment 0.5 > /dev/null
fh export --format vllm dead.fhead --model dead -o dead-out > /dev/null 2> notes.txt
grep -q 'warning: 17 dead rows .*does not keep them from being answered' notes.txt || die "$(cat notes.txt)"
fh build tiny --for vllm -q -C nineteen -o nineteen.fhead --cap 19 --tokens 6000 --target-containment 0.5 > /dev/null
fh export --format vllm nineteen.fhead --model tiny -o nineteen-out > /dev/null 2> notes.txt
grep -q 'warning: 19 tokens a cluster: .*wants a power of two' notes.txt || die "$(cat notes.txt)"
[ ! -e x ] && [ ! -e x.fhead ] || die 'something was written all the same'

# Imported clusters whose model changed are not made anew in silence.
cp -r out moving; fh import --format vllm moving -C moved -q > /dev/null
cp other/model.safetensors moving; rm -r moving/flash_head_assets; fh convert moving -q -C moved > /dev/null
fails 3 'clusters.safetensors was imported, and what it belongs to has changed: run .fhtool import. again' fh quantize -q -C moved

no_leftovers
left=$(find . -maxdepth 1 -name '.*.tmp'); [ -z "$left" ] || die "left: $left"
# Killed at any moment there is no directory, or a whole one, and the same command makes it.
exec python3 "$TOP/tests/cli/vllm_killed.py" "$FHTOOL"
