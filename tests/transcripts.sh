#!/bin/sh
# Prints docs/commands.md, a section a subcommand, from the demo model: sh tests/transcripts.sh > commands.md.  Takes a few minutes; times want a quiet machine.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$top/demo/prose-7m" "$work/prose-7m"
cd "$work"
PATH=$top/build:$PATH
section() { printf '## %s\n\n%s\n\n```\n' "$1" "$2"; }
show() { printf '$ %s\n' "$1"; sh -c "$1" 2>&1; }
end() { printf '```\n\n'; }

cat << 'EOF'
# Commands

What every command does, and what it prints on the demo model (two cores of an EPYC with AVX-512, no GPU). `sh tests/transcripts.sh` makes this page.

Every command has `-h`, `--json` (one object on standard output, nothing else), `-q` and `-v`. Exit status: 0 done, 1 failed, 2 misuse, 3 a check or target was not met, 130 interrupted.
Stages work in a directory (`-C DIR`, default `./fhead-work`); a stage that is missing is run with its defaults, one whose inputs changed is run again.

EOF
section convert 'Finds the head of a checkpoint (tied or not is decided and verified), checks every row, copies it into the work directory. Dead rows (past the tokenizer, or zero), duplicates and the fingerprint are written to `model.json`.'
show 'fhtool convert prose-7m -C work'; end
section hidden 'Collects what the head reads, and the range of attention scores of each layer ([what for](cuda.md#the-constant-of-a-layer)), from text (`--text FILE`, again for more) or from text that the model says itself. Text longer than `--tokens` is taken evenly from all of it. With `MODEL`: states and logits of given sequences (`--ids-file`) into a safetensors file.'
show 'fhtool hidden -C work --text self --tokens 100000'; end
section cluster 'Cuts the rows into K clusters of equal size: k-means (FAISS) gives a start, exact pairwise swaps refine it. Rows are alike by the logits they give over the states (`--metric output`), by distance (`euclidean`, where there are no states), or by direction (`cosine`, the published method). Ctrl-C keeps the best so far. `--init OLD` goes on from such a result, or from the artifact of a base model for its fine-tune; `--restarts N` keeps the best of several starts, `--budget SECONDS` ends in time, and both can be replayed from what the report says. `--device cuda` looks for near clusters on a GPU: [the same clusters](cuda.md#clustering).'
show 'fhtool cluster -C work --k 1024'; end
section route 'Makes the centroids by which clusters are found: `learned` (distilled from the dense head on the states), `weighted` (means weighted by how often tokens were said), `raw` (means), `mean` (normalised, the published method).
`--moves 1` lets tokens change places, two at a time, where the centroids learned so far expect both more; `routing.safetensors` then has an assignment of its own, by which everything after it goes ([how, and what was tried](decisions/0005-states-shape-clusters-and-routing.md); [what it saves, by cap](measurements/caps.md)).
`target_gflops` and `pass_gflops` count the multiplications and additions of products, most of them in eight bits ([why](decisions/0035-routing-is-learned-in-eight-bits.md)).'
show 'fhtool route -C work'; end
section quantize 'Encodes centroids and token rows (`int8`, `int4`, `bf16`, `f16`, `f32`) and says what that costs, relative to the length of each row.'
show 'fhtool quantize -C work --centroids int8 --tokens int8'; end
section calibrate 'Chooses routing and hot list on part A, P on part B with its bound, and reports part C. `--target-containment` (with `--containment-k`), `--target-agreement` and `--target-mass` are promised together. `--plan` only says what settings cost, in bytes and in time on this machine (`--caps 8,16,32`: over sizes of clusters too, of which `build --caps` takes the cheapest); `--cheapest time` chooses by the latter. `--probing adaptive` promises a threshold on scores instead of P: [a seventh fewer bytes in the mean at 0.99, where `--max-cost` keeps single steps short](measurements/probing.md), and not to be trusted at 0.999. `--device cuda` multiplies on a GPU: [the same promise](cuda.md#calibration).'
show 'fhtool calibrate -C work --target-containment 0.99'; end
section rehearse 'Calibrates on many random draws of a text and says how often the promise holds on the rest, or on another text (`--against`). `validate/promise.py` makes tables of it.'
show 'fhtool rehearse -C work --text self --seed 1 --tokens 60000 --draws 20 --draw-tokens 30000 --targets 0.95,0.99 --containment-k 1'; end
section pack 'Puts everything into one file. `--head-only` leaves body and tokenizer out; `run` then takes `--model DIR` and refuses any other model.'
show 'fhtool pack -C work -o prose-7m.fhead'; end
section build 'All stages at once. What is current is not run again; after an interruption the same command goes on.'
show 'fhtool build prose-7m -C work -o prose-7m.fhead -q | tail -n 9'; end
section status 'What a work directory holds, and what is stale.'
show 'fhtool status -C work'; end
section run 'Continues a prompt: greedy, or sampled with `--temperature`, `--top-k`, `--top-p`, `--min-p`, `--seed`, `--repetition-penalty`; ends before `--stop TEXT`. `--chat` answers a message and `-i` holds a conversation (`--system`; Ctrl-C ends a reply, `/new` begins anew, `/exit` ends), written exactly as the chat template of the model has it where that is a published one of the supported families, else as `--chat-template NAME` says. Sampling is from FlashHead'\''s candidates and says what share of the probability they hold; `--exact-sampling` draws from all tokens ([how, and how often it reads them all](measurements/exact-sampling.md)). `--no-think` asks Qwen3 not to think aloud. `--kv-type f16` or `int8` keeps the key-value cache in half or a quarter of its size ([what that costs](measurements/kv-cache.md)). `--audit N` compares every N-th state with the dense head and says at the end how FlashHead did.'
show "fhtool run prose-7m.fhead --prompt 'She opened the door and' -n 32 --stats"
show "fhtool run prose-7m.fhead --prompt 'She opened the door and' -n 32 --temperature 0.8 --top-p 0.95 --seed 3"
show "fhtool run prose-7m.fhead --prompt 'She opened the door and' -n 32 --temperature 1 --exact-sampling"; end
section 'inspect and verify' '`inspect` checks the header and shows what is inside; `verify` checks every byte, and that what is inside makes sense. This is integrity, not authenticity.'
show 'fhtool inspect prose-7m.fhead'
show 'fhtool verify prose-7m.fhead | tail -n 2'; end
section 'publish, list, fetch, keygen, sign, rebuild and diff' 'A registry is a directory with an index; on a share or behind a web server it is one for everybody. A release holds the artifact, a model card with the artifact'\''s own numbers, checksums, a recipe, and with `--oci` an OCI layout; it appears whole or not at all and
is never overwritten. `fetch` takes it from a directory, `file://` or `https://`, goes on after interruptions and checks every byte as it comes; `verify` names each file that is missing, extra, renamed or altered, and with `--pubkey` who signed it
(in minisign'\''s format, both ways). `rebuild` makes the artifact again from the recipe, bit for bit; `diff A B` says what moved between two: clusters, tokens that changed home, P, hot list, promise, worst-affected tokens; with `--hidden STATES` also what both make of recorded states.
[releases.md](releases.md) has all of it.'
show 'fhtool keygen -o team.key --no-password'
show 'fhtool publish prose-7m.fhead --to registry --name prose-7m --version 1.0 --base-model me/prose-7m --license cc-by-sa-4.0 --key team.key | tail -n 8'
show 'fhtool list registry'
show 'fhtool fetch registry prose-7m --pubkey team.key.pub | tail -n 6'
show 'fhtool rebuild prose-7m-1.0/recipe.json --model prose-7m | tail -n 5'; end
section 'export and import' 'For runtimes people already use. `export --format vllm` makes the directory that the vLLM plugin `flash-head` loads, from an artifact of `build --for vllm` (clusters of one size, centroids at unit length, bf16, no hot list, the promise measured as that runtime
computes): config.json patched and otherwise byte for byte, weights copied or linked, tokenizer and all. It appears whole or not at all, and what that runtime cannot hold is refused by name. `import` makes a work directory of such a directory, and `verify DIR` judges
one that somebody else made: every rule of that runtime, most of which it does not check itself, and that the clustering belongs to the head.
[The plugin'\''s own class gives the same tokens](measurements/vllm-export.md); [why the promise is another one](decisions/0008-promises-for-the-vllm-plugin.md).'
show "fhtool build prose-7m --for vllm -C for-vllm -o for-vllm.fhead -q | grep -E '^(probes|hot|runtime|centroids)'"
show 'fhtool export --format vllm for-vllm.fhead --model prose-7m -o prose-7m-FlashHead --link hard'
show 'fhtool verify prose-7m-FlashHead | tail -n 4'; end
section query 'The head alone, on recorded states (`hidden` [N, D] or [B, T, D], float32).'
show "printf 'It was a dark and stormy night, and the ship went down with all hands.' > night.txt"
show 'fhtool hidden prose-7m --text night.txt -o night.safetensors -q'
show 'fhtool query prose-7m.fhead --hidden night.safetensors --top-k 3 | head -n 4'
show 'fhtool query prose-7m.fhead --hidden night.safetensors --curve 1,4,16,64'; end
section perplexity 'By the dense head or FlashHead, which gives a stated share of the mass to tokens that are no candidates.'
show 'fhtool perplexity prose-7m.fhead --text night.txt'
show 'fhtool perplexity prose-7m.fhead --text night.txt --head flash'; end
section validate 'Whether an artifact may ship: checks, quality on a text against the dense head, what every part costs, gates, and a page of HTML. [validate.md](validate.md) says what each of these is.'
show "fhtool validate prose-7m.fhead --text self --seed 7 --tokens 4000 --gate 'agreement>=0.98' --report prose-7m.html -q | sed '/^parity/,/^text/d; /^curve/,/^anatomy/d' | cut -c 1-150"; end
section 'tokenize and detokenize' 'Exactly as the reference libraries do; of the model only `tokenizer.json` is needed.'
show "fhtool tokenize prose-7m --text 'The ship went down.'"
show "fhtool tokenize prose-7m --text 'The ship went down.' > ids.jsonl; fhtool detokenize prose-7m --batch ids.jsonl"; end
section estimate 'What FlashHead will bring to a model, before any work: bytes and operations of every stage, the key-value cache, and the time that a stand-in of the same shape takes on this machine. `bench --against-estimate` compares afterwards ([measurements/estimate.md](measurements/estimate.md)). A directory with `config.json` alone will do.'
show 'fhtool estimate prose-7m --k 1024 --probes 30,64'; end
section sweep 'Every combination of K, P and encodings: quality and time of each, the frontier, and three settings by name, in JSON, CSV and one HTML page ([measurements/sweep.md](measurements/sweep.md)). What is there is not done again.'
show 'fhtool sweep prose-7m -C sweep --k 512,1024 --probes 16,64,256 --tokens 50000 -o sweep-results -q'; end
section bench 'Times the heads of an artifact, caches swept before every call, beside the memory speed of the machine; and the body: decoding on caches of 16 to 32768 tokens, a prompt (`--body`: nothing else, of a checkpoint too).'
show 'fhtool bench prose-7m.fhead'; end
