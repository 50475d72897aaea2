"""interrupted.py FHTOOL MODEL: signals and sudden death, in the current directory.

Kills `build` at seeded random moments (FH_LONG=1: at many more), and checks after each that every file under a final name is
whole, that the same command completes, and that it gives the bytes of an undisturbed run."""
import glob
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

fhtool, model = sys.argv[1:3]
LONG = bool(os.environ.get("FH_LONG"))
FLAGS = ["--tokens", "6000", "--target-containment", "0.9", "--moves", "1", "--threads", "2", "-q"]
rng = random.Random(20260101)


def start(*args, **more):
    def defaults():  # a shell starts what stands in the background with INT ignored
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_DFL)
    return subprocess.Popen([fhtool, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=more.pop("preexec_fn", defaults), **more)


def ready(p, sig=signal.SIGTERM):
    """Wait until the program catches the signal: before that moment it ends by it, with nothing done."""
    until = time.monotonic() + 60
    while p.poll() is None and time.monotonic() < until:
        with open(f"/proc/{p.pid}/status") as f:
            caught = next((int(line.split()[1], 16) for line in f if line.startswith("SigCgt:")), 0)
        if caught >> (sig - 1) & 1:
            return
        time.sleep(0.001)
    assert p.poll() is None, f"ended by itself with {p.returncode}: {p.communicate()}"
    raise AssertionError("never ready for signals")


def after_results(p, work, n):
    """Wait until n results have their final names, or the end."""
    until = time.monotonic() + 60
    while p.poll() is None and time.monotonic() < until and len([f for f in glob.glob(work + "/*") if f.endswith((".json", ".safetensors"))]) < n:
        time.sleep(0.001)


def run(*args):
    p = start(*args)
    out, err = p.communicate(timeout=300)
    return p.returncode, out.decode(), err.decode()


def build(work, out):
    return "build", model, "-C", work, "-o", out, *FLAGS


def digests(work):
    """Of every result; each of them must be whole."""
    found = {}
    for name in sorted(os.listdir(work)):
        path = os.path.join(work, name)
        data = open(path, "rb").read()
        if name.endswith(".safetensors") and not name.startswith("."):
            size = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8:8 + size])
            assert "fhtool" in header["__metadata__"], f"{path}: no record"
            assert max(t["data_offsets"][1] for k, t in header.items() if k != "__metadata__") == len(data) - 8 - size, f"{path} is not whole"
        elif name.endswith(".json") and not name.startswith("."):
            json.loads(data)
        else:
            continue
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def leftovers(where="."):
    return [os.path.join(d, f) for d, _, files in os.walk(where) for f in files if f.endswith(".tmp")]


# ---- an undisturbed run
began = time.monotonic()
rc, _, err = run(*build("first", "first.fhead"))
whole = time.monotonic() - began
assert rc == 0, err
right, artifact = digests("first"), open("first.fhead", "rb").read()

# ---- kill -9
reached = set()
for round_ in range(400 if LONG else 16):
    shutil.rmtree("work", ignore_errors=True)
    if os.path.exists("work.fhead"):
        os.unlink("work.fhead")
    for hit in range(rng.choice([1, 1, 2, 3])):
        p = start(*build("work", "work.fhead"))
        if round_ % 2:  # by what is done: moments that differ, however busy the machine is
            after_results(p, "work", rng.randrange(len(right)))
            time.sleep(rng.random() * 0.02)
        else:
            time.sleep(rng.random() * whole)
        p.kill()
        p.communicate()
    if os.path.isdir("work"):
        there = digests("work")
        reached.add(len(there))
        for name, digest in there.items():
            assert digest == right[name], f"round {round_}: {name} differs after kill -9"
    if os.path.exists("work.fhead"):
        assert open("work.fhead", "rb").read() == artifact, f"round {round_}: half an artifact"
    rc, _, err = run(*build("work", "work.fhead"))
    assert rc == 0, f"round {round_}: after kill -9: {err}"
    assert digests("work") == right and open("work.fhead", "rb").read() == artifact, f"round {round_}: other bytes after kill -9"
    assert not leftovers("work"), leftovers("work")
    for f in leftovers():  # beside the artifact: nobody else's business to remove, but nobody may read it either
        os.unlink(f)
assert len(reached) >= 2, f"the moments do not differ: {reached}"

# Another model in the directory of the first, killed while it takes over
other = model + "-other"
subprocess.check_call([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "make_tiny.py"), other, "--seed", "2"])
for round_ in range(60 if LONG else 6):
    p = start("convert", other, "-C", "work", "-q")
    time.sleep(rng.random() * whole / 6)
    p.kill()
    p.communicate()
    rc, _, err = run(*build("work", "work.fhead"))
    assert rc == 0, err
    assert digests("work") == right and open("work.fhead", "rb").read() == artifact, "two models mixed"

# ---- INT, TERM, HUP: status 130, one line, nothing half-written, the old artifact intact
for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * (10 if LONG else 2):
    shutil.rmtree("work")
    open("work.fhead", "wb").write(b"old")
    p = start(*build("work", "work.fhead"), "--rounds", "50")
    ready(p, sig)
    time.sleep(rng.uniform(0.1, 0.9) * whole)
    p.send_signal(sig)
    _, err = p.communicate(timeout=300)
    err = err.decode()
    assert p.returncode in (130, 0), f"{sig}: status {p.returncode}: {err}"
    assert not leftovers(), leftovers()
    if p.returncode == 130:
        assert open("work.fhead", "rb").read() == b"old"
        assert err.startswith("fhtool: ") and err.count("\n") == 1 and "interrupted" in err, err
        digests("work")
    rc, _, err = run(*build("work", "work.fhead"))
    assert rc == 0 and digests("work") == right and open("work.fhead", "rb").read() == artifact, f"after {sig}: {err}"


# Long work stops soon, in every command that has some: soon in processor time, what its threads still use after the signal, since on a busy machine it may wait
# long for its turn. The clock is asked only whether it sleeps for ever.
def used_by(p):
    with open(f"/proc/{p.pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime + stime, of all threads


def used_by_ended():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stops(*args, after=0.3, within=3.0, stdin=None):
    earlier = used_by_ended()
    p = start(*args, "--threads", "2", stdin=stdin)
    ready(p, signal.SIGINT)
    time.sleep(after)
    assert p.poll() is None, f"{args} ended by itself with {p.returncode}: {p.communicate()}"
    before = used_by(p)
    p.send_signal(signal.SIGINT)
    try:
        _, err = p.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        p.kill()
        raise
    used = used_by_ended() - earlier - before
    assert p.returncode == 130, f"{args}: status {p.returncode}: {err.decode()}"
    assert used < within * (10 if os.environ.get("FH_SANITIZER") else 1), f"{args}: used {used:.1f} s of processor time after the signal"
    assert not leftovers(), leftovers()


open("long.txt", "w").write("the king and the queen of the land " * 100000)
stops("hidden", "-C", "work", "-q", "--text", "self", "--tokens", "3000000")
stops("hidden", "-C", "work", "-q", "--text", "long.txt", "--tokens", "3000000", "--window", "64")
stops("perplexity", "work.fhead", "--text", "long.txt", "--window", "64", "--stride", "1")
stops("run", "work.fhead", "--ids", "1,2", "-n", "10000000", "--ignore-eos", "--temperature", "1") if LONG else None
read, write = os.pipe()
stops("run", "work.fhead", "--prompt", "-", stdin=read)
stops("tokenize", model, "--batch", "-", stdin=read)
stops("perplexity", "work.fhead", "--text", "-", stdin=read)
stops("hidden", "-C", "work", "-q", "--text", "-", stdin=read)
os.mkfifo("pipe")
stops("perplexity", "work.fhead", "--text", "pipe")
os.close(read), os.close(write)
assert run(*build("work", "work.fhead"))[0] == 0 and digests("work") == right

# The second signal ends it at once, whatever it does
p = start("perplexity", "work.fhead", "--text", "long.txt", "--window", "64", "--stride", "1")
ready(p)
time.sleep(0.3)
p.send_signal(signal.SIGTERM)
p.send_signal(signal.SIGTERM)
p.communicate(timeout=120)
assert p.returncode in (130, -signal.SIGTERM), p.returncode

# nohup: who has hanging up ignored goes on
p = start("hidden", "-C", "work", "-q", "--text", "self", "--tokens", "20000", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
ready(p)
p.send_signal(signal.SIGHUP)
p.communicate(timeout=300)
assert p.returncode == 0, f"nohup: status {p.returncode}"

# ---- two runs in one directory: one is told who holds the lock, the other goes on
shutil.rmtree("work")
first = start("build", model, "-C", "work", "-o", "a.fhead", "--tokens", "3000000", "--target-containment", "0.9", "-q")
for _ in range(1000):
    if os.path.exists("work/lock") and open("work/lock").read().strip():
        break
    time.sleep(0.005)
for command in (["build", model, "-C", "work", "-o", "b.fhead", "-q"], ["convert", model, "-C", "work"], ["pack", "-C", "work", "-o", "b.fhead"]):
    rc, out, err = run(*command)
    assert first.poll() is None, "too quick for this test"
    assert rc == 1 and not out and f"work/lock: process {first.pid} holds the lock" in err and err.count("\n") == 1, f"{command}: status {rc}: {err}"
first.send_signal(signal.SIGTERM)
first.communicate(timeout=300)
assert first.returncode == 130 and not os.path.exists("b.fhead")
rc, _, err = run(*build("work", "work.fhead"))  # the lock of one that is gone holds nobody up
assert rc == 0, err
# Both at once, many times over: never a mixture
for _ in range(6):
    shutil.rmtree("work", ignore_errors=True)
    both = [start(*build("work", f"{i}.fhead")) for i in range(2)]
    codes = [(p.communicate(timeout=300)[1].decode(), p.returncode) for p in both]
    assert any(c == 0 for _, c in codes), codes
    for i, (err, code) in enumerate(codes):
        assert code == 0 or (code == 1 and "holds the lock" in err), codes
        if code == 0:
            assert open(f"{i}.fhead", "rb").read() == artifact
    assert digests("work") == right
