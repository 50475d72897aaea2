# run for people: messages written as the model's template has them, conversations, stop strings, and sampling that says what it is from.
. "$TOP/tests/cli/tools.inc"
build_tiny
cp "$TOP/tests/golden/chat/chatml.jinja" tiny/chat_template.jinja
fh build tiny -q -C work -o talk.fhead --tokens 6000 --target-containment 0.9 > /dev/null
fh inspect talk.fhead | grep -q 'body\.chat_template' || die 'the template is not bundled'
fh verify talk.fhead > /dev/null
value() { python3 -c 'import json, sys; r = json.load(sys.stdin); print(eval(sys.argv[1], {"r": r}))' "$1"; }
is() { got=$(value "$1" < report.json); [ "$got" = "$2" ] || die "$1 is $got, not $2: $(head -c 600 report.json)"; }

# A message: the ids of what the template writes, nothing else; only the answer is printed
printf '"<|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\nthe king<|im_end|>\\n<|im_start|>assistant\\n"\n' > rendered
fh tokenize tiny --batch rendered > want
for f in talk.fhead tiny; do
    fh run $f --chat --prompt 'the king' --system 'Be brief.' -n 5 --json > report.json
    value 'str(r["prompt_ids"]).replace(" ", "")' < report.json > got; same got want
    is 'r["chat_template"]' chatml
done
fh run talk.fhead --chat --prompt 'the king' -n 5 --json | value 'r["text"]' > want
fh run talk.fhead --chat --prompt 'the king' -n 5 > got; same got want
printf 'the king' | fh run talk.fhead --chat --prompt - -n 5 > got; same got want
fh run talk.fhead --chat --prompt '' -n 5 > /dev/null
# Templates that are not known or not there
fails 1 'model.fhead: has no chat template: .*--chat-template \(chatml, .*raw for plain text' fh run model.fhead --chat --prompt a
fh run model.fhead --chat --prompt a --chat-template llama3.2 --date '05 Nov 2031' -n 2 > a; fh run model.fhead --chat --prompt a --chat-template llama3.2 -n 2 > b
cp -r tiny strange; echo '{{ messages }}' > strange/chat_template.jinja
fails 1 'strange: its chat template \(SHA-256 [0-9a-f]{16}\.\.\.\) is none that fhtool knows' fh run strange --chat --prompt a
fh run strange --prompt a -n 2 > /dev/null
fails 2 "\-\-chat-template: 'chatlm' is none of chatml," fh run talk.fhead --chat --prompt a --chat-template chatlm
fails 1 'its chat template \(gemma\) has no system message: leave out --system' fh run talk.fhead --chat --prompt a --chat-template gemma --system s
fails 1 'its chat template \(gemma\) has no system message: leave out --system' fh run talk.fhead -i --chat-template gemma --system s
fails 2 'run: -i reads messages from standard input' fh run talk.fhead -i --prompt a
fails 2 'run: --chat writes the prompt itself' fh run talk.fhead --chat --ids 1
for f in system chat-template date; do fails 2 "run: --$f: goes with --chat or -i" fh run talk.fhead --prompt a --$f x; done

# A conversation: each answer as if all of it were asked at once, the cache reused; ends of lines, of input, and of patience
printf 'one\r\n\ntwo\n' | fh run talk.fhead -i -n 8 --ignore-eos --chat-template raw --json > report.json
is 'len(r["turns"])' 2
is 'r["turns"][1]["stats"]["reused_tokens"] >= r["turns"][0]["stats"]["prompt_tokens"]' True
value '__import__("json").dumps("one\n" + r["turns"][0]["text"] + "\ntwo\n")' < report.json > whole
fh tokenize tiny --batch whole | tr -d '[] ' > ids
value 'r["turns"][1]["ids"]' < report.json > want
fh run talk.fhead --ids "$(cat ids)" -n 8 --ignore-eos --json | value 'r["ids"]' > got; same got want
printf 'one\n/exit\ntwo\n' | fh run talk.fhead -i -n 4 --json > report.json; is 'len(r["turns"])' 1
printf 'one\n/new\none' | fh run talk.fhead -i -n 4 --json > report.json; is 'r["turns"][0]["ids"] == r["turns"][1]["ids"]' True
printf 'one\n' | fh run talk.fhead -i -n 4 --json | value 'r["turns"][0]["text"]' > want
printf 'one' | fh run talk.fhead -i -n 4 > got; same got want
fh run talk.fhead -i < /dev/null > got; [ ! -s got ] || die 'an answer to nothing'
fh run talk.fhead -i <&- > got; [ ! -s got ] || die 'an answer to nobody'
printf 'caf\351 \377\n' | fh run talk.fhead -i -n 4 > /dev/null || die 'invalid UTF-8 on standard input'
printf 'a\0b\n' | fh run talk.fhead -i -n 4 > /dev/null || die 'a zero byte on standard input'
{ head -c 3000 /dev/zero | tr '\0' x; printf '\none\n'; } | fh run talk.fhead -i -n 4 --json > report.json 2> err.txt
grep -q 'fhtool: warning: with this message the conversation has [0-9]* tokens, and the model takes 256: say less, or begin anew with /new' err.txt || die "too long a message: $(cat err.txt)"
is 'len(r["turns"])' 1
fails 2 'standard input: a message of more than 1048576 bytes' sh -c "head -c 3000000 /dev/zero | tr '\\0' x | $FHTOOL run talk.fhead -i"
printf 'one\ntwo\n' | fh run talk.fhead -i -n 4 --stats 2>&1 > /dev/null | grep -q 'prompt tokens ([0-9]* of them in the cache), [0-9]* new' || die '--stats of a reply'

# Stop strings: nothing of them is printed, in pieces or at once; a special token by its name
fh run talk.fhead --prompt 'the king' -n 60 --ignore-eos --json > whole.json
python3 - "$FHTOOL" << 'END'
import json, subprocess, sys
text = json.load(open("whole.json"))["text"]
run = lambda *a: subprocess.run([sys.argv[1], "run", "talk.fhead", "--prompt", "the king", "-n", "60", "--ignore-eos", *a], capture_output=True, check=True).stdout.decode()
assert len(text) > 30 and "\0" not in text
for at, n in ((0, 1), (3, 1), (5, 4), (9, 13), (20, 7)):
    stop = text[at:at + n]
    want = text[:text.index(stop)]
    got = json.loads(run("--stop", stop, "--json"))
    assert got["text"] == want and got["ended"] == "stop", (stop, got, want)
    assert run("--stop", stop) == "the king" + want + "\n", stop
    assert json.loads(run("--stop", "never said", "--stop", stop, "--json"))["text"] == want
end = text[-5:] + "and no more"
assert json.loads(run("--stop", end, "--json"))["text"] == text and run("--stop", end) == "the king" + text + "\n", "what was held back is lost"
END
for seed in 1 2 3; do
    fh run talk.fhead --ids 1 -n 250 --temperature 50 --seed $seed --json | value 'r["ids"], r["ended"]' > want
    fh run talk.fhead --ids 1 -n 250 --temperature 50 --seed $seed --ignore-eos --stop '<|end|>' --json | value 'r["ids"], r["ended"]' > got; same got want
done
grep -q eos want || die 'no seed met an end'
fails 2 'an empty text stops nothing' fh run talk.fhead --prompt a --stop ''
fails 2 'not valid UTF-8' fh run talk.fhead --prompt a --stop "$(printf 'a\377')"

# Repetition penalty
fh run talk.fhead --prompt 'the king' -n 40 --ignore-eos --repetition-penalty 1 --json | value 'r["ids"]' > got; value 'r["ids"]' < whole.json > all
python3 -c 'import ast; a, b = (ast.literal_eval(open(f).read()) for f in ("got", "all")); assert a == b[:40]'
for head in flash dense; do
    fh run talk.fhead --prompt 'the king' -n 40 --ignore-eos --head $head --probes 1000000 --repetition-penalty 100 --json | value 'len(set(r["ids"])) > 35' | grep -q True || die 'a penalty of 100 repeats'
done
fails 2 "run: --repeat-last: goes with --repetition-penalty" fh run talk.fhead --prompt a --repeat-last 4
fails 2 "run: --repetition-penalty: '0' is not a number from 0.01 to 100" fh run talk.fhead --prompt a --repetition-penalty 0

# Sampling says what it is from
sample() { fh run talk.fhead --ids 1,2,3 -n 40 --ignore-eos --temperature 1.5 --seed 4 --json "$@" > report.json; }
sample --measure-mass --probes 1000000; is '0.999 < r["stats"]["covered_mass"] <= 1 and r["stats"]["covered_mass_from"]' measured
sample --measure-mass --probes 1 --no-hot; is '0 < r["stats"]["covered_mass"] < 0.9' True
sample; is 'r["stats"]["draws"], 0 < r["stats"]["covered_mass"] <= 1, r["stats"]["covered_mass_from"] in ("routing", "calibration")' '(40, True, True)'
fh run talk.fhead --ids 1 -n 4 --temperature 1 2>&1 > /dev/null | grep -Eq "^fhtool: sampled from candidates that hold [01]\.[0-9]+ of the probability \((estimated from the routing|calibration's average)" || die 'no word on the covered mass'
[ -z "$(fh run talk.fhead --ids 1 -n 4 --temperature 1 -q 2>&1 > /dev/null)" ] || die '-q is not quiet'
sample --exact-sampling --probes 1 --no-hot; value 'r["ids"]' < report.json > want; is 'r["stats"]["exact"]["dense"], 0 < r["stats"]["exact"]["rows"] < 60' '(0, True)'
for more in '--probes 5' '--probes 1000000' '--threads 3'; do sample --exact-sampling $more; value 'r["ids"]' < report.json > got; same got want; done
FH_ISA=ref sample --exact-sampling; value 'r["ids"]' < report.json > got; same got want
fh run talk.fhead --ids 1 -n 4 --temperature 1 --exact-sampling 2>&1 > /dev/null | grep -Eq 'drawn from the softmax of all tokens: a draw looked into .* of 300 rows exactly; 0 of 4 draws' || die 'no word on exact draws'
fails 2 'run: --exact-sampling: goes with a --temperature above 0' fh run talk.fhead --ids 1 --exact-sampling
fails 2 'run: --exact-sampling: draws from all tokens: leave out --top-k' fh run talk.fhead --ids 1 --exact-sampling --temperature 1 --top-p 0.9
fails 2 'run: --exact-sampling: is about FlashHead' fh run talk.fhead --ids 1 --exact-sampling --temperature 1 --head dense
fails 2 'run: --measure-mass: tiny is a checkpoint' fh run tiny --ids 1 --measure-mass --temperature 1
fh pack -q -C work -o head.fhead --head-only > /dev/null
fails 1 'no exact rows' fh run head.fhead --model tiny --ids 1 --exact-sampling --temperature 1 -n 2
fh run head.fhead --model tiny --ids 1 --measure-mass --temperature 1 -n 2 --json | value 'r["stats"]["covered_mass_from"]' | grep -q measured

# Prompts and pipes that are not what they should be
fails 2 'run: --prompt: the text encodes to no token' fh run talk.fhead --prompt ''
fails 2 'run: --prompt: the text encodes to no token' fh run talk.fhead --prompt - <&-
fails 2 'the prompt has [0-9]* tokens, the model takes 256' fh run talk.fhead --prompt "$(head -c 2000 /dev/zero | tr '\0' x)"
fails 2 'the prompt has [0-9]* tokens, the model takes 256' fh run talk.fhead --chat --prompt "$(head -c 2000 /dev/zero | tr '\0' x)"
printf 'a\377b' | fh run talk.fhead --prompt - -n 3 > /dev/null
(status=0; yes | fh run talk.fhead -i --chat-template raw --ignore-eos 2> err.txt || status=$?; echo $status > status) | head -c 1 > /dev/null
[ "$(cat status)" = 1 ] && grep -q '^fhtool: standard output: ' err.txt || die "standard output closed on the way: status $(cat status): $(cat err.txt)"
for what in '--ids 1' '-i --chat-template raw'; do
    [ -w /dev/full ] || continue
    status=0; echo one | fh run talk.fhead $what -n 20 > /dev/full 2> err.txt || status=$?
    [ $status = 1 ] && grep -q 'No space left' err.txt || die "$what: /dev/full: status $status: $(cat err.txt)"
done

exec python3 "$TOP/tests/cli/talk.py" "$FHTOOL" "$TOP/demo/prose-7m"
