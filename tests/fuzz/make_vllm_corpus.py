#!/usr/bin/env python3
"""make_vllm_corpus.py DIR: the seeds of tests/fuzz/corpus/vllm, as fuzz_vllm.c reads them."""
import json
import os
import struct
import sys

ARCH = {"architectures": ["FlashHeadLlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "flash_head_cache_dir": "flash_head_assets", "n_probes": 2}
BESIDE = {"format": "safetensors", "vocab_size": 8, "hidden_size": 4}
UNIT = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]  # [D, K] of K = 4


def cache(shape=(1, 1, 4, 4), values=UNIT, ids=(0, 1, 2, 3, 3, 2, 1, 0), dtype="F32", line=False, record=None):
    a, b = struct.pack("<%df" % len(values), *values), struct.pack("<%dq" % len(ids), *ids)
    header = {"centroids": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(a)]},
              "cluster_assignments": {"dtype": "I64", "shape": [len(ids)], "data_offsets": [len(a), len(a) + len(b)]}}
    if record:
        header["__metadata__"] = {"fhtool": record}
    text = json.dumps(header).encode()
    return (b"\xff" * 8 + text + b"\n" if line else struct.pack("<Q", len(text)) + text) + a + b


def seed(name, config=ARCH, beside=BESIDE, blob=None):
    c = config if isinstance(config, bytes) else json.dumps(config, indent=1).encode()
    b = json.dumps(beside).encode() if beside else b""
    with open(os.path.join(sys.argv[1], name), "wb") as f:
        f.write(struct.pack("<HH", len(c), len(b)) + c + b + (blob or cache()))


os.makedirs(sys.argv[1], exist_ok=True)
seed("good")
seed("plain", beside=None, blob=cache(record='{"fingerprint": "00"}'))
seed("line", blob=cache(line=True))
seed("one_cluster", {**ARCH, "n_probes": 1}, blob=cache((1, 1, 4, 1), [1.0, 2, 3, 4], [0] * 8))
seed("default_probes", {k: v for k, v in ARCH.items() if k != "n_probes"})
seed("special", {**ARCH, "flash_head_special_token_ids": [0, 7]})
seed("special_one", {**ARCH, "flash_head_special_token_ids": 3})
seed("special_out", {**ARCH, "flash_head_special_token_ids": [8]})
seed("nan", blob=cache(values=[float("nan"), *UNIT[1:]]))
seed("zero", blob=cache(values=[0.0, *UNIT[1:]]))
seed("unequal", blob=cache(ids=(0, 1, 2, 3, 3, 2, 1, 1)))
seed("out", blob=cache(ids=(0, 1, 2, 4, 3, 2, 1, 0)))
seed("negative", blob=cache(ids=(0, 1, 2, -1, 3, 2, 1, 0)))
seed("short", blob=cache(ids=(0, 1, 2, 3)))
seed("wide", blob=cache((1, 1, 2, 8)))
seed("flat", blob=cache((4, 4)))
seed("integers", blob=cache(dtype="I32"))
seed("outside", {**ARCH, "flash_head_cache_dir": "../x"})
seed("auto_map", {**ARCH, "auto_map": {"a": ["}", "\\\"", {"b": 1}]}})
seed("to_patch", b'{"model_type":"llama" ,\t"architectures" : [ "LlamaForCausalLM" , "x"],"vocab_size":8,"hidden_size":4,"num_hidden_layers":1,'
     b'"num_attention_heads":1,"intermediate_size":4,"auto_map":{"x":[1,{"}":"]"}]},"n_pr\\u006fbes" : [1,2, {"a":{}}] , "rms_norm_eps": 1e-05}\n')
seed("no_config", b"", beside=None)
