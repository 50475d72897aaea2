#!/usr/bin/env python3
"""plugin_vllm.py FHTOOL DIR FHEAD STATES [P ...]: does the vLLM plugin's own class load DIR, and does it answer as we do?

DIR is what `fhtool export --format vllm FHEAD` made, STATES safetensors with `hidden` [N, D] or [B, T, D].  The class is the plugin's
(flash_head.flash_head.FlashHead, made as its flash_head.loading makes it, on the CPU instead of a GPU); vLLM itself is not needed.  It is not part of
`make check`: the plugin is not free software, and whoever runs this installs it, and torch, safetensors and huggingface_hub, under their own
licences.  Answers are compared at the directory's P and at every P given:

    bf16   as that runtime computes, with `fhtool query --for vllm`
    f32    the same bf16 weights, summed in float32, with `fhtool query --no-hot`

Where two answers differ, the plugin's own numbers say whether they were equal to it (a tie): logits of the two tokens, or the scores of a cluster
that it probed and one that it left out.  Exit status 1 where an answer differs that is no tie, or more than 1 % are ties."""
import json
import os
import subprocess
import sys

import torch
from flash_head import loading
from flash_head._version import __version__
from flash_head.flash_head import FlashHead, get_flash_head_parameters
from safetensors import safe_open


def load(directory):
    """The plugin's lazy loading, on the CPU."""
    meta = loading.load_flash_head_from_checkpoint(directory)
    assert meta is not None, "the plugin takes this for an ordinary model"
    weight, key = loading._load_lm_head_weight(meta["model_path"])
    assert weight.shape[0] >= weight.shape[1]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data.copy_(weight)
    parameters = get_flash_head_parameters(linear, cache_dir=meta["cache_dir"], model_or_dir=meta["model_path"])
    head = FlashHead(linear, **parameters, n_probes=meta["n_probes"], special_token_ids=meta["special_token_ids"])
    assert meta["dtype"] == "torch.bfloat16"
    return head.to(torch.bfloat16), parameters["centroids"], key


def ours(fhtool, fhead, states, probes, *more):
    p = subprocess.run([fhtool, "query", fhead, "--hidden", states, "--probes", str(probes), "--json", "-q", *more], capture_output=True, text=True, check=True)
    return [row[0] for row in json.loads(p.stdout)["ids"]]


def tied(head, state, theirs, mine):
    """Is `mine` as good to the plugin as what it answered, or was its cluster as good as one that was probed?"""
    logits = torch.nn.functional.linear(state, head.original_lm_head.weight[[theirs, mine]])[0]
    if logits[0] == logits[1]:
        return "logits"
    scores = head.cluster_linear(state)[0]
    last = torch.topk(scores, head.n_probes).values[-1]
    cluster = (head.vocab_maps_tensor == (mine if logits[1] > logits[0] else theirs)).any(dim=1).nonzero()[0, 0]
    return "scores" if scores[cluster] == last else None


def main():
    fhtool, directory, fhead, states, *probes = sys.argv[1:]
    head, stored, key = load(os.path.abspath(directory))  # of a relative path it joins the assets twice
    with safe_open(states, framework="pt") as f:
        hidden = f.get_tensor("hidden")
    hidden = hidden.reshape(-1, hidden.shape[-1])
    own, bad = head.n_probes, 0
    print(f"flash-head {__version__}, torch {torch.__version__}: head '{key}' {list(head.original_shape)}, {head.centroids.shape[1]} clusters, P {own}, "
          f"special ids {head.special_token_ids_tensor.tolist()}, {len(hidden)} states")
    same = torch.equal(head.pre_normalized_centroids.t(), stored.to(torch.bfloat16))
    bad += not same
    print(f"its unit centroids in bf16 are {'' if same else 'NOT '}the exported ones, bit for bit")
    print(f"{'weights':>8} {'sums':>5} {'P':>6} {'equal':>7} {'ties: logits':>13} {'scores':>7} {'other':>6}")
    for sums in ("bf16", "f32"):
        head = head.to(torch.bfloat16 if sums == "bf16" else torch.float32)
        for p in [own, *map(int, probes)]:
            head.n_probes = p
            mine = ours(fhtool, fhead, states, p, *(["--for", "vllm"] if sums == "bf16" else ["--no-hot"]))
            count = {"equal": 0, "logits": 0, "scores": 0, None: 0}
            for state, id_ in zip(hidden, mine):
                h = state.to(torch.bfloat16 if sums == "bf16" else torch.float32).reshape(1, 1, -1)
                with torch.no_grad():
                    theirs = int(head.get_next_token(h).flatten()[0])
                    count["equal" if theirs == id_ else tied(head, h[0], theirs, id_)] += 1
            print(f"{'bf16':>8} {sums:>5} {p:>6} {count['equal']:>7} {count['logits']:>13} {count['scores']:>7} {count[None]:>6}")
            bad += count[None] > 0 or count["equal"] < 0.99 * len(mine)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
