#!/usr/bin/env python3
"""The independent reader against the golden .fhead files, and against what fhtool packs.  TAP; needs the standard library alone."""
import json, os, subprocess, sys, tempfile
top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
golden = [os.path.join(top, 'tests/golden', d) for d in ('fhead-1.0', 'fhead-1.1')]
reader = [sys.executable, os.path.join(top, 'tests/fhead_reader.py'), '--verify']
fhtool = os.environ.get('FHTOOL') or os.path.join(top, 'build/fhtool')
n = bad = 0


def check(what, ok):
    global n, bad
    n += 1; bad += not ok
    print(('ok' if ok else 'not ok'), n, '-', what)


for d in golden:
    for case in json.load(open(os.path.join(d, 'expected.json'))):
        r = subprocess.run(reader + [os.path.join(d, case['file'])], capture_output=True, text=True)
        check('the reader judges %s as the document says' % case['file'], (r.returncode == 0) == (case['status'] == 'FH_OK'))
with tempfile.TemporaryDirectory() as w:
    f = os.path.join(w, 'm.fhead')
    for args in (['convert', top + '/demo/prose-7m', '-C', w + '/w'], ['cluster', '-C', w + '/w', '--cap', '24', '--rounds', '1'], ['pack', '-C', w + '/w', '-o', f]):
        subprocess.run([fhtool, *args, '-q'], check=True, stdout=subprocess.DEVNULL)
    def judged(f):
        r = subprocess.run(reader + [f], capture_output=True, text=True)
        theirs = json.loads(r.stdout.splitlines()[0]) if r.stdout else {}
        check('the reader accepts what fhtool packs', r.returncode == 0 and 'error' not in theirs)
        return theirs

    ours = json.loads(subprocess.run([fhtool, 'inspect', f, '--json'], check=True, capture_output=True, text=True).stdout)
    theirs = judged(f)
    check('and reads the same K, cap, rerank and digest', all(ours[k] == theirs.get(k) for k in ('k', 'cap', 'rerank', 'digest')))
    subprocess.run([fhtool, 'quantize', '-C', w + '/w', '--centroids', 'int4', '--tokens', 'int4', '-q'], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([fhtool, 'pack', '-C', w + '/w', '-o', f, '-q'], check=True, stdout=subprocess.DEVNULL)
    theirs = judged(f)
    check('int4 rows among them', theirs.get('centroids') == theirs.get('tokens') == 'int4' and theirs.get('rerank') == 32)
print('1..%d' % n)
sys.exit(bool(bad))
