#!/usr/bin/env python3
"""make_llama.py OUT.gguf [--type bf16|f16|f32|q8_0] [--layers N --hidden N --ffn N --heads N --kv-heads N --head-dim N --vocab N]

A Llama of any shape with random weights and no tokenizer, by default of Llama-3.2-1B's shape: for measuring speed, here and with other programs that
read GGUF.  The same arguments give the same bytes.  Needs numpy; memory: one matrix.
"""
import argparse
import struct

import numpy as np

TYPES = {"f32": (0, 1, 4), "f16": (1, 1, 2), "bf16": (30, 1, 2), "q8_0": (8, 32, 34)}  # ggml's number, values and bytes of a block
ALIGN = 32


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def value(key, v):
    if isinstance(v, str):
        return text(key) + struct.pack("<I", 8) + text(v)
    return text(key) + (struct.pack("<If", 6, v) if isinstance(v, float) else struct.pack("<II", 4, v))


def rows(rng, kind, n, width, deviation):
    """n rows of uniform numbers of this standard deviation, as the file has them."""
    most = deviation * 3 ** 0.5
    if kind == "q8_0":
        blocks = np.empty((n, width // 32), dtype=np.dtype([("scale", "<f2"), ("q", "i1", 32)]))
        blocks["scale"] = most / 127
        blocks["q"] = rng.integers(-127, 128, size=(n, width // 32, 32), dtype=np.int8)
        return blocks.tobytes()
    x = rng.random((n, width), dtype=np.float32)
    x -= 0.5
    x *= 2 * most
    if kind == "bf16":
        return (x.view(np.uint32) >> 16).astype("<u2").tobytes()
    return x.astype("<f2" if kind == "f16" else "<f4").tobytes()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out")
    p.add_argument("--type", default="bf16", choices=TYPES)
    for name, default in dict(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64, vocab=128256, positions=131072).items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    a = p.parse_args()
    d, q, kv = a.hidden, a.heads * a.head_dim, a.kv_heads * a.head_dim
    tensors = [("token_embd.weight", a.vocab, d), ("output_norm.weight", 0, d)]
    for i in range(a.layers):
        for name, n, width in [("attn_norm", 0, d), ("attn_q", q, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, q), ("ffn_norm", 0, d),
                               ("ffn_gate", a.ffn, d), ("ffn_up", a.ffn, d), ("ffn_down", d, a.ffn)]:
            tensors.append((f"blk.{i}.{name}.weight", n, width))
    facts = {
        "general.architecture": "llama", "general.name": "random", "llama.block_count": a.layers, "llama.context_length": a.positions,
        "llama.embedding_length": d, "llama.feed_forward_length": a.ffn, "llama.attention.head_count": a.heads,
        "llama.attention.head_count_kv": a.kv_heads, "llama.attention.key_length": a.head_dim, "llama.attention.value_length": a.head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": a.head_dim, "llama.rope.freq_base": 500000.0,
        "llama.vocab_size": a.vocab, "tokenizer.ggml.model": "no_vocab",
    }
    header, offset, sizes = b"", 0, []
    for name, n, width in tensors:
        number, values, size = TYPES[a.type if n else "f32"]
        shape = (width, n) if n else (width,)
        header += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", number, offset)
        sizes.append(max(n, 1) * width // values * size)
        offset += -(-sizes[-1] // ALIGN) * ALIGN
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)) + b"".join(value(k, v) for k, v in facts.items()) + header
    rng = np.random.default_rng(1)
    with open(a.out, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGN))
        for (name, n, width), size in zip(tensors, sizes):
            if not n:
                f.write(np.ones(width, dtype="<f4").tobytes())
            for r in range(0, n, 4096):
                f.write(rows(rng, a.type, min(4096, n - r), width, width ** -0.5))
            f.write(bytes(-size % ALIGN))


main()
