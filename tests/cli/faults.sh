# The n-th allocation fails, the n-th write fails: each command says so in one line and leaves everything as it was.
. "$TOP/tests/cli/tools.inc"
faulty=${FH_FAULTY:-$TOP/build/faults/fhtool}
[ -x "$faulty" ] || { echo 'build/faults/fhtool is not built'; exit 77; }
FHTOOL=$faulty
build_tiny
write_text text.txt 60
tiny big --vocab 304
fh build big -q --for vllm -C for-vllm -o plugin.fhead --tokens 2000 --target-containment 0.3 > /dev/null
fh export --format vllm plugin.fhead --model big -o exported -q > /dev/null
printf '%s\n' '"the king and the queen"' '"\u00e9\ud83d\ude00"' > lines.jsonl
printf '%s\n' '[1,2,3]' '[200,5]' > ids.jsonl
exec python3 "$TOP/tests/cli/faults.py" "$faulty"
