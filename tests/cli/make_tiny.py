#!/usr/bin/env python3
"""make_tiny.py DIR [--seed N] [--vocab V] [--untied]: a checkpoint of the Llama form in a few hundred kilobytes, with a byte-level
tokenizer, from random numbers.  The standard library only; the same bytes everywhere for the same arguments.

The rows of the head lie around a few dozen centres, as those of real models do, so that clusters find them."""
import argparse
import json
import os
import random
import struct

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 64, 2, 4, 2, 16, 128


def bf16(values):
    """Round to nearest, ties to even."""
    bits = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
    return struct.pack(f"<{len(bits)}H", *[(b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits])


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)}"""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)


def byte_alphabet():
    """GPT-2's table: printable bytes stand for themselves, the rest for code points from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(plain))
    return table


def tokenizer():
    table = byte_alphabet()
    vocab = {"<|end|>": 0}
    for b in range(256):
        vocab[table[b]] = len(vocab)
    space = table[32]
    merges = [("t", "h"), ("th", "e"), (space, "the"), ("i", "n"), ("in", "g"), ("a", "n"), ("an", "d"), (space, "and"), ("e", "r"), ("o", "n"),
              (space, "a"), (space, "o"), (space + "o", "f"), ("r", "e"), ("e", "d"), (space, "t"), (space + "t", "o"), ("e", "s"), ("o", "r"), ("a", "t"),
              ("e", "n"), ("i", "s"), ("i", "t"), (space, "w"), (space, "s"), (space, "c"), (space, "in"), ("a", "l"), ("o", "u"), ("l", "l")]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 0, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]},
    }, len(vocab)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("dir")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--vocab", type=int, default=300, help="rows of the head; those past the tokenizer are dead")
    p.add_argument("--untied", action="store_true")
    p.add_argument("--no-tokenizer", action="store_true")
    a = p.parse_args()
    r = random.Random(a.seed)

    def matrix(rows, cols, scale):
        return "BF16", [rows, cols], bf16([r.gauss(0, scale) for _ in range(rows * cols)])

    def ones(n):
        return "BF16", [n], bf16([1.0] * n)

    def rows_around_centres(n):
        centres = [[r.gauss(0, 0.45) for _ in range(HIDDEN)] for _ in range(24)]
        return "BF16", [n, HIDDEN], bf16([c + r.gauss(0, 0.35) for _ in range(n) for c in centres[r.randrange(24)]])

    tensors = {"model.embed_tokens.weight": rows_around_centres(a.vocab)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = ones(HIDDEN)
        tensors[at + "self_attn.q_proj.weight"] = matrix(HEADS * HEAD_DIM, HIDDEN, 0.2)
        tensors[at + "self_attn.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN, 0.2)
        tensors[at + "self_attn.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN, 0.12)
        tensors[at + "self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM, 0.12)
        tensors[at + "post_attention_layernorm.weight"] = ones(HIDDEN)
        tensors[at + "mlp.gate_proj.weight"] = matrix(INNER, HIDDEN, 0.15)
        tensors[at + "mlp.up_proj.weight"] = matrix(INNER, HIDDEN, 0.15)
        tensors[at + "mlp.down_proj.weight"] = matrix(HIDDEN, INNER, 0.1)
    tensors["model.norm.weight"] = ones(HIDDEN)
    if a.untied:
        tensors["lm_head.weight"] = rows_around_centres(a.vocab)

    os.makedirs(a.dir, exist_ok=True)
    write_safetensors(os.path.join(a.dir, "model.safetensors"), tensors, {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": a.vocab, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "hidden_act": "silu",
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": not a.untied, "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 0, "attention_bias": False, "mlp_bias": False,
    }
    texts = {"config.json": config, "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0}}
    if not a.no_tokenizer:
        texts["tokenizer.json"], _ = tokenizer()
    for name, value in texts.items():
        with open(os.path.join(a.dir, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
            f.write("\n")


if __name__ == "__main__":
    main()
