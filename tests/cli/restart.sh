# Clustering again: from an earlier clustering, from several starts, within a time.
. "$TOP/tests/cli/tools.inc"
cluster() { fh cluster -q --json "$@" > report.json || die "status $?: cluster $*"; }
tiny tiny
fh convert tiny -q -C work > log
cluster -C work --cap 16 --start random --rounds 1
cp work/clusters.safetensors first.safetensors
fh pack -q -C work -o first.fhead > log

# From a clustering, and from the artifact made of it: K is its own, and the result is the same.
cluster -C work --init first.safetensors
grep -q '"k":19,"cap":16,.*"start":"init"' report.json || die "$(cat report.json)"
cp work/clusters.safetensors next.safetensors
cluster -C work --init first.fhead
same next.safetensors work/clusters.safetensors
fails 2 'first.fhead has 19 clusters, not 18' fh cluster -C work --init first.fhead --k 18
fails 2 '\-\-init takes the place of --start and --restarts' fh cluster -C work --init first.fhead --restarts 2
fails 1 "nowhere.fhead" fh cluster -C work --init nowhere.fhead
head -c 5000 first.fhead > cut.fhead
fails 1 'cut.fhead' fh cluster -C work --init cut.fhead
fails 1 "tiny/config.json" fh cluster -C work --init tiny/config.json
fails 1 'no tensor .assignment|has no .*assignment|assignment' fh cluster -C work --init work/head.safetensors
same next.safetensors work/clusters.safetensors # nothing was lost
# What it began from is not at hand when its inputs change: it says so and guesses nothing.
fh route -q -C work > log && touch work/model.json && python3 - <<'P'
import json
facts = json.load(open("work/model.json"))
facts["tokenizer_size"] = None
json.dump(facts, open("work/model.json", "w"))
P
fails 3 "began from an earlier clustering: run 'fhtool cluster --init' again" fh quantize -C work
fh convert tiny -q -C work > log

# The seed and the rounds that are reported give the same clusters again.
cluster -C work --cap 16 --start random --restarts 3 --seed 4
cp work/clusters.safetensors best.safetensors
seed=$(sed 's/.*"seed":\([0-9]*\).*/\1/' report.json) rounds=$(sed 's/.*"rounds":\([0-9]*\).*/\1/' report.json)
[ "$seed" -ge 4 ] && [ "$seed" -le 6 ] || die "seed $seed"
cluster -C work --cap 16 --start random --seed "$seed" --rounds "$rounds"
assignment() { python3 -c 'import json, struct, sys; b = open(sys.argv[1], "rb").read(); n, = struct.unpack("<Q", b[:8]); at = json.loads(b[8:8 + n])["assignment"]["data_offsets"]; sys.stdout.buffer.write(b[8 + n + at[0]:8 + n + at[1]])' "$1"; }
assignment best.safetensors > a && assignment work/clusters.safetensors > b && same a b
cluster -C work --cap 16 --start random --budget 0.000001
grep -q '"rounds":1,.*"spent":true' report.json || die "$(cat report.json)"
assignment work/clusters.safetensors > a && assignment first.safetensors > b && same a b
# Starts alone, cut short: still no rounds.
cluster -C work --cap 16 --start random --rounds 0 --restarts 9 --budget 0.000001
grep -q '"rounds":0,.*"spent":true' report.json || die "$(cat report.json)"
cp work/clusters.safetensors cut.safetensors
cluster -C work --cap 16 --start random --rounds 0
same cut.safetensors work/clusters.safetensors
