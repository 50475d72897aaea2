"""broken.py FHTOOL: in a directory with tiny (a checkpoint), model.fhead and work, make broken copies, one fault each, and see what is said.

Every case: (what is done to a copy, status, what the message holds).  Besides, every command must answer soon, write nothing but its
one line, print nothing, and leave no file."""
import hashlib
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_tiny import bf16, write_safetensors  # noqa: E402

fhtool = sys.argv[1]
SLOW = bool(os.environ.get("FH_SANITIZER"))
failures = []
CONFIG = json.load(open("tiny/config.json"))
GENERATION = json.load(open("tiny/generation_config.json"))
TOKENIZER = json.load(open("tiny/tokenizer.json"))
IMAGE = open("tiny/model.safetensors", "rb").read()
SIZE = struct.unpack("<Q", IMAGE[:8])[0]
HEADER, DATA = json.loads(IMAGE[8:8 + SIZE]), IMAGE[8 + SIZE:]
HEAD = "model.embed_tokens.weight"
ARTIFACT = open("model.fhead", "rb").read()


def limits():
    if not SLOW:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def run(*args, stdin=None):
    p = subprocess.run([fhtool, *args], stdin=stdin or subprocess.DEVNULL, capture_output=True, timeout=60, preexec_fn=limits)
    return p.returncode, p.stdout.decode(errors="replace"), p.stderr.decode(errors="surrogateescape")


def check(what, args, status, pattern, within=2.0):
    began = time.monotonic()
    rc, out, err = run(*args)
    took = time.monotonic() - began
    wrong = []
    if rc != status:
        wrong.append(f"status {rc}, not {status}")
    if status and out:
        wrong.append("prints on standard output")
    lines = err.splitlines()
    if status and (not lines or not all(l.startswith("fhtool: ") for l in lines)):
        wrong.append("lines that are not ours, or none")
    if not re.search(pattern, err):
        wrong.append(f"no /{pattern}/")
    if any(ord(c) < 32 and c != "\n" or 0xDC80 <= ord(c) for c in err):
        wrong.append("control characters or broken UTF-8 in the message")
    if took > within * (20 if SLOW else 5):  # the machine may be busy
        wrong.append(f"took {took:.1f} s")
    if wrong:
        failures.append(f"{what}: {'; '.join(wrong)}: {err[-400:]!r}")


def checkpoint(config=CONFIG, generation=GENERATION, tokenizer=TOKENIZER, tensors=IMAGE, more=()):
    """A directory `bad` of these; a str or bytes is written as it is, None leaves the file out."""
    shutil.rmtree("bad", ignore_errors=True)
    os.mkdir("bad")
    for name, value in [("config.json", config), ("generation_config.json", generation), ("tokenizer.json", tokenizer), ("model.safetensors", tensors), *more]:
        if value is None:
            continue
        if isinstance(value, (dict, list)):
            value = json.dumps(value)
        with open(os.path.join("bad", name), "wb") as f:
            f.write(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))


def convert(what, status, pattern, within=2.0, **files):
    checkpoint(**files)
    shutil.rmtree("out", ignore_errors=True)
    check(what, ["convert", "bad", "-C", "out"], status, pattern, within)
    left = set(os.listdir("out")) if os.path.isdir("out") else set()
    if status and left - {"lock", "log.jsonl", "source.json"}:
        failures.append(f"{what}: leaves {left}")
    if not status and "model.json" not in left:
        failures.append(f"{what}: no result")


# ---- safetensors

def image(header, data=DATA):
    text = header if isinstance(header, bytes) else json.dumps(header).encode() if isinstance(header, dict) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def with_head(**changes):
    h = json.loads(json.dumps(HEADER))
    h[HEAD].update(changes)
    return image(h)


M = "model.safetensors"
plain = json.dumps(HEADER)
first = json.dumps(HEADER[HEAD])
rows, cols = HEADER[HEAD]["shape"]
end = len(DATA)
for n in (0, 1, 7, 8, 9):
    convert(f"{n} bytes", 1, f"bad/{M}: ", tensors=IMAGE[:n])
for n in (0, 1, SIZE - 1, len(IMAGE) - 7, 1 << 63, (1 << 64) - 1):
    convert(f"header length {n}", 1, f"bad/{M}: ", tensors=struct.pack("<Q", n) + IMAGE[8:])
convert("git-lfs pointer", 1, f"bad/{M}: .*git.lfs", tensors="version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
convert("zip", 1, f"bad/{M}: .*(zip|pickle|PyTorch)", tensors=b"PK\x03\x04" + bytes(100))
convert("html", 1, f"bad/{M}: .*HTML", tensors="<!DOCTYPE html><html><body>404</body></html>")
convert("gguf", 1, f"bad/{M}: .*GGUF", tensors=b"GGUF" + bytes(100))
for lead in (" ", "\ufeff", "\0"):
    convert(f"{lead!r} before the header", 1, f"bad/{M}: ", tensors=image(lead + plain))
convert("a name twice", 1, f"bad/{M}: .*{HEAD}", tensors=image(plain[:-1] + f', "{HEAD}": {first}}}'))
convert("a name twice, once escaped", 1, f"bad/{M}: .*{HEAD}", tensors=image(plain[:-1] + ', "\\u006dodel.embed_tokens.weight": ' + first + "}"))
convert("metadata twice", 1, f"bad/{M}: .*format", tensors=image(plain.replace('{"format": "pt"}', '{"format": "pt", "format": "pt"}')))
convert("metadata of a number", 1, f"bad/{M}: .*format", tensors=image(plain.replace('"pt"', "3")))
convert("overlap", 1, f"bad/{M}: .*", tensors=with_head(data_offsets=[0, rows * cols * 2 + 2]))
convert("hole", 1, f"bad/{M}: ", tensors=image(HEADER, bytes(2) + DATA))
convert("bytes after the last", 1, f"bad/{M}: .*{len(IMAGE) - SIZE - 8}|bad/{M}: ", tensors=IMAGE + b"\0")
convert("a byte short", 1, f"bad/{M}: .*run past the end of the file .*download complete", tensors=IMAGE[:-1])
convert("a page short", 1, f"bad/{M}: .*run past the end of the file .*download complete", tensors=IMAGE[:-4096])
for shape in ([1 << 63, 2], [rows, -cols], [rows, 64.5], [rows, "64"], [1 << 64, 1], [rows, None], rows * cols, [rows, [cols]], {}):
    convert(f"shape {shape}", 1, f"bad/{M}: .*{HEAD}", tensors=with_head(shape=shape))
convert("shape 1e3", 1, f"bad/{M}: .*{HEAD}", tensors=image(plain.replace(f'"shape": [{rows}, {cols}]', f'"shape": [3e2, {cols}]', 1)))
convert("thousands of dimensions", 1, f"bad/{M}: .*{HEAD}", tensors=with_head(shape=[1] * 5000))
for offsets in ([0], [0, 1, 2], [5, 1], [-1, 4], ["0", "4"], [0, 1 << 64], [1 << 63, (1 << 63) + 4], [0.5, 2], None):
    convert(f"offsets {offsets}", 1, f"bad/{M}: .*{HEAD}", tensors=with_head(data_offsets=offsets))
convert("unknown dtype of the head", 1, f"bad/{M}: .*{HEAD}.*Q3", tensors=with_head(dtype="Q3"))
convert("dtype of another size", 1, f"bad/{M}: .*{HEAD}", tensors=with_head(dtype="F32"))
convert("dtype missing", 1, f"bad/{M}: .*{HEAD}", tensors=image({**HEADER, HEAD: {"shape": [rows, cols], "data_offsets": [0, rows * cols * 2]}}))
convert("NUL in a name", 1, f"bad/{M}: ", tensors=image(plain.replace("model.norm.weight", "model.norm\\u0000.weight")))
convert("control characters in a name", 1, f"bad/{M}: .*", tensors=image(plain.replace('"model.norm.weight": {"dtype": "BF16"', '"\\u001b[31mred\\u0007": {"dtype": 5')))
convert("a name of a megabyte", 1, f"bad/{M}: ", tensors=image(plain.replace('"model.norm.weight": {"dtype": "BF16"', '"' + "n" * 1000000 + '": {"dtype": 5')))
convert("deep nesting", 1, f"bad/{M}: ", tensors=image('{"a": ' + "[" * 100000 + "]" * 100000 + "}"))
convert("no object", 1, f"bad/{M}: ", tensors=image("[1, 2]"))
convert("cut JSON", 1, f"bad/{M}: ", tensors=image(plain[:-5]))
convert("trailing text", 1, f"bad/{M}: ", tensors=image(plain + "x"))
empty = {f"e{i}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for i in range(20000)}
convert("twenty thousand empty tensors", 0, "", tensors=image({**HEADER, **empty}), within=6)
for value, word in ((0x7FC0, "finite"), (0x7F80, "finite"), (0xFF80, "finite")):
    at = (7 * cols + 3) * 2
    convert(f"head value {value:x}", 3, f"bad/{M}: tensor '{HEAD}': row 7 \\(token '.+'\\), column 3 is not finite", tensors=image(HEADER, DATA[:at] + struct.pack("<H", value) + DATA[at + 2:]))
twins = DATA[:9 * cols * 2] + DATA[5 * cols * 2:6 * cols * 2] + DATA[10 * cols * 2:]
convert("equal rows", 0, "warning: bad: 1 live rows equal an earlier one", tensors=image(HEADER, twins))
zeros = DATA[:9 * cols * 2] + bytes(cols * 2) + DATA[10 * cols * 2:]
convert("a zero row", 0, "14 dead rows", tensors=image(HEADER, zeros))
convert("all zero", 3, f"tensor '{HEAD}': every row is zero", tensors=image(HEADER, bytes(rows * cols * 2) + DATA[rows * cols * 2:]))
without = {k: v for k, v in HEADER.items() if k != "__metadata__"}
packed = json.loads(plain)
packed["lm_head.qweight"] = packed.pop(HEAD)
convert("a packed head", 1, f"bad/{M}: .*lm_head.qweight.*quantized", tensors=image(packed))
missing = json.loads(plain)
missing["something.else"] = missing.pop(HEAD)
convert("no head at all", 1, "bad: .*lm_head.weight", tensors=image(missing))
# Neither a directory, nor a pipe, nor a device in its place
for make, word in ((os.mkdir, "directory"), (os.mkfifo, "FIFO"), (lambda p: os.symlink("/dev/zero", p), ".*"), (lambda p: os.symlink("nowhere", p), ".*")):
    checkpoint(tensors=None)
    make(f"bad/{M}")
    check(f"{M} is a {word}", ["convert", "bad", "-C", "out"], 1, f"bad.*{word}")
checkpoint(tensors=None)
check("no tensors", ["convert", "bad", "-C", "out"], 1, "bad: .*safetensors")
checkpoint(tensors=None, more=[("pytorch_model.bin", b"PK\x03\x04")])
check("only pytorch_model.bin", ["convert", "bad", "-C", "out"], 1, "bad: .*safetensors")
with open("bad/model.safetensors", "wb") as f:  # as long as its header says, without using the disk
    f.write(struct.pack("<Q", 100000001))
    f.truncate(8 + 100000001)
check("a header past the limit", ["convert", "bad", "-C", "out"], 1, f"bad/{M}: .*100,?000,?000")

# ---- model.safetensors.index.json
I = "model.safetensors.index.json"
one, two = {}, {}
for i, (name, t) in enumerate(without.items()):
    (one if i % 2 else two)[name] = (t["dtype"], t["shape"], DATA[t["data_offsets"][0]:t["data_offsets"][1]])
write_safetensors("one", one), write_safetensors("two", two)
ONE, TWO = open("one", "rb").read(), open("two", "rb").read()
MAP = {**{n: "a.safetensors" for n in one}, **{n: "b.safetensors" for n in two}}


def index(what, status, pattern, weight_map, shards=None, raw=None):
    convert(what, status, pattern, tensors=None, more=[(I, raw or {"weight_map": weight_map}), *(shards if shards is not None else [("a.safetensors", ONE), ("b.safetensors", TWO)])])


other = next(iter(one))
index("two shards", 0, "", MAP)
shutil.copytree("out", "sharded", dirs_exist_ok=True)
for value in ("../a.safetensors", "/etc/passwd", "", ".", "..", "a\0b", "x/../../a", "missing.safetensors", 7, None, ["a.safetensors"]):
    index(f"weight_map to {value!r}", 1, f"bad/({I}|missing)", {**MAP, other: value})
index("in the other shard", 1, f"{re.escape(other)}", {**MAP, other: "b.safetensors"})
index("in two shards", 1, re.escape(other), MAP, [("a.safetensors", ONE), ("b.safetensors", image({**json.loads(TWO[8:8 + struct.unpack('<Q', TWO[:8])[0]]), other: {"dtype": "F32", "shape": [0], "data_offsets": [len(TWO) - 8 - struct.unpack('<Q', TWO[:8])[0]] * 2}}, TWO[8 + struct.unpack('<Q', TWO[:8])[0]:]))])
index("a tensor that the map does not list", 0, "warning: .*model.norm.weight" if "model.norm.weight" in MAP else "", {k: v for k, v in MAP.items() if k != "model.norm.weight"})
index("a shard that is cut", 1, "bad/b.safetensors: .*download", MAP, [("a.safetensors", ONE), ("b.safetensors", TWO[:-3])])
for raw in ("{}", '{"weight_map": []}', '{"weight_map": {}}', "", "{", '{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'):
    index(f"index {raw!r}", 1, f"bad/{I}: ", None, raw=raw or " ")
for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/etc/passwd", p), lambda p: os.symlink("../../../../../../etc/passwd", p)):
    checkpoint(tensors=None, more=[(I, {"weight_map": MAP}), ("b.safetensors", TWO)])
    make("bad/a.safetensors")
    check("a shard that is no file of the directory", ["convert", "bad", "-C", "out"], 1, "bad/a.safetensors")
os.makedirs("cache/blobs", exist_ok=True)  # as the Hub's cache has it
os.makedirs("cache/snapshots/1", exist_ok=True)
for name, data in (("config.json", json.dumps(CONFIG).encode()), ("model.safetensors", IMAGE), ("tokenizer.json", json.dumps(TOKENIZER).encode())):
    digest = hashlib.sha256(data).hexdigest()
    open(f"cache/blobs/{digest}", "wb").write(data)
    os.symlink(f"../../blobs/{digest}", f"cache/snapshots/1/{name}")
check("links into a cache's blobs", ["convert", "cache/snapshots/1", "-C", "out"], 0, "")

# ---- config.json
C = "bad/config.json"


def config(what, status, pattern, **changes):
    convert(what, status, pattern, config={k: v for k, v in {**CONFIG, **changes}.items() if v != "gone"})


config("fewer tokens than rows", 3, f"{C}: vocab_size is 299, but '{HEAD}' has 300 rows", vocab_size=299)
config("another width", 3, f"{C}: hidden_size is 128, but '{HEAD}' has 64 columns", hidden_size=128)
config("vocab_size null", 3, f"{C}: vocab_size is 32000, but", vocab_size=None)  # as if it were not there: the family's default
for value in (0, -1, 1 << 31, 300.0, 9007199254740993, "300", True, [300]):
    config(f"vocab_size {value!r}", 1, f"{C}: .*vocab_size", vocab_size=value)
config("tie_word_embeddings as text", 1, f"{C}: .*tie_word_embeddings", tie_word_embeddings="true")
for value in (300, -1, 1 << 40):
    config(f"eos {value}", 3, "(?i)eos|token id 300", eos_token_id=value)
for value in ([0, 1], None, 5):
    config(f"eos {value}", 0, "", eos_token_id=value)
config("quantized", 1, f"{C}: .*quantization_config", quantization_config={"quant_method": "gptq", "bits": 4})
config("no model_type", 1, f"{C}: .*model_type", model_type="gone")
text = json.dumps(CONFIG)
for what, raw in (("comment", "// hello\n" + text), ("trailing comma", text[:-1] + ",}"), ("NaN", text[:-1] + ', "x": NaN}'), ("UTF-16", text.encode("utf-16")), ("BOM", "\ufeff" + text),
                  ("empty", " "), ("cut", text[:50]), ("twice", text[:-1] + ', "vocab_size": 300}'), ("a list", "[]"), ("NUL", text + "\0"), ("01", text[:-1] + ', "x": 01}'),
                  ("1e999", text[:-1] + ', "x": 1e999}'), ("deep", '{"a":' * 5000 + "1" + "}" * 5000), ("two documents", text + text), ("lone surrogate", text[:-1] + ', "x": "\\ud800"}')):
    convert(f"config with {what}", 1, f"{C}: ", config=raw)
    if what in ("comment", "trailing comma", "NaN", "cut"):
        convert(f"config with {what}", 1, f"{C}: .*line \\d+, column \\d+", config=raw)
checkpoint(config=None)
check("no config", ["convert", "bad", "-C", "out"], 1, f"{C}: missing: is this a checkpoint directory")
check("no directory", ["convert", "nowhere", "-C", "out2"], 1, "nowhere")
check("an artifact instead of a checkpoint", ["convert", "model.fhead", "-C", "out2"], 1, "model.fhead")
# tied or not
both = {**{n: (t["dtype"], t["shape"], DATA[t["data_offsets"][0]:t["data_offsets"][1]]) for n, t in without.items()}}
both["lm_head.weight"] = both[HEAD]
write_safetensors("equal", both)
both["lm_head.weight"] = ("BF16", [rows, cols], bf16([0.25] * (rows * cols)))
write_safetensors("differ", both)
EQUAL, DIFFER = open("equal", "rb").read(), open("differ", "rb").read()
for tie, tensors, status, pattern in ((True, EQUAL, 0, ""), (True, DIFFER, 3, f"'lm_head.weight' and '{HEAD}' differ"), (False, DIFFER, 0, "warning: .*299|"), (False, EQUAL, 0, ""), (False, IMAGE, 0, "warning: .*the embedding '"),
                                      ("gone", EQUAL, 0, "")):
    convert(f"tie {tie}", status, pattern, tensors=tensors, config={k: v for k, v in {**CONFIG, "tie_word_embeddings": tie}.items() if v != "gone"})
convert("generation config cut", 1, "bad/generation_config.json: ", generation="{")
convert("generation config's eos", 3, "(?i)300", generation={"eos_token_id": [0, 300]})

# ---- tokenizer.json
T = "bad/tokenizer.json"


def tokenizer(what, status, pattern, change, **more):
    t = json.loads(json.dumps(TOKENIZER))
    change(t)
    convert(what, status, pattern, tokenizer=t, **more)


def put(path, value):
    def change(t):
        for step in path[:-1]:
            t = t[step]
        t[path[-1]] = value
    return change


tokenizer("a merge of an unknown token", 1, f"{T}: .*merge", lambda t: t["model"]["merges"].append("qqq zzz"))
tokenizer("two tokens with one id", 3, f"{T}: ", put(["model", "vocab", "the"], 1))
tokenizer("an id that is no number", 1, f"{T}: ", put(["model", "vocab", "the"], "5"))
tokenizer("a negative id", 1, f"{T}: ", put(["model", "vocab", "the"], -5))
tokenizer("a fractional id", 1, f"{T}: ", put(["model", "vocab", "the"], 5.5))
tokenizer("a hole", 0, "", lambda t: t["model"]["vocab"].pop(next(reversed(t["model"]["vocab"]))) and t["model"]["merges"].pop())
tokenizer("an id past the head", 0, "warning: bad: the tokenizer has 301 ids, the head 300 rows", lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": 300, "content": "<|far|>"}))
tokenizer("an added id of two billion", 1, f"{T}: ", lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": 2000000000, "content": "<|far|>"}))
tokenizer("merges that are no list", 1, f"{T}: .*merges", put(["model", "merges"], {}))
tokenizer("a model of another kind", 0, "warning: bad/tokenizer.json: .*Telepathy", put(["model", "type"], "Telepathy"))
tokenizer("a pre-tokenizer of another kind", 0, "warning: .*Telepathy", put(["pre_tokenizer"], {"type": "Telepathy"}))
for what, raw in (("cut", json.dumps(TOKENIZER)[:500]), ("empty", " "), ("a list", "[1]"), ("no model", "{}"), ("a key twice", json.dumps(TOKENIZER)[:-1] + ', "model": {}}')):
    convert(f"tokenizer {what}", 1, f"{T}: ", tokenizer=raw)
for what, raw in (("a lone surrogate in a token", "\\ud800"), ("half a pair in a token", "\\udc00x"), ("a surrogate as bytes", "\ud800"), ("a NUL in a token", "\\u0000"), ("NULs as bytes", "\x00"),
                  ("a line break in a token", "\n")):
    convert(what, 1, f"{T}: .*line [0-9]+, column [0-9]+", tokenizer=json.dumps(TOKENIZER).replace('"<|end|>"', f'"<|end|>{raw}"'))
tokenizer("a megabyte token", 0, "", lambda t: t["model"]["vocab"].update({"m" * (1 << 20): 287}))
few = json.loads(json.dumps(TOKENIZER))
far = json.loads(json.dumps(TOKENIZER))
few["model"]["vocab"] = {k: v for k, v in few["model"]["vocab"].items() if v < 200}
few["model"]["merges"] = [m for m in few["model"]["merges"] if (m if isinstance(m, str) else "".join(m)).replace(" ", "") in few["model"]["vocab"]]
checkpoint(tokenizer=few)
rc, out, err = run("convert", "bad", "-C", "out", "--json")
if rc or json.loads(out)["dead_rows"] < 80:
    failures.append(f"fewer tokens than rows: {rc} {out!r} {err!r}")
far["added_tokens"].append({**far["added_tokens"][0], "id": 300, "content": "<|far|>"})
checkpoint(tokenizer=far)
with open("far.txt", "w") as f:
    f.write("the end <|far|>\n")
check("text that encodes to an id past the head, run", ["run", "bad", "--prompt", "the <|far|>", "-n", "1"], 3, "token 300 .*300 rows")
check("text that encodes to an id past the head, perplexity", ["perplexity", "bad", "--text", "far.txt"], 3, "300")
run("convert", "bad", "-C", "out")
check("text that encodes to an id past the head, hidden", ["hidden", "-C", "out", "--text", "far.txt"], 3, "token 300, .*300 rows")
nasty = json.loads(json.dumps(TOKENIZER))
nasty["added_tokens"].append({**nasty["added_tokens"][0], "id": 287, "content": "\x1b[31m<script>\x07"})
at = (287 * cols + 1) * 2
convert("escapes in the token of a bad row", 3, r"row 287 \(token '\\x1b\[31m<script>\\x07'\)", tokenizer=nasty, tensors=image(HEADER, DATA[:at] + b"\xc0\x7f" + DATA[at + 2:]))
def regex(pattern):
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, TOKENIZER["pre_tokenizer"]]}
tokenizer("a regex that does not compile", 0, f"warning: {T}: .*parenthesis", put(["pre_tokenizer"], regex("(unclosed")))
slow = json.loads(json.dumps(TOKENIZER))
slow["pre_tokenizer"] = regex("(a+)+$|(x+x+)+y")
checkpoint(tokenizer=slow)
check("a regex that backtracks for ever", ["tokenize", "bad", "--text", "a" * 5000 + "b" + "x" * 5000], 1, "tokenizer.json|bad: ", within=4)
checkpoint(tokenizer=None)
check("no tokenizer is no fault", ["convert", "bad", "-C", "out"], 0, "")
check("but text needs one", ["tokenize", "bad", "--text", "a"], 1, "bad: .*tokenizer.json")
check("and so does calibration on text", ["hidden", "-C", "out", "--text", "tiny/config.json"], 1, "tokenizer.json")

# ---- .fhead

def fhead(what, data, pattern="", status=1, commands=(["inspect"], ["verify"], ["run", "--ids", "1,2", "-n", "2"])):
    with open("bad.fhead", "wb") as f:
        f.write(data)
    for command in commands:
        check(f"{what}: {command[0]}", [command[0], "bad.fhead", *command[1:]], status, "bad.fhead: " + pattern)


count, json_bytes, table_at, file_bytes = struct.unpack_from("<I", ARTIFACT, 12) + struct.unpack_from("<QQQ", ARTIFACT, 16)
SECTIONS = {}
for i in range(count):
    e = ARTIFACT[table_at + 128 * i:table_at + 128 * (i + 1)]
    SECTIONS[e[:32].rstrip(b"\0").decode()] = (table_at + 128 * i, *struct.unpack_from("<IIQQQI", e, 32))
assert file_bytes == len(ARTIFACT) and "head.permutation" in SECTIONS, "the layout is another one"


def sealed(data):
    """Digests made right again, so that what is behind them is judged."""
    data = bytearray(data)
    for at, codec, flags, offset, stored, raw, alignment in SECTIONS.values():
        data[at + 96:at + 128] = hashlib.sha256(data[offset:offset + stored]).digest()
    last = table_at + 128 * count
    data[64:96] = bytes(32)
    data[64:96] = hashlib.sha256(data[:last]).digest()
    return bytes(data)


assert sealed(ARTIFACT) == ARTIFACT, "digests are made otherwise"


def patched(at, fmt, *values):
    data = bytearray(ARTIFACT)
    struct.pack_into(fmt, data, at, *values)
    return bytes(data)


for n in (0, 1, 7, 8, 127, 128, 200, table_at, table_at + 100, 4096, 10000, len(ARTIFACT) - 4096, len(ARTIFACT) - 1):
    fhead(f"cut to {n} bytes", ARTIFACT[:n])
fhead("a byte more", ARTIFACT + b"\0")
fhead("a page more", ARTIFACT + bytes(4096))
fhead("a checkpoint", IMAGE)
fhead("text", b"hello\n")
for bit in range(0, 8 * (table_at + 128 * count), 211):  # of header and table: opening finds it
    data = bytearray(ARTIFACT)
    data[bit // 8] ^= 1 << bit % 8
    fhead(f"bit {bit} flipped", bytes(data), commands=(["inspect"],))
for name, (_, _, _, offset, stored, _, _) in SECTIONS.items():  # of the payload: verify does
    if stored:
        data = bytearray(ARTIFACT)
        data[offset + stored // 2] ^= 0x10
        with open("bad.fhead", "wb") as f:
            f.write(data)
        rc, out, err = run("verify", "bad.fhead")
        if rc not in (1, 3) or name not in err:
            failures.append(f"a bit of {name}: verify says {rc}: {err}")
        rc, out, err = run("run", "bad.fhead", "--ids", "1", "-n", "1", "--verify")
        if rc not in (1, 3) or out:
            failures.append(f"a bit of {name}: run --verify says {rc}: {err}")
        pad = offset + stored
        if pad % 4096 and pad < len(data):
            data = bytearray(ARTIFACT)
            data[pad] = 1
            fhead(f"padding after {name}", bytes(data), commands=(["verify"],))
fhead("a newer major", sealed(patched(8, "<H", 2)), "(version |.*)2\\.[0-9]")
for what, at, fmt, value in (("no sections", 12, "<I", 0), ("2^32-1 sections", 12, "<I", 0xFFFFFFFF), ("JSON past the end", 16, "<Q", 1 << 40), ("JSON of 2^64-1", 16, "<Q", (1 << 64) - 1),
                             ("table past the end", 24, "<Q", 1 << 40), ("table inside JSON", 24, "<Q", 192), ("another file size", 32, "<Q", len(ARTIFACT) + 1)):
    fhead(what, sealed(patched(at, fmt, value)) if "sections" not in what else patched(at, fmt, value))
for name in ("head.permutation", "head.tokens", "body.tensors"):
    at = SECTIONS[name][0]
    for what, where, fmt, value in (("offset misaligned", 40, "<Q", SECTIONS[name][3] + 64), ("offset past the end", 40, "<Q", 1 << 50), ("offset 2^64-4096", 40, "<Q", (1 << 64) - 4096),
                                    ("offset of the header", 40, "<Q", 0), ("size past the end", 48, "<Q", 1 << 50), ("raw size", 56, "<Q", 7), ("codec 9", 32, "<I", 9), ("alignment 3", 64, "<I", 3),
                                    ("another name", 0, "8s", b"head.xyz")):
        data = bytearray(ARTIFACT)
        struct.pack_into(fmt, data, at + where, value)
        data[64:96] = bytes(32)
        data[64:96] = hashlib.sha256(data[:table_at + 128 * count]).digest()
        fhead(f"{name}: {what}", bytes(data), commands=(["inspect"],) if name != "body.tensors" else (["verify"],))
V = 300
perm = SECTIONS["head.permutation"][3]
scales = SECTIONS["head.token_scales"][3]
for what, at, fmt, value, pattern in (("a token twice", perm, "<I", struct.unpack_from("<I", ARTIFACT, perm + 4)[0], ".*permutation"), ("a token past the vocabulary", perm, "<I", V, ".*permutation"),
                                      ("a gap", perm, "<I", 0xFFFFFFFF, ".*permutation"), ("a scale of NaN", scales + 40, "<f", float("nan"), ".*scale"), ("a scale of 0", scales + 40, "<f", 0.0, ".*scale"),
                                      ("a negative scale", scales + 40, "<f", -1.0, ".*scale"), ("an infinite scale", SECTIONS["head.centroid_scales"][3], "<f", float("inf"), ".*scale")):
    fhead(what, sealed(patched(at, fmt, value)), pattern, status=3)
tokenizer_at, offset, stored = SECTIONS["body.tokenizer"][0], SECTIONS["body.tokenizer"][3], SECTIONS["body.tokenizer"][4]
for raw in (SECTIONS["body.tokenizer"][5] - 1, SECTIONS["body.tokenizer"][5] + 1, 1, 1 << 40):
    fhead(f"zstd section of {raw}", sealed(patched(tokenizer_at + 56, "<Q", raw)), commands=(["verify"], ["run", "--prompt", "a", "-n", "1"]))
fhead("zstd section of noise", sealed(ARTIFACT[:offset] + bytes(i * 7 % 256 for i in range(stored)) + ARTIFACT[offset + stored:]), commands=(["verify"], ["run", "--prompt", "a", "-n", "1"]))


def with_json(old, new):
    """The same length, so that offsets stay: spaces fill."""
    text = ARTIFACT[128:128 + json_bytes]
    assert old.encode() in text, old
    new = text.replace(old.encode(), new.encode(), 1)
    assert len(new) <= len(text)
    new += b" " * (len(text) - len(new))
    return sealed(ARTIFACT[:128] + new + ARTIFACT[128 + json_bytes:])


head = json.loads(ARTIFACT[128:128 + json_bytes])
for what, old, new, status, pattern in (("requires something", '"requires":[],"tool":"fhtool', '"requires":["warp"],"tool":"', 1, ".*warp"),
                                        ("a cap of another size", '"cap":17', '"cap":16', None, ""), ("probes past K", f'"probes":{head["head"]["probes"]},', '"probes":99,' if head["head"]["probes"] > 9 else '"probes":0,', None, ""),
                                        ("another vocabulary", '"vocab":300', '"vocab":299', None, ""), ("a hidden size", '"hidden":64', '"hidden":63', None, ""), ("softcap", '"softcap":0', '"softcap":-', 1, ""),
                                        ("an encoding nobody knows", '"encoding":"int8"', '"encoding":"int9"', 1, ".*int9"), ("a layout nobody knows", '"layout":"rows"', '"layout":"cols"', 1, ".*cols"),
                                        ("a transform nobody knows", '"transform":"none"', '"transform":"spin"', 1, ".*spin")):
    if old not in ARTIFACT[128:128 + json_bytes].decode():
        continue
    with open("bad.fhead", "wb") as f:
        f.write(with_json(old, new))
    rc, out, err = run("inspect", "bad.fhead")
    if rc not in ((1, 3) if status is None else (status,)) or not re.search("bad.fhead: " + pattern, err) or out:
        failures.append(f"{what}: {rc}: {err}")
for make in (os.mkfifo, os.mkdir):
    os.path.exists("odd.fhead") and os.unlink("odd.fhead")
    make("odd.fhead")
    for c in (["inspect", "odd.fhead"], ["verify", "odd.fhead"], ["query", "odd.fhead", "--hidden", "work/states.safetensors"]):
        check("no regular file", c, 1, "odd.fhead: ")
# one of our files under another name, states of another model
check("states as an artifact", ["inspect", "work/states.safetensors"], 1, "work/states.safetensors: ")
check("an artifact as states", ["query", "model.fhead", "--hidden", "model.fhead"], 1, "model.fhead: ")
check("a checkpoint asked for its FlashHead", ["run", "tiny", "--ids", "1", "--head", "flash"], 2, "tiny: is a checkpoint, which has no FlashHead")
check("a checkpoint as an artifact", ["query", "tiny", "--hidden", "work/states.safetensors"], 1, "tiny")
left = [f for d, _, files in os.walk(".") for f in files if f.endswith(".tmp")]
if left:
    failures.append(f"left: {left}")
for f in failures:
    print(f[:900])
sys.exit(bool(failures))
