"""vllm_killed.py FHTOOL: kill -9, and at times a signal to stop, during export at seeded moments, where tiny and
model.fhead are; with and without an older export in its place."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time

fhtool = sys.argv[1]
rng = random.Random(11)
command = [fhtool, "export", "--format", "vllm", "model.fhead", "--model", "tiny", "-o", "killed/out", "-q"]


def listing():
    paths = [os.path.join(d, f) for d, _, files in os.walk("killed/out") for f in files]
    return sorted((os.path.relpath(path, "killed/out"), open(path, "rb").read()) for path in paths)


os.mkdir("killed")
begun = time.monotonic()
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
took = time.monotonic() - begun
right = listing()
died = 0
for i in range(60 if os.environ.get("FH_LONG") else 16):
    old = i % 2
    if not old:
        shutil.rmtree("killed/out", ignore_errors=True)
    elif not os.path.exists("killed/out"):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(took * rng.random())
    politely = i % 4 == 2
    p.send_signal(signal.SIGTERM if politely else signal.SIGKILL)
    died += p.wait() == -signal.SIGKILL
    assert not politely or p.returncode in (0, 130, -signal.SIGTERM), f"kill {i}: status {p.returncode}"  # -: before there was anything to undo
    assert listing() == right or (not old and not os.path.exists("killed/out")), f"kill {i}: something half-made"
    if i % 4 == 3:
        r = subprocess.run(command, capture_output=True, text=True)
        assert r.returncode == 0 and listing() == right, f"kill {i}: afterwards: {r.stderr}"
        assert os.listdir("killed") == ["out"], f"kill {i}: left {os.listdir('killed')}"
assert died, "nothing was killed in time"
