# Releases out of a registry: a directory, file://, and web servers of every kind.  What is said is what is fetched, whole or not at all.
. "$TOP/tests/cli/tools.inc"
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
build_tiny
fh publish model.fhead --to reg --name tiny --version 1.0 --base-model me/tiny --license mit > /dev/null
fh publish model.fhead --to reg --name tiny --version 1.1-rc1 --base-model me/tiny --license mit > /dev/null 2> err.txt
fh publish model.fhead --to reg --name tiny --version 1.1 --base-model me/tiny --license mit --oci > /dev/null 2> err.txt
whole() { fh verify -q "$1" > out.txt 2> err.txt || die "$1: $(cat err.txt)"; same "$1/tiny.fhead" model.fhead; none_half; rm -rf "$1"; }
none_half() { left=$(find . -name '.*.part' -o -name '.*.tmp'); [ -z "$left" ] || die "left behind: $left"; }

# list, and names
[ "$(fh list reg | awk 'NR > 3 { print $1 "@" $2 }' | tr '\n' ' ')" = 'tiny@1.0 tiny@1.1-rc1 tiny@1.1 ' ] || die "$(fh list reg)"
fh fetch reg tiny -o got > out.txt 2> err.txt
grep -q 'integrity, not authenticity' err.txt || die 'a fetch without a key does not say so'
grep -q '^version  *1.1$' out.txt || die "the newest is 1.1: $(cat out.txt)"
fh fetch reg tiny -o got > out.txt 2> err.txt && grep -q '^there_already  *yes' out.txt || die 'the same again'
fails 1 'got: is there already and is not tiny@1.0' fh fetch reg tiny@1.0 -o got
fh run got/tiny.fhead --ids 1,2,3 -n 3 > /dev/null
whole got
fh fetch "file://$PWD/reg" tiny@1.0 > /dev/null 2>&1; whole tiny-1.0
fh fetch "file://localhost$PWD/r%65g/" tiny@1.0 -o other > /dev/null 2>&1; whole other
bad() { fails "$@" -o bad; [ ! -e bad ] || die "made: $*"; none_half; }
bad 1 'has no release tinny' fh fetch reg tinny
bad 1 'has no version 2 of tiny; the newest is 1.1' fh fetch reg tiny@2
bad 2 'no NAME or NAME@VERSION' fh fetch reg ../tiny
bad 2 'no NAME or NAME@VERSION' fh fetch reg tiny@..
bad 2 'no NAME or NAME@VERSION' fh fetch reg tiny@1.0@2
bad 1 'holds no index.json' fh fetch . tiny
bad 2 'a registry is a directory, or' fh fetch ftp://127.0.0.1/reg tiny
bad 2 'names another machine' fh fetch file://example.org/reg tiny
bad 2 'refused: it would show' fh fetch https://me:secret@127.0.0.1/reg tiny
bad 2 'plain-http' fh fetch http://192.0.2.1/reg tiny
fails 1 'no/such/dir: cannot create: the directory no/such does not exist' fh fetch reg tiny -o no/such/dir

# An index that lies
index() { # index PYTHON: change the index `x`
    rm -rf odd; cp -r reg odd
    python3 - "$1" << 'EOF'
import json, sys
x = json.load(open("odd/index.json"))
e = x["releases"]
exec(sys.argv[1])
json.dump(x, open("odd/index.json", "w"))
EOF
}
index 'e[0]["name"] = "../../etc"'; bad 1 'odd/index.json: /releases/0: "name" is no name' fh fetch odd tiny
index 'e[0]["name"] = ".."'; bad 1 '/releases/0: "name" is no name' fh fetch odd tiny
index 'e[0]["version"] = "1/0"'; bad 1 '"version" is no version' fh fetch odd tiny
index 'e.reverse()'; bad 1 'repeat or are out of order' fh fetch odd tiny
index 'e.append(e[-1])'; bad 1 'repeat or are out of order' fh fetch odd tiny
index 'e[0]["digest"] = "00"'; bad 1 'digest is not 64' fh fetch odd tiny
index 'x["format"] = "fhtool registry 2"'; bad 1 'newer fhtool' fh fetch odd tiny
index 'x["releases"] = [dict(e[0], version=str(i)) for i in range(70000)]'; bad 1 'longer than 16777216 bytes' fh fetch odd tiny
index 'e[2]["release"]["sha256"] = "0" * 64'; bad 3 'not the one the index names' fh fetch odd tiny
printf '{"format":"fhtool registry 1","releases":[' > odd/index.json; fails 1 'odd/index.json' fh list odd
mkfifo fifo; rm odd/index.json; mv fifo odd/index.json; fails 1 'odd/index.json: is a FIFO' timeout 10 "$FHTOOL" list odd

# An older release under a newer name
rm -rf odd; cp -r reg odd; rm -rf odd/tiny/1.1; cp -r odd/tiny/1.0 odd/tiny/1.1
bad 1 'release.json has .* bytes, the index says|not the one the index names' fh fetch odd tiny
python3 - << 'EOF'
import json
x = json.load(open("odd/index.json"))
x["releases"][2]["release"] = x["releases"][0]["release"]
json.dump(x, open("odd/index.json", "w"))
EOF
bad 3 'under tiny@1.1 lies tiny@1.0' fh fetch odd tiny
# A file of another size, or of other bytes; the rest is kept for the next try, which ends well once the registry is mended
rm -rf odd; cp -r reg odd
printf x >> odd/tiny/1.0/tiny.fhead; fails 1 'tiny.fhead: has 252481 bytes where release.json says 252480' fh fetch odd tiny@1.0 -o later; [ ! -e later ]
cp reg/tiny/1.0/tiny.fhead odd/tiny/1.0/; printf x | dd of=odd/tiny/1.0/tiny.fhead bs=1 seek=100000 conv=notrunc 2> /dev/null
fails 3 'are not those of the release' fh fetch odd tiny@1.0 -o later; [ ! -e later ]
cp reg/tiny/1.0/tiny.fhead odd/tiny/1.0/; fh fetch odd tiny@1.0 -o later > /dev/null 2>&1; whole later

# ---- web servers
fh fetch http://127.0.0.1:1/reg x > out.txt 2> err.txt || true
if grep -q 'without libcurl' err.txt; then echo 'built without libcurl'; exit 0; fi
python3 "$TOP/tests/cli/bad_server.py" reg port & server=$!
trap 'kill $server 2> /dev/null || true' EXIT
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done
at=http://127.0.0.1:$(cat port)

[ "$(fh list "$at/fine" --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["releases"]))')" = 3 ]
for kind in fine drop noranges wrongrange error hops/1 hops/5; do
    fh fetch "$at/$kind" tiny@1.1 -o "$(basename $kind)" > /dev/null 2> err.txt || die "$kind: $(cat err.txt)"
    whole "$(basename $kind)"
done
fh fetch "$at/stall" tiny@1.0 --timeout 1 -o stall > /dev/null 2> err.txt || die "stall: $(cat err.txt)"
whole stall
kept() { rm -rf .bad.*.part; bad_part "$@"; } # what came may stay for the next try, but nothing under the final name
bad_part() { fails "$@" -o bad; [ ! -e bad ] || die "made: $*"; }
kept 1 'tiny.fhead: the server has 252481 bytes where 252480 are said' fh fetch "$at/longer" tiny@1.0
kept 1 'tiny.fhead: the server has 252479 bytes where 252480 are said' fh fetch "$at/shorter" tiny@1.0
kept 1 'tiny.fhead: the server goes on past the 252480 bytes that are said' fh fetch "$at/endless" tiny@1.0
kept 3 'tiny.fhead: its 252480 bytes are not those of the release' fh fetch "$at/swapped" tiny@1.0
kept 1 'tiny.fhead: the server answers 404' fh fetch "$at/gone" tiny@1.0
kept 1 'the server stalls' fh fetch "$at/silent" tiny@1.0 --timeout 1
kept 1 'more than 5 redirects' fh fetch "$at/loop" tiny@1.0
kept 1 'more than 5 redirects' fh fetch "$at/hops/6" tiny@1.0
kept 1 'redirects to another scheme' fh fetch "$at/scheme" tiny@1.0
kept 1 'http:// is read by anybody' fh fetch "$at/away" tiny@1.0
kept 1 'index.json: .*past the 16777216 bytes' fh fetch "$at/huge" tiny@1.0
kept 1 'holds no index.json' fh fetch "$at/nothing/here" tiny@1.0
# A good server goes on where a bad one ended
rm -rf .bad.*.part
fails 1 'the server answers 404' fh fetch "$at/gone" tiny@1.0 -o bad
fh fetch "$at/fine" tiny@1.0 -o bad > /dev/null 2>&1; whole bad

# kill -9 at any time: nothing under the final name, and the same command completes
tries=0
for wait in 0.01 0.02 0.03 0.05 0.08 0.12; do
    "$FHTOOL" fetch -q "$at/drop" tiny@1.1 -o killed > /dev/null 2>&1 & pid=$!
    sleep $wait
    kill -9 $pid 2> /dev/null && tries=$((tries + 1))
    wait $pid 2> /dev/null || true
    if [ -e killed ]; then whole killed; fi
done
fh fetch "$at/drop" tiny@1.1 -o killed > /dev/null 2>&1; whole killed
# Ctrl-C likewise
"$FHTOOL" fetch "$at/silent" tiny@1.0 -o stopped > /dev/null 2> err.txt & pid=$!
for _ in $(seq 600); do [ -n "$(find . -maxdepth 1 -name '.stopped.*.part')" ] && break; sleep 0.1; done
kill -INT $pid; status=0; wait $pid || status=$?
[ $status = 130 ] && [ ! -e stopped ] || die "interrupted: status $status, $(cat err.txt)"
rm -rf .stopped.*.part

# https: a certificate that nobody vouches for is refused
if command -v openssl > /dev/null; then
    openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2> /dev/null
    cat cert.pem key.pem > both.pem
    python3 "$TOP/tests/cli/bad_server.py" reg tls-port both.pem & tls=$!
    trap 'kill $server $tls 2> /dev/null || true' EXIT
    for _ in $(seq 100); do [ -s tls-port ] && break; sleep 0.1; done
    fails 1 'certificate' fh list "https://localhost:$(cat tls-port)/fine"
    [ "$(SSL_CERT_FILE=$PWD/cert.pem fh list "https://localhost:$(cat tls-port)/fine" --json 2> err.txt | wc -l)" = 1 ] || die "https: $(cat err.txt)"
fi
