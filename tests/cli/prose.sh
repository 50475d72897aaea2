# A real language model, small: built from text that it says itself, both heads continue a prompt alike, and a head-only file finds its base.
. "$TOP/tests/cli/tools.inc"
model=$TOP/demo/prose-7m
[ -f "$model/model.safetensors" ] || { echo 'demo/prose-7m is not there'; exit 77; }
fh build "$model" -q -C work -o prose.fhead --tokens 4000 --target-containment 0.9 --json > report.json
python3 "$TOP/tests/cli/has_fields.py" probes:int digest:hex calibrated:bool < report.json
fh verify prose.fhead | grep -q '^verified  *yes'
prompt='The history of the city began in'
fh run prose.fhead --prompt "$prompt" -n 24 --head dense > dense.txt
fh run "$model" --prompt "$prompt" -n 24 --head dense > checkpoint.txt
same dense.txt checkpoint.txt
[ "$(wc -w < dense.txt)" -ge 12 ] || die "few words: $(cat dense.txt)"
fh run prose.fhead --prompt "$prompt" -n 24 --head flash --probes 1000000 > all.txt
fh run prose.fhead --prompt "$prompt" -n 24 > flash.txt
head -c 40 flash.txt | cmp - "$(head -c 40 all.txt > start.txt; echo start.txt)" || die "the heads part at once: $(cat flash.txt)"
fh query prose.fhead --hidden work/states.safetensors --curve 64 --json | python3 -c '
import json, sys
p = json.load(sys.stdin)["curve"][0]
assert p["probes"] == 64 and p["top1"] >= p["top3"] >= p["top5"] >= p["top10"] > 0.3 and 0 <= p["kl"] < 5, p'
no_leftovers
