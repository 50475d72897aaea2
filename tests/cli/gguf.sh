# A GGUF in place of a checkpoint directory: every command takes it, says the same of it, and refuses broken ones in one line.
. "$TOP/tests/cli/tools.inc"
tiny tiny
cp "$TOP/tests/golden/gguf/tiny.gguf" model.gguf
facts() { # facts MODEL: what convert says, without what is measured
    fh convert "$1" -q -C "work-$(basename "$1")" --json | sed 's/,"seconds":.*//'
}
[ "$(facts tiny)" = "$(facts model.gguf)" ] || die "convert says otherwise: $(facts tiny) $(facts model.gguf)"
for text in 'the king of the sand' '  two  spaces, 12 and on'; do
    fh tokenize tiny --text "$text" > a
    fh tokenize model.gguf --text "$text" > b
    same a b
done
fh run tiny --ids 1,2,3 -n 12 --ignore-eos --json | sed 's/"stats".*//' > a
fh run model.gguf --ids 1,2,3 -n 12 --ignore-eos --json | sed 's/"stats".*//' > b
same a b
write_text text.txt 60
fh perplexity tiny --text text.txt --window 64 --stride 32 --json | sed 's/,"seconds":.*//' > a
fh perplexity model.gguf --text text.txt --window 64 --stride 32 --json | sed 's/,"seconds":.*//' > b
same a b
fh hidden tiny --text text.txt --tokens 200 --logits -o a.safetensors > /dev/null
fh hidden model.gguf --text text.txt --tokens 200 --logits -o b.safetensors > /dev/null
same a.safetensors b.safetensors

# All stages, and a bundle that needs the file no more.
fh build model.gguf -q -C work -o model.fhead --tokens 6000 --target-containment 0.9 > /dev/null
fh build model.gguf -C work -o model.fhead --tokens 6000 --target-containment 0.9 --json > again.json 2> /dev/null
python3 -c 'import json; assert not any(s["ran"] for s in json.load(open("again.json"))["stages"] if s["stage"] == "convert")'
fh verify model.fhead | grep -q '^verified  *yes'
fh run tiny --prompt 'the king' -n 12 --ignore-eos > a
fh pack -q -C work --head-only -o head.fhead > /dev/null
fh run head.fhead --model model.gguf --prompt 'the king' -n 12 --ignore-eos --head dense > b
same a b
rm model.gguf
fh run model.fhead --prompt 'the king' -n 12 --ignore-eos --head dense > b
same a b

# What is refused; nothing is left behind.
cp "$TOP/tests/golden/gguf/tiny.gguf" model.gguf
fails 1 'model.gguf: is among what is read' fh pack -q -C work -o model.gguf
fails 1 'none.gguf' fh convert none.gguf -C w
fails 2 'a base model goes with a .fhead' fh run model.gguf --model tiny --ids 1
head -c 100000 model.gguf > short.gguf
fails 1 'short.gguf: tensor .* run past the end of the file.*download complete' fh convert short.gguf -C w
{ cat model.gguf; printf x; } > long.gguf
fails 1 'long.gguf: data at byte .* bytes too many' fh convert long.gguf -C w
printf 'version https://git-lfs.github.com/spec/v1\n' > lfs.gguf
fails 1 'lfs.gguf: not a GGUF file.*git lfs pull' fh convert lfs.gguf -C w
{ printf 'GGUF\002'; tail -c +6 model.gguf; } > old.gguf
fails 1 'old.gguf: byte 4: GGUF version 2, only version 3 is read' fh convert old.gguf -C w
{ printf 'GGUF\000\000\000\003'; tail -c +9 model.gguf; } > big.gguf
fails 1 'big.gguf: byte 4: .*big-endian' fh tokenize big.gguf --text x
mkfifo pipe.gguf
fails 1 'pipe.gguf' fh convert pipe.gguf -C w
[ ! -e w/head.safetensors ] || die 'something was converted'
no_leftovers

# The real model, where the reference's writer is at hand.
model=$FH_SHARED/models/prose-7m
if [ -d "$model" ] && python3 -c 'import gguf, numpy' 2> /dev/null; then
    for type in keep q8_0; do
        python3 "$TOP/tests/golden/make_gguf.py" "$model" "prose-$type.gguf" --type $type > /dev/null 2>&1
        fh run "$model" --prompt 'Once upon a time' -n 32 > a
        fh run "prose-$type.gguf" --prompt 'Once upon a time' -n 32 > b
        same a b
    done
    fh convert "$model" -q -C a-work --json | sed 's/,"seconds".*//' > a
    fh convert prose-keep.gguf -q -C b-work --json | sed 's/,"seconds".*//' > b
    same a b
fi
