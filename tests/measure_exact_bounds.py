#!/usr/bin/env python3
"""tests/measure_exact_bounds.py WORKDIR STATES.safetensors: what share of a head's rows each known bound leaves to be read exactly.

A draw takes the best of logit + Gumbel noise.  A row need not be read where an upper bound of its logit, with its noise, stays below the
best; this counts the rows that are left when the best is known.  WORKDIR has head.safetensors and clusters.safetensors (fhtool convert,
cluster).  Needs numpy; seeded, about a minute for a vocabulary of 16384.  docs/measurements/exact-sampling.md shows what it printed."""
import json
import struct
import sys

import numpy as np


def tensors(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        raw = data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]]
        kind = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.int32}.get(t["dtype"])
        if kind is None:
            continue
        a = np.frombuffer(raw, kind)
        if t["dtype"] == "BF16":
            a = (a.astype(np.uint32) << 16).view(np.float32)
        out[name] = a.reshape(t["shape"])
    return out


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rng = np.random.default_rng(1)
    rows = tensors(f"{sys.argv[1]}/head.safetensors")["weight"].astype(np.float64)
    home = tensors(f"{sys.argv[1]}/clusters.safetensors")["assignment"]
    states = tensors(sys.argv[2])["hidden"].reshape(-1, rows.shape[1])
    h = states[rng.choice(len(states), 300, replace=False)].astype(np.float64)
    k, logits, size = int(home.max()) + 1, h @ rows.T, np.linalg.norm(h, axis=1)[:, None]
    noise = rng.gumbel(size=logits.shape)
    best = (logits + noise).max(1)[:, None]
    norm = lambda x: np.linalg.norm(x, axis=-1)

    def show(name, bound):
        left = (bound + noise > best).mean(1)
        print(f"{name:44s} {np.mean(bound - logits):8.2f} {100 * left.mean():10.3f} % {100 * np.median(left):10.3f} %")

    print(f"{'bound':44s} {'slack':>8s} {'rows left':>12s} {'median':>12s}")
    mean = np.zeros((k, rows.shape[1]))
    np.add.at(mean, home, rows)
    mean /= np.bincount(home, minlength=k)[:, None]
    off = norm(rows - mean[home])
    radius = np.zeros(k)
    np.maximum.at(radius, home, off)
    show("ball: cluster's mean and radius", (h @ mean.T)[:, home] + size * radius[home])
    show("ball: cluster's mean and the row's distance", (h @ mean.T)[:, home] + size * off)
    middle = rows.mean(0)
    show("ball: mean of all rows, the row's distance", (h @ middle)[:, None] + size * norm(rows - middle))
    axis = mean / norm(mean)[:, None]
    along = (rows * axis[home]).sum(1)
    h_along = h @ axis.T
    h_off = np.sqrt(np.maximum(size ** 2 - h_along ** 2, 0))
    show("cone: along the cluster's mean, and across", h_along[:, home] * along + h_off[:, home] * norm(rows - along[:, None] * axis[home]))
    centred = rows - middle
    seen = states[::7].astype(np.float64)
    for name, gram in (("rows", centred.T @ centred), ("states", seen.T @ seen)):
        turn = np.linalg.eigh(gram)[1][:, ::-1]
        w, x = centred @ turn, h @ turn
        for m in (rows.shape[1] // 4, rows.shape[1] // 2, 3 * rows.shape[1] // 4):
            rest = norm(x[:, m:])[:, None] * norm(w[:, m:])[None]
            show(f"prefix: {m} of {rows.shape[1]} main axes of the {name}", (h @ middle)[:, None] + x[:, :m] @ w[:, :m].T + rest)
    for bits in (4, 5, 6, 7, 8):
        step = np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
        coded = np.rint(rows / step) * step
        show(f"encoded: {bits} bits a value, a scale a row", h @ coded.T + size * norm(rows - coded))


main()
