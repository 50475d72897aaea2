#!/usr/bin/env python3
"""An independent reader of .fhead 1.1, written from docs/fhead-format.md alone (standard library only).

    python3 tests/fhead_reader.py [--verify] FILE...      prints a JSON object a line; {"file", "error"} and exit 1 when one is not sound
Numbers in comments are those of the document's section 6."""
import array, hashlib, json, math, shutil, struct, subprocess, sys

SIZE = {'f32': 4, 'bf16': 2, 'f16': 2, 'int8': 1}
KNOWN = {'head.' + n for n in 'permutation dead bias centroid_scales token_scales centroids tokens exact'.split()} | \
        {'body.' + n for n in 'config generation tensors tokenizer tokenizer_config'.split()}
EMPTY = 0xFFFFFFFF


class Bad(Exception):
    pass


def must(ok, message):
    if not ok: raise Bad(message)


def up(n, to):
    return (n + to - 1) // to * to


def unique(pairs):
    must(len(dict(pairs)) == len(pairs), 'JSON header: a key twice')
    return dict(pairs)


def constant(name):
    raise Bad('JSON header: ' + name)


def f32(x):
    try:
        return struct.unpack('<f', struct.pack('<f', x))[0]
    except OverflowError:
        return math.inf


def whole(x, low, high):
    return type(x) is int and low <= x <= high


def read_header(b):
    must(b[:8] == b'\x89FHEAD\r\n', 'magic')                                                                # 1
    must(len(b) >= 128, 'shorter than its fixed header')
    major, minor, n, json_bytes, table, size = struct.unpack_from('<HHIQQQ', b, 8)
    must(major == 1, f'format {major}.{minor}, this reads 1.x')
    must(size == len(b), f'the header says {size} bytes, the file has {len(b)}')                            # 2
    must(not any(b[40:64]) and not any(b[96:128]), 'reserved bytes of the header')
    must(1 <= n <= 4096 and 2 <= json_bytes <= 1 << 24, 'number of sections or JSON bytes')
    end = table + 128 * n
    must(table == up(128 + json_bytes, 64) and end <= size, 'section table')
    digest = hashlib.sha256(b[:64] + bytes(32) + b[96:end]).digest()                                        # 3
    must(digest == b[64:96], 'digest')
    must(not any(b[128 + json_bytes:table]), 'padding after the JSON header')
    sections, at = {}, end
    for e in range(table, end, 128):                                                                        # 4
        raw_name = b[e:e + 32].rstrip(b'\0')
        name = raw_name.decode('ascii', 'replace')
        must(raw_name and all(c in 'abcdefghijklmnopqrstuvwxyz0123456789._-' for c in name), 'section name')
        codec, flags, offset, stored, raw, alignment = struct.unpack_from('<IIQQQI', b, e + 32)
        must(codec in (0, 1), f'{name}: codec {codec}')
        must(flags in (0, 1) and alignment == 4096 and not any(b[e + 68:e + 96]), f'{name}: flags, alignment or reserved bytes')
        must(name not in sections, f'{name}: twice')
        must(flags == 0 or name in KNOWN, f'{name}: required and not known')                                # 5
        must(offset == up(at, 4096), f'{name}: offset {offset}')
        must(offset + stored <= size, f'{name}: past the end of the file')
        must(raw == stored if codec == 0 else raw <= 32 * stored + (1 << 24), f'{name}: raw bytes')
        sections[name] = dict(codec=codec, flags=flags, offset=offset, bytes=stored, raw_bytes=raw, sha256=b[e + 96:e + 128], gap=at)
        at = offset + stored
    must(at == size, 'bytes after the last section')
    must(not any(b[end:up(end, 4096)]), 'padding after the section table')
    try:
        header = json.loads(b[128:128 + json_bytes].decode('utf-8'), object_pairs_hook=unique, parse_constant=constant)     # 6
    except ValueError as e:
        raise Bad(f'JSON header: {e}')
    must(type(header) is dict and header.get('format') == 'fhead' and type(header.get('requires')) is list, 'JSON header: format, requires')
    must(all(r == 'threshold' for r in header['requires']), f"requires {header['requires']}")
    return header, sections, digest.hex()


def encoding(e, rows, d, model=None):
    must(type(e) is dict and (e.get('layout'), e.get('transform')) == ('rows', 'none'), f'encoding {e}')
    if e.get('encoding') == 'int4':
        must(e.get('group') == 32 and e.get('stride') == up(d, 128) // 2, f'encoding {e}')
        return dict(rows=rows, type='int4', stride=e['stride'], used=e['stride'], scales=2 * (up(d, 32) // 32))
    must(e.get('encoding') in SIZE and e.get('group') == d, f'encoding {e}')
    must(e.get('stride') == up(d * SIZE[e['encoding']], 64), 'stride')
    return dict(rows=rows, type=e['encoding'], stride=e['stride'], used=d * SIZE[e['encoding']], scales=4 * (e['encoding'] == 'int8'))


def read_head(b, header, sections):                                                                         # 7, 8, 9
    m, h, bundle = header['model'], header['head'], header['bundle']
    big = 2**31 - 1
    V, D, K, cap = m['vocab'], m['hidden'], h['k'], h['cap']
    must(whole(V, 1, big) and whole(D, 1, big) and whole(K, 1, V) and whole(cap, 1, big) and V <= K * cap < EMPTY, 'V, D, K or cap')
    must(whole(h['probes'], 1, K) and type(h['routing']) is str, 'probes or routing')
    must(m['dtype'] in ('f32', 'bf16', 'f16') and type(m['tied']) is bool and type(m['type']) is str, 'model')
    must(type(m['softcap']) in (int, float) and 0 <= m['softcap'] < 3.4028235677973366e38, 'softcap')
    must(whole(m['tokenizer_size'], 0, big), 'tokenizer_size')
    hexes = m['fingerprint']
    must(type(hexes) is str and len(hexes) == 64 and set(hexes) <= set('0123456789abcdef'), 'fingerprint')
    must(type(header['tool']) is str and type(header['provenance']) is dict, 'tool or provenance')
    must(type(header['calibration']) in (dict, type(None)), 'calibration')
    slots = K * cap
    rows = {'head.centroids': encoding(h['centroids'], K, D), 'head.tokens': encoding(h['tokens'], slots, D)}
    if 'exact' in h:
        rows['head.exact'] = encoding(h['exact'], slots, D)
        must(h['exact']['encoding'] == m['dtype'] != h['tokens']['encoding'], 'exact rows')
    must(('threshold' in h) == ('threshold' in header['requires']), 'threshold and requires')
    if 'threshold' in h: must(type(h['threshold']) in (int, float) and 0 < f32(h['threshold']) < float('inf'), 'threshold')
    again = h.get('rerank', 0)
    must(whole(again, 0, 65536) and (not again or 'exact' in h), 'rerank')
    want = {n: r['rows'] * r['stride'] for n, r in rows.items()} | {'head.permutation': 4 * slots}
    for name, of in (('head.centroids', 'head.centroid_scales'), ('head.tokens', 'head.token_scales')):
        if rows[name]['scales']: want[of] = rows[name]['scales'] * rows[name]['rows']
    if 'head.bias' in sections: want['head.bias'] = 4 * V
    there = {n for n in sections if n in KNOWN and n.startswith('head.')}
    must(there == set(want) | {'head.dead'}, f"sections {sorted(there ^ (set(want) | {'head.dead'}))}")
    for name in there | ({'body.tensors'} & set(sections)): must(sections[name]['codec'] == 0, f'{name}: compressed')
    for name, size in want.items(): must(sections[name]['bytes'] == size, f"{name}: {sections[name]['bytes']} bytes, not {size}")
    must(type(bundle['body']) is bool and bundle['body'] == ('body.config' in sections) == ('body.tensors' in sections), 'bundle/body')
    must(type(bundle['tokenizer']) is bool and bundle['tokenizer'] == ('body.tokenizer' in sections), 'bundle/tokenizer')

    def values(name, code):
        s = sections.get(name, dict(offset=0, bytes=0))
        must(s['bytes'] % 4 == 0, f'{name}: size')
        return list(struct.unpack_from(f"<{s['bytes'] // 4}{code}", b, s['offset']))

    perm, dead = values('head.permutation', 'I'), values('head.dead', 'I')
    must(sorted(t for t in perm if t != EMPTY) == list(range(V)), 'permutation: not each token once')
    for c in range(K): must(perm[c * cap:(c + 1) * cap] == sorted(perm[c * cap:(c + 1) * cap]), f'permutation: cluster {c}')
    must(all(t < V for t in dead) and dead == sorted(set(dead)), 'dead')
    for key in ('hot', 'always'):
        must(type(h[key]) is list and all(whole(t, 0, V - 1) for t in h[key]) and len(set(h[key])) == len(h[key]), key)
    def scales(name, of):
        if rows[of]['type'] != 'int4': return values(name, 'f')
        s = sections[name]
        return [struct.unpack('<f', b'\0\0' + b[i:i + 2])[0] for i in range(s['offset'], s['offset'] + s['bytes'], 2)]

    token_scales = scales('head.token_scales', 'head.tokens')
    for x in scales('head.centroid_scales', 'head.centroids') + token_scales: must(math.isfinite(x) and x > 0, f'scale {x}')
    must(all(map(math.isfinite, values('head.bias', 'f'))), 'bias')
    return rows, perm, token_scales


def verify(b, sections, rows, perm, token_scales, d):                                                          # 10, 11, 12
    for name, s in sections.items():
        stored = b[s['offset']:s['offset'] + s['bytes']]
        must(not any(b[s['gap']:s['offset']]), f'{name}: padding before it')
        must(hashlib.sha256(stored).digest() == s['sha256'], f'{name}: digest')
        if s['codec'] == 1 and shutil.which('zstd'):
            run = subprocess.run(['zstd', '-dcq'], input=stored, capture_output=True)
            must(run.returncode == 0 and len(run.stdout) == s['raw_bytes'], f'{name}: does not inflate to {s["raw_bytes"]} bytes')
    for name, r in rows.items():
        for i in range(r['rows']):
            row = b[sections[name]['offset'] + i * r['stride']:][:r['stride']]
            values = array.array({'f32': 'I', 'bf16': 'H', 'f16': 'H', 'int8': 'B', 'int4': 'B'}[r['type']], row[:r['used']])
            if r['type'] == 'int4':
                values = [row[i // 128 * 64 + i % 64] >> (0 if i % 128 < 64 else 4) & 15 for i in range(up(d, 128))]
                must(not any(values[d:]) and 8 not in values, f'{name}: row {i}: padding or value')
            empty = name != 'head.centroids' and perm[i] == EMPTY
            must(not any(row[0 if empty else r['used']:]), f'{name}: row {i}: padding')
            each = len(token_scales) // len(perm)
            must(not (empty and any(x != 1 for x in token_scales[i * each:(i + 1) * each])), f'token_scales: empty slot {i}')
            exponent = {'f32': 0x7f800000, 'bf16': 0x7f80, 'f16': 0x7c00}.get(r['type'])
            must(all(v & exponent != exponent for v in values) if exponent else r['type'] == 'int4' or 0x80 not in values, f'{name}: row {i}: value')
            sign = {'f32': 1 << 31, 'bf16': 1 << 15, 'f16': 1 << 15, 'int8': 0, 'int4': 0}[r['type']]
            must(name != 'head.centroids' or r['type'] == 'int4' or any(v & ~sign for v in values), f'{name}: row {i} is zero')


def read(b, whole_file):
    header, sections, digest = read_header(b)
    try:
        rows, perm, scales = read_head(b, header, sections)
    except (KeyError, TypeError, AttributeError) as e:
        raise Bad(f'JSON header: {e!r}')
    if whole_file: verify(b, sections, rows, perm, scales, header['model']['hidden'])
    m, h = header['model'], header['head']
    return dict(format='%d.%d' % struct.unpack_from('<HH', b, 8), vocab=m['vocab'], hidden=m['hidden'], k=h['k'], cap=h['cap'],
                probes=h['probes'], hot=len(h['hot']), centroids=h['centroids']['encoding'], tokens=h['tokens']['encoding'], rerank=h.get('rerank', 0),
                bundled=header['bundle']['body'], calibrated=header['calibration'] is not None, fingerprint=m['fingerprint'], digest=digest,
                permutation_checksum=sum(i * t for i, t in enumerate(perm, 1) if t != EMPTY) % (1 << 32),
                sections=[dict(name=n, offset=s['offset'], bytes=s['bytes'], codec=['raw', 'zstd'][s['codec']], digest=s['sha256'].hex())
                          for n, s in sections.items()])


if __name__ == '__main__':
    sound = True
    for path in (a for a in sys.argv[1:] if a != '--verify'):
        try:
            print(json.dumps(read(open(path, 'rb').read(), '--verify' in sys.argv)))
        except Bad as e:
            sound = False
            print(json.dumps({'file': path, 'error': str(e)}))
    sys.exit(not sound)
