# Files that are not what they should be: each is refused with its status, and the message names the file and the place.
. "$TOP/tests/cli/tools.inc"
build_tiny
exec python3 "$TOP/tests/cli/broken.py" "$FHTOOL"
