#!/usr/bin/env python3
"""Does the promise hold?  Calibrations on random draws of documents, each held against all that was not drawn (or another text), in nine cells: targets 0.95, 0.99 and 0.999 for
the dense head's best 1, 3 and 10.  Everything is fhtool's own doing (`fhtool rehearse`); here it is counted again and made a table.

usage: promise.py FHTOOL WORKDIR [--at-least 0.925] [--title T] -- ARGUMENTS OF rehearse      exit 1 where a cell holds less often
       promise.py --read FILE.json ...                                                       tables of reports kept from `fhtool rehearse --json`

    python3 validate/promise.py build/fhtool work -- --text wiki.valid.tokens --text wiki.test.tokens --tokens 2000000 --draw-tokens 100000,300000
WORKDIR holds a head that was made without these texts (here: `fhtool build demo/prose-7m -C work --text self --tokens 200000`)."""
import json, subprocess, sys


def tables(report, least):
    """Markdown, and the cells that hold too seldom.  Few promises say little: a cell counts from 20 on."""
    out, bad, cells = [], [], {}
    for d in report['draw_list']: cells.setdefault((d['draw_tokens'], d['containment_k'], d['target']), []).append(d)
    for size in sorted({c[0] for c in cells}):
        out += ['', f'Draws of {size:,} tokens:', '', '| best | target | promised | held | of the promised | too little text | out of reach | P | hot | design effect | least found |', '|---|---|---|---|---|---|---|---|---|---|---|']
        for (tokens, k, target), draws in cells.items():
            if tokens != size: continue
            made = [d for d in draws if d['promised']]
            held = [d for d in made if d['found'] >= target]
            little = sum(d['too_little_text'] for d in draws)
            middle = lambda key: sorted(d[key] for d in made)[len(made) // 2] if made else 0
            share = len(held) / len(made) if made else None
            if len(made) >= 20 and not share >= least: bad.append((size, k, target, share))
            out.append(f"| {k} | {target:g} | {len(made)} of {len(draws)} | {len(held)} | {'-' if share is None else f'{100 * share:.1f} %'} | {little} | {len(draws) - len(made) - little} | "
                       f"{middle('probes')} | {middle('hot')} | {middle('design_effect'):.1f} | {min((d['found'] for d in made), default=0):.5f} |")
    return out, bad


def main(args):
    least, title, failed = 0.925, '', []
    if args[:1] == ['--read']:
        reports = [(f, json.load(open(f))) for f in args[1:]]
    else:
        own, rest = (args[:args.index('--')], args[args.index('--') + 1:]) if '--' in args else (args, [])
        if len(own) < 2 or len(own) % 2: sys.exit(__doc__)
        for name, value in zip(own[2::2], own[3::2]):
            if name == '--at-least': least = float(value)
            elif name == '--title': title = value
            else: sys.exit(__doc__)
        r = subprocess.run([own[0], 'rehearse', '-C', own[1], '--json', *rest], stdout=subprocess.PIPE)
        if r.returncode: sys.exit(r.returncode)
        reports = [(title or ' '.join(rest), json.loads(r.stdout))]
    for name, report in reports:
        lines, bad = tables(report, least)
        against = f", judged on {report['against_positions']:,} positions of another text" if report['against_positions'] else ', judged on all that was not drawn'
        print(f"{name}: {report['positions']:,} positions in {report['documents']} documents, {report['draws']} draws, confidence {report['confidence']:g}{against}.")
        print('\n'.join(lines) + '\n')
        failed += bad
    for size, k, target, share in failed: print(f'draws of {size}: best {k}, target {target:g}: held in {100 * share:.1f} % of the promised, less than {100 * least:g} %', file=sys.stderr)
    return bool(failed)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
