"""Tables of what tests/measure_caps.sh measured: table_caps.py NAME..., each capN-movesM with NAME.test.json, NAME.voyage.json and NAME.route.json."""
import json
import re
import sys

DENSE = 16384 * 256 * 2
SHARES = (0.98, 0.99, 0.995)
TEXTS = (("test", "WikiText test"), ("voyage", "A book"))


def load(name, what):
    with open(f"{name}.{what}.json", encoding="utf-8") as f:
        return json.load(f)


def need(points, share):
    """The first P from which on agreement is never below, and its bytes."""
    found = None
    for p in points:
        found = None if p["agreement"] < share else found or p
    return f"{found['probes']}, {found['step_bytes'] / 1000:.0f} ({100 * found['step_bytes'] / DENSE:.1f} %)" if found else "-"


def main():
    print("""# Clusters of 8 to 128 tokens, and tokens that move

The demo model (V 16384, D 256, bf16), clusters by output, routing learned from 100,000 states of text that the model said itself, int8 centroids and
rows, 16 rows reranked, no hot list. Agreement with the dense head's greedy token, in percent, on states that nothing was fitted on. For 98, 99 and 99.5 %: the
first P from which on agreement is never below, its KB (of 1000 bytes: centroids, probed rows, scales, reranked rows) and their share of the 8389 that the
dense head reads. Moves: `route --moves`.

`sh tests/measure_caps.sh > docs/measurements/caps.md`""")
    for text, title in TEXTS:
        positions = load(sys.argv[1], text)["positions"]
        print(f"\n## {title}, {positions} states\n")
        print("| cap | K | moves | P = 8 | P = 16 | P = 32 | P = 64 | " + " | ".join(f"{100 * s:g} %: P, KB" for s in SHARES) + " |")
        print("|---" * (7 + len(SHARES)) + "|")
        for name in sys.argv[1:]:
            cap, moves = map(int, re.fullmatch(r"cap(\d+)-moves(\d+)", name).groups())
            points = load(name, text)["curve"]
            at = {p["probes"]: f"{100 * p['agreement']:.2f}" for p in points}
            print("|", " | ".join(map(str, [cap, 16384 // cap, moves, *(at[p] for p in (8, 16, 32, 64)), *(need(points, s) for s in SHARES)])), "|")
    print("\n## What moved\n")
    print("| cap | K | moves asked | made | tokens that ended elsewhere | loss on states held out |")
    print("|---" * 6 + "|")
    for name in sys.argv[1:]:
        cap, moves = map(int, re.fullmatch(r"cap(\d+)-moves(\d+)", name).groups())
        r = load(name, "route")
        print("|", " | ".join(map(str, [cap, 16384 // cap, moves, r.get("moves", 0), r.get("moved", 0), f"{r['loss']:.4f}"])), "|")


main()
