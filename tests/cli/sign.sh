# Signatures: ours and the minisign program's verify each other; another key, an altered file or comment, a swapped head and an older version under a newer
# name are refused, each with its reason.
. "$TOP/tests/cli/tools.inc"
status=0; fh keygen -o probe.key --no-password > /dev/null 2> err.txt || status=$?
if [ $status != 0 ] && grep -q 'without libsodium' err.txt; then echo 'built without libsodium'; exit 77; fi
build_tiny
ok() { "$@" > out.txt 2> err.txt || die "$*: $(cat out.txt err.txt)"; }

# Keys: the secret one is its owner's alone, from the first byte on and under any umask; nothing is ever replaced
(umask 000; FHTOOL_PASSWORD=secret fh keygen -o a.key --cost interactive > out.txt)
[ "$(stat -c %a a.key)" = 600 ] || die "a.key has mode $(stat -c %a a.key)"
fh keygen -o b.key --no-password > /dev/null; [ "$(stat -c %a b.key)" = 600 ]
fails 1 'a.key: is there already, and a key is never replaced' fh keygen -o a.key --no-password
rm b.key; fails 1 'b.key.pub: is there already' fh keygen -o b.key --no-password; [ ! -e b.key ]; rm b.key.pub
fh keygen -o b.key --no-password > /dev/null
fails 2 'keygen: -o is missing' fh keygen
fails 2 'the password is empty' env FHTOOL_PASSWORD= "$FHTOOL" keygen -o c.key; [ ! -e c.key ]
fails 2 'no terminal' setsid -w "$FHTOOL" keygen -o c.key; [ ! -e c.key ]

# Passwords: from the environment, from a file; a wrong one is said to be
echo secret > good.txt; echo wrong > bad.txt
echo text > file.txt
ok fh sign file.txt --key a.key --password-file good.txt
FHTOOL_PASSWORD=secret ok fh sign file.txt --key a.key
fails 3 'a.key: this is not its password' fh sign file.txt --key a.key --password-file bad.txt
fails 2 'no terminal' setsid -w "$FHTOOL" sign file.txt --key a.key
fails 1 'a.key.pub: ' fh sign file.txt --key a.key.pub --password-file good.txt
chmod 644 b.key; fh sign file.txt --key b.key > /dev/null 2> err.txt; grep -q 'warning: b.key: others than its owner can read' err.txt || die "$(cat err.txt)"
chmod 600 b.key

# and from the terminal, which does not show it; a new one twice
python3 - "$FHTOOL" << 'EOF'
import os, pty, sys
def talk(words, *answers):
    """Run a command on a terminal of its own, type an answer whenever it asks; what the terminal showed, and the exit status."""
    pid, tty = pty.fork()
    if pid == 0:
        os.environ.pop("FHTOOL_PASSWORD", None)
        os.execv(sys.argv[1], [sys.argv[1], *words])
    shown, answers = b"", list(answers)
    while True:
        try:
            data = os.read(tty, 4096)
        except OSError:
            data = b""
        if not data:
            return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        shown += data
        if answers and shown.endswith((b"password: ", b"again: ")):
            os.write(tty, answers.pop(0).encode() + b"\n")
shown, status = talk(["keygen", "-o", "t.key", "--cost", "interactive"], "hush hush", "hush hush")
assert status == 0 and "hush" not in shown and "the same again" in shown, (status, shown)
shown, status = talk(["keygen", "-o", "u.key", "--cost", "interactive"], "one", "two")
assert status == 2 and "differ" in shown and not os.path.exists("u.key"), (status, shown)
shown, status = talk(["sign", "file.txt", "--key", "t.key"], "hush hush")
assert status == 0 and "hush" not in shown, (status, shown)
shown, status = talk(["sign", "file.txt", "--key", "t.key"], "hush")
assert status == 3 and "not its password" in shown, (status, shown)
EOF
ok fh verify file.txt --pubkey t.key.pub

# A file, its comment, its key
ok fh sign file.txt --key b.key --comment 'what it is'
ok fh verify file.txt --pubkey b.key.pub; grep -q '^comment  *what it is$' out.txt
ok fh verify file.txt --pubkey "$(sed -n 2p b.key.pub)"
fails 3 'is by the key [0-9A-F]{16}, not by [0-9A-F]{16}' fh verify file.txt --pubkey a.key.pub
cp file.txt.minisig kept; echo more >> file.txt; fails 3 'is not the signature of file.txt' fh verify file.txt --pubkey b.key.pub
echo text > file.txt; ok fh verify file.txt --pubkey b.key.pub
sed -i 's/what it is/what it was/' file.txt.minisig; fails 3 'its trusted comment was altered' fh verify file.txt --pubkey b.key.pub
head -n 3 kept > file.txt.minisig; fails 1 'has 3 lines, not 4' fh verify file.txt --pubkey b.key.pub
rm file.txt.minisig; fails 1 'file.txt.minisig: ' fh verify file.txt --pubkey b.key.pub
fails 2 'one line' fh sign file.txt --key b.key --comment 'a
b'
# An artifact is verified as one, and by its signature
ok fh sign model.fhead --key b.key; grep -q "fhtool artifact model.fhead $(fh inspect model.fhead --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["digest"])')" out.txt
ok fh verify model.fhead --pubkey b.key.pub; grep -q '^signed_by' out.txt

# Releases
how='--base-model me/tiny --license mit'
ok fh publish model.fhead --to reg --name tiny --version 1.0 $how --key a.key --password-file good.txt
fh build tiny -q -C work2 -o other.fhead --k 20 --rounds 0 --tokens 6000 --target-containment 0.9 > /dev/null
ok fh publish other.fhead --to reg --name tiny --version 2.0 $how --key a.key --password-file good.txt
ok fh publish model.fhead --to reg --name unsigned --version 1 $how
(cd reg/tiny/1.0 && sha256sum -c --strict SHA256SUMS > /dev/null)
ok fh verify reg/tiny/1.0 --pubkey a.key.pub
ok fh fetch reg tiny@1.0 -o got --pubkey a.key.pub; if grep -q authenticity err.txt; then die 'a key was given'; fi
ok fh verify got --pubkey a.key.pub
refused() { fails "$@" -o no; [ ! -e no ] && [ -z "$(find . -name '.no.*')" ] || die "something was made: $*"; }
refused 3 'is by the key' fh fetch reg tiny@1.0 --pubkey b.key.pub
refused 3 'nobody signed unsigned@1' fh fetch reg unsigned --pubkey a.key.pub
# rebuilt: an attacker who can write the registry makes everything agree again but the signature
forge() { # forge PYTHON: change release `d` of a copy of the registry and make all digests agree; the signature stays
    rm -rf forged; cp -r reg forged
    python3 - "$1" << 'EOF'
import hashlib, json, os, shutil, sys
def sha(path): return hashlib.sha256(open(path, "rb").read()).hexdigest()
d, index = "forged/tiny/2.0/", json.load(open("forged/index.json"))
entry = next(e for e in index["releases"] if e["version"] == "2.0" and e["name"] == "tiny")
release = json.load(open(d + "release.json"))
exec(sys.argv[1])
for f in release["files"]:
    f["bytes"], f["sha256"] = os.path.getsize(d + f["path"]), sha(d + f["path"])
open(d + "release.json", "w").write(json.dumps(release))
lines = [(f["path"], f["sha256"]) for f in release["files"]] + [("release.json", sha(d + "release.json"))]
open(d + "SHA256SUMS", "w").write("".join(f"{s}  {p}\n" for p, s in sorted(lines)))
entry["release"] = {"bytes": os.path.getsize(d + "release.json"), "sha256": sha(d + "release.json")}
open("forged/index.json", "w").write(json.dumps(index))
EOF
}
# a swapped head
forge 'shutil.copy("model.fhead", d + "tiny.fhead"); old = json.load(open("forged/tiny/1.0/release.json")); release["artifact"] = old["artifact"]; entry["digest"] = old["artifact"]["digest"]'
ok fh fetch forged tiny@2.0 -o swapped # it agrees with itself: integrity, not authenticity
grep -q 'integrity, not authenticity' err.txt
refused 3 'SHA256SUMS.minisig: is not the signature of' fh fetch forged tiny@2.0 --pubkey a.key.pub
# an older version under a newer name, with its own true signature
forge 'shutil.rmtree(d); shutil.copytree("forged/tiny/1.0", d); release = json.load(open(d + "release.json")); release["version"] = "2.0"; entry["digest"] = release["artifact"]["digest"]'
refused 3 'is not the signature of' fh fetch forged tiny@2.0 --pubkey a.key.pub
rm -rf forged; cp -r reg forged; rm -rf forged/tiny/2.0; cp -r forged/tiny/1.0 forged/tiny/2.0
python3 - << 'EOF'
import json
index = json.load(open("forged/index.json"))
old, new = [e for e in index["releases"] if e["name"] == "tiny"]
new.update({k: old[k] for k in ("digest", "bytes", "release")})
json.dump(index, open("forged/index.json", "w"))
EOF
refused 3 'under tiny@2.0 lies tiny@1.0' fh fetch forged tiny@2.0 --pubkey a.key.pub
# the signature of another release
rm -rf t; cp -r reg/tiny/2.0 t; cp reg/tiny/1.0/SHA256SUMS.minisig t/
status=0; fh verify t --pubkey a.key.pub > out.txt 2> err.txt || status=$?
[ $status = 3 ] && grep -q 'signature.*is not the signature of' err.txt || die "$(cat err.txt)"
rm t/SHA256SUMS.minisig; status=0; fh verify t --pubkey a.key.pub > out.txt 2> err.txt || status=$?
[ $status = 3 ] && grep -q 'nobody signed this release' err.txt || die "$(cat err.txt)"
# signed afterwards, and nothing that is damaged
rm -rf t; cp -r reg/unsigned/1 t
ok fh sign t --key b.key; ok fh verify t --pubkey b.key.pub
fails 2 'binds its name, version and artifact' fh sign t --key b.key --comment mine
echo >> t/NOTICE; fails 3 'altered: NOTICE' fh sign t --key b.key

# The minisign program, both ways
command -v minisign > /dev/null || { echo 'minisign is not there: not tried out together'; exit 0; }
ok minisign -V -m reg/tiny/1.0/SHA256SUMS -p a.key.pub
grep -q 'fhtool release tiny 1.0 [0-9a-f]*$' out.txt || die "$(cat out.txt)"
ok minisign -V -m reg/tiny/1.0/SHA256SUMS -P "$(sed -n 2p a.key.pub)"
echo text > file.txt
minisign -G -W -p m.pub -s m.key > /dev/null 2>&1 || { printf 'pw\npw\n' | minisign -G -f -p m.pub -s m.key > /dev/null 2>&1; echo pw > good.txt; }
echo pw | minisign -S -s m.key -m file.txt -t 'of the program' > /dev/null 2>&1
ok fh verify file.txt --pubkey m.pub; grep -q '^comment  *of the program$' out.txt
if echo pw | minisign -S -l -s m.key -m file.txt -t 'not hashed' > /dev/null 2>&1; then ok fh verify file.txt --pubkey m.pub; fi
ok fh sign file.txt --key m.key --password-file good.txt --comment 'by fhtool with its key'
ok minisign -V -m file.txt -p m.pub; grep -q 'by fhtool with its key' out.txt
echo secret | minisign -S -s a.key -m file.txt -t 'with our key' > out.txt 2>&1 || die "minisign does not read our secret key: $(cat out.txt)"
ok fh verify file.txt --pubkey a.key.pub
minisign -S -s b.key -m file.txt -t 'with our key without a password' < /dev/null > out.txt 2>&1 || die "minisign does not read our plain secret key: $(cat out.txt)"
ok fh verify file.txt --pubkey b.key.pub
# a release that minisign signed is taken where the comment binds it, else not
digest=$(python3 -c 'import json; print(json.load(open("t/release.json"))["artifact"]["digest"])')
rm -rf t; cp -r reg/unsigned/1 t
echo pw | minisign -S -s m.key -m t/SHA256SUMS -t "fhtool release unsigned 1 $digest" > /dev/null 2>&1; ok fh verify t --pubkey m.pub
echo pw | minisign -S -s m.key -m t/SHA256SUMS > /dev/null 2>&1
status=0; fh verify t --pubkey m.pub > out.txt 2> err.txt || status=$?
[ $status = 3 ] && grep -q "what was signed is 'timestamp.*not 'fhtool release unsigned 1" err.txt || die "$(cat err.txt)"
