#!/usr/bin/env python3
"""Makes tests/golden/fhead-1.0/ and fhead-1.1/: small .fhead files, sound and broken, from docs/fhead-format.md alone (standard library; the `zstd`
program for the compressed one).  expected.json says of each at which stage a reader stops, with which status and which words.

    python3 tests/golden/make_fhead.py [DIRECTORY]
"""
import copy, hashlib, json, os, struct, subprocess, sys

TOP = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(TOP, 'fhead-1.0')
V, D, K, CAP, EMPTY = 7, 3, 2, 4, 0xFFFFFFFF
PERM = [1, 4, 5, 6, 0, 2, 3, EMPTY]
ROWS = {t: [0.5 * t + 0.25, -1.0 * t, 0.125 * (t - 3)] for t in range(V)}
expected = []


def up(n, to):
    return (n + to - 1) // to * to


def f32_rows(rows):
    return b''.join(struct.pack('<3f', *r) + bytes(52) for r in rows)


def bf16_rows(rows):  # these values are exact in bf16
    return b''.join(b''.join(struct.pack('<f', x)[2:] for x in r) + bytes(58) for r in rows)


def int8_rows(rows):
    scales, out = [], b''
    for r in rows:
        scale = struct.unpack('<f', struct.pack('<f', max(map(abs, r)) / 127))[0] or 1.0
        scales.append(scale)
        out += struct.pack('<3b', *(round(x / scale) for x in r)) + bytes(61)
    return out, struct.pack(f'<{len(scales)}f', *scales)


def enc(name):
    return dict(encoding=name, group=D, stride=64, layout='rows', transform='none')


HEADER = dict(format='fhead', requires=[], tool='make_fhead.py',
              model=dict(type='llama', vocab=V, hidden=D, dtype='f32', tied=True, softcap=0.0, fingerprint='ab' * 32, tokenizer_size=6),
              head=dict(k=K, cap=CAP, probes=1, routing='mean', centroids=enc('f32'), tokens=enc('f32'), hot=[5, 1], always=[2]),
              calibration=None, bundle=dict(body=False, tokenizer=False), provenance={})
SLOT_ROWS = [ROWS[t] if t != EMPTY else [0.0] * 3 for t in PERM]
CENTROIDS = [[0.6, 0.0, -0.8], [0.0, -1.0, 0.0]]
SECTIONS = [('head.permutation', 0, 1, struct.pack('<8I', *PERM)), ('head.centroids', 0, 1, f32_rows(CENTROIDS)),
            ('head.dead', 0, 1, b''), ('head.tokens', 0, 1, f32_rows(SLOT_ROWS))]


def zstd(data):
    command = ['zstd', '-19', '--no-check', '-cq', f'--stream-size={len(data)}']
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def build(header, sections, version=(1, 0), raw_bytes={}, entry={}):
    """sections: (name, codec, flags, stored bytes).  raw_bytes: {name: raw size of a compressed one}; entry: {name: {field: value}}."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(',', ':')).encode()
    table = up(128 + len(text), 64)
    at, entries, body = table + 128 * len(sections), b'', b''
    first = up(at, 4096)
    for name, codec, flags, data in sections:
        offset = up(at, 4096)
        body += bytes(offset - first - len(body)) + data
        at = offset + len(data)
        f = dict(name=name.encode(), codec=codec, flags=flags, offset=offset, bytes=len(data), raw=raw_bytes.get(name, len(data)),
                 alignment=4096, reserved=bytes(28), sha=hashlib.sha256(data).digest()) | entry.get(name, {})
        entries += struct.pack('<32sIIQQQI28s32s', *(f[k] for k in 'name codec flags offset bytes raw alignment reserved sha'.split()))
    head = b'\x89FHEAD\r\n' + struct.pack('<HHIQQQ', *version, len(sections), len(text), table, first + len(body)) + bytes(24)
    area = head + bytes(32) + bytes(32) + text + bytes(table - 128 - len(text)) + entries
    return seal(area + bytes(first - len(area)) + body)


def seal(b):
    """The digest made right, as an attacker would."""
    n, table = struct.unpack_from('<I', b, 12)[0], struct.unpack_from('<Q', b, 24)[0]
    end = min(table + 128 * n, len(b))
    return b[:64] + hashlib.sha256(b[:64] + bytes(32) + b[96:end]).digest() + b[96:]


def put(b, at, code, value):
    return b[:at] + struct.pack(code, value) + b[at + struct.calcsize(code):]


def case(name, data, stage='none', status='FH_OK', says=''):
    with open(os.path.join(OUT, name + '.fhead'), 'wb') as f: f.write(data)
    expected.append(dict(file=name + '.fhead', stage=stage, status=status, says=says))


def header(path, value):
    h = copy.deepcopy(HEADER)
    at = h
    for key in path[:-1]: at = at[key]
    if value is None: del at[path[-1]]
    else: at[path[-1]] = value
    return h


def replaced(name, data):
    return [(n, c, f, data if n == name else d) for n, c, f, d in SECTIONS]


def perm(**changes):
    p = list(PERM)
    for k, v in changes.items(): p[int(k[1:])] = v
    return build(HEADER, replaced('head.permutation', struct.pack('<8I', *p)))


def values(name, rows, at, value):
    flat = [list(r) for r in rows]
    flat[at] = value
    return build(HEADER, replaced(name, f32_rows(flat)))


def begin():
    os.makedirs(OUT, exist_ok=True)
    for old in os.listdir(OUT):
        if old.endswith('.fhead'): os.remove(os.path.join(OUT, old))


def finish():
    with open(os.path.join(OUT, 'expected.json'), 'w') as f: f.write('[\n' + ',\n'.join(json.dumps(e) for e in expected) + '\n]\n')
    expected.clear()


begin()
good = build(HEADER, SECTIONS)
table = struct.unpack_from('<Q', good, 24)[0]

# sound ones
case('ok-f32', good)
case('ok-minor-7-unknown-key', build(header(['later'], {'x': [1]}), SECTIONS, version=(1, 7)))
case('ok-unknown-optional-section', build(HEADER, SECTIONS + [('later.norms', 0, 0, b'12345')]))
h = copy.deepcopy(HEADER)
h['model']['dtype'] = 'bf16'
h['head'] |= dict(centroids=enc('int8'), tokens=enc('int8'), exact=enc('bf16'))
c8, cs = int8_rows(CENTROIDS)
t8, ts = int8_rows(SLOT_ROWS)
case('ok-int8-exact-bias-dead', build(h, [('head.permutation', 0, 1, SECTIONS[0][3]), ('head.dead', 0, 1, struct.pack('<2I', 0, 6)),
                                          ('head.bias', 0, 1, struct.pack('<7f', *range(7))), ('head.centroid_scales', 0, 1, cs),
                                          ('head.token_scales', 0, 1, ts), ('head.centroids', 0, 1, c8), ('head.tokens', 0, 1, t8),
                                          ('head.exact', 0, 1, bf16_rows(SLOT_ROWS))]))
tokenizer = json.dumps({'model': {'type': 'BPE', 'vocab': {c: i for i, c in enumerate('abcdef')}, 'merges': []}}).encode()
h = header(['bundle', 'tokenizer'], True)
packed = ('body.tokenizer', 1, 0, zstd(tokenizer))
case('ok-zstd-tokenizer', build(h, SECTIONS + [packed], raw_bytes={'body.tokenizer': len(tokenizer)}))

# what opening finds
case('magic', put(good, 1, '<B', ord('f')), 'open', 'FH_EFORMAT', 'not a .fhead')
case('major-2', build(HEADER, SECTIONS, version=(2, 0)), 'open', 'FH_EUNSUPPORTED', 'newer fhtool: format 2.0')
case('truncated', good[:-1], 'open', 'FH_EFORMAT', 'download complete')
case('padded', good + b'\0', 'open', 'FH_EFORMAT', 'download complete')
case('padded-size-mended', seal(put(good + b'\0', 32, '<Q', len(good) + 1)), 'open', 'FH_EFORMAT', '1 bytes after the last section')
case('flipped-json', put(good, 140, '<B', good[140] ^ 4), 'open', 'FH_EFORMAT', 'digest')
case('count-max', seal(put(good, 12, '<I', 0xFFFFFFFF)), 'open', 'FH_EFORMAT', '4294967295 sections')
case('json-bytes-max', put(good, 16, '<Q', 2**64 - 1), 'open', 'FH_EFORMAT', 'JSON header of 18446744073709551615 bytes')
case('table-offset-max', put(good, 24, '<Q', 2**64 - 64), 'open', 'FH_EFORMAT', 'section table')
case('reserved', seal(put(good, 100, '<B', 1)), 'open', 'FH_EFORMAT', 'reserved')
case('requires-unknown', build(header(['requires'], ['mixed-precision']), SECTIONS), 'open', 'FH_EUNSUPPORTED', 'mixed-precision')
case('not-json', build(b'{"format":"fhead",}', SECTIONS), 'open', 'FH_EFORMAT', 'JSON header')
case('duplicate-key', build(json.dumps(HEADER)[:-1].encode() + b',"format":"fhead"}', SECTIONS), 'open', 'FH_EFORMAT', 'format')
case('unknown-required-section', build(HEADER, SECTIONS + [('later.norms', 0, 1, b'x')]), 'open', 'FH_EUNSUPPORTED', 'later.norms')
case('unknown-codec', build(HEADER, SECTIONS, entry={'head.dead': dict(codec=9)}), 'open', 'FH_EUNSUPPORTED', 'codec 9')
case('unknown-flag', build(HEADER, SECTIONS, entry={'head.dead': dict(flags=3)}), 'open', 'FH_EUNSUPPORTED', 'flags')
case('name-bad', build(HEADER, SECTIONS, entry={'head.dead': dict(name=b'head dead')}), 'open', 'FH_EFORMAT', 'name of section 2')
case('name-twice', build(HEADER, SECTIONS, entry={'head.dead': dict(name=b'head.centroids')}), 'open', 'FH_EFORMAT', 'same name')
case('overlap', build(HEADER, SECTIONS, entry={'head.centroids': dict(offset=4096)}), 'open', 'FH_EFORMAT', 'overlaps')
case('misaligned', build(HEADER, SECTIONS, entry={'head.centroids': dict(offset=8256)}), 'open', 'FH_EFORMAT', 'multiple of 4096')
case('hole', build(HEADER, SECTIONS, entry={'head.permutation': dict(offset=8192)}), 'open', 'FH_EFORMAT', 'hole')
case('offset-max', build(HEADER, SECTIONS, entry={'head.tokens': dict(offset=2**64 - 4096)}), 'open', 'FH_EFORMAT', 'past the end')
case('bytes-max', build(HEADER, SECTIONS, entry={'head.tokens': dict(bytes=2**64 - 1, raw=2**64 - 1)}),
     'open', 'FH_EFORMAT', 'past the end')
case('raw-size-differs', build(HEADER, SECTIONS, entry={'head.tokens': dict(raw=64)}), 'open', 'FH_EFORMAT', 'stored')
case('zstd-asks-for-all', build(HEADER, SECTIONS, entry={'head.tokens': dict(codec=1, raw=2**40)}), 'open', 'FH_EFORMAT', 'may not become')
case('header-padding', put(good, table + 128 * 4 + 9, '<B', 1), 'open', 'FH_EFORMAT', 'padding')

# what the check of the head finds
case('k-times-cap-short', build(header(['head', 'cap'], 3), SECTIONS), 'check', 'FH_ECHECK', 'head.tokens: has 512 bytes')
case('vocab-too-large', build(header(['model', 'vocab'], 9), SECTIONS), 'check', 'FH_ECHECK', 'vocabulary of 9')
case('probes-above-k', build(header(['head', 'probes'], 3), SECTIONS), 'check', 'FH_ECHECK', 'probes')
case('k-a-float', build(header(['head', 'k'], 2.0), SECTIONS), 'check', 'FH_EFORMAT', '/head/k')
case('no-model', build(header(['model'], None), SECTIONS), 'check', 'FH_EFORMAT', 'model')
case('encoding-unknown', build(header(['head', 'tokens', 'encoding'], 'int4'), SECTIONS), 'check', 'FH_EUNSUPPORTED', 'int4')
case('transform-unknown', build(header(['head', 'tokens', 'transform'], 'rotation'), SECTIONS), 'check', 'FH_EUNSUPPORTED', 'rotation')
case('layout-unknown', build(header(['head', 'centroids', 'layout'], 'tiles'), SECTIONS), 'check', 'FH_EUNSUPPORTED', 'tiles')
case('group-unknown', build(header(['head', 'centroids', 'group'], 1), SECTIONS), 'check', 'FH_EUNSUPPORTED', 'group')
case('stride-wrong', build(header(['head', 'tokens', 'stride'], 128), SECTIONS), 'check', 'FH_EFORMAT', 'stride')
case('section-missing', build(HEADER, SECTIONS[:3]), 'check', 'FH_EFORMAT', 'head.tokens')
case('section-short', build(HEADER, replaced('head.tokens', f32_rows(SLOT_ROWS[:7]))), 'check', 'FH_ECHECK', 'head.tokens')
case('tokenizer-missing', build(header(['bundle', 'tokenizer'], True), SECTIONS), 'check', 'FH_EFORMAT', 'body.tokenizer')
case('permutation-repeat', perm(s6=2), 'check', 'FH_ECHECK', 'slot 6 (cluster 1): token 2')
case('permutation-gap', perm(s6=EMPTY), 'check', 'FH_ECHECK', 'token 3 has no slot')
case('permutation-id-v', perm(s6=7), 'check', 'FH_ECHECK', 'slot 6 (cluster 1): token 7')
case('permutation-descends', perm(s0=4, s1=1), 'check', 'FH_ECHECK', 'slot 1 (cluster 0): token 1 after 4')
case('permutation-padding-first', perm(s6=EMPTY, s7=3), 'check', 'FH_ECHECK', 'slot 7')
case('hot-twice', build(header(['head', 'hot'], [5, 5]), SECTIONS), 'check', 'FH_ECHECK', '/head/hot/1')
case('hot-past-v', build(header(['head', 'hot'], [7]), SECTIONS), 'check', 'FH_ECHECK', '/head/hot/0')
case('dead-descends', build(HEADER, replaced('head.dead', struct.pack('<2I', 6, 0))), 'check', 'FH_ECHECK', 'head.dead')

# what verification finds
inside = good.index(SECTIONS[1][3])
case('flipped-section', put(good, inside, '<B', good[inside] ^ 1), 'verify', 'FH_EFORMAT', 'head.centroids')
case('section-padding', put(good, 4096 + 200, '<B', 1), 'verify', 'FH_EFORMAT', 'padding')
case('row-padding', build(HEADER, replaced('head.tokens', f32_rows(SLOT_ROWS)[:-65] + b'\1' + bytes(64))), 'verify', 'FH_EFORMAT', 'row 6')
case('empty-slot-not-zero', values('head.tokens', SLOT_ROWS, 7, [1, 0, 0]), 'verify', 'FH_EFORMAT', 'row 7')
case('centroid-nan', values('head.centroids', CENTROIDS, 1, [0, float('nan'), 1]), 'verify', 'FH_ECHECK', 'cluster 1')
case('centroid-zero', values('head.centroids', CENTROIDS, 0, [0, -0.0, 0]), 'verify', 'FH_ECHECK', 'cluster 0')
case('row-infinite', values('head.tokens', SLOT_ROWS, 2, [0, 0, float('inf')]), 'verify', 'FH_ECHECK', 'row 2 (token 5)')
frame = packed[3]
for name, stored, said, word in (('longer-than-said', frame, len(tokenizer) - 1, 'body.tokenizer'),
                                 ('shorter-than-said', frame, len(tokenizer) + 1, 'body.tokenizer'),
                                 ('two-frames', frame * 2, len(tokenizer), 'frame'),
                                 ('damaged', frame[:12] + b'\xff' * (len(frame) - 12), len(tokenizer), 'body.tokenizer')):
    case('zstd-' + name, build(h, SECTIONS + [(*packed[:3], stored)], raw_bytes={'body.tokenizer': said}), 'verify', 'FH_EFORMAT', word)
finish()

# 1.1: int4 rows (two lines each, the last group short) and candidates that are scored again
OUT, D = os.path.join(TOP, 'fhead-1.1'), 130


def value4(r, i):  # what is stored: -7 to 7
    return (7 * i + 3 * r) % 15 - 7


def scale4(r, g):
    return 2.0 ** (g - r - 3)


def int4_row(q):
    row = bytearray(128)
    for i, v in enumerate(q): row[i // 128 * 64 + i % 64] |= (v & 15) << (0 if i % 128 < 64 else 4)
    return bytes(row)


def int4(rows, scales):  # bf16 is the upper half of a float32, and these scales are exact in it
    return b''.join(map(int4_row, rows)), b''.join(struct.pack('<f', x)[2:] for s in scales for x in s)


begin()
quarter = [[value4(t, i) * scale4(t, i // 32) for i in range(D)] for t in range(V)]  # the checkpoint's rows: a little more than what int4 keeps
exact = [[x + 0.25 * scale4(t, i // 32) for i, x in enumerate(quarter[t])] for t in range(V)]
c4, cs = int4([[value4(c + 9, i) for i in range(D)] for c in range(K)], [[scale4(c, g) for g in range(5)] for c in range(K)])
t4, ts = int4([[0] * D if t == EMPTY else [value4(t, i) for i in range(D)] for t in PERM], [[1.0] * 5 if t == EMPTY else [scale4(t, g) for g in range(5)] for t in PERM])
e32 = b''.join(bytes(576) if t == EMPTY else struct.pack('<130f', *exact[t]) + bytes(56) for t in PERM)
encoding4 = dict(encoding='int4', group=32, stride=128, layout='rows', transform='none')
H4 = copy.deepcopy(HEADER)
H4['model']['hidden'] = D
H4['head'] |= dict(centroids=encoding4, tokens=encoding4, exact=dict(encoding='f32', group=D, stride=576, layout='rows', transform='none'), rerank=2)
S4 = [SECTIONS[0], ('head.dead', 0, 1, b''), ('head.centroid_scales', 0, 1, cs), ('head.token_scales', 0, 1, ts), ('head.centroids', 0, 1, c4),
      ('head.tokens', 0, 1, t4), ('head.exact', 0, 1, e32)]


def case4(name, *verdict, data={}, **head):
    h = copy.deepcopy(H4)
    for key, v in head.items():
        if key in ('centroids', 'tokens'): h['head'][key] |= v
        elif v is None: del h['head'][key]
        else: h['head'][key] = v
    case(name, build(h, [(n, c, f, data.get(n, d)) for n, c, f, d in S4 if data.get(n, d) is not None], version=(1, 1)), *verdict)


case4('ok-int4-rerank')
case4('ok-int4-rerank-0', rerank=0)
case4('ok-int4-no-rerank', rerank=None)
case4('ok-int4-without-exact', exact=None, rerank=None, data={'head.exact': None})
case4('rerank-without-exact', 'check', 'FH_EFORMAT', '/head/rerank', exact=None, data={'head.exact': None})
case4('rerank-too-many', 'check', 'FH_EFORMAT', '/head/rerank', rerank=65537)
case4('rerank-negative', 'check', 'FH_EFORMAT', '/head/rerank', rerank=-1)
case4('rerank-a-float', 'check', 'FH_EFORMAT', '/head/rerank', rerank=2.0)


def case_threshold(name, *verdict, threshold=2.5, requires=('threshold',)):
    h = copy.deepcopy(H4)
    h['requires'] = list(requires)
    if threshold is not None: h['head']['threshold'] = threshold
    case(name, build(h, S4, version=(1, 1)), *verdict)


case_threshold('ok-threshold')
case_threshold('ok-threshold-whole', threshold=3)
case_threshold('threshold-not-required', 'check', 'FH_EFORMAT', '/head/threshold is there', requires=())
case_threshold('threshold-missing', 'check', 'FH_EFORMAT', '/head/threshold is missing', threshold=None)
case_threshold('threshold-zero', 'check', 'FH_EFORMAT', '/head/threshold is not', threshold=0)
case_threshold('threshold-negative', 'check', 'FH_EFORMAT', '/head/threshold is not', threshold=-1.5)
case_threshold('threshold-tiny', 'check', 'FH_EFORMAT', '/head/threshold is not', threshold=1e-60)
case_threshold('threshold-huge', 'check', 'FH_EFORMAT', '/head/threshold is not', threshold=1e39)
case_threshold('threshold-a-string', 'check', 'FH_EFORMAT', '/head/threshold is not', threshold='2.5')
case_threshold('threshold-and-later', 'open', 'FH_EUNSUPPORTED', 'error-norms', requires=('threshold', 'error-norms'))
case4('int4-group', 'check', 'FH_EUNSUPPORTED', 'group 130', tokens={'group': D})
case4('int4-stride', 'check', 'FH_EFORMAT', 'stride', tokens={'stride': 64})
case4('int4-scales-short', 'check', 'FH_ECHECK', 'head.token_scales', data={'head.token_scales': ts[:-2]})
case4('int4-scales-missing', 'check', 'FH_EFORMAT', 'head.centroid_scales', data={'head.centroid_scales': None})
case4('int4-scale-zero', 'check', 'FH_ECHECK', 'head.token_scales: the scale of row 2', data={'head.token_scales': put(ts, 2 * 5 * 2 + 4, '<H', 0)})
case4('int4-scale-infinite', 'check', 'FH_ECHECK', 'head.centroid_scales: the scale of row 1', data={'head.centroid_scales': put(cs, 5 * 2, '<H', 0x7f80)})
case4('int4-minus-8', 'verify', 'FH_ECHECK', 'row 1 (token 4): value 64 is -8', data={'head.tokens': put(t4, 128, '<B', t4[128] & 15 | 0x80)})
case4('int4-half-byte-padding', 'verify', 'FH_EFORMAT', 'row 1', data={'head.tokens': put(t4, 128 + 66, '<B', 1)})
case4('int4-high-half-padding', 'verify', 'FH_EFORMAT', 'row 1', data={'head.tokens': put(t4, 128 + 64, '<B', t4[128 + 64] | 0x10)})
case4('int4-empty-slot-scale', 'verify', 'FH_ECHECK', 'empty slot 7', data={'head.token_scales': put(ts, 7 * 5 * 2 + 8, '<H', 0x4000)})
finish()
