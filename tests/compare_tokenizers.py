#!/usr/bin/env python3
"""compare_tokenizers.py FHTOOL [--count N] [--seed S] DIR...: differential test of tokenizers against the reference library.

    pip install tokenizers        (0.23 was used; truncation and padding are switched off, as fhtool ignores them)
    compare_tokenizers.py build/fhtool ../shared/golden/tok-* ../shared/data/tokenizers/* demo/prose-7m

Of every DIR/tokenizer.json N random and adversarial texts are encoded with and without special tokens, and N lists of ids decoded with and without
them, by both.  A difference is made as short as it can be and printed as JSON with what each side says; exit status 1.  Characters
that Python's Unicode does not know are left out: libraries differ in which characters they know at all.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import Tokenizer

POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "etaoin shrdlu", "0123456789", " ", "  \t", "\n\r\n", "\x0b\x0c\x1c\x1f\x85",
    "'’`´", "'s't're've'm'll'd'S'T'RE'VE'M'LL'D'\u017f", "\u017f\u212a\u0130\u0131\u1e9e\ufb01\u01c5", ".,;:!?-_/\\|@#$%^&*()[]{}<>=+~\"",
    "\u00a0\u1680\u180e\u2000\u2003\u200a\u200b\u200c\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff", "\u2581\u2581 ", "\u0120\u010a\u0100\u0143",
    "\u0301\u0308\u0327\u05b0\u064b\u0e31\u20dd\ufe0f\u0345", "éèêëñçüößøåÅ\u212bǄ", "e\u0301a\u0308A\u030ao\u0327\u0301", "\u1100\u1161\u11a8\uac00\uac01\u3131",
    "漢字仮名かなカナ中文", "кириллица Ελληνικά עברית العربية हिन्दी ไทย", "٠١٢٣४५६〇一二三ⅠⅡⅣ½¾²³①②⑽", "𝟘𝟙𝟚𝐀𝐁𝒞", "😀👍🏽👩‍👩‍👧🇩🇪🏳️‍🌈",
    "\ue000\uf8ff\ufffd\ufffe\uffff", "\x00\x01\x7f\x80\x9f\xad", "\U0001f600\U00020000\U0010ffff\U000e0041",
]
KNOWN = [c for c in map(chr, list(range(0xD800)) + list(range(0xE000, 0x30000))) if unicodedata.category(c) not in ("Cn", "Cs")]
WORDS = ["the", " quick", "Hello", "it's", "I'LL", "don't", "we’re", "x=1;", "</s>", "<s>", "<unk>", "<pad>", "<bos>", "<0x0A>", "<0xFF>", "<0xff>",
         "<0x>", "<|endoftext|>", "<|endoftext", "|>", "[INST]", "[/INST]", "    ", "\n\n\n", "\r\n", "http://a.b/c?d=e", "3.14159", "1,000,000",
         "2024-01-31", "CamelCaseWord", "snake_case", "\t\tx"]

HOSTILE = ["a" * 200000, " " * 200000, "\n" * 100000, "ab" * 100000, "1" * 100000, "e\u0301" * 50000, "\u4f60" * 50000, "'" * 100000,
           " a" * 100000, ""]


def text_of(rng, own):
    """One text: runs from pools, words, tokens of the vocabulary, added tokens whole, cut or doubled, known characters of any kind."""
    out = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 20))):
        kind = rng.randrange(10)
        if kind < 3:
            pool = rng.choice(POOLS)
            out.append("".join(rng.choice(pool) for _ in range(rng.choice((1, 1, 2, 3, 7, 30)))))
        elif kind < 5:
            out.append(rng.choice(WORDS))
        elif kind < 7:
            out.append(rng.choice(own["tokens"]))
        elif kind == 7 and own["added"]:
            t = rng.choice(own["added"])
            out.append(rng.choice((t, t, t + t, " " + t, t + " ", t[: rng.randrange(len(t) + 1)], t[rng.randrange(len(t) + 1):], t.upper(), "\n" + t + "\n")))
        elif kind == 8:
            out.append("".join(rng.choice(KNOWN) for _ in range(rng.randrange(1, 6))))
        else:
            out.append(rng.choice(POOLS)[0] * rng.choice((2, 3, 17, 64)))
    return "".join(out).encode("utf-8", "ignore").decode()


def ids_of(rng, own):
    n = rng.choice((0, 1, 2, 3, 8, 30))
    return [rng.choice(own["added_ids"]) if own["added_ids"] and rng.random() < 0.15 else
            rng.choice(own["bytes"]) if own["bytes"] and rng.random() < 0.3 else rng.randrange(own["size"] + 2) for _ in range(n)]


class Ours:
    def __init__(self, fhtool, where):
        self.fhtool, self.where = fhtool, where

    def run(self, command, flags, lines):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as f:
            f.writelines(json.dumps(x) + "\n" for x in lines)
            f.flush()
            done = subprocess.run([self.fhtool, command, self.where, "--batch", f.name, *flags], capture_output=True)
        if done.returncode:
            sys.exit(f"{command} {self.where}: {done.stderr.decode().strip()}")
        out = [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]
        if len(out) != len(lines):
            sys.exit(f"{command} {self.where}: {len(out)} answers to {len(lines)} lines")
        return out


def shortest(x, differs):
    """Halves, then smaller parts, taken out for as long as the difference stays."""
    step = max(len(x) // 2, 1)
    while step:
        at = 0
        while at < len(x):
            less = x[:at] + x[at + step:]
            if differs(less):
                x = less
            else:
                at += step
        step //= 2
    return x


def check(what, inputs, ours, theirs):
    """ours: a list to a list; theirs: one to one.  The first difference of each kind of input, made short; how many there were."""
    got = ours(inputs)
    bad = [i for i, x in enumerate(inputs) if got[i] != theirs(x)]
    for i in bad[:3]:
        x = shortest(inputs[i], lambda y: ours([y])[0] != theirs(y))
        print(json.dumps({"what": what, "input": x, "fhtool": ours([x])[0], "reference": theirs(x)}))
    return len(bad)


def compare(fhtool, where, count, seed):
    reference = Tokenizer.from_file(os.path.join(where, "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    vocab = reference.get_vocab(with_added_tokens=True)
    added = {i: t.content for i, t in reference.get_added_tokens_decoder().items()}
    ordinary = sorted(set(range(max(vocab.values()) + 1)) - set(added))
    decoded = [d for d in (reference.decode([i], skip_special_tokens=False) for i in ordinary[:: max(len(ordinary) // 4000, 1)]) if d and "\ufffd" not in d]
    own = {"tokens": decoded or ["a"], "added": sorted(added.values()), "added_ids": sorted(added), "size": max(vocab.values()) + 1,
           "bytes": sorted(i for t, i in vocab.items() if len(t) == 6 and t.startswith("<0x"))}
    rng, ours, bad = random.Random(f"{seed} {os.path.basename(os.path.abspath(where))}"), Ours(fhtool, where), 0
    texts, lists = [text_of(rng, own) for _ in range(count)], [ids_of(rng, own) for _ in range(count)]
    texts += HOSTILE
    for special in (True, False):
        bad += check(f"{where}: encode{'' if special else ' --no-special'}", texts,
                     lambda xs, s=special: ours.run("tokenize", [] if s else ["--no-special"], xs),
                     lambda x, s=special: reference.encode(x, add_special_tokens=s).ids)
        bad += check(f"{where}: decode{' --skip-special' if special else ''}", lists,
                     lambda xs, s=special: ours.run("detokenize", ["--skip-special"] if s else [], xs),
                     lambda x, s=special: reference.decode(x, skip_special_tokens=s))
    print(f"{where}: {count} texts and {count} lists of ids, {bad} differences", flush=True)
    return bad


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("fhtool")
    p.add_argument("dirs", nargs="+")
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    sys.exit(any([compare(a.fhtool, d, a.count, a.seed) for d in a.dirs]))


main()
