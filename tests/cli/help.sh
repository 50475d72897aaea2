# Help and the command table agree: every command of the design is there, its help has an example and every option, asked for it
# goes to standard output with status 0, and misuse goes to standard error with status 2.
. "$TOP/tests/cli/tools.inc"

for word in -h --help help; do fh $word > help.txt 2> err.txt; [ ! -s err.txt ] || die "fhtool $word writes on standard error"; done
grep -q '^example: fhtool' help.txt
commands='build convert hidden cluster route quantize calibrate rehearse pack status run inspect verify query perplexity tokenize detokenize bench validate estimate sweep publish list fetch keygen sign rebuild diff export import'
for c in $commands; do
    grep -Eq "^  $c +[a-z]" help.txt || die "$c is not in the general help"
    for word in -h --help; do
        fh "$c" $word > c.txt 2> err.txt || die "$c $word"
        [ ! -s err.txt ] || die "$c $word writes on standard error"
    done
    grep -q "^usage: fhtool $c" c.txt && grep -q "^example: fhtool " c.txt && grep -q "fhtool $c " c.txt || die "$c -h has no usage or example"
    # -h wins over what is missing, and the option that help names is one that the parser knows
    fh "$c" --threads 1 -h > /dev/null
    awk '/^options:/ { on = 1; next } on && /^$/ { exit } on { print $1, ($2 ~ /^[A-Z]/ || $2 ~ /^1,2/) ? $2 : "" }' c.txt > options.txt
    [ "$(wc -l < options.txt)" -ge 5 ] || die "$c -h lists too few options"
    while read -r option value; do
        if [ -n "$value" ]; then fails 2 "$option: a value must follow" fh "$c" "$option"
        else fh "$c" "$option" -h > /dev/null || die "$c $option -h"; fi
    done < options.txt
done
# the pages that show them know all of them
for c in $commands; do grep -q "^| .*\`$c\`" "$TOP/README.md" && grep -Eq "^## (.*[ ,])?$c(,| |$)" "$TOP/docs/commands.md" || die "$c is not in README.md or docs/commands.md"; done
# and no command that the general help does not name
[ "$(grep -cE '^  [a-z]+ +' help.txt)" = "$(echo $commands | wc -w)" ] || die 'the general help names other commands'

# What other programs rely on (DESIGN 9), by command.
has() { c=$1; shift; fh "$c" -h > c.txt; for o; do grep -Eq -e "^  $o( |\$)" c.txt || die "$c has no $o"; done; }
for c in convert hidden cluster route quantize calibrate rehearse pack build status; do has $c -C --threads --json -q -v -h; done
has cluster --k
has route --routing --moves
has quantize --centroids --tokens
has calibrate --text --target-containment --target-agreement --target-mass --containment-k --confidence --max-cost --tokens
has pack -o --probes --head-only --exact --no-clobber
has build -o --k --text --moves --target-containment --no-clobber --for
has export --format --model -o --link --probes --no-clobber
has import --format -C
has query --hidden --probes --top-k --dense --no-hot --curve
has run --prompt --ids -n --head --ignore-eos --model --verify --temperature --top-k --top-p --min-p --seed --model-sampling --repetition-penalty \
    --repeat-last --stop -i --chat --system --chat-template --exact-sampling --measure-mass --stats
has perplexity --text --window --stride --head
has validate --model --text --hidden --tokens --gate --report --prompts --last-words
has hidden --text --tokens --ids-file -o --logits
has tokenize --batch --no-special
has detokenize --batch --skip-special
has publish --to --name --version --dry-run --oci --key
has fetch --pubkey -o
has verify --pubkey

status=0; fh > out.txt 2> err.txt || status=$?
[ $status = 2 ] && [ ! -s out.txt ] && grep -q '^usage: fhtool' err.txt || die 'fhtool alone: usage on standard error, status 2'
fails 2 "'convrt' is no subcommand: did you mean 'convert'\?; see 'fhtool -h'" fh convrt x
fails 2 "'--frobnicate' is no subcommand; see" fh --frobnicate
fails 2 "is no subcommand" fh ''
fh --version > version.txt
grep -Eq '^fhtool [0-9]+\.[0-9]+\.[0-9]+ ' version.txt
