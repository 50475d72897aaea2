# What changed is noticed, by name; a calibration of other inputs promises nothing.
. "$TOP/tests/cli/tools.inc"
state() { # state DIR: "convert=current hidden=missing ..."
    fh status -C "$1" --json | python3 -c 'import json, sys; print(*(s["stage"] + "=" + s["state"] for s in json.load(sys.stdin)["stages"]))'
}
is() { [ "$(state work)" = "$1" ] || die "status is $(state work), not $1"; }
tiny tiny
promise='--target-containment 0.9 --tokens 12000'
fails 1 'work: there is no such work directory: run .fhtool convert' fh status -C work
fails 1 'work: there is no such work directory' fh pack -C work -o x.fhead
[ ! -e work ] || die 'a refused command made the directory'
mkdir work
is 'convert=missing hidden=missing cluster=missing route=missing quantize=missing calibrate=missing'
for c in cluster route quantize calibrate hidden 'pack -o x.fhead'; do fails 1 "holds no converted model: run 'fhtool convert MODEL -C work' first" fh $c -C work; done
fh convert tiny -q -C work > /dev/null
is 'convert=current hidden=missing cluster=missing route=missing quantize=missing calibrate=missing'
# pack alone: what is missing is made with its defaults, and nothing is promised
fh pack -q -C work -o plain.fhead --json > report.json
grep -q '"probes":1,.*"calibrated":false' report.json || die "K/16 probes, not calibrated: $(cat report.json)"
is 'convert=current hidden=missing cluster=current route=current quantize=current calibrate=missing'
fh calibrate -q -C work $promise > /dev/null
is 'convert=current hidden=current cluster=current route=current quantize=current calibrate=current'
fh pack -q -C work -o good.fhead > /dev/null

fh cluster -q -C work --k 20 > /dev/null
is 'convert=current hidden=current cluster=current route=stale quantize=stale calibrate=stale'
fh status -C work > text.out && grep -q 'clusters.safetensors changed since' text.out
cp good.fhead kept.fhead
fails 3 "work: the calibration there is of other inputs.*run 'fhtool calibrate' again, or give --probes" fh pack -q -C work -o kept.fhead
same good.fhead kept.fhead
is 'convert=current hidden=current cluster=current route=current quantize=current calibrate=stale'
fh pack -C work -o forced.fhead --probes 5 --json > report.json 2> err.txt
grep -q 'fhtool: warning: the calibration is of other inputs' err.txt
grep -q '"k":20,.*"probes":5,.*"calibrated":false' report.json
fails 2 '\-\-probes: 21 of 20 clusters' fh pack -q -C work -o forced.fhead --probes 21
# more probes keep a promise, fewer do not
fh calibrate -q -C work --target-containment 0.95 > /dev/null
p=$(fh pack -q -C work -o x.fhead --json | sed 's/.*"probes":\([0-9]*\),.*/\1/')
fh pack -q -C work -o x.fhead --probes $((p + 1)) --json | grep -q '"calibrated":true'
[ "$p" = 1 ] || { fh pack -C work -o x.fhead --probes 1 --json 2> err.txt | grep -q '"calibrated":false' && grep -q 'below the calibrated' err.txt; } || die 'fewer probes'

# Another encoding, then another routing, asked for by name and kept
fh quantize -q -C work --tokens bf16 > /dev/null
is 'convert=current hidden=current cluster=current route=current quantize=current calibrate=stale'
fh route -q -C work --routing raw > /dev/null
is 'convert=current hidden=current cluster=current route=current quantize=stale calibrate=stale'
fh calibrate -q -C work --target-containment 0.9 --json | grep -q '"routing":"raw"'
fh pack -q -C work -o raw.fhead --json | grep -q '"routing":"raw","centroids":"int8","tokens":"bf16"'
# A result that went away; one that is damaged is named
rm work/routing.safetensors
is 'convert=current hidden=current cluster=current route=missing quantize=stale calibrate=stale'
head -c 100 work/clusters.safetensors > cut && cp work/clusters.safetensors whole && cp cut work/clusters.safetensors
fails 1 'work/clusters.safetensors: ' fh pack -q -C work -o x.fhead
cp whole work/clusters.safetensors
printf '{' > work/calibration.json
fails 1 'work/calibration.json: ' fh pack -q -C work -o x.fhead
rm work/calibration.json
fh pack -q -C work -o x.fhead > /dev/null
# Rows that are not the ones model.json is about
cp work/head.safetensors whole
tiny other --seed 2
fh convert other -q -C work2 > /dev/null
cp work2/head.safetensors work/head.safetensors
is 'convert=stale hidden=stale cluster=stale route=stale quantize=stale calibrate=missing'
cp whole work/head.safetensors

# Another model in the same directory: everything is made again, and equals a build of its own.
fh build tiny -q -C work -o one.fhead $promise > /dev/null
fh build other -q -C work -o two.fhead $promise --json | grep -q '"stage":"convert","ran":true'
fh build other -q -C fresh -o fresh.fhead $promise > /dev/null
same two.fhead fresh.fhead
# A checkpoint that changes under a work directory
fh build tiny -q -C work -o one.fhead $promise > /dev/null
cp other/model.safetensors tiny/model.safetensors
fails 3 "tiny: its head is not the one that was converted.*run 'fhtool convert' again" fh pack -q -C work -o x.fhead
fails 3 'its head is not the one that was converted' fh hidden -q -C work --tokens 500
fh build tiny -q -C work -o one.fhead $promise > /dev/null
same one.fhead two.fhead
rm -r tiny
fails 1 'tiny' fh pack -q -C work -o x.fhead
fh pack -q -C work -o x.fhead --head-only > /dev/null || die 'a head-only artifact needs no checkpoint'

# Too little text for the promise asked: what would be enough is said, what was found is reported.
fh convert other -q -C little > /dev/null
status=0
fh calibrate -q -C little --target-containment 0.999 --tokens 400 --json > report.json 2> err.txt || status=$?
[ $status = 3 ] || die "status $status"
grep -Eq 'fhtool: containment 0.999 cannot be promised with confidence 0.95: part B has [0-9]+ positions in [0-9]+ documents, worth [0-9]+ independent ones, and needs at least [0-9]+ \(about [0-9]+ tokens of text' err.txt || die "$(cat err.txt)"
python3 "$TOP/tests/cli/has_fields.py" probes:int bound:unit positions:int misses:int < report.json
[ ! -e little/calibration.json ] || die 'a promise that was not reached is kept'
status=0
fh build other -q -C little -o none.fhead --target-containment 0.999 --tokens 400 > /dev/null 2> err.txt || status=$?
[ $status = 3 ] && [ ! -e none.fhead ] || die 'build without a promise makes no artifact'
status=0
fh calibrate -q -C little --target-containment 0.999 --max-cost 0.06 --tokens 9600 > /dev/null 2> err.txt || status=$?
[ $status = 3 ] && grep -q 'max-cost' err.txt || die "status $status: $(cat err.txt)"
no_leftovers
