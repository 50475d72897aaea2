#!/bin/sh
# make_minisign.sh: what the minisign program (0.11) writes, for tests/unit/test_sign.c: a pair of keys without a password and signatures of text.txt,
# hashed and as it is.  The keys are new with every run: all files belong together.
set -eu
cd "$(dirname "$0")/minisign"
rm -f key key.pub ./*.minisig
echo 'What the minisign program signed.' > text.txt
minisign -G -W -p key.pub -s key
minisign -S -s key -m text.txt -x hashed.minisig -t 'hashed, by minisign'
minisign -S -l -s key -m text.txt -x legacy.minisig -t 'as it is, by minisign'
