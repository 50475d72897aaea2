#!/usr/bin/env python3
"""What `validate --hidden` says of an artifact, computed again from the bytes of the file with numpy: containment, agreement, covered mass, both
divergences and their percentiles, bands, and what parts cost.  TAP.

Scores of centroids and int8 rows are integers times scales, which numpy has to the bit; the dense head's logits are sums in float32 there and in float64
here.  So counts are equal, and means agree to what float32 logits leave of them."""
import hashlib, json, os, subprocess, sys, tempfile
import numpy as np
top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(top, 'tests'))
import fhead_reader  # noqa: E402
fhtool = os.environ.get('FHTOOL') or os.path.join(top, 'build/fhtool')
BACKOFF, POSITIONS, K = 1e-3, 900, 512
n = bad = 0


def check(what, ok, said=''):
    global n, bad
    n += 1; bad += not ok
    print('ok' if ok else 'not ok', n, '-', what)
    if not ok and said != '': print('#', said)


def close(a, b):
    return abs(a - b) <= 2e-5 * abs(b) + 2e-7


def bf16(raw):
    return (np.frombuffer(raw, '<u2').astype('<u4') << 16).view('<f4')


def integer_products(q, scales, states):
    """float32((double) total * scale * state scale) with the state rounded to integers of 15 bits: the definition."""
    most = np.abs(states).max(1).astype(np.float64)
    v = np.rint(states.astype(np.float64) * (32639 / most)[:, None])
    return (v @ q.astype(np.float64).T * scales.astype(np.float64) * (most / 32639)[:, None]).astype(np.float32) # the sums stay below 2^53: exact


def spread(v):
    at = {'p99.9': 99.9, 'p99': 99, 'p95': 95, 'p90': 90, 'median': 50, 'p10': 10, 'p5': 5, 'p1': 1, 'p0.1': 0.1}
    return dict(mean=v.mean(), max=v.max(), min=v.min()) | {k: np.percentile(v, p) for k, p in at.items()}


with tempfile.TemporaryDirectory() as w:
    build = ['build', top + '/demo/prose-7m', '-C', w + '/w', '-o', w + '/m.fhead', '--tokens', '6000', '--k', str(K), '--target-containment', '0.8', '-q']
    subprocess.run([fhtool, *build], check=True, stdout=subprocess.DEVNULL)
    with open(w + '/w/states.safetensors', 'rb') as f:
        size = int.from_bytes(f.read(8), 'little')
        at = json.loads(f.read(size))['hidden']
        f.seek(8 + size + at['data_offsets'][0])
        states = np.frombuffer(f.read(POSITIONS * at['shape'][1] * 4), '<f4').reshape(POSITIONS, -1)
    text = json.dumps({'hidden': {'dtype': 'F32', 'shape': list(states.shape), 'data_offsets': [0, states.nbytes]}}).encode()
    with open(w + '/some.safetensors', 'wb') as f: f.write(len(text).to_bytes(8, 'little') + text + states.tobytes())
    run = subprocess.run([fhtool, 'validate', w + '/m.fhead', '--hidden', w + '/some.safetensors', '--anatomy-positions', '1000000', '--json', '-q'], capture_output=True, text=True)
    check('validate measures', run.returncode in (0, 3) and run.stdout, run.stderr)
    r = json.loads(run.stdout)
    b = open(w + '/m.fhead', 'rb').read()

header, sections, _ = fhead_reader.read_header(b)
raw = lambda name: b[sections[name]['offset']:sections[name]['offset'] + sections[name]['bytes']] # noqa: E731
names = [k for k in ('head.permutation', 'head.centroid_scales', 'head.token_scales', 'head.centroids', 'head.tokens') if k in sections]
check('the digest of the head that the calibration is of', hashlib.sha256(b''.join(map(raw, names))).hexdigest() == header['calibrated_head'])
V, D, cap, P, R = header['model']['vocab'], header['model']['hidden'], header['head']['cap'], header['head']['probes'], header['head']['rerank']
perm = np.frombuffer(raw('head.permutation'), '<u4')
slot = np.empty(V, int); slot[perm] = np.arange(V)             # no empty slots: V = K * cap
cluster = slot // cap
exact = bf16(raw('head.exact')).reshape(V, D)[slot].astype(np.float64)
C = np.frombuffer(raw('head.centroids'), 'i1').reshape(K, D), np.frombuffer(raw('head.centroid_scales'), '<f4')
T = np.frombuffer(raw('head.tokens'), 'i1').reshape(V, D)[slot], np.frombuffer(raw('head.token_scales'), '<f4')[slot]
fixed = np.zeros(V, bool); fixed[[*header['head']['hot'], *header['head']['always']]] = True
N = len(states)
points = sorted({1, 16, P, K})
seen = {p: dict(top1=0, top3=0, top5=0, top10=0, agreement=0, mass=[], kl=[], kl_dense=[]) for p in points}
oracle, rows = dict(mass=[], kl=[], top1=0), dict(kl=[], agreement=0)
margin, missed = [], []
for i in range(0, N, 100):
    h = states[i:i + 100]
    m = len(h)
    score, f, z = integer_products(*C, h), integer_products(*T, h).astype(np.float64), h.astype(np.float64) @ exact.T
    rank = np.empty((m, K), int); np.put_along_axis(rank, np.argsort(-score, 1, kind='stable'), np.arange(K)[None, :], 1)
    rank = rank[:, cluster]                                    # [m, V] of each token's cluster
    best = np.argsort(-z, 1, kind='stable')[:, :10]
    lse = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    p = np.exp(z - lse[:, None])
    need = np.maximum.accumulate(np.where(fixed[best], 0, np.take_along_axis(rank, best, 1) + 1), 1)
    for probes, s in seen.items():
        candidate = fixed | (rank < probes)
        mine = np.where(candidate, f, -np.inf)
        again = np.argsort(-mine, 1, kind='stable')[:, :R]     # the R best are scored again
        np.put_along_axis(mine, again, np.take_along_axis(np.where(candidate, z, -np.inf), again, 1), 1)
        for k in (1, 3, 5, 10): s[f'top{k}'] += int((need[:, k - 1] <= probes).sum())
        s['agreement'] += int((mine.argmax(1) == best[:, 0]).sum())
        mass = np.minimum((p * candidate).sum(1), 1)
        log_q = mine - (np.log(np.exp(mine - mine.max(1, keepdims=True)).sum(1)) + mine.max(1))[:, None]
        s['mass'].append(mass)
        with np.errstate(invalid='ignore'): s['kl'].append(np.where(candidate, np.exp(log_q) * (log_q - z + lse[:, None]), 0).sum(1))
        others = V - candidate.sum(1, keepdims=True)
        share = np.where(others, BACKOFF, 0)
        with np.errstate(divide='ignore'): log_q = np.where(candidate, log_q + np.log1p(-share), np.log(share / np.maximum(others, 1)))
        with np.errstate(invalid='ignore'): s['kl_dense'].append(np.where(p > 0, p * (z - lse[:, None] - log_q), 0).sum(1))
    held = np.add.reduceat(p[:, np.argsort(slot)], np.arange(0, V, cap), axis=1).astype(np.float32) # by cluster
    of = np.empty((m, K), int); np.put_along_axis(of, np.argsort(-held, 1, kind='stable'), np.arange(K)[None, :], 1)
    candidate = fixed | (of[:, cluster] < P)
    mass = (p * candidate).sum(1)
    oracle['mass'].append(mass); oracle['kl'].append(-np.log(mass)); oracle['top1'] += int(np.take_along_axis(candidate, best[:, :1], 1).sum())
    log_q = f - (np.log(np.exp(f - f.max(1, keepdims=True)).sum(1)) + f.max(1))[:, None]
    rows['kl'].append((np.exp(log_q) * (log_q - z + lse[:, None])).sum(1)); rows['agreement'] += int((f.argmax(1) == best[:, 0]).sum())
    margin.append((np.take_along_axis(z, best[:, :1], 1) - np.take_along_axis(z, best[:, 1:2], 1))[:, 0]); missed.append(need[:, 0] > P)

check('every position is measured, at the P of the artifact', (r['positions'], r['probes']) == (N, P))
for probes, s in seen.items():
    said = next(c for c in r['curve'] if c['probes'] == probes)
    for k in ('top1', 'top3', 'top5', 'top10', 'agreement'): check(f'{k} at P = {probes}, to the last count', said[k] == s[k] / N, f'{said[k] * N} for {s[k]}')
    for k in ('mass', 'kl', 'kl_dense'):
        s[k] = np.concatenate(s[k])
        check(f'{k} at P = {probes}', close(said[k], s[k].mean()), f'{said[k]} for {s[k].mean()}')
own = seen[P]
for k in ('top1', 'top3', 'top5', 'top10'): check(f'misses of {k}', r[k]['misses'] == N - own[k], f"{r[k]['misses']} for {N - own[k]}")
check('agreement and its error', r['agreement'] == own['agreement'] / N and close(r['agreement_error'], np.sqrt(r['agreement'] * (1 - r['agreement']) / (N - 1))))
for k in ('kl', 'kl_dense'):
    off = {q: (r[k][q], v) for q, v in spread(own[k]).items() if not close(r[k][q], v)}
    check(f'mean, ends and percentiles of {k}', not off and len(r[k]) == 12, off)
margin, missed = np.concatenate(margin), np.concatenate(missed)
edges = [0, 0.1, 0.3, 1, 2, 4, np.inf]
check('bands of margins', [(x['positions'], x['misses']) for x in r['by_margin']] ==
      [(int(((margin >= a) & (margin < e)).sum()), int((missed & (margin >= a) & (margin < e)).sum())) for a, e in zip(edges, edges[1:])])
check('bands of entropies hold every position and miss', sum(x['positions'] for x in r['by_entropy']) == N and sum(x['misses'] for x in r['by_entropy']) == missed.sum())
parts = {x['part']: x for x in r['parts']}
best = parts['clusters: the P of most probability']
check('the clusters of most probability', close(best['mass'], np.concatenate(oracle['mass']).mean()) and close(best['kl'], np.concatenate(oracle['kl']).mean()) and
      best['top1'] == oracle['top1'] / N, (best, np.concatenate(oracle['mass']).mean(), oracle['top1'] / N))
alone = parts['int8 rows, all of them']
check('int8 rows alone', close(alone['kl'], np.concatenate(rows['kl']).mean()) and alone['agreement'] == rows['agreement'] / N, (alone, np.concatenate(rows['kl']).mean(), rows['agreement'] / N))
whole = parts['the artifact as it is']
check('the artifact as it is among its parts', all(whole[k] == v for k, v in (('agreement', r['agreement']), ('top1', r['top1']['share']))) and close(whole['kl'], r['kl']['mean']))
check('every miss has a cause', r['anatomy']['misses'] == r['top1']['misses'] == sum(r['anatomy'][k] for k in ('by_clustering', 'by_routing')))
print(f'1..{n}')
sys.exit(bad > 0)
