"""forge.py IN OUT FAULT [OTHER]: a copy of an artifact with one fault, its digests made right, as somebody would who means it.

    flip          one bit of the token rows, digests as they were
    permutation   two tokens change places in head.permutation, which stays sorted within clusters
    shuffle       all tokens do
    unsorted      all tokens do, and it is not sorted
    rows          the token rows, their scales and the exact rows are those of OTHER
    row           one encoded row is another's
    fingerprint   the header says another fingerprint
    calibration   the calibration is that of OTHER, with its digest of a head
    old-calibration   the same without that digest, as earlier versions packed
    bare          the calibration without that digest
    promise X     the calibration promises X"""
import hashlib
import json
import random
import struct
import sys

EMPTY = 0xFFFFFFFF


def up(n, to):
    return (n + to - 1) // to * to


def read(path):
    b = open(path, "rb").read()
    n, json_bytes, table = struct.unpack_from("<I", b, 12)[0], *struct.unpack_from("<QQ", b, 16)
    sections = []
    for e in range(table, table + 128 * n, 128):
        codec, flags, offset, stored, raw = struct.unpack_from("<IIQQQ", b, e + 32)
        sections.append([b[e:e + 32].rstrip(b"\0").decode(), codec, flags, raw, b[offset:offset + stored]])
    return struct.unpack_from("<HH", b, 8), json.loads(b[128:128 + json_bytes]), sections


def write(path, version, header, sections):
    text = json.dumps(header, separators=(",", ":")).encode()
    table = up(128 + len(text), 64)
    at, entries, body = table + 128 * len(sections), b"", b""
    first = up(at, 4096)
    for name, codec, flags, raw, data in sections:
        offset = up(at, 4096)
        body += bytes(offset - first - len(body)) + data
        at = offset + len(data)
        entries += struct.pack("<32sIIQQQI28s32s", name.encode(), codec, flags, offset, len(data), raw, 4096, bytes(28), hashlib.sha256(data).digest())
    head = b"\x89FHEAD\r\n" + struct.pack("<HHIQQQ", *version, len(sections), len(text), table, first + len(body)) + bytes(24)
    area = head + bytes(64) + text + bytes(table - 128 - len(text)) + entries
    digest = hashlib.sha256(area).digest()
    with open(path, "wb") as f:
        f.write(area[:64] + digest + area[96:] + bytes(first - len(area)) + body)


def main():
    source, target, fault, *more = sys.argv[1:]
    if fault == "flip":
        b = bytearray(open(source, "rb").read())
        table, n = struct.unpack_from("<Q", b, 24)[0], struct.unpack_from("<I", b, 12)[0]
        for e in range(table, table + 128 * n, 128):
            if b[e:e + 32].rstrip(b"\0") == b"head.tokens":
                b[struct.unpack_from("<Q", b, e + 40)[0] + 5] ^= 4
        open(target, "wb").write(b)
        return
    version, header, sections = read(source)
    by_name = {s[0]: s for s in sections}
    if fault in ("permutation", "shuffle", "unsorted"):
        s = by_name["head.permutation"]
        slots = list(struct.unpack(f"<{len(s[4]) // 4}I", s[4]))
        live = [i for i, t in enumerate(slots) if t != EMPTY]
        tokens = [slots[i] for i in live]
        if fault == "permutation":
            tokens[3], tokens[-3] = tokens[-3], tokens[3]
        else:
            random.Random(1).shuffle(tokens)
        for i, t in zip(live, tokens):
            slots[i] = t
        cap = header["head"]["cap"]
        for at in range(0, len(slots), cap):
            if fault != "unsorted":
                slots[at:at + cap] = sorted(slots[at:at + cap])
        s[4] = struct.pack(f"<{len(slots)}I", *slots)
    elif fault == "rows":
        theirs = {s[0]: s for s in read(more[0])[2]}
        for name in ("head.tokens", "head.token_scales", "head.exact"):
            if name in by_name:
                by_name[name][4] = theirs[name][4]
    elif fault == "row":
        s, stride = by_name["head.tokens"], header["head"]["tokens"]["stride"]
        s[4] = s[4][stride:2 * stride] + s[4][stride:]
    elif fault == "fingerprint":
        header["model"]["fingerprint"] = "ab" * 32
    elif fault in ("calibration", "old-calibration"):
        theirs = read(more[0])[1]
        header["calibration"] = theirs["calibration"]
        if fault == "calibration":
            header["calibrated_head"] = theirs["calibrated_head"]
        else:
            del header["calibrated_head"]
    elif fault == "bare":
        del header["calibrated_head"]
    elif fault == "promise":
        header["calibration"]["target"] = header["calibration"]["promises"][0]["target"] = float(more[0])
    else:
        sys.exit(f"no fault '{fault}'")
    write(target, version, header, sections)


main()
