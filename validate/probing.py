#!/usr/bin/env python3
"""The table of validate/probing.sh: python3 validate/probing.py DIR"""
import json, os, sys


def load(name):
    path = os.path.join(sys.argv[1], name + '.json')
    return json.load(open(path)) if os.path.exists(path) and os.path.getsize(path) else None


def probed(r):
    p = r.get('probed')
    return (f"{p['mean']:.1f}", f"{p['p99']:.0f}", f"{p['max']:.0f}") if p else (str(r['probes']),) * 3


print('| target | probing | hot | bound | mean P, test | 99 % | most | bytes | held: test | book | head, us: mean | median | p90 |')
print('|---|---|---|---|---|---|---|---|---|---|---|---|---|')
for target in '0.95 0.99 0.999'.split():
    for probing in 'fixed', 'adaptive':
        c, test, book, bench = (load(f'{probing}-{target}{s}') for s in ('', '-test', '-book', '-bench'))
        if not c or not test:
            print(f'| {target} | {probing} | not promised |')
            continue
        head = next(h for h in bench['heads'] if h['what'] == 'flash' and h['caches'] == 'cold') if bench else {}
        step = test.get('step_bytes') or c['step_bytes']
        mean = head.get('mean', head.get('microseconds', float('nan')))
        print(f"| {target} | {probing} | {c['hot']} | {c['bound']:.5f} | {' | '.join(probed(test))} | {step:,.0f} | {test['containment']['share']:.5f} | "
              f"{book['containment']['share']:.5f} | {mean:.1f} | {head.get('microseconds', float('nan')):.1f} | {head.get('p90', float('nan')):.1f} |")
