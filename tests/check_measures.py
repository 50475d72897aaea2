#!/usr/bin/env python3
"""Containment, agreement, covered mass and KL of the demo model, recomputed from the bytes of an artifact and the definitions (DESIGN 2, runtime/kernels.h), against what
`query --curve`, `calibrate` and `run --audit` say: shares of positions to the last count, mass and KL to float32's rounding.  TAP; needs numpy."""
import json, os, subprocess, sys, tempfile
import numpy as np
top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(top, 'tests'))
import fhead_reader
fhtool = os.environ.get('FHTOOL') or os.path.join(top, 'build/fhtool')
n = bad = 0
N, K, PROBES = 1500, 1024, (1, 3, 8, 16, 30, 64, 200, 1024)


def check(what, ok, said=''):
    global n, bad
    n += 1; bad += not ok
    print(('ok' if ok else 'not ok'), n, '-', what, said)


def call(*args):
    r = subprocess.run([fhtool, *map(str, args), '-q'], capture_output=True, text=True)
    if r.returncode: sys.exit('not ok 1 - %s: %s' % (args[0], r.stderr))
    return r.stdout


def bf16(b): return (b.astype(np.uint32) << 16).view(np.float32)


def tensors(path):
    b = open(path, 'rb').read()
    size = int.from_bytes(b[:8], 'little')
    types = {'F32': np.float32, 'U32': np.uint32, 'U8': np.uint8}
    return {k: np.frombuffer(b[8 + size + v['data_offsets'][0]:8 + size + v['data_offsets'][1]], types[v['dtype']]).reshape(v['shape'])
            for k, v in json.loads(b[8:8 + size]).items() if k != '__metadata__'}


class Head:
    """int8 centroids and rows, bf16 exact rows, of a .fhead."""
    def __init__(self, path):
        b = open(path, 'rb').read()
        header, sections, _ = fhead_reader.read_header(b)
        m, h = header['model'], header['head']
        self.V, self.D, self.K, self.cap, self.R, self.P, self.header = m['vocab'], m['hidden'], h['k'], h['cap'], h['rerank'], h['probes'], header
        assert h['centroids']['encoding'] == h['tokens']['encoding'] == 'int8' and m['dtype'] == 'bf16' and not sections['head.dead']['bytes']
        part = lambda name, t: np.frombuffer(b, t, sections[name]['bytes'] // np.dtype(t).itemsize, sections[name]['offset'])
        self.perm = part('head.permutation', np.uint32).astype(int)
        rows = lambda name, t, r: part(name, t).reshape(r, -1)[:, :self.D]
        self.C, self.cs = rows('head.centroids', np.int8, self.K).astype(float), part('head.centroid_scales', np.float32).astype(float)
        self.T, self.ts = rows('head.tokens', np.int8, self.K * self.cap).astype(float), part('head.token_scales', np.float32).astype(float)
        self.slot = np.empty(self.V, int); filled = self.perm != 0xFFFFFFFF
        self.slot[self.perm[filled]] = np.where(filled)[0]
        self.W = bf16(rows('head.exact', np.uint16, self.K * self.cap))[self.slot]                # by token
        self.fixed = np.zeros(self.V, bool); self.fixed[h['hot'] + h['always']] = True

    def integers(self, h):
        most = np.abs(h).max(1, keepdims=True).astype(float)
        return np.rint(h.astype(float) * (32639 / most)), most / 32639                              # exact sums below 2^53

    def scores(self, h):
        q, s = self.integers(h)
        return ((q @ self.C.T) * self.cs * s).astype(np.float32)

    def encoded(self, h):                                                                           # by token
        q, s = self.integers(h)
        return ((q @ self.T[self.slot].T) * self.ts[self.slot] * s).astype(np.float32)

    def exact(self, h, ids):
        """16 lanes with fma, then halves: fma through float64, whose product is exact."""
        w, lanes = self.W[ids].astype(float), np.zeros((len(ids), 16), np.float32)
        for i in range(0, self.D, 16): lanes = (w[:, i:i + 16] * h[i:i + 16].astype(float) + lanes).astype(np.float32)
        for half in (8, 4, 2, 1): lanes = lanes[:, :half] + lanes[:, half:2 * half]
        return lanes[:, 0]


def best(ids, logits, count):
    return ids[np.lexsort((ids, -logits.astype(float)))][:count]


def measure(head, states, probes, fixed):
    """Counts of top-1, 3, 5, 10 and agreement, sums of mass and KL, for each P."""
    out = np.zeros((len(probes), 7)); tokens = np.arange(head.V); cluster = head.slot // head.cap
    for at in range(0, len(states), 128):
        h = states[at:at + 128]
        dense, scores, enc = h.astype(float) @ head.W.astype(float).T, head.scores(h), head.encoded(h)
        for i in range(len(h)):
            z, f = dense[i], enc[i].astype(float)
            first = best(tokens, z, 10)
            rank = np.empty(head.K, int); rank[np.lexsort((np.arange(head.K), -scores[i].astype(float)))] = np.arange(head.K)
            lse = np.log(np.exp(z - z.max()).sum()) + z.max()
            for j, P in enumerate(probes):
                inside = fixed | (rank[cluster] < P)
                ids = tokens[inside]
                again = best(ids, enc[i][ids], head.R)
                g = f.copy(); g[again] = head.exact(h[i], again)
                hit = inside[first]
                mass = np.exp(z[ids] - lse).sum(); own = np.log(np.exp(g[ids] - g[ids].max()).sum()) + g[ids].max(); p = np.exp(g[ids] - own)
                out[j] += hit[0], hit[:3].all(), hit[:5].all(), hit.all(), best(ids, g[ids].astype(np.float32), 1)[0] == first[0], min(mass, 1), (p * (g[ids] - own - z[ids] + lse)).sum()
    return out


with tempfile.TemporaryDirectory() as w:
    model, work, f = top + '/demo/prose-7m', w + '/w', w + '/m.fhead'
    call('build', model, '-C', work, '-o', f, '--tokens', 12000, '--rounds', 1, '--target-containment', 0.9)
    head = Head(f)
    s = tensors(work + '/states.safetensors')
    states = s['hidden'][:N]
    size = len(json.dumps({'hidden': dict(dtype='F32', shape=list(states.shape), data_offsets=[0, states.nbytes])}))
    with open(w + '/s.safetensors', 'wb') as o:
        o.write(size.to_bytes(8, 'little') + json.dumps({'hidden': dict(dtype='F32', shape=list(states.shape), data_offsets=[0, states.nbytes])}).encode() + states.tobytes())
    curve = json.loads(call('query', f, '--hidden', w + '/s.safetensors', '--curve', ','.join(map(str, PROBES)), '--json'))['curve']
    mine = measure(head, states, PROBES, head.fixed)
    for key, j in (('top1', 0), ('top3', 1), ('top5', 2), ('top10', 3), ('agreement', 4)):
        theirs = [round(p[key] * N) for p in curve]
        check(f'{key} at {len(PROBES)} P to the last of {N} positions', all(abs(p[key] * N - t) < 1e-6 for p, t in zip(curve, theirs)) and theirs == mine[:, j].astype(int).tolist(),
              f'{theirs} here {mine[:, j].astype(int).tolist()}')
    for key, j in (('mass', 5), ('kl', 6)):
        worst = max(abs(p[key] - mine[i, j] / N) / max(mine[i, j] / N, 0.01) for i, p in enumerate(curve))
        check(f'{key} to float32\'s rounding', worst <= 2e-5, f'{worst:.1e}')
    # what calibrate counted on parts B and C
    c = json.load(open(work + '/calibration.json'))
    fixed = np.zeros(head.V, bool); fixed[c['hot_ids'] + head.header['head']['always']] = True
    for name, part in (('B', 1), ('C', 2)):
        rows = s['hidden'][s['part'] == part]
        top1 = int(measure(head, rows, (c['probes'],), fixed)[0, 0])
        if name == 'B': check('misses on B to the last', (c['positions'], c['misses']) == (len(rows), len(rows) - top1), f"{c['misses']} of {c['positions']}, here {len(rows) - top1} of {len(rows)}")
        else: check('containment on C to the last', c['heldout']['positions'] == len(rows) and abs(c['heldout']['containment'] * len(rows) - top1) < 1e-6, f'{top1} of {len(rows)}')
    # what an audit says of a continuation is what these states give
    r = json.loads(call('run', f, '--ids', '319,900,42', '-n', 60, '--ignore-eos', '--probes', 3, '--audit', 1, '--json'))
    with open(w + '/ids.safetensors', 'wb') as o:
        ids = np.array([r['prompt_ids'] + r['ids']], np.int64)
        meta = json.dumps({'ids': dict(dtype='I64', shape=list(ids.shape), data_offsets=[0, ids.nbytes])}).encode()
        o.write(len(meta).to_bytes(8, 'little') + meta + ids.tobytes())
    call('hidden', model, '--ids-file', w + '/ids.safetensors', '-o', w + '/h.safetensors')
    live = np.frombuffer(open(w + '/h.safetensors', 'rb').read()[-ids.size * head.D * 4:], np.float32).reshape(-1, head.D)[2:-1]
    here = measure(head, live, (3,), head.fixed)[0]
    a = r['audit']
    check('an audit counts what it saw', a['states'] == 60 and round(a['containment'] * 60) == here[0] and round(a['agreement'] * 60) == here[4] and abs(a['mass'] - here[5] / 60) < 1e-4,
          f"{a}, here {here[0]:.0f}, {here[4]:.0f}, {here[5] / 60:.6f}")
print('1..%d' % n)
sys.exit(bool(bad))
