# Misuse: status 2, one line that names the command, the option, what was given and what may be; nothing is written.
. "$TOP/tests/cli/tools.inc"
build_tiny
listing() { find . -type f ! -name before.txt ! -name after.txt ! -name out.txt ! -name err.txt ! -name lock | sort | xargs ls -l --time-style=full-iso; }
listing > before.txt
bad() { fails 2 "$@"; }

# Unknown, near, missing, twice
bad "^fhtool: cluster: --kk: there is no such option: did you mean '--k'\?; see 'fhtool cluster -h'$" fh cluster --kk 5
bad "calibrate: --target-containmnet: there is no such option: did you mean '--target-containment'" fh calibrate --target-containmnet=0.9
bad "run: --temprature: .*did you mean '--temperature'" fh run model.fhead --temprature 1
bad "convert: --frobnicate: there is no such option; see" fh convert tiny --frobnicate
bad "convert: -x: there is no such option" fh convert tiny -x
bad "convert: --C: there is no such option" fh convert tiny --C work
bad "convert: --: there is no such option|too many|takes" fh convert tiny -- --json
bad "convert: --js: there is no such option" fh convert tiny --js
bad "convert: -Cwork: there is no such option" fh convert tiny -Cwork
bad "convert: MODEL is missing" fh convert
bad "inspect: FILE is missing" fh inspect --json
bad "convert: 'two' is one argument too many \(takes MODEL\)" fh convert tiny two
bad "cluster: 'work' is one argument too many \(takes none\)" fh cluster work
bad "cluster: --k: a value must follow" fh cluster --k
bad "cluster: --json=yes: takes no value" fh cluster --json=yes
bad "pack: -o: a value must follow" fh pack -C work -o
bad "an empty path|-o" fh pack -C work -o ''
bad "-C|empty" fh status -C ''
bad "pack: -o is missing" fh pack -C work
bad "build: -o is missing" fh build tiny -C work
bad "query: --hidden is missing" fh query model.fhead
bad "perplexity: --text is missing" fh perplexity model.fhead
bad "tokenize: --batch is missing" fh tokenize tiny
bad "detokenize: --batch is missing" fh detokenize tiny
bad "run: give --prompt or --ids" fh run model.fhead
bad "run: give --prompt or --ids" fh run model.fhead --prompt a --ids 1
bad "hidden: -o is missing" fh hidden tiny --ids-file x
bad "hidden: give --ids-file or --text" fh hidden tiny -o x
bad "hidden: give --ids-file or --text" fh hidden tiny -o x --ids-file x --text y
bad "hidden: --text self: only as a stage" fh hidden tiny -o x --text self
bad "hidden: --ids-file, -o, --logits and --kv-type: name the MODEL" fh hidden -C work -o x
bad "hidden: --ids-file, -o, --logits and --kv-type: name the MODEL" fh hidden -C work --kv-type f16
bad "run: --no-think: goes with --chat or -i" fh run model.fhead --prompt a --no-think
bad "run: --kv-type: 'bf16' is none of f32,f16,int8" fh run model.fhead --prompt a --kv-type bf16
bad "hidden: -C: " fh hidden tiny -C work -o x --ids-file x
bad "cluster: --k and --cap: give one" fh cluster -C work --k 4 --cap 4
bad "build: --k, --cap and --caps: give one" fh build tiny -o x --k 4 --cap 4
bad "query: --curve stands without" fh query model.fhead --hidden work/states.safetensors --curve 1 --dense
bad "query: --dense scores every token" fh query model.fhead --hidden work/states.safetensors --dense --probes 2

# Numbers: whole, in range, nothing after them
for v in 0 -1 1 1e3 8016x x8016 999999999999 99999999999999999999999 '' ' 5' '5 ' +5 0x10 5.0 nan ٣; do
    bad "cluster: --k: '.*' is not a whole number from 2 to 1000000000" fh cluster -C work --k "$v"
    bad "build: --k: '.*' is not a whole number from 2 to 1000000000" fh build tiny -C work -o x --k="$v"
done
bad "301 clusters|--k|300" fh cluster -C work --k 301
bad "1000000000|--k|300" fh cluster -C work --k 1000000000
for v in 0 -1 257 1000000 abc 1.5; do bad "convert: --threads: '$v' is not a whole number from 1 to 256" fh convert tiny -C work --threads $v; done
for v in 0 1 1.01 -0.5 nan inf 99% 0,99 '' 1e999 0x1p-1; do bad "calibrate: --target-containment: '$v' is not a number from 0.01 to 0.999999" fh calibrate -C work --target-containment "$v"; done
for v in 0.4 1 one; do bad "calibrate: --confidence: '$v' is not a number from" fh calibrate -C work --confidence $v; done
for v in 0 -1 11x 100000; do bad "calibrate: --containment-k: '$v' is not a whole number from 1 to" fh calibrate -C work --containment-k $v; done
for v in -1 many 1e2 9999999 ''; do bad "calibrate: --hot: '$v' is neither auto nor a whole number" fh calibrate -C work --hot "$v"; done
for v in 0 -5; do bad "pack: --probes: '$v' is not" fh pack -C work -o x --probes $v; done
bad '\-\-probes: 19 of 18 clusters \(1..18\)' fh pack -q -C work -o x --probes 19
for v in 0 -1 1e2; do bad "run: -n: '$v' is not" fh run model.fhead --ids 1 -n $v; done
for v in -1 101 hot; do bad "run: --temperature: '$v' is not a number from 0 to 100" fh run model.fhead --ids 1 --temperature $v; done
for v in -0.1 1.1; do bad "run: --top-p: '$v' is not" fh run model.fhead --ids 1 --top-p $v; done
bad "run: --seed: '-1'" fh run model.fhead --ids 1 --seed -1
for v in '' , 1, ,1 1,,2 1,x '1 2' 300 -1 99999999999999999999999999; do bad "run: --ids: '.*' in the list is not a whole number from 0 to 299" fh run model.fhead --ids "$v"; done
for v in '' 0 19 1,19 1,0 a; do bad "query: --curve: '.*' in the list is not a whole number from 1 to 18" fh query model.fhead --hidden work/states.safetensors --curve "$v"; done
bad "stride of 64" fh perplexity model.fhead --text tiny/config.json --window 64 --stride 64
bad "window of 1000" fh perplexity model.fhead --text tiny/config.json --window 1000
# Words
bad "quantize: --tokens: 'int3' is none of int8,int4,bf16,f16,f32" fh quantize -C work --tokens int3
bad "quantize: --tokens: 'in' is none of" fh quantize -C work --tokens in
bad "quantize: --centroids: '' is none of" fh quantize -C work --centroids ''
bad "route: --routing: 'best' is none of" fh route -C work --routing best
bad "run: --head: 'flesh' is none of flash,dense" fh run model.fhead --ids 1 --head flesh
# Control characters and bytes that are no UTF-8 do not reach the terminal
bad 'is not a whole number' fh cluster -C work --k "$(printf '\033[31m\377')"
! grep -q "$(printf '\033')" err.txt || die 'an escape sequence is printed as it is'
bad 'is no subcommand' fh "$(printf 'a\nb\033')"
[ "$(wc -l < err.txt)" = 1 ] || die 'a message of several lines'
head -c 100000 /dev/zero | tr '\0' A > long.txt
bad 'is no subcommand' fh "$(cat long.txt)"
bad 'there is no such option' fh cluster "--$(cat long.txt)"
bad "is not a whole number" fh cluster --k "$(cat long.txt)"
fails 1 'AAAA' fh inspect "$(cat long.txt)"
rm long.txt

listing > after.txt
diff before.txt after.txt || die 'a refused command changed something'

# Right, if unusual: = and a space, -- and what looks like a flag, the last of two wins
fh convert --json -q -C=work tiny > /dev/null 2>&1 && die '-C=work is no option'
mkdir ./--json
cp tiny/* ./--json
fh convert -q -C dashes -- --json > text.out
grep -Eq '^vocab +300' text.out
fh cluster -q -C dashes --k=9 --k 10 --json | grep -q '"k":10,'
fh run model.fhead --prompt=-5 -n 1 > text.out && grep -q '^-5' text.out
fh run model.fhead --prompt -5 -n 1 > text.out && grep -q '^-5' text.out
