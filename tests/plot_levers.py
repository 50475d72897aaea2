"""Table (standard output) and plot (SVG) of what tests/measure_levers.sh measured: plot_levers.py OUT.svg NAME..., each NAME.test.json and NAME.voyage.json."""
import json
import math
import sys

DENSE = 16384 * 256 * 2
WHAT = {
    "published": "published: spherical k-means, greedy balancing, means",
    "cosine": "exact swaps on directions, means",
    "rows": "exact swaps on rows, plain means",
    "output": "output-aware swaps, plain means",
    "published-learned": "published clusters, learned routing",
    "cosine-learned": "swaps on directions, learned routing",
    "output-learned": "output-aware swaps, learned routing",
    "int4": "output-aware, learned, int4, 32 reranked",
}
COLORS = ["#8c8c8c", "#b07d2b", "#7a9a2e", "#2f8f6b", "#c0569b", "#7c5cc4", "#1f6fb4", "#c03a2b"]


def curve(name, text):
    with open(f"{name}.{text}.json", encoding="utf-8") as f:
        report = json.load(f)
    return report["positions"], [(p["probes"], p["agreement"], p["step_bytes"]) for p in report["curve"]]


def at(points, share):
    """The first P of the list that reaches an agreement, and its bytes."""
    for probes, agreement, size in points:
        if agreement >= share:
            return f"{probes}, {size / 1000:.0f} ({100 * size / DENSE:.1f} %)"
    return "-"


def plot(names, curves, positions):
    width, height, left, right, top, bottom = 860, 520, 70, 20, 44, 56
    xs = [s for c in curves for _, _, s in c]
    x0, x1 = math.log10(min(xs) * 0.9), math.log10(max(xs) * 1.1)
    y0, y1 = math.log10(0.6), math.log10(0.5 / positions * 2)

    def x(size):
        return left + (math.log10(size) - x0) / (x1 - x0) * (width - left - right)

    def y(missed):
        return top + (math.log10(max(missed, 1 / positions)) - y0) / (y1 - y0) * (height - top - bottom)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
           f'<text x="{left}" y="20" font-size="14">Greedy tokens that are not the dense head\'s, by bytes read ({positions} states of WikiText test, K = 1024)</text>']
    for missed in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002):
        if y(missed) > height - bottom + 1:
            continue
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y(missed):.1f}" y2="{y(missed):.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 6}" y="{y(missed) + 4:.1f}" text-anchor="end">{100 * missed:g} %</text>')
    for kb in (150, 200, 300, 400, 500, 700, 1000, 1500, 2000, 3000):
        if not min(xs) * 0.9 <= kb * 1000 <= max(xs) * 1.1:
            continue
        out.append(f'<line x1="{x(kb * 1000):.1f}" x2="{x(kb * 1000):.1f}" y1="{top}" y2="{height - bottom}" stroke="#eeeeee"/>')
        out.append(f'<text x="{x(kb * 1000):.1f}" y="{height - bottom + 16}" text-anchor="middle">{kb}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 14}" text-anchor="middle">KB a token (the dense bf16 head reads {DENSE / 1000:.0f})</text>')
    for name, points, color in zip(names, curves, COLORS):
        line = " ".join(f"{x(s):.1f},{y(1 - a):.1f}" for _, a, s in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="{3 if name in ("output-learned", "int4") else 1.6}"/>')
        out.extend(f'<circle cx="{x(s):.1f}" cy="{y(1 - a):.1f}" r="2.6" fill="{color}"><title>P = {p}: {100 * a:.2f} % at {s / 1000:.0f} KB</title></circle>' for p, a, s in points)
    for i, (name, color) in enumerate(reversed(list(zip(names, COLORS)))): # the longest label where the curves are not
        row = height - bottom - 14 * len(names) + 14 * i + 8
        out.append(f'<line x1="{left + 8}" x2="{left + 32}" y1="{row - 4}" y2="{row - 4}" stroke="{color}" stroke-width="3"/><text x="{left + 38}" y="{row}">{WHAT[name]}</text>')
    out.append("</svg>\n")
    return "\n".join(out)


def main():
    svg, names = sys.argv[1], sys.argv[2:]
    print("""# What each lever brings

The demo model (V 16384, D 256, bf16), K = 1024, cap 16, no hot list, 16 rows reranked (int4: 32), the same 100,000 states of text that the model said itself wherever states
are used. Agreement with the dense head's greedy token on states that nothing was fitted on. Bytes: centroids, probed rows, scales and reranked rows of one token;
the dense bf16 head reads 8389 KB. Reaching: the first P of 4, 8, 16 ... 512 that does, its KB and their share of the dense head's.

`sh tests/measure_levers.sh > docs/measurements/levers.md`

![misses against bytes](levers.svg)
""")
    for text in ("test", "voyage"):
        positions, _ = curve(names[0], text)
        print(f"\n## {'WikiText test' if text == 'test' else 'A book'}, {positions} states\n")
        print("| head | P = 8 | P = 32 | P = 128 | 98 %: P, KB | 99 % | 99.5 % | 99.9 % |\n|---|---|---|---|---|---|---|---|")
        for name in names:
            points = curve(name, text)[1]
            by = {p: a for p, a, _ in points}
            cells = [f"{100 * by[p]:.2f}" for p in (8, 32, 128)] + [at(points, s) for s in (0.98, 0.99, 0.995, 0.999)]
            print(f"| {WHAT[name]} | " + " | ".join(cells) + " |")
    positions, _ = curve(names[0], "test")
    with open(svg, "w", encoding="utf-8") as f:
        f.write(plot(names, [curve(n, "test")[1] for n in names], positions))


main()
