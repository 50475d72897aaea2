# An artifact becomes a release: the same bytes every time, whole or not at all, never overwritten; and what is wrong with a release is named.
. "$TOP/tests/cli/tools.inc"
build_tiny
how='--base-model me/tiny --license mit'
publish() { fh publish model.fhead --name tiny $how "$@" > out.txt 2> err.txt || die "publish $*: $(cat err.txt)"; }

# --dry-run says exactly what would be written, and writes nothing
publish --to reg --version 1.0 --oci --dry-run --json
[ ! -e reg ] || die '--dry-run writes'
cp out.txt dry.txt
publish --to reg --version 1.0 --oci --json
python3 - << 'EOF'
import json, os
dry, done = json.load(open("dry.txt")), json.load(open("out.txt"))
assert dry["files"] == done["files"] and not dry["written"] and done["written"], (dry, done)
for f in done["files"]:
    assert os.path.getsize("reg/tiny/1.0/" + f["file"]) == f["bytes"], f
listed = {f["file"] for f in done["files"]} | {"release.json", "SHA256SUMS"}
there = {os.path.relpath(os.path.join(d, f), "reg/tiny/1.0") for d, _, fs in os.walk("reg/tiny/1.0") for f in fs}
assert listed == there, listed ^ there
release = json.load(open("reg/tiny/1.0/release.json"))
assert {s["name"] for s in release["artifact"]["sections"]} >= {"head.tokens", "head.centroids", "head.permutation"}
assert all(len(s["digest"]) == 64 for s in release["artifact"]["sections"])
EOF
same reg/tiny/1.0/tiny.fhead model.fhead
(cd reg/tiny/1.0 && sha256sum -c --strict SHA256SUMS > ../../../sums.txt) || die "sha256sum -c: $(cat sums.txt)"
# the card: front matter, and its numbers are the artifact's
head -n 1 reg/tiny/1.0/README.md | grep -qx -e '---'
grep -qx 'license: "mit"' reg/tiny/1.0/README.md && grep -qx 'base_model: "me/tiny"' reg/tiny/1.0/README.md
fh inspect model.fhead --json > info.json
python3 - << 'EOF'
import json
info = json.load(open("info.json"))
card = open("reg/tiny/1.0/README.md").read()
calibration = json.load(open("work/calibration.json"))
for value in (info["digest"], info["fingerprint"], f"| clusters K | {info['k']} |", f"| probes P | {info['probes']} |", f"**{calibration['bound']:.5f}** | {calibration['misses']} |",
              f"on {calibration['positions']} positions", calibration["text_sha256"], f"{calibration['heldout']['containment']:.5f}"):
    assert str(value) in card, value
assert card.count("\n---\n") == 1
results = open("reg/tiny/1.0/.eval_results/fhtool.yaml").read()
assert results.count("- dataset:\n    id: ") == 4 and f"value: {calibration['heldout']['containment']:.10g}\n" in results, results
try:
    import yaml
except ImportError:
    pass
else:
    assert all({"dataset", "value"} <= set(r) and {"id", "task_id"} <= set(r["dataset"]) for r in yaml.safe_load(results))
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "me/tiny"
EOF

# Twice is the same bytes; a version that is there is never touched
publish --to again --version 1.0 --oci
diff -r reg/tiny again/tiny && cmp reg/index.json again/index.json || die 'two publishes differ'
before=$(find reg -type f ! -name .lock -exec sha256sum {} + | sort | sha256sum)
fails 1 'reg: has tiny@1.0 already, and what was published is never changed' fh publish model.fhead --to reg --name tiny --version 1.0 $how
fails 1 'has tiny@1.0 already' fh publish model.fhead --to reg --name tiny --version 1.0 $how --dry-run
[ "$before" = "$(find reg -type f ! -name .lock -exec sha256sum {} + | sort | sha256sum)" ] || die 'a refused publish changed the registry'
publish --to reg --version 0.9
publish --to reg --version 1.0-rc1
fh publish model.fhead --to reg --name other --version 3 $how > /dev/null 2>&1
[ "$(fh list reg --json | python3 -c 'import json, sys; print(*[r["name"] + "@" + r["version"] for r in json.load(sys.stdin)["releases"]])')" = 'other@3 tiny@0.9 tiny@1.0-rc1 tiny@1.0' ]
no_leftovers

# What a name may be
bad() { fails 2 "$@"; [ ! -e new ] || die "made: $*"; }
for name in .. . '' ../x a/b .hidden -x 'a b' 'ä' index.json "$(printf 'n%.0s' $(seq 101))"; do
    bad '^fhtool: publish?.*no (name|version)|--name: .* is no name' fh publish model.fhead --to new --name="$name" --version 1 $how
    bad 'is no version|--version' fh publish model.fhead --to new --name x --version="$name" $how
done
bad 'publish: --to is missing' fh publish model.fhead --name x --version 1
bad 'publish: --name and --version' fh publish model.fhead --to new --name x
bad 'is an address' fh publish model.fhead --to https://example.org/reg --name x --version 1
bad '--base-model: one line' fh publish model.fhead --to new --name x --version 1 --base-model 'a
b'
fails 1 'work/model.json: ' fh publish work/model.json --to new --name x --version 1 $how
cp model.fhead flipped.fhead; printf x | dd of=flipped.fhead bs=1 seek=200000 conv=notrunc 2> /dev/null
fails 1 'flipped.fhead: .*digest' fh publish flipped.fhead --to new --name x --version 1 $how
[ ! -e new ]
# markup in what people give stays text
fh publish model.fhead --to marks --name x --version 1 --base-model 'a"b: |<script>' --license 'x
' > /dev/null 2> err.txt && die 'a line break in a license'
fh publish model.fhead --to marks --name x --version 1 --base-model 'a"b: |<script>' --license mit > /dev/null 2>&1
grep -q '^base_model: "a\\"b: |<script>"$' marks/x/1/README.md && ! grep '^|.*[^\\]<script' marks/x/1/README.md || die 'markup in the card'

# kill -9 at any time: nothing under the final name that is not whole, and the same command completes
for wait in 0.005 0.01 0.015 0.02 0.03 0.04 0.06; do
    "$FHTOOL" publish -q model.fhead --to killed --name tiny --version 1.0 $how --oci > /dev/null 2>&1 & pid=$!
    sleep $wait; kill -9 $pid 2> /dev/null || true; wait $pid 2> /dev/null || true
    if [ -e killed/tiny/1.0 ]; then fh verify -q killed/tiny/1.0 > /dev/null 2> err.txt || die "half a release: $(cat err.txt)"; fi
    if [ -e killed/index.json ]; then fh list killed > /dev/null; break; fi
done
fh publish -q model.fhead --to killed --name tiny --version 1.0 $how --oci > /dev/null 2> err.txt || grep -q 'has tiny@1.0 already' err.txt || die "$(cat err.txt)"
diff -r killed/tiny reg/tiny/../../again/tiny && [ "$(find killed -name '.*.tmp' | wc -l)" = 0 ] || die 'leftovers of a killed publish'
# written and not listed yet: the same command lists it; other bytes there are left alone
rm killed/index.json
fh publish model.fhead --to killed --name tiny --version 1.0 $how --oci > out.txt 2>&1 && grep -q 'it is listed now' out.txt && fh list killed | grep -q 'tiny *1.0' || die "$(cat out.txt)"
rm killed/index.json; echo more >> killed/tiny/1.0/NOTICE
fails 1 'killed/tiny/1.0: is there already' fh publish model.fhead --to killed --name tiny --version 1.0 $how --oci
# two at once: both or one, never half
fh publish model.fhead --to both --name tiny --version 1 $how > /dev/null 2> one.txt & one=$!
fh publish model.fhead --to both --name tiny --version 2 $how > /dev/null 2> two.txt || grep -q 'holds the lock' two.txt || die "$(cat two.txt)"
wait $one || grep -q 'holds the lock' one.txt || die "$(cat one.txt)"
fh list both > /dev/null

# A release whose files were tampered with: each is named, with what is wrong
broken() { # broken KIND FILE COMMAND...
    kind=$1 file=$2; shift 2
    rm -rf t; cp -r reg/tiny/1.0 t; (cd t && "$@")
    status=0; fh verify t > out.txt 2> err.txt || status=$?
    [ $status = 3 ] && grep -Eq "^ *$kind +$file" out.txt || die "$kind $file: status $status, $(cat out.txt err.txt)"
    grep -q '^verified  *no' out.txt
}
broken missing NOTICE rm NOTICE
broken missing SHA256SUMS rm SHA256SUMS
broken extra more cp NOTICE more
broken extra sub/dir/file sh -c 'mkdir -p sub/dir; echo x > sub/dir/file'
broken renamed NOTICE mv NOTICE LICENSE.txt
broken renamed tiny.fhead mv tiny.fhead model.fhead
broken altered README.md sh -c 'echo >> README.md'
broken altered tiny.fhead sh -c 'printf x | dd of=tiny.fhead bs=1 seek=99999 conv=notrunc 2> /dev/null'
broken altered recipe.json sed -i 's/"k"/"K"/' recipe.json
broken altered release.json sed -i 's/"version": "1.0"/"version": "2.0"/' release.json
broken altered SHA256SUMS sed -i 's/README/REadME/' SHA256SUMS
broken altered NOTICE ln -sf ../model.fhead NOTICE
broken altered NOTICE sh -c 'rm NOTICE; mkfifo NOTICE'
broken extra link ln -s NOTICE link
broken missing recipe.safetensors rm -r recipe.safetensors README.md
[ "$(grep -c ' missing ' out.txt)" = 2 ] || die 'all of what is missing is named'

# An OCI layout that the tools of containers read
if command -v skopeo > /dev/null; then
    skopeo inspect --raw oci:reg/tiny/1.0/oci > manifest.json
    skopeo copy -q oci:reg/tiny/1.0/oci oci:copied:1.0 2> err.txt || die "skopeo copy: $(cat err.txt)"
    python3 - << 'EOF'
import hashlib, json
m = json.load(open("manifest.json"))
assert m["artifactType"] == "application/vnd.cncf.model.manifest.v1+json" and m["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
weights = [l for l in m["layers"] if l["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"]
assert [w["annotations"]["org.cncf.model.filepath"] for w in weights] == ["tiny.fhead"]
for layer in m["layers"] + [m["config"]]:
    data = open("copied/blobs/sha256/" + layer["digest"][7:], "rb").read()
    assert len(data) == layer["size"] and "sha256:" + hashlib.sha256(data).hexdigest() == layer["digest"]
config = json.load(open("copied/blobs/sha256/" + m["config"]["digest"][7:]))
assert config["modelfs"] == {"type": "layers", "diffIds": [l["digest"] for l in m["layers"]]} and config["descriptor"]["name"] == "tiny"
EOF
else
    echo 'skopeo is not there: the OCI layout is not tried out'
fi
