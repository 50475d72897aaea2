#!/usr/bin/env python3
"""The directories that `fhtool export --format vllm` makes, against every rule of the runtime that loads them, written here from the published facts
about it and not from our C; and the same rules, broken one by one, against `fhtool verify` and `fhtool import`.  TAP; needs numpy."""
import copy
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np

top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
fhtool = os.environ.get('FHTOOL') or os.path.join(top, 'build/fhtool')
ARCHITECTURES = ['LlamaForCausalLM', 'Qwen3ForCausalLM', 'Qwen3VLForConditionalGeneration', 'Qwen3_5ForCausalLM', 'Qwen3_5MoeForCausalLM',
                 'Qwen3_5ForConditionalGeneration', 'Qwen3_5MoeForConditionalGeneration', 'Gemma3ForCausalLM']
HEADS = ['lm_head.weight', 'model.lm_head.weight', 'transformer.lm_head.weight', 'model.embed_tokens.weight']
ASSETS, CACHE, BESIDE = 'flash_head_assets', 'clustering_cache.safetensors', 'clustering_config.json'
PREFIXED = 'architectures[0] has the prefix FlashHead and is a known one'
DTYPES = {'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'I64': '<i8', 'I32': '<i4', 'U32': '<u4', 'U8': 'u1'}
n = bad = 0


def check(what, ok, why=''):
    global n, bad
    n += 1
    bad += not ok
    print('ok' if ok else 'not ok', n, '-', what)
    if not ok and why:
        print('#', str(why)[:500].replace('\n', ' | '))


def read_st(path):
    """{name: (dtype, array)}, metadata"""
    data = open(path, 'rb').read()
    size = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + size])
    meta = header.pop('__metadata__', {})
    out = {}
    for name, t in header.items():
        a, b = t['data_offsets']
        out[name] = (t['dtype'], np.frombuffer(data[8 + size + a:8 + size + b], DTYPES[t['dtype']]).reshape(t['shape']))
    return out, meta


def write_st(path, tensors, meta=None):
    header, at, blobs = ({'__metadata__': meta} if meta else {}), 0, []
    for name, (dtype, array) in tensors.items():
        blob = array.astype(DTYPES[dtype]).tobytes()
        header[name] = {'dtype': dtype, 'shape': list(array.shape), 'data_offsets': [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    open(path, 'wb').write(struct.pack('<Q', len(text)) + text + b''.join(blobs))


def f32(dtype, array):
    return (array.astype('<u4') << 16).view('<f4') if dtype == 'BF16' else array.astype('<f4')


def to_bf16(x):
    """Round to nearest even, as float32 again."""
    bits = np.ascontiguousarray(x, '<f4').view('<u4')
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype('<u4').view('<f4')


def head_of(directory):
    """The tensor that the runtime takes for the head: by index if there is one, by the order of names."""
    index = os.path.join(directory, 'model.safetensors.index.json')
    places = json.load(open(index))['weight_map'] if os.path.exists(index) else None
    for name in HEADS:
        if places is None:
            tensors, _ = read_st(os.path.join(directory, 'model.safetensors'))
            if name in tensors:
                return f32(*tensors[name])
        elif name in places:
            return f32(*read_st(os.path.join(directory, places[name]))[0][name])
    return None


def broken_rules(directory, base):
    """Names of the rules that a directory breaks; base: the checkpoint it was made from."""
    broken = []

    def rule(name, ok):
        if not ok:
            broken.append(name)

    config, before = json.load(open(os.path.join(directory, 'config.json'))), json.load(open(os.path.join(base, 'config.json')))
    rule('flash_head_cache_dir is flash_head_assets', config.get('flash_head_cache_dir') == ASSETS)
    prefixed = config['architectures'][0]
    rule(PREFIXED, prefixed.startswith('FlashHead') and prefixed[9:] in ARCHITECTURES and prefixed[9:] == before['architectures'][0])
    rule('no auto_map', 'auto_map' not in config)
    ours = ('flash_head_cache_dir', 'n_probes', 'flash_head_special_token_ids', 'architectures', 'auto_map')
    kept, was = ({k: v for k, v in j.items() if k not in ours} for j in (config, before))
    rule('everything else of config.json is kept', kept == was and config['architectures'][1:] == before['architectures'][1:])
    for name in os.listdir(base):  # the ordinary directory
        if name.endswith(('.json', '.safetensors', '.jinja')) and name != 'config.json':
            there = os.path.join(directory, name)
            rule(f'{name} is that of the model', os.path.exists(there) and open(there, 'rb').read() == open(os.path.join(base, name), 'rb').read())
    cache, _ = read_st(os.path.join(directory, ASSETS, CACHE))
    centroids, assignment = cache.get('centroids'), cache.get('cluster_assignments')
    rule('centroids and cluster_assignments are there', centroids is not None and assignment is not None)
    if broken:
        return broken
    head = head_of(directory)
    rule('the head is found under a name that is looked for', head is not None)
    rule('centroids are floats of rank 4, [1, 1, D, K]', centroids[0] in ('F32', 'F16', 'BF16') and centroids[1].ndim == 4 and centroids[1].shape[:2] == (1, 1))
    rule('cluster_assignments are int64 [V]', assignment[0] == 'I64' and assignment[1].shape == (head.shape[0],))
    if broken:
        return broken
    c, a = f32(*centroids)[0, 0], assignment[1]
    d, k = c.shape
    rule('centroids are as wide as the head', d == head.shape[1])
    rule('assignments are 0..K-1', a.min() >= 0 and a.max() < k)
    rule('every cluster has the same size and K * cap is V', len(a) % k == 0 and (np.bincount(np.clip(a, 0, k - 1), minlength=k) == len(a) // k).all())
    rule('cap is a power of two', len(a) % k == 0 and (len(a) // k) & (len(a) // k - 1) == 0)
    norms = np.linalg.norm(c.astype('f8'), axis=0)
    rule('no centroid is NaN, infinite or zero', np.isfinite(c).all() and (norms > 0).all())
    beside = os.path.join(directory, ASSETS, BESIDE)
    if os.path.exists(beside):
        j = json.load(open(beside))
        rule('clustering_config.json says the same',
             j.get('format') == 'safetensors' and j.get('vocab_size') == head.shape[0] and j.get('hidden_size') == head.shape[1])
    probes = config.get('n_probes', k // 16)
    rule('n_probes is 1..K', isinstance(probes, int) and 1 <= probes <= k)
    special = config.get('flash_head_special_token_ids') or []
    special = [special] if isinstance(special, int) else special
    rule('special ids are tokens', all(isinstance(i, int) and 0 <= i < head.shape[0] for i in special))
    if not broken:  # what the runtime does not check: a token's own centroid is nearer than the others, less what all share
        unit = head / np.maximum(np.linalg.norm(head, axis=1, keepdims=True), 1e-30)
        means = np.zeros((k, d))
        np.add.at(means, a, unit)
        means -= means.mean(0)
        columns = (c / norms).T
        scores = means @ (columns - columns.mean(0)).T
        rule('the clustering belongs to the head', (scores < np.diag(scores)[:, None]).sum() / (k * (k - 1)) > 0.75)
    return broken


def greedy(directory, hidden, probes):
    """The token of each state, in bf16 as the runtime computes it; and whether another could be meant because numbers are equal."""
    cache, _ = read_st(os.path.join(directory, ASSETS, CACHE))
    config = json.load(open(os.path.join(directory, 'config.json')))
    c = f32(*cache['centroids'])[0, 0]
    c, a = to_bf16((c / np.linalg.norm(c, axis=0)).T), cache['cluster_assignments'][1]
    head = to_bf16(head_of(directory))
    members = np.argsort(a, kind='stable').reshape(len(c), -1)
    special = config.get('flash_head_special_token_ids') or []
    ids, tie = [], []
    for at in range(0, len(hidden), 256):
        h = to_bf16(hidden[at:at + 256])
        scores, logits = to_bf16(h @ c.T), to_bf16(h @ head.T)
        for s, z in zip(scores, logits):
            order = np.argsort(-s, kind='stable')
            candidates = np.union1d(members[order[:probes]].ravel(), special).astype(int)
            best = candidates[np.argmax(z[candidates])]
            ids.append(int(best))
            tie.append((z[candidates] == z[best]).sum() > 1 or (probes < len(s) and s[order[probes - 1]] == s[order[probes]]))
    return np.array(ids), np.array(tie)


def run(*args):
    return subprocess.run([fhtool, *args], capture_output=True, text=True)


def build_and_export(w, name, base, *flags):
    work, artifact, out = (os.path.join(w, name + s) for s in ('-work', '.fhead', '-vllm'))
    r = run('build', base, '--for', 'vllm', '-C', work, '-o', artifact, '-q', *flags)
    check(f'{name}: build --for vllm', r.returncode == 0, r.stderr)
    r = run('export', '--format', 'vllm', artifact, '--model', base, '-o', out, '--json', '-q')
    check(f'{name}: export', r.returncode == 0, r.stderr)
    wrong = broken_rules(out, base)
    check(f'{name}: keeps every rule of the runtime', not wrong, wrong)
    r = run('verify', out, '--json', '-q')
    check(f'{name}: fhtool verify agrees', r.returncode == 0 and json.loads(r.stdout)['verified'], r.stderr)
    states = os.path.join(work, 'states.safetensors')
    hidden = read_st(states)[0]['hidden'][1][:1500]
    at = os.path.join(w, name + '-states.safetensors')
    write_st(at, {'hidden': ('F32', hidden)})
    k = json.loads(r.stdout)['k']
    for probes in (json.loads(r.stdout)['probes'], 3, k):
        mine = run('query', artifact, '--hidden', at, '--for', 'vllm', '--probes', str(probes), '--json', '-q')
        theirs, tie = greedy(out, hidden, probes)
        mine = np.array([row[0] for row in json.loads(mine.stdout)['ids']])
        differ = mine != theirs
        check(f'{name}: the greedy token of {len(hidden)} states at P = {probes} is what the rules give', not (differ & ~tie).any() and differ.mean() <= 0.01,
              f'{differ.sum()} differ, {(differ & ~tie).sum()} of them no ties')
    return work, artifact, out


# ---- one rule broken at a time: (what, how, our rule or None where only fhtool looks, status, message) -----------------------------------------------

def edit_config(**changes):
    def edit(d):
        path = os.path.join(d, 'config.json')
        j = json.load(open(path))
        for key, value in changes.items():
            if value is None:
                j.pop(key, None)
            else:
                j[key] = value
        json.dump(j, open(path, 'w'))
    return edit


def edit_beside(**changes):
    def edit(d):
        path = os.path.join(d, ASSETS, BESIDE)
        json.dump({**json.load(open(path)), **changes}, open(path, 'w'))
    return edit


def edit_cache(change, keep_record=False):
    def edit(d):
        path = os.path.join(d, ASSETS, CACHE)
        tensors, meta = read_st(path)
        tensors = {k: (t, x.copy()) for k, (t, x) in tensors.items()}
        change(tensors)
        write_st(path, tensors, meta if keep_record else None)
    return edit


def value(name, index, to):
    def change(t):
        t[name][1][index] = to
    return edit_cache(change)


def replace(name, make):
    def change(t):
        new = make(*t[name])
        if new is None:
            del t[name]
        else:
            t[name] = new
    return edit_cache(change)


def shuffled(seed):
    def change(t):
        t['cluster_assignments'] = ('I64', np.random.default_rng(seed).permutation(t['cluster_assignments'][1]))
    return edit_cache(change)


def write(path, text):
    def edit(d):
        open(os.path.join(d, path), 'wb').write(text)
    return edit


def remove(path):
    return lambda d: os.remove(os.path.join(d, path))


def fifo(path):
    def edit(d):
        os.remove(os.path.join(d, path))
        os.mkfifo(os.path.join(d, path))
    return edit


SIZES, FLOATS, ASSIGNED = 'every cluster has the same size and K * cap is V', 'no centroid is NaN, infinite or zero', 'assignments are 0..K-1'
BROKEN = [
    ('no flash_head_cache_dir',
     edit_config(flash_head_cache_dir=None), 'flash_head_cache_dir is flash_head_assets', 1, 'config.json: has no "flash_head_cache_dir"'),
    *((f'flash_head_cache_dir {x!r}', edit_config(flash_head_cache_dir=x), 'flash_head_cache_dir is flash_head_assets', 1,
       'flash_head_cache_dir .*plain name|NUL')
      for x in ('../x', '/etc', '', '.', '..', 'a/b', 'a\x00b', 7, ['x'])),
    ('a cache directory that is not there',
     edit_config(flash_head_cache_dir='other'), 'flash_head_cache_dir is flash_head_assets', 1, 'other/clustering_cache.safetensors: cannot open'),
    ('an architecture without the prefix',
     edit_config(architectures=['Qwen3ForCausalLM']), PREFIXED, 3, "'Qwen3ForCausalLM' without the prefix"),
    ('an unknown architecture',
     edit_config(architectures=['FlashHeadMistralForCausalLM']), PREFIXED, 1, 'FlashHeadMistralForCausalLM.*none'),
    ('an auto_map', edit_config(auto_map={'AutoModel': 'x.y'}), 'no auto_map', 3, 'auto_map'),
    ('n_probes 0', edit_config(n_probes=0), 'n_probes is 1..K', 3, 'n_probes is 0 of 19'),
    ('n_probes above K', edit_config(n_probes=20), 'n_probes is 1..K', 3, 'n_probes is 20 of 19'),
    ('n_probes -1', edit_config(n_probes=-1), 'n_probes is 1..K', 1, 'n_probes is no whole number'),
    ('n_probes "5"', edit_config(n_probes='5'), 'n_probes is 1..K', 1, 'n_probes is no whole number'),
    ('n_probes 2^64', edit_config(n_probes=2 ** 64), 'n_probes is 1..K', 1, 'n_probes is no whole number'),
    ('a special id of -1', edit_config(flash_head_special_token_ids=[0, -1]), 'special ids are tokens', 3, 'special_token_ids: -1 is no token'),
    ('a special id of V', edit_config(flash_head_special_token_ids=304), 'special ids are tokens', 3, 'special_token_ids: 304 is no token'),
    ('a special id that is text', edit_config(flash_head_special_token_ids=['0']), 'special ids are tokens', 1, 'no token id'),
    ('clustering_config of another format', edit_beside(format='pt'), 'clustering_config.json says the same', 1, "format is 'pt'"),
    ('clustering_config of another vocabulary', edit_beside(vocab_size=303), 'clustering_config.json says the same', 3, 'vocab_size is 303, the head has 304'),
    ('clustering_config of another width', edit_beside(hidden_size=65), 'clustering_config.json says the same', 3, 'hidden_size is 65, the head has 64'),
    ('clustering_config that is no JSON', write(f'{ASSETS}/{BESIDE}', b'{'), None, 1, 'clustering_config.json: line 1'),
    ('clustering_config that is a FIFO', fifo(f'{ASSETS}/{BESIDE}'), None, 1, 'clustering_config.json: is a FIFO'),
    ('no cache', remove(f'{ASSETS}/{CACHE}'), None, 1, 'clustering_cache.safetensors: cannot open'),
    ('an empty cache', write(f'{ASSETS}/{CACHE}', b''), None, 1, 'clustering_cache.safetensors'),
    ('a cache that is a git-lfs pointer',
     write(f'{ASSETS}/{CACHE}', b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'), None, 1, 'git-lfs|LFS'),
    ('a cache that is a FIFO', fifo(f'{ASSETS}/{CACHE}'), None, 1, 'clustering_cache.safetensors: is a FIFO'),
    ('no centroids', replace('centroids', lambda t, x: None), 'centroids and cluster_assignments are there', 1, "'centroids' is missing"),
    ('no assignments', replace('cluster_assignments', lambda t, x: None), 'centroids and cluster_assignments are there', 1, "'cluster_assignments' is missing"),
    ('centroids of rank 2', replace('centroids', lambda t, x: (t, x[0, 0])), 'centroids are floats of rank 4, [1, 1, D, K]', 1, "'centroids'"),
    ('centroids row by row',
     replace('centroids', lambda t, x: (t, x.transpose(0, 1, 3, 2))), 'centroids are as wide as the head', 3,
     "'centroids' .* is of width 19, the head's is 64"),
    ('centroids of integers', replace('centroids', lambda t, x: ('I64', x)), 'centroids are floats of rank 4, [1, 1, D, K]', 1, "'centroids'"),
    ('centroids of another width', replace('centroids', lambda t, x: (t, x[:, :, :63])), 'centroids are as wide as the head', 3, "width 63, the head's is 64"),
    ('no centroid at all', replace('centroids', lambda t, x: (t, x[:, :, :, :0])), None, 3, '0 clusters'),
    ('assignments of 32 bits', replace('cluster_assignments', lambda t, x: ('I32', x)), 'cluster_assignments are int64 [V]', 1, "'cluster_assignments'"),
    ('assignments of fewer tokens',
     replace('cluster_assignments', lambda t, x: (t, x[:303])), 'cluster_assignments are int64 [V]', 3, 'of 303 tokens, the head has 304'),
    ('assignments of rank 2',
     replace('cluster_assignments', lambda t, x: (t, x.reshape(2, 152))), 'cluster_assignments are int64 [V]', 1, "'cluster_assignments'"),
    ('a cluster that is not there', value('cluster_assignments', 5, 19), ASSIGNED, 3, 'token 5 is in cluster 19 of 19'),
    ('a negative cluster', value('cluster_assignments', 5, -1), ASSIGNED, 3, 'token 5 is in cluster -1 of 19'),
    ('a cluster of 2^40', value('cluster_assignments', 303, 1 << 40), ASSIGNED, 3, 'token 303 is in cluster 1099511627776'),
    ('clusters of two sizes', replace('cluster_assignments', lambda t, x: (t, np.where(x == 3, 4, x))), SIZES, 3, 'cluster 3 has 0 tokens, not 16'),
    ('a K that does not divide V', replace('centroids', lambda t, x: (t, x[..., :18])), None, 3, '304 tokens make no 18 clusters'),
    ('a NaN', value('centroids', (0, 0, 7, 3), np.nan), FLOATS, 3, 'cluster 3, dimension 7 is not finite'),
    ('an infinity', value('centroids', (0, 0, 63, 18), np.inf), FLOATS, 3, 'cluster 18, dimension 63 is not finite'),
    ('a centroid of zero', value('centroids', (0, 0, slice(None), 2), 0), FLOATS, 3, 'cluster 2 is zero'),
    ('a centroid whose square is zero', value('centroids', (0, 0, slice(None), 2), 1e-25), None, 3, 'cluster 2 has a norm of'),
    ('a centroid whose square is infinite', value('centroids', (0, 0, slice(None), 2), 1e25), None, 3, 'cluster 2 has a norm of'),
    ('tokens of another head', shuffled(1), 'the clustering belongs to the head', 3, 'does not belong to the head'),
    ('centroids of another head', edit_cache(lambda t: t.update(centroids=('F32', np.random.default_rng(2).permutation(t['centroids'][1].T).T))),
     'the clustering belongs to the head', 3, 'does not belong to the head'),
]


def break_rules(w, good, base):
    d = os.path.join(w, 'broken')
    for what, how, rule, status, message in BROKEN:
        shutil.rmtree(d, ignore_errors=True)
        shutil.copytree(good, d)
        how(d)
        if rule:
            check(f'the rules notice: {what}', rule in broken_rules(d, base), broken_rules(d, base))
        for command in (['verify', d], ['import', '--format', 'vllm', d, '-C', os.path.join(w, 'nothing')]):
            r = run(*command)
            lines = r.stderr.strip().split('\n')
            one_line = len(lines) == 1 and lines[0].startswith('fhtool: ') and re.search(message, lines[0])
            check(f'fhtool {command[0]} refuses: {what}', r.returncode == status and not r.stdout and one_line,
                  f'status {r.returncode}: {r.stderr}')
    check('nothing was imported', not os.path.exists(os.path.join(w, 'nothing', 'model.json')))
    # What may be: no clustering_config.json, no n_probes where K/16 is some, one special id, centroids of any length and float type.
    shutil.rmtree(d)
    shutil.copytree(good, d)
    remove(f'{ASSETS}/{BESIDE}')(d)
    edit_config(n_probes=None, flash_head_special_token_ids=3)(d)
    edit_cache(lambda t: t.update(centroids=('F16', t['centroids'][1] * 3)))(d)
    r = run('verify', d, '--json', '-q')
    j = json.loads(r.stdout or '{}')
    check('a directory of somebody else that keeps the rules',
          r.returncode == 0 and j['probes'] == 1 and j['probes_said'] is False and j['special'] == 1 and j['artifact'] is None, r.stderr)
    # A clustering that says it was made for another head is believed, however well it fits.
    path = os.path.join(good, ASSETS, CACHE)
    tensors, meta = read_st(path)
    record = json.loads(meta['fhtool'])
    record['fingerprint'] = '0' * 64
    write_st(os.path.join(d, ASSETS, CACHE), tensors, {'fhtool': json.dumps(record)})
    r = run('verify', d)
    check('the fingerprint of another head', r.returncode == 3 and 'made for another head (fingerprint 000000000000' in r.stderr, r.stderr)


def there_and_back(w, work, artifact, out, base):
    """import -> quantize -> pack -> export gives the same clustering."""
    back, again, twice = (os.path.join(w, x) for x in ('back', 'again.fhead', 'twice'))
    r = run('import', '--format', 'vllm', out, '-C', back, '--json', '-q')
    check('import', r.returncode == 0 and json.loads(r.stdout)['k'] == 19, r.stderr)
    r = run('quantize', '-C', back, '--centroids', 'bf16', '--tokens', 'bf16', '-q')
    check('and quantize', r.returncode == 0, r.stderr)
    r = run('pack', '-C', back, '-o', again, '--head-only', '-q')
    check('and pack', r.returncode == 0, r.stderr)
    r = run('export', '--format', 'vllm', again, '--model', base, '-o', twice, '-q')
    check('an artifact without calibration is refused', r.returncode == 3 and 'is not calibrated' in r.stderr, r.stderr)
    r = run('export', '--format', 'vllm', again, '--model', base, '-o', twice, '--probes', '5')
    check('unless --probes is given', r.returncode == 0 and 'promises nothing' in r.stderr, r.stderr)
    one, two = (read_st(os.path.join(x, ASSETS, CACHE))[0] for x in (out, twice))
    check('what comes back is what went in', all(np.array_equal(one[k][1], two[k][1]) for k in one))
    check('with the probes that were asked for', json.load(open(os.path.join(twice, 'config.json')))['n_probes'] == 5)
    r = run('calibrate', '-C', back, '--for', 'vllm', '--target-containment', '0.5', '--tokens', '3000', '-q')
    check('and can be calibrated', r.returncode == 0, r.stderr)
    same = os.path.join(w, 'same')
    r = run('export', '--format', 'vllm', artifact, '--model', base, '-o', same, '-q', '--link', 'hard')
    names = sorted(os.path.relpath(os.path.join(d, f), out) for d, _, files in os.walk(out) for f in files)
    equal = all(open(os.path.join(out, f), 'rb').read() == open(os.path.join(same, f), 'rb').read() for f in names)
    check('two exports are the same bytes', r.returncode == 0 and equal, r.stderr)


with tempfile.TemporaryDirectory() as w:
    qwen = os.path.join(w, 'qwen3')
    shutil.copytree(os.path.join(top, 'tests/golden/qwen3'), qwen, ignore=shutil.ignore_patterns('expected*'))
    work, artifact, out = build_and_export(w, 'qwen3', qwen, '--tokens', '6000', '--target-containment', '0.6')
    break_rules(w, out, qwen)
    there_and_back(w, work, artifact, out, qwen)
    plain = os.path.join(w, 'gemma3')  # float32 rows, clusters of 4; without the soft-capping that runtime cannot hold
    shutil.copytree(os.path.join(top, 'tests/golden/gemma3-softcap'), plain, ignore=shutil.ignore_patterns('expected*'))
    edit_config(final_logit_softcapping=None)(plain)
    build_and_export(w, 'gemma3', plain, '--tokens', '3000', '--target-containment', '0.5')
    build_and_export(w, 'prose-7m', os.path.join(top, 'demo/prose-7m'), '--tokens', '4000', '--target-containment', '0.8')
print('1..%d' % n)
sys.exit(bool(bad))
