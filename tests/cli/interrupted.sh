# Stopped at any moment, politely or not: nothing partial under a final name, and the same command goes on to the same bytes.
. "$TOP/tests/cli/tools.inc"
tiny tiny
exec python3 "$TOP/tests/cli/interrupted.py" "$FHTOOL" tiny
