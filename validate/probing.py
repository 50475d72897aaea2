#!/usr/bin/env python3
"""The table of validate/probing.sh: python3 validate/probing.py DIR"""
import json, os, sys


def load(name):
    path = os.path.join(sys.argv[1], name + '.json')
    return json.load(open(path)) if os.path.exists(path) and os.path.getsize(path) else None


def seen(report, side):
    return {row['what']: row[side] for row in report['on_states']} if report else {}


def number(form, value):
    return format(value, form) if value is not None else '-'


print('| target | probing | hot | bound | P: mean, 99 %, most (C) | bytes (C) | test: mean P | contained | agreement | book: mean P | contained | head, us: mean | median | p90 |')
print('|---|---|---|---|---|---|---|---|---|---|---|---|---|---|')
for target in '0.95 0.99 0.999'.split():
    for side, probing in ('a', 'fixed'), ('b', 'adaptive'), ('b', 'capped'):
        prefix = 'capped-' * (probing == 'capped') + target
        test, book = load(prefix + '-test'), load(prefix + '-voyage')
        c, bench = load(f'{probing}-{target}'), load(f'{probing}-{target}-bench')
        if not c or not c.get('heldout'):
            continue
        head = next((h for h in bench['heads'] if h['what'] == 'flash' and h['caches'] == 'cold'), {}) if bench else {}
        p = c.get('probed') or dict(mean=c['probes'], p99=c['probes'], max=c['probes'])
        on, other = seen(test, side), seen(book, side)
        print(f"| {target} | {probing} | {c['hot']} | {c['bound']:.5f} | {p['mean']:.1f}, {p['p99']}, {p['max']} | {c['step_bytes']:,.0f} | "
              f"{number('.1f', on.get('probes'))} | {number('.5f', on.get('containment'))} | {number('.5f', on.get('agreement'))} | "
              f"{number('.1f', other.get('probes'))} | {number('.5f', other.get('containment'))} | "
              f"{number('.1f', head.get('mean', head.get('microseconds')))} | {number('.1f', head.get('microseconds'))} | {number('.1f', head.get('p90'))} |")
