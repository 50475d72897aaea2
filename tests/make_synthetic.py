#!/usr/bin/env python3
"""make_synthetic.py DIR [--vocab V --hidden D [--layers L ...]] [--states OUT --count N]: a checkpoint of any size, a head alone or with a body, and states
to ask it with.

For measuring at the sizes of real models where no real model is at hand.  Needs numpy.  The same arguments give the same bytes on one machine
and numpy (the last bits of its matrix product differ between processors).  Memory: two chunks of rows and the tables of centres, whatever V is.

With --vocab and --hidden: DIR/config.json (a Llama whose body is not there) and DIR/model.safetensors (`lm_head.weight` [V, D] bf16).
With --layers L, --heads, --kv-heads, --head-dim and --ffn too: a body of noise below it, a Llama whose head is tied.  It says nothing; it is there to be timed.
With --states OUT: N states for the head in DIR, safetensors with `hidden` [N, D] float32 and `ids`, `next`, `document`, `part` as
`fhtool hidden` writes them: `fhtool query --hidden OUT` and `fhtool bench --hidden OUT` read the file as it is, and copied to
states.safetensors of a work directory it is what `cluster`, `route` and `calibrate` learn from.

How hard it is was matched to published figures of a real head: docs/measurements/synthetic-heads.md says how, and how well.

A row.  A unit vector, sqrt(COMMON) c + sqrt(GROUP) g + sqrt(FAMILY) f + sqrt(KIN) k + an isotropic rest, times a log-normal norm.  c: one direction
of all rows.  g, f, k: centres of V/2048, V/256 and V/16 nodes, each node under one of the level above; a row hangs on two kins of a
family, weighted by cos and sin of an angle of its own, so that no partition is the right one, and nodes have unequal numbers of rows.
The centres have a power-law spectrum in a random basis.

A state.  h = scale * (row + pull * t + noise * n): the row of a token drawn by a Zipf law of its id; t, a topic: the direction of a random family and its
group, which favours whole clusters over single tokens; n, an isotropic direction.  pull and noise are log-normal from state to state:
most states are easy and a few are hard, the heavy tail that real heads show.
"""
import argparse
import json
import os
import struct
import sys

import numpy as np

# Of a row: shares of its square; rows a node of each level has on average; standard deviations of the logarithm of norms and of the sizes
# of nodes; and the i-th direction of the centres has standard deviation i^-SPECTRUM.
COMMON, GROUP, FAMILY, KIN = 0.10, 0.08, 0.12, 0.13
PER_NODE = 2048, 256, 16
NORM_SPREAD, SIZE_SPREAD = 0.10, 0.5
SPECTRUM = 0.35
# Of a state: medians, against a row of norm 1, and standard deviations of the logarithm.
PULL_MEDIAN, PULL_SPREAD = 0.68, 0.5
NOISE_MEDIAN, NOISE_SPREAD = 1.45, 0.97
TOPIC_FAMILY = 0.55    # how much of the family's centre there is in a topic, beside the group's
STATE_SCALE = 19.0     # how sure the softmax is; the order of logits does not depend on it
CHUNK = 4096           # rows or states made at a time
DOCUMENT = 64          # states that share a document
BODY = "layers", "heads", "kv_heads", "head_dim", "ffn"


def to_bf16(x):
    """Round to nearest, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def rng_of(seed, *stream):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Rows:
    """The rows of a head, any range of them at a time: chunk i depends on the seed and i alone."""

    def __init__(self, vocab, hidden, seed):
        self.vocab, self.hidden, self.seed = vocab, hidden, seed
        r = rng_of(seed, 0)
        spectrum = np.arange(1, hidden + 1, dtype=np.float32) ** -SPECTRUM
        basis = np.linalg.qr(r.standard_normal((hidden, hidden), dtype=np.float32))[0].astype(np.float32)
        self.common = unit(r.standard_normal(hidden, dtype=np.float32)) * np.float32(np.sqrt(COMMON))
        self.centres, self.ends = [], []
        for per_node, share in zip(PER_NODE, (GROUP, FAMILY, KIN)):
            nodes = max(2, vocab // per_node)
            self.centres.append(unit(r.standard_normal((nodes, hidden), dtype=np.float32) * spectrum @ basis) * np.float32(np.sqrt(share)))
            self.ends.append(np.cumsum(np.exp(SIZE_SPREAD * r.standard_normal(nodes))))
        self.parents = [r.integers(0, len(up), len(down)) for up, down in zip(self.centres, self.centres[1:])]
        self.order = np.argsort(self.parents[1], kind="stable")  # kins by family, and where each stands in that order
        self.place = np.argsort(self.order, kind="stable")

    def chunk(self, number):
        r = rng_of(self.seed, 1, number)
        n = min(CHUNK, self.vocab - number * CHUNK)
        kin = np.searchsorted(self.ends[2], r.random(n) * self.ends[2][-1])
        other = self.order[(self.place[kin] + r.integers(1, 4, n)) % len(self.order)]  # of the same family, but at its end
        family = self.parents[1][kin]
        angle = (r.random(n, dtype=np.float32) * np.float32(np.pi / 4))[:, None]
        x = r.standard_normal((n, self.hidden), dtype=np.float32)
        x *= np.float32(np.sqrt((1 - COMMON - GROUP - FAMILY - KIN) / self.hidden))
        x += self.common
        x += self.centres[0][self.parents[0][family]]
        x += self.centres[1][family]
        x += np.cos(angle) * self.centres[2][kin]
        x += np.sin(angle) * self.centres[2][other]
        return unit(x) * np.exp(NORM_SPREAD * r.standard_normal((n, 1), dtype=np.float32))

    def topics(self, r, n):
        family = r.integers(0, len(self.centres[1]), n)
        return unit(np.float32(TOPIC_FAMILY) * self.centres[1][family] + self.centres[0][self.parents[0][family]])


def write_header(f, tensors, metadata):
    """tensors: [(name, dtype, shape, bytes)]"""
    header, at = {"__metadata__": metadata}, 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    f.write(struct.pack("<Q", len(text)) + text)


def body_tensors(hidden, body):
    """[(name, shape)] of a Llama's layers and final norm."""
    q, kv = body["heads"] * body["head_dim"], body["kv_heads"] * body["head_dim"]
    ffn = body["ffn"]
    layer = [("input_layernorm", [hidden]), ("mlp.down_proj", [hidden, ffn]), ("mlp.gate_proj", [ffn, hidden]), ("mlp.up_proj", [ffn, hidden]),
             ("post_attention_layernorm", [hidden]), ("self_attn.k_proj", [kv, hidden]), ("self_attn.o_proj", [hidden, q]), ("self_attn.q_proj", [q, hidden]),
             ("self_attn.v_proj", [kv, hidden])]
    names = [(f"model.layers.{i}.{name}.weight", shape) for i in range(body["layers"]) for name, shape in layer]
    return names + [("model.norm.weight", [hidden])]


def write_head(directory, vocab, hidden, seed, body):
    os.makedirs(directory, exist_ok=True)
    shape = body or {"layers": 1, "heads": 1, "kv_heads": 1, "head_dim": hidden, "ffn": 4 * hidden}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": shape["ffn"],
              "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
              "head_dim": shape["head_dim"], "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": bool(body),
              "torch_dtype": "bfloat16"}
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=1)
        f.write("\n")
    rows = Rows(vocab, hidden, seed)
    tensors = [("model.embed_tokens.weight" if body else "lm_head.weight", [vocab, hidden])] + (body_tensors(hidden, body) if body else [])
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        write_header(f, [(name, "BF16", shape, 2 * int(np.prod(shape))) for name, shape in tensors], {"format": "pt", "synthetic_seed": str(seed)})
        for number in range((vocab + CHUNK - 1) // CHUNK):
            f.write(to_bf16(rows.chunk(number)).tobytes())
        for number, (_, shape) in enumerate(tensors[1:]):
            r = rng_of(seed, 4, number)
            for at in range(0, shape[0], CHUNK):
                some = [min(CHUNK, shape[0] - at)] + shape[1:]
                f.write(to_bf16(np.ones(some) if len(shape) == 1 else r.standard_normal(some, dtype=np.float32) * np.float32(shape[1] ** -0.5)).tobytes())


def open_head(directory):
    """The rows of a head that write_head wrote, [V, D] bf16 as uint16, and its seed."""
    path = os.path.join(directory, "model.safetensors")
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
    at, seed = header.get("lm_head.weight") or header.get("model.embed_tokens.weight"), header.get("__metadata__", {}).get("synthetic_seed")
    if seed is None or at is None:
        sys.exit(f"make_synthetic.py: {path}: was not made by this program")
    return np.memmap(path, dtype=np.uint16, mode="r", offset=8 + size + at["data_offsets"][0], shape=tuple(at["shape"])), int(seed)


def log_normal(r, n, median, spread):
    return np.float32(median) * np.exp(np.float32(spread) * r.standard_normal((n, 1), dtype=np.float32))


def states_chunk(rows, head, number, count, seed):
    """Chunk `number` of `count` states for head [V, D]: hidden [n, D] float32 and the tokens they were made for [n]."""
    vocab, hidden = head.shape
    r = rng_of(seed, 2, number)
    n = min(CHUNK, count - number * CHUNK)
    # rank = (V + 1)^u - 1 has a density that falls as 1 / (rank + 1)
    tokens = np.minimum(np.exp(r.random(n) * np.log(vocab + 1)) - 1, vocab - 1).astype(np.int64)
    h = from_bf16(head[tokens])
    h += log_normal(r, n, PULL_MEDIAN, PULL_SPREAD) * rows.topics(r, n)
    h += log_normal(r, n, NOISE_MEDIAN, NOISE_SPREAD) * unit(r.standard_normal((n, hidden), dtype=np.float32))
    return np.float32(STATE_SCALE) * h, tokens


def write_states(directory, out, count, seed):
    head, head_seed = open_head(directory)
    rows = Rows(*head.shape, head_seed)
    hidden = head.shape[1]
    documents = np.arange(count, dtype=np.uint32) // DOCUMENT
    part = np.searchsorted([0.5, 0.85, 1.0], rng_of(seed, 3).random(int(documents[-1]) + 1), side="right").astype(np.uint8)[documents]
    made_by = {"stage": "hidden", "tool": "make_synthetic.py", "inputs": {}, "params": {"asked": {"text": "synthetic", "tokens": count, "seed": seed}}}
    tokens = []
    with open(out, "wb") as f:
        write_header(f, [("hidden", "F32", [count, hidden], 4 * count * hidden), ("ids", "U32", [count], 4 * count), ("next", "U32", [count], 4 * count),
                         ("document", "U32", [count], 4 * count), ("part", "U8", [count], count)], {"fhtool": json.dumps(made_by, separators=(",", ":"))})
        for number in range((count + CHUNK - 1) // CHUNK):
            h, t = states_chunk(rows, head, number, count, seed)
            f.write(h.tobytes())
            tokens.append(t)
        said = np.concatenate(tokens).astype(np.uint32)
        f.write(np.roll(said, 1).tobytes() + said.tobytes() + documents.tobytes() + part.tobytes())


def main():
    p = argparse.ArgumentParser(description="A synthetic head and states for it.")
    p.add_argument("dir")
    p.add_argument("--vocab", type=int)
    p.add_argument("--hidden", type=int)
    for name in BODY:
        p.add_argument("--" + name.replace("_", "-"), type=int)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--states", metavar="OUT")
    p.add_argument("--count", type=int, default=20000)
    a = p.parse_args()
    if (a.vocab is None) != (a.hidden is None):
        sys.exit("make_synthetic.py: --vocab and --hidden go together")
    if a.vocab is None and not a.states:
        sys.exit("make_synthetic.py: nothing to make: give --vocab and --hidden, or --states")
    if a.vocab is not None:
        if a.vocab < 2 or a.hidden < 1:
            sys.exit("make_synthetic.py: a head has at least 2 rows of 1 number")
        body = {name: getattr(a, name) for name in BODY}
        if any(body.values()) and not all(n and n > 0 for n in body.values()):
            sys.exit("make_synthetic.py: a body needs " + ", ".join("--" + name.replace("_", "-") for name in BODY))
        write_head(a.dir, a.vocab, a.hidden, a.seed, body if a.layers else None)
    if a.states:
        if a.count < 1:
            sys.exit("make_synthetic.py: --count is at least 1")
        write_states(a.dir, a.states, a.count, a.seed)


if __name__ == "__main__":
    main()
