"""has_fields.py FIELD... < REPORT: is standard input one JSON object, nothing after it, with these fields of these types?

FIELD is name:type or outer.name:type; `outer[].name` looks into the first element of a list.  Types: int, num, str, bool, list,
obj, int? (or null), and unit (a number from 0 to 1)."""
import json
import math
import sys

TYPES = {
    "int": lambda v: type(v) is int and v >= 0,
    "num": lambda v: type(v) in (int, float) and math.isfinite(v),
    "unit": lambda v: type(v) in (int, float) and 0 <= v <= 1,
    "str": lambda v: type(v) is str,
    "hex": lambda v: type(v) is str and len(v) == 64 and not set(v) - set("0123456789abcdef"),
    "bool": lambda v: type(v) is bool,
    "list": lambda v: type(v) is list,
    "obj": lambda v: type(v) is dict,
    "num?": lambda v: v is None or TYPES["num"](v),
}


def unique(pairs):
    names = [k for k, _ in pairs]
    assert len(set(names)) == len(names), f"a name twice: {names}"
    return dict(pairs)


def refuse(word):
    raise ValueError(f"{word} is no JSON")


text = sys.stdin.read()
assert text.endswith("\n") and text.count("\n") == 1, "a report is one line"
report = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
assert type(report) is dict
bad = []
for want in sys.argv[1:]:
    path, kind = want.rsplit(":", 1)
    at = report
    for step in path.replace("[]", ".[]").split("."):
        try:
            at = at[0] if step == "[]" else at[step]
        except (KeyError, IndexError, TypeError):
            bad.append(f"{path} is missing")
            break
    else:
        if not TYPES[kind](at):
            bad.append(f"{path} is no {kind}: {at!r}")
if bad:
    sys.exit("; ".join(bad) + "\nin: " + text)
