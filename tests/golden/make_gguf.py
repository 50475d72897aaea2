#!/usr/bin/env python3
"""GGUF files from checkpoints of the Hugging Face layout, in the form that the usual converter gives them.

    pip install gguf numpy
    make_gguf.py CHECKPOINT OUT.gguf [--type keep|f32|f16|bf16|q8_0] [--layers N]   any checkpoint of a family below
    make_gguf.py --all                                                              what lies in gguf/ beside this script

What the form is: dimensions reversed; vectors in F32; rows of q and k of llama paired (2j, 2j + 1); q, k, v of GPT-NeoX all q first, then
k, then v; matrices of GPT-2 transposed; norms of Gemma with 1 added; llama3's RoPE scaling as divisors in rope_freqs.weight.
"""
import argparse, json, math, os, subprocess, sys, tempfile
import numpy as np
import gguf
from gguf import GGMLQuantizationType as Q

HERE = os.path.dirname(os.path.abspath(__file__))

# ---- safetensors ---------------------------------------------------------------------------------------------------


def read_file(path):
    data = open(path, "rb").read()
    n = int.from_bytes(data[:8], "little")
    out = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        raw = data[8 + n + a:8 + n + b]
        if t["dtype"] == "BF16":
            x = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif t["dtype"] in ("F32", "F16"):
            x = np.frombuffer(raw, "<f4" if t["dtype"] == "F32" else "<f2")
        else:
            continue  # GPT-2's and Pythia's masks
        out[name] = (t["dtype"], x.reshape(t["shape"]).astype(np.float32))
    return out


def read_tensors(directory):
    index = os.path.join(directory, "model.safetensors.index.json")
    if not os.path.exists(index):
        return read_file(os.path.join(directory, "model.safetensors"))
    out = {}
    for shard in sorted(set(json.load(open(index))["weight_map"].values())):
        out.update(read_file(os.path.join(directory, shard)))
    return out


def write_tensors(path, tensors, dtype):
    """tensors: name -> float32 array; dtype: F32, F16 or BF16.  Returns what a reader gets back."""
    header, at, parts, back = {"__metadata__": {"format": "pt"}}, 0, [], {}
    for name, x in sorted(tensors.items()):
        if dtype == "BF16":
            raw = (x.view(np.uint32) >> 16).astype("<u2")
        else:
            raw = x.astype("<f2" if dtype == "F16" else "<f4")
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [at, at + raw.nbytes]}
        at += raw.nbytes
        parts.append(raw.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(parts))


# ---- names -----------------------------------------------------------------------------------------------------------

LLAMA = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GEMMA = dict(LLAMA, post_attention_layernorm="post_attention_norm", pre_feedforward_layernorm="ffn_norm", post_feedforward_layernorm="post_ffw_norm")
NEOX = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}
GPT2 = {"ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "gpt_neox.embed_in": "token_embd",
       "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output", "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
       "transformer.ln_f": "output_norm", "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
FAMILIES = {"llama": ("llama", "model.layers.", LLAMA), "mistral": ("llama", "model.layers.", LLAMA), "qwen2": ("qwen2", "model.layers.", LLAMA),
            "qwen3": ("qwen3", "model.layers.", LLAMA), "gemma2": ("gemma2", "model.layers.", GEMMA), "gemma3_text": ("gemma3", "model.layers.", GEMMA),
            "gpt_neox": ("gptneox", "gpt_neox.layers.", NEOX), "gpt2": ("gpt2", "transformer.h.", GPT2)}


def paired(x, heads):
    return x.reshape(heads, 2, x.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def change(arch, name, x, heads, kv_heads):
    """The converter's own change of a tensor; name as in the GGUF."""
    stem = name.rsplit(".", 1)[0].rsplit(".", 1)[-1]
    if arch == "llama" and stem in ("attn_q", "attn_k"):
        return paired(x, heads if stem == "attn_q" else kv_heads)
    if arch == "gptneox" and stem == "attn_qkv":
        return x.reshape(heads, 3, x.shape[0] // heads // 3, -1).swapaxes(0, 1).reshape(x.shape)
    if arch == "gpt2" and x.ndim == 2 and stem in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return np.ascontiguousarray(x.T)
    if arch.startswith("gemma") and x.ndim == 1:
        return x + np.float32(1)
    return x


# ---- metadata --------------------------------------------------------------------------------------------------------


def rope(c):
    """(theta, scaling or None, local theta or None)"""
    p, s = c.get("rope_parameters"), c.get("rope_scaling")
    if p and "full_attention" in p:
        return p["full_attention"]["rope_theta"], None, p["sliding_attention"]["rope_theta"]
    theta = (p or {}).get("rope_theta", c.get("rope_theta", c.get("rotary_emb_base", 10000.0)))
    s = s or p or {}
    kind = s.get("rope_type", s.get("type", "default"))
    return theta, None if kind == "default" else dict(s, kind=kind), c.get("rope_local_base_freq")


def divisors(theta, s, d):
    out = []
    low, high = s["original_max_position_embeddings"] / s["low_freq_factor"], s["original_max_position_embeddings"] / s["high_freq_factor"]
    for i in range(0, d, 2):
        length = 2 * math.pi * theta ** (i / d)
        if length < high:
            out.append(1.0)
        elif length > low:
            out.append(s["factor"])
        else:
            smooth = (s["original_max_position_embeddings"] / length - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
            out.append(1 / ((1 - smooth) / s["factor"] + smooth))
    return np.array(out, np.float32)


def add_metadata(w, c, arch, layers, tensors):
    get = lambda *keys: next((c[k] for k in keys if c.get(k) is not None), None)
    d, heads = get("hidden_size", "n_embd"), get("num_attention_heads", "n_head")
    kv_heads, head_dim = get("num_key_value_heads") or heads, get("head_dim") or d // heads
    w.add_context_length(get("max_position_embeddings", "n_positions"))
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(get("intermediate_size", "n_inner") or 4 * d)
    w.add_head_count(heads)
    if arch not in ("gpt2", "gptneox"):
        w.add_head_count_kv(kv_heads)
    eps = get("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    (w.add_layer_norm_rms_eps if "rms_norm_eps" in c else w.add_layer_norm_eps)(eps)
    if arch in ("qwen3", "gemma2", "gemma3") or head_dim != d // heads:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if arch == "gptneox":
        w.add_parallel_residual(c.get("use_parallel_residual", True))
    if c.get("sliding_window") and c["model_type"] in ("mistral", "gemma2", "gemma3_text"):
        w.add_sliding_window(c["sliding_window"])
    if c.get("attn_logit_softcapping"):
        w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
    if c.get("final_logit_softcapping"):
        w.add_final_logit_softcapping(c["final_logit_softcapping"])
    if c.get("query_pre_attn_scalar") and c["query_pre_attn_scalar"] != head_dim:
        w.add_float32(f"{arch}.attention.scale", c["query_pre_attn_scalar"] ** -0.5)
    if arch != "gpt2":
        theta, scaling, local = rope(c)
        share = c.get("rotary_pct") or (c.get("rope_parameters") or {}).get("partial_rotary_factor") or (0.25 if arch == "gptneox" else 1.0)
        w.add_rope_dimension_count(int(head_dim * share))
        w.add_rope_freq_base(theta)
        if local:
            w.add_float32(f"{arch}.rope.freq_base_swa", local)
        if scaling and scaling["kind"] == "llama3":
            w.add_tensor("rope_freqs.weight", divisors(theta, scaling, head_dim))
        elif scaling:
            w.add_rope_scaling_type(gguf.RopeScalingType(scaling["kind"]))
            w.add_rope_scaling_factor(scaling["factor"])
            if scaling.get("original_max_position_embeddings"):
                w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    return heads, kv_heads


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def name_of_cutting(t):
    pre = t.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if steps[0].get("type") == "Digits":
        return "smollm"
    if steps[0].get("type") == "Split":
        return "llama-bpe" if "{1,3}" in steps[0]["pattern"]["Regex"] else "qwen2"
    return "olmo" if t.get("normalizer") else "gpt-2"


def add_tokenizer(w, t, config, rows):
    model, added = t["model"], {a["id"]: a for a in t["added_tokens"]}
    tokens = {i: s for s, i in model["vocab"].items()}
    tokens.update({i: a["content"] for i, a in added.items()})
    n = max(rows, max(tokens) + 1)
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    sentencepiece = model.get("byte_fallback", False)
    texts, kinds, scores = [], [], []
    rank = {}
    for i, (a, b) in enumerate(merges):
        rank.setdefault(a + b, i)
    for i in range(n):
        s = tokens.get(i)
        kind = gguf.TokenType.NORMAL
        if s is None:
            s, kind = f"[PAD{i}]", gguf.TokenType.UNUSED
        elif i in added:
            kind = gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
            if sentencepiece and s == model.get("unk_token"):
                kind = gguf.TokenType.UNKNOWN
        elif sentencepiece and len(s) == 6 and s.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        texts.append(s)
        kinds.append(kind)
        scores.append(-float(rank[s]) if s in rank else 0.0 if kind != gguf.TokenType.NORMAL else -1e6)
    w.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    w.add_tokenizer_pre("default" if sentencepiece else name_of_cutting(t))
    w.add_token_list(texts)
    if sentencepiece:
        w.add_token_scores(scores)
    w.add_token_types(kinds)
    if not sentencepiece:
        w.add_token_merges([a + " " + b for a, b in merges])
    post = t.get("post_processor") or {}
    single = post.get("single", []) if post.get("type") == "TemplateProcessing" else []
    w.add_add_bos_token(bool(single) and "SpecialToken" in single[0])
    ids = model["vocab"] | {a["content"]: a["id"] for a in added.values()}
    if single and "SpecialToken" in single[0]:
        w.add_bos_token_id(ids[single[0]["SpecialToken"]["id"]])
    if sentencepiece:
        w.add_add_space_prefix("Prepend" in json.dumps(t.get("normalizer")))
        w.add_unk_token_id(ids[model["unk_token"]])
    if config.get("chat_template"):
        w.add_chat_template(config["chat_template"])


# ---- files -----------------------------------------------------------------------------------------------------------


def convert(directory, out, kind="keep", keep_layers=None, alignment=None):
    c = json.load(open(os.path.join(directory, "config.json")))
    arch, prefix, names = FAMILIES[c["model_type"]]
    tensors = read_tensors(directory)
    layers = min(keep_layers or 1 << 30, c.get("num_hidden_layers", c.get("n_layer")))
    w = gguf.GGUFWriter(out, arch)
    if alignment:
        w.add_custom_alignment(alignment)
    heads, kv_heads = add_metadata(w, c, arch, layers, tensors)
    tokenizer = os.path.join(directory, "tokenizer.json")
    config = os.path.join(directory, "tokenizer_config.json")
    if os.path.exists(tokenizer):
        rows = next(x.shape[0] for n, (_, x) in tensors.items() if TOP.get(n.rsplit(".", 1)[0]) == "token_embd")
        add_tokenizer(w, json.load(open(tokenizer)), json.load(open(config)) if os.path.exists(config) else {}, rows)
    eos = c.get("eos_token_id")
    if eos is not None:
        w.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    if c.get("bos_token_id") is not None and not os.path.exists(tokenizer):
        w.add_bos_token_id(c["bos_token_id"])
    for name, (dtype, x) in tensors.items():
        stem, end = name.rsplit(".", 1)
        if prefix + "" not in name and name.startswith(prefix.split(".", 1)[1]):
            name, stem = prefix.split(".", 1)[0] + "." + name, prefix.split(".", 1)[0] + "." + stem
        if name.startswith(prefix):
            number, rest = stem[len(prefix):].split(".", 1)
            if int(number) >= layers or rest not in names:
                continue
            ours = f"blk.{number}.{names[rest]}.{end}"
        elif stem in TOP:
            if stem == "lm_head" and c.get("tie_word_embeddings", False):
                continue
            ours = f"{TOP[stem]}.{end}"
        else:
            continue
        x = change(arch, ours, x, heads, kv_heads)
        to = Q.F32 if x.ndim == 1 else Q[dtype if kind == "keep" else kind.upper()]
        if to == Q.Q8_0 and x.shape[-1] % 32:
            to = Q.F16  # what the converter falls back to
        w.add_tensor(ours, gguf.quants.quantize(x, to), raw_dtype=to)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def tokenizer_only(directory, out):
    w = gguf.GGUFWriter(out, "llama")
    add_tokenizer(w, json.load(open(os.path.join(directory, "tokenizer.json"))), {"chat_template": "{{ messages }}"}, 0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---- small checkpoints of families whose golden cases are large --------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
MADE = {
    "qwen2-yarn": ("F32", dict(SMALL, model_type="qwen2", tie_word_embeddings=True, rope_theta=1e6, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32})),
    "qwen3": ("BF16", dict(SMALL, model_type="qwen3", tie_word_embeddings=True, head_dim=16, rope_theta=1e6)),
    "gemma2": ("BF16", dict(SMALL, model_type="gemma2", tie_word_embeddings=True, head_dim=16, query_pre_attn_scalar=16, sliding_window=4,
                            attn_logit_softcapping=50.0, final_logit_softcapping=30.0, rope_theta=10000.0)),
    "mistral-window": ("F16", dict(SMALL, model_type="mistral", tie_word_embeddings=False, sliding_window=5, rope_theta=10000.0)),
    "neox-parallel": ("F16", {"model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
                              "num_attention_heads": 2, "max_position_embeddings": 128, "layer_norm_eps": 1e-5, "vocab_size": 96,
                              "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "tie_word_embeddings": False,
                              "bos_token_id": 0, "eos_token_id": 0}),
    "gpt2": ("F32", {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48, "vocab_size": 96,
                     "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}),
}


def shapes(c):
    if c["model_type"] == "gpt2":
        d, f, v, p, out = c["n_embd"], c["n_inner"], c["vocab_size"], c["n_positions"], {}
        out["transformer.wte.weight"], out["transformer.wpe.weight"] = (v, d), (p, d)
        for n in ["transformer.ln_f"] + [f"transformer.h.{i}.{x}" for i in range(c["n_layer"]) for x in ("ln_1", "ln_2")]:
            out[n + ".weight"] = out[n + ".bias"] = (d,)
        for i in range(c["n_layer"]):
            for n, a, b in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, f), ("mlp.c_proj", f, d)):
                out[f"transformer.h.{i}.{n}.weight"], out[f"transformer.h.{i}.{n}.bias"] = (a, b), (b,)
        return out
    d, f, v, heads, out = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["num_attention_heads"], {}
    if c["model_type"] == "gpt_neox":
        out["gpt_neox.embed_in.weight"] = out["embed_out.weight"] = (v, d)
        out["gpt_neox.final_layer_norm.weight"] = out["gpt_neox.final_layer_norm.bias"] = (d,)
        for i in range(c["num_hidden_layers"]):
            p = f"gpt_neox.layers.{i}."
            for n in ("input_layernorm", "post_attention_layernorm"):
                out[p + n + ".weight"] = out[p + n + ".bias"] = (d,)
            for n, a, b in (("attention.query_key_value", 3 * d, d), ("attention.dense", d, d), ("mlp.dense_h_to_4h", f, d), ("mlp.dense_4h_to_h", d, f)):
                out[p + n + ".weight"], out[p + n + ".bias"] = (a, b), (a,)
        return out
    hd, kv, gemma = c.get("head_dim", d // heads), c["num_key_value_heads"], c["model_type"] == "gemma2"
    out["model.embed_tokens.weight"], out["model.norm.weight"] = (v, d), (d,)
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (v, d)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for n in ["input_layernorm", "post_attention_layernorm"] + (["pre_feedforward_layernorm", "post_feedforward_layernorm"] if gemma else []):
            out[p + n + ".weight"] = (d,)
        for n, a, b in (("self_attn.q_proj", heads * hd, d), ("self_attn.k_proj", kv * hd, d), ("self_attn.v_proj", kv * hd, d),
                        ("self_attn.o_proj", d, heads * hd), ("mlp.gate_proj", f, d), ("mlp.up_proj", f, d), ("mlp.down_proj", d, f)):
            out[p + n + ".weight"] = (a, b)
        if c["model_type"] == "qwen2":
            for n, a in (("q_proj", heads * hd), ("k_proj", kv * hd), ("v_proj", kv * hd)):
                out[p + f"self_attn.{n}.bias"] = (a,)
        if c["model_type"] == "qwen3":
            out[p + "self_attn.q_norm.weight"] = out[p + "self_attn.k_norm.weight"] = (hd,)
    return out


def make_small(directory, dtype, c, seed):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(c).items():
        scale, shift = (0.3, 0.0) if len(shape) == 1 else (1.2 / math.sqrt(shape[-1]), 0.0)
        if len(shape) == 1 and name.endswith("norm.weight") or ".ln_" in name and name.endswith("weight"):
            shift = 0.0 if c["model_type"] == "gemma2" else 1.0
        tensors[name] = (rng.standard_normal(shape) * scale + shift).astype(np.float32)
    os.makedirs(directory, exist_ok=True)
    json.dump(c, open(os.path.join(directory, "config.json"), "w"), indent=1)
    write_tensors(os.path.join(directory, "model.safetensors"), tensors, dtype)


def make_all():
    to = os.path.join(HERE, "gguf")
    for case, kind, layers in (("llama", "keep", 1), ("llama", "q8_0", None), ("llama-linear-bias", "keep", 1), ("llama3-rope", "keep", 1),
                               ("neox-sequential", "keep", 1), ("gemma3-softcap", "keep", None)):
        convert(os.path.join(HERE, case), os.path.join(to, f"{case}{'' if kind == 'keep' else '-' + kind}.gguf"), kind, layers)
    for seed, (case, (dtype, c)) in enumerate(MADE.items()):
        make_small(os.path.join(to, case), dtype, c, seed)
        convert(os.path.join(to, case), os.path.join(to, f"{case}.gguf"), alignment=64 if case == "gpt2" else None)
    convert(os.path.join(to, "neox-parallel"), os.path.join(to, "neox-parallel-q8_0.gguf"), "q8_0")
    with tempfile.TemporaryDirectory() as tiny:
        subprocess.run([sys.executable, os.path.join(HERE, "..", "cli", "make_tiny.py"), tiny], check=True)
        convert(tiny, os.path.join(to, "tiny.gguf"))
    for case in ("tok-gpt2", "tok-llama3", "tok-qwen", "tok-neox", "tok-digits", "tok-llama2", "tok-gemma"):
        tokenizer_only(os.path.join(HERE, case), os.path.join(to, f"{case}.gguf"))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", nargs="?")
    p.add_argument("out", nargs="?")
    p.add_argument("--type", default="keep", choices=["keep", "f32", "f16", "bf16", "q8_0"])
    p.add_argument("--layers", type=int)
    p.add_argument("--all", action="store_true")
    a = p.parse_args()
    if a.all:
        make_all()
    elif a.checkpoint and a.out:
        convert(a.checkpoint, a.out, a.type, a.layers)
    else:
        p.print_usage(sys.stderr)
        sys.exit(2)
