# What is given as text and as recorded states: read as it is, or refused with the place and the remedy.
. "$TOP/tests/cli/tools.inc"
build_tiny
write_text text.txt 300
cp -r work kept
hidden() { fh hidden -q -C work --tokens 2000 --json --text "$@" > report.json 2> err.txt || die "status $?: --text $* ($(cat err.txt))"; }

# Refused; the states that were there stay.
: > empty; printf '\357\273\277' > only-bom; printf 'a\0b\n' > nul; printf '\377\376a\0b\0' > utf16; printf '\376\377\0a\0b' > utf16be
gzip -c text.txt > packed.gz; printf 'PK\003\004xxxxxxxx' > packed.zip; printf '\050\265\057\375xxxx' > packed.zst; printf 'PAR1xxxxxxxx' > rows.parquet
printf '{"text": "abc"}\n{"text": 3}\n' > rows.jsonl; printf '{"text": "abc\n' > cut.jsonl; printf '{"text": "a"}\n[1]\n' > list.jsonl
mkfifo pipe; mkdir directory; cp text.txt secret; chmod 0 secret; ln -s nowhere dangling
refused() { file=$1; pattern=$2; fails 1 "^fhtool: $pattern" fh hidden -q -C work --text "$file"; fails 1 "^fhtool: $pattern" fh perplexity model.fhead --text "$file"; }
refused empty 'empty: is empty: name a text'
refused only-bom 'only-bom: (is empty|no tokens in it)'
refused nul 'nul: has a zero byte at offset 1: '
refused utf16 'utf16: is UTF-16, not UTF-8 text: .*iconv'
refused utf16be 'utf16be: is UTF-16, not UTF-8 text: .*iconv'
refused packed.gz 'packed.gz: is gzip-compressed, not UTF-8 text: decompress it first \(gunzip\)'
refused packed.zip 'packed.zip: is a zip archive'
refused packed.zst 'packed.zst: is zstd-compressed.*zstd -d'
refused rows.parquet 'rows.parquet: is a Parquet file'
refused directory 'directory: is a directory: '
if truncate -s 5G zeros 2> /dev/null; then refused zeros 'zeros: (has a zero byte at offset 0|is longer than)'; fi
refused missing 'missing: cannot (open|be opened)'
refused dangling 'dangling: cannot (open|be opened)'
[ "$(id -u)" = 0 ] || refused secret 'secret: cannot (open|be opened)'
fails 1 'rows.jsonl: row 2: has no "text" that is a string' fh hidden -q -C work --text rows.jsonl
fails 1 'cut.jsonl: row 1: line 1, column [0-9]+: a string that does not end' fh hidden -q -C work --text cut.jsonl
fails 1 'list.jsonl: row 2: has no "text"' fh hidden -q -C work --text list.jsonl
fails 1 'pipe: is a FIFO: a regular file is needed' fh hidden -q -C work --text pipe
fails 2 '\-\-text self: stands alone' fh hidden -q -C work --text self --text text.txt
same work/states.safetensors kept/states.safetensors
no_leftovers

# Accepted: no final newline, CRLF, invalid UTF-8 (with a warning), several files, a link, a pipe, one line of megabytes
printf 'no newline at the end' > open.txt; hidden open.txt
printf 'one\r\ntwo\r\n' > crlf.txt; hidden crlf.txt
printf 'caf\351 au lait\n' > latin.txt
fh hidden -C work --text latin.txt 2>&1 > /dev/null | grep -q 'fhtool: warning: latin.txt: holds invalid UTF-8: such bytes are read as U+FFFD' || die 'no word about invalid UTF-8'
tr -d '\n' < text.txt > line.txt
for i in 1 2 3 4 5 6; do cat line.txt line.txt > twice.txt; mv twice.txt line.txt; done
hidden line.txt
grep -Eq '"tokens":(1[5-9][0-9][0-9]|2000),' report.json || die "2000 tokens at most of many: $(cat report.json)"
hidden text.txt --text crlf.txt
ln -s text.txt link.txt
hidden link.txt && cp work/states.safetensors by-link
hidden text.txt && python3 - by-link work/states.safetensors << 'END' || die 'a link gives other states than its file'
import struct, sys
a, b = (open(p, "rb").read() for p in sys.argv[1:])
sys.exit(a[8 + struct.unpack("<Q", a[:8])[0]:] != b[8 + struct.unpack("<Q", b[:8])[0]:])
END
hidden text.txt; grep -q '"kept":true' report.json || die 'the same text is run again'
echo more >> text.txt
hidden text.txt; grep -q '"kept":false' report.json || die 'a text that changed is not run again'
fh build tiny -q -C piped -o piped.fhead --text - --tokens 6000 --target-containment 0.8 --json < line.txt | grep -q '"calibrated":true' || die 'text from a pipe'
# the text that a promise was made on is no judge of it
fh build tiny -q -C judged -o judged.fhead --text text.txt --tokens 6000 --target-containment 0.8 > /dev/null
fh perplexity judged.fhead --text text.txt --window 64 2>&1 > /dev/null | grep -q 'warning: text.txt: is the text that judged.fhead was calibrated on' || die 'calibration text judges itself'
[ -z "$(fh perplexity judged.fhead --text crlf.txt --window 64 2>&1 > /dev/null | grep calibrated)" ]

# Documents: titles of WikiText, rows of JSON, else blocks
{ printf ' = One = \n \n'; cat text.txt; printf ' = Two = \n \n = = Part = = \n'; cat text.txt; } > wiki.txt
awk '{ printf "{\"id\": %d, \"text\": \"%s\"}\n", NR, $0 }' text.txt > documents.jsonl
states() { python3 -c 'import json, struct; b = open("work/states.safetensors", "rb").read(); h = json.loads(b[8:8 + struct.unpack("<Q", b[:8])[0]]);
p = json.loads(h["__metadata__"]["fhtool"])["params"]; print(p["documents"], p["asked"]["form"], p["asked"]["documents_known"])'; }
hidden wiki.txt --tokens 100000; [ "$(states)" = '2 wikitext yes' ] || die "wikitext: $(states)"
hidden documents.jsonl --tokens 100000; [ "$(states)" = '301 jsonl yes' ] || die "jsonl: $(states)"
hidden text.txt --tokens 100000; case $(states) in *' plain no') ;; *) die "plain: $(states)" ;; esac
hidden self; case $(states) in *' self yes') ;; *) die "self: $(states)" ;; esac
# A limit of tokens is kept; windows longer than the model are cut to it
hidden text.txt --tokens 77 --window 1000000; grep -q '"tokens":77,' report.json || die "77 tokens at most: $(cat report.json)"
fails 2 '\-\-tokens: .0. is not a whole number from 1' fh hidden -C work --text text.txt --tokens 0

# States that are not of this head, or no states at all
python3 - << 'END'
import os, struct, sys
sys.path.insert(0, os.environ["TOP"] + "/tests/cli")
from make_tiny import write_safetensors as write
f32 = lambda n, v=0.5: struct.pack(f"<{n}f", *[v] * n)
write("narrow", {"hidden": ("F32", [3, 32], f32(96))})
write("bf16", {"hidden": ("BF16", [3, 64], bytes(384))})
write("ints", {"hidden": ("I64", [3, 64], bytes(1536))})
write("flat", {"hidden": ("F32", [64], f32(64))})
write("deep", {"hidden": ("F32", [1, 1, 1, 64], f32(64))})
write("named", {"states": ("F32", [1, 64], f32(64))})
write("nan", {"hidden": ("F32", [3, 64], f32(128) + f32(63) + f32(1, float("nan")))})
write("inf", {"hidden": ("F32", [2, 2, 64], f32(130) + f32(1, float("-inf")) + f32(125))})
write("none", {"hidden": ("F32", [0, 64], b"")})
write("good2", {"hidden": ("F32", [6, 64], f32(384))})
write("good3", {"hidden": ("F32", [2, 3, 64], f32(384))})
write("odd", {"a": ("U8", [1], b"x"), "hidden": ("F32", [6, 64], f32(384))})
i64 = lambda *v: struct.pack(f"<{len(v)}q", *v)
write("ids-far", {"ids": ("I64", [1, 3], i64(1, 300, 2))})
write("ids-negative", {"ids": ("I64", [1, 3], i64(1, 2, -1))})
write("ids-flat", {"ids": ("I64", [3], i64(1, 2, 3))})
write("ids-empty", {"ids": ("I64", [2, 0], b"")})
write("ids-float", {"ids": ("F32", [1, 3], f32(3))})
write("ids-long", {"ids": ("I64", [1, 300], i64(*[5] * 300))})
END
query() { fh query model.fhead --hidden "$@"; }
fails 3 'narrow: states of width 32 for a head of width 64' query narrow
for f in bf16 ints flat deep; do fails 3 "$f: tensor 'hidden' is .*: states are float32 \[N, 64\] or \[B, T, 64\]" query $f; done
fails 1 "named: has no tensor 'hidden'" query named
fails 3 'nan: the state at position 2 is not finite' query nan
fails 3 'inf: the state at position 2 is not finite' query inf --curve 1,2
fails 3 'inf: the state at position 2 is not finite' query inf --dense
fails 1 'text.txt: ' query text.txt
query none --json | grep -q '"positions":0,.*"ids":\[\]'
query good2 --json > a; query good3 --json > b; same a b; query odd --json > b; same a b
hidden_of() { fh hidden tiny -o out.safetensors --ids-file "$@"; }
fails 3 'ids-far: ids\[0\]\[1\] is 300, and the model has 300 tokens' hidden_of ids-far
fails 3 'ids-negative: ids\[0\]\[2\] is -1' hidden_of ids-negative
for f in ids-flat ids-float; do fails 1 "$f: tensor 'ids'" hidden_of $f; done
fails 3 "ids-empty: tensor 'ids' is empty" hidden_of ids-empty
fails 1 'narrow: .*ids' hidden_of narrow
status=0; hidden_of ids-long > out.txt 2> err.txt || status=$?
[ $status = 2 ] || [ $status = 3 ] || [ $status = 1 ] || die "300 tokens for a model of 256: status $status"
grep -q 256 err.txt || die "300 tokens for a model of 256: $(cat err.txt)"
[ ! -e out.safetensors ] || die 'a refused command wrote'

# Recorded lines for the tokenizer
fails 1 'words: line 2: ' fh tokenize tiny --batch "$(printf '\n{"b":1}\n' > words; echo words)"
fails 1 'ids: line 1: element 1 is no token id' fh detokenize tiny --batch "$(printf '[1,-2]\n' > ids; echo ids)"
fails 1 'ids: line 1: ' fh detokenize tiny --batch "$(printf '[1,2\n' > ids; echo ids)"
no_leftovers
