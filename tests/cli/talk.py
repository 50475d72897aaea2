"""talk.py FHTOOL MODEL: signals in a conversation.  INT ends a reply and not the program; a second one, or one at the prompt, ends it."""
import os
import signal
import subprocess
import sys
import time

fhtool, model = sys.argv[1:3]
if not os.path.exists(os.path.join(model, "model.safetensors")):
    print(f"# {model} is not there: no signals are tried")
    sys.exit(0)

# A reply takes seconds: plain C, and every token drawn from a sorted vocabulary.
SLOW = ["--threads", "1", "--temperature", "1"]
os.environ["FH_ISA"] = "ref"


def start():
    def defaults():  # a shell starts what stands in the background with INT ignored
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_DFL)
    return subprocess.Popen([fhtool, "run", model, "-i", "--chat-template", "raw", "--ignore-eos", "-n", "100000", *SLOW],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=defaults)


def say(p, text):
    p.stdin.write(text)
    p.stdin.flush()


def until_it_speaks(p):
    assert os.read(p.stdout.fileno(), 64), p.stderr.read()


def until_it_is_silent(p):
    """Everything up to a pause after a line break: the reply has ended.  On a busy machine a pause alone may be anything."""
    os.set_blocking(p.stdout.fileno(), False)
    last, out, until = time.monotonic(), b"", time.monotonic() + 30
    while time.monotonic() - last < 0.5 or (not out.endswith(b"\n") and time.monotonic() < until):
        try:
            more = os.read(p.stdout.fileno(), 65536)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        if more:
            out, last = out + more, time.monotonic()
    os.set_blocking(p.stdout.fileno(), True)
    return out


def ends(p, code):
    _, err = p.communicate(timeout=60)
    assert p.returncode == code, f"status {p.returncode}, not {code}: {err.decode()}"
    return err.decode()


# A reply ended, the next one given and ended too, then the end of input
p = start()
for _ in range(2):
    say(p, b"It was the best of times\n")
    until_it_speaks(p)
    p.send_signal(signal.SIGINT)
    assert until_it_is_silent(p).endswith(b"\n"), "the reply is not ended by a line break"
    assert p.poll() is None, "INT ended the program"
assert ends(p, 0) == ""
# At the prompt
p = start()
say(p, b"It was\n")
until_it_speaks(p)
p.send_signal(signal.SIGINT)
until_it_is_silent(p)
p.send_signal(signal.SIGINT)
assert ends(p, 130) == "fhtool: interrupted\n"
# TERM in a reply; HUP at the prompt
p = start()
say(p, b"It was\n")
until_it_speaks(p)
p.send_signal(signal.SIGTERM)
assert ends(p, 130) == "fhtool: interrupted\n"
p = start()
time.sleep(0.5)
p.send_signal(signal.SIGHUP)
p.wait(timeout=60)
assert p.returncode in (130, -signal.SIGHUP), p.returncode  # asked before it could take signals: ended all the same
# Once without a conversation, as before
p = subprocess.Popen([fhtool, "run", model, "--prompt", "It was", "--ignore-eos", "-n", "100000", *SLOW, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                     preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
time.sleep(0.3)
p.send_signal(signal.SIGINT)
out, err = p.communicate(timeout=60)
assert p.returncode in (0, 130, -signal.SIGINT), (p.returncode, err)
# Standard output closed on the way
p = subprocess.Popen([fhtool, "run", model, "--prompt", "It was", "--ignore-eos", "-n", "100000", *SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
until_it_speaks(p)
p.stdout.close()
err = p.stderr.read().decode()
assert p.wait(timeout=60) == 1 and err.startswith("fhtool: standard output: "), (p.returncode, err)
