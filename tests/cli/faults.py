"""faults.py FHTOOL: run every command with its n-th allocation or write failing, in a directory with tiny, work and model.fhead.

A sample of n is tried; FH_LONG=1 tries every one.  FHTOOL is a build with FH_FAULTS."""
import json
import os
import random
import re
import shutil
import subprocess
import sys

fhtool = sys.argv[1]
LONG = bool(os.environ.get("FH_LONG"))
SAMPLES = 10
rng = random.Random(5)
TIMES = re.compile(r'"(seconds|total_seconds|peak_bytes|[a-z]*_seconds|[a-z]*_gflops|tokens_per_second|head_share)":[-+0-9.e]+')
SAID = re.compile(r"memory|cannot (write|create|put it in place|open)|standard output|No space|Input/output")
failures = []

# what must not change, or change to exactly what an undisturbed run makes: files, by command
RESULTS = ["head.safetensors", "model.json", "source.json", "states.safetensors", "clusters.safetensors", "routing.safetensors", "quantized.safetensors",
           "calibration.json"]
PROMISE = ["--target-containment", "0.7", "--tokens", "1000"]
COMMANDS = [
    ["convert", "tiny", "-C", "work"],
    ["hidden", "-C", "work", "--text", "text.txt"],
    ["cluster", "-C", "work"],
    ["route", "-C", "work", "--routing", "weighted"],
    ["route", "-C", "work", "--moves", "2"],
    ["quantize", "-C", "work"],
    ["calibrate", "-C", "work", *PROMISE],
    ["pack", "-C", "work", "-o", "out.fhead"],
    ["pack", "-C", "work", "-o", "out.fhead", "--head-only"],
    ["build", "tiny", "-C", "fresh", "-o", "out.fhead", *PROMISE],
    ["status", "-C", "work"],
    ["inspect", "model.fhead"],
    ["verify", "model.fhead"],
    ["run", "model.fhead", "--prompt", "the king", "-n", "5"],
    ["run", "model.fhead", "--ids", "1,2,3", "-n", "5", "--temperature", "1", "--top-k", "5"],
    ["query", "model.fhead", "--hidden", "some.safetensors", "--top-k", "4"],
    ["query", "model.fhead", "--hidden", "some.safetensors", "--curve", "1,4"],
    ["query", "model.fhead", "--hidden", "some.safetensors", "--dense"],
    ["perplexity", "model.fhead", "--text", "text.txt", "--window", "64", "--head", "flash"],
    ["hidden", "tiny", "--text", "text.txt", "--window", "16", "--logits", "-o", "out.safetensors"],
    ["validate", "plain.fhead", "--model", "tiny", "--hidden", "some.safetensors", "--report", "out.html", "--anatomy-positions", "64"],
    ["validate", "plain.fhead", "--text", "self", "--tokens", "200", "--no-anatomy", "-n", "3", "--n-prompts", "2", "--last-words", "text.txt"],
    ["tokenize", "tiny", "--batch", "lines.jsonl"],
    ["detokenize", "model.fhead", "--batch", "ids.jsonl"],
    ["publish", "model.fhead", "--to", "fresh", "--name", "n", "--version", "1", "--base-model", "b", "--license", "mit", "--oci"],
    ["list", "registry"],
    ["fetch", "registry", "n", "-o", "got"],
    ["verify", "registry/n/1"],
    ["rebuild", "registry/n/1/recipe.json", "--model", "tiny", "-C", "fresh", "-o", "out.fhead"],
    ["diff", "model.fhead", "registry/n/1", "--hidden", "some.safetensors"],
    ["build", "big", "--for", "vllm", "-C", "fresh", "-o", "out.fhead", "--target-containment", "0.3", "--tokens", "1000"],
    ["export", "--format", "vllm", "plugin.fhead", "--model", "big", "-o", "out"],
    ["export", "--format", "vllm", "plugin.fhead", "--model", "big", "-o", "out", "--link", "sym"],
    ["import", "--format", "vllm", "exported", "-C", "fresh"],
    ["verify", "exported"],
    ["query", "plugin.fhead", "--hidden", "some.safetensors", "--for", "vllm"],
] + ([["bench", "model.fhead", "--runs", "10"]] if LONG else [])


def run(command, fault=None):
    env = dict(os.environ)
    if fault:
        env["FH_FAULT"] = fault
    p = subprocess.run([fhtool, *command, "--threads", "2", *([] if command[0].endswith("tokenize") else ["--json"]), "-q"], env=env, capture_output=True, timeout=60)
    return p.returncode, TIMES.sub("", p.stdout.decode(errors="replace")), p.stderr.decode(errors="replace")


def contents(command):
    paths = ["out.fhead", "out.safetensors", "out.html", "fresh/index.json", "fresh/n/1/SHA256SUMS", "got/SHA256SUMS", "got/n.fhead", *(os.path.join(d, f) for d, _, files in os.walk("out") for f in files),
             *(os.path.join(d, f) for d in ("work", "fresh") for f in RESULTS)]
    return {p: open(p, "rb").read() for p in paths if os.path.exists(p)}


def restore(command):
    """The state before the command: out.* are old, work is as built."""
    for path in ("work", "fresh", "got", "out", *(f for f in os.listdir(".") if f.endswith(".part"))):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree("pristine", "work")
    for path in ("out.fhead", "out.safetensors", "out.html"):
        open(path, "w").write("old")


def attempt(command, kind, n, right, said, before):
    restore(command)
    what = f"FH_FAULT={kind}:{n} fhtool {' '.join(command)}"
    rc, out, err = run(command, f"{kind}:{n}")
    after = contents(command)
    if rc not in (0, 1):
        failures.append(f"{what}: status {rc}: {err[-300:]}")
        return
    left = [f for d in (".", "work", "fresh") if os.path.isdir(d) for f in os.listdir(d) if f.endswith(".tmp")]
    if left:
        failures.append(f"{what}: left {left}")
    if rc == 1:
        lines = err.splitlines()
        if not lines or any(not l.startswith("fhtool: ") for l in lines) or not SAID.search(lines[-1]):
            failures.append(f"{what}: says {err[-300:]!r}")
        # every file is as it was or as it is to be: never something between
        for path, data in after.items():
            if data != before.get(path) and data != right.get(path) and "calibration" not in path:
                failures.append(f"{what}: {path} is neither the old nor the new one")
        if command[0] not in ("tokenize", "detokenize") and out.strip() and out != said:
            failures.append(f"{what}: fails, and prints {out[:100]!r}")
    else:
        for path, data in right.items():
            if after.get(path) != data:
                failures.append(f"{what}: succeeds, but {path} is another")
        if command[0] != "bench" and out != said:
            failures.append(f"{what}: succeeds, but prints {out[:300]!r} instead of {said[:300]!r}")
    if rc == 1 and (command[0] in ("build", "calibrate", "convert", "pack") or n % 5 == 0):
        rc, out, err = run(command)
        if rc != 0 or contents(command) != right:
            failures.append(f"{what}: afterwards the same command ends with {rc} ({err[-200:]}), results {'right' if contents(command) == right else 'wrong'}")
    return rc


subprocess.run([fhtool, "hidden", "tiny", "--text", "text.txt", "--window", "16", "--tokens", "160", "-o", "some.safetensors", "-q"], check=True, stdout=subprocess.DEVNULL)
for words in (["convert", "tiny", "-C", "bare"], ["pack", "-C", "bare", "-o", "plain.fhead"]): # one that promises nothing
    subprocess.run([fhtool, *words, "-q"], check=True, stdout=subprocess.DEVNULL)
shutil.copytree("work", "pristine")
subprocess.run([fhtool, "publish", "model.fhead", "--to", "registry", "--name", "n", "--version", "1", "--base-model", "b", "--license", "mit", "-q"], check=True, stdout=subprocess.DEVNULL)
for command in COMMANDS:
    restore(command)
    before = contents(command)
    rc, said, err = run(command)
    assert rc == 0, f"{command}: {err}"
    right = contents(command)
    for kind in ("alloc", "write"):
        most = 1
        while True:  # the first power of two past the last one
            restore(command)
            rc, out, err = run(command, f"{kind}:{most}")
            if rc == 0 and (kind == "write" or most > 8):
                restore(command)
                rc2, _, _ = run(command, f"{kind}:{most * 2}")
                if rc2 == 0:
                    break
            most *= 2
            assert most < 1 << 30
        if LONG or most <= SAMPLES:
            numbers = range(1, most + 1)
        else:
            numbers = sorted({1, 2, 3, *(rng.randrange(1, most) for _ in range(SAMPLES - 6)), *(int(most ** rng.random()) for _ in range(4))})
        for n in numbers:
            attempt(command, kind, n, right, said, before)
for f in failures:
    print(f[:700])
sys.exit(bool(failures))
