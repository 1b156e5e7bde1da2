#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles and vets this module against the headers of CUDA 11.8, fetched by pip and checked by hash.
# There is no driver to link with: a library of that name with nothing in it stands in.
set -euo pipefail
cd "$(dirname "$0")"
cache="${KVIST_CACHE:-$PWD/../../.cache}/cuda-headers"
mkdir -p "$cache/lib"
if [ ! -f "$cache/nvidia/cuda_runtime/include/cuda.h" ]; then
  echo "nvidia-cuda-runtime-cu11==11.8.89 --hash=sha256:92d04069a987e1fbc9213f8376d265df0f7bb42617d44f5eda1f496acea7f2d1" > "$cache/want.txt"
  python3 -m pip install -q --no-deps --only-binary=:all: --require-hashes -r "$cache/want.txt" --target "$cache"
fi
echo 'int cuInit(unsigned flags) { return 100; }' > "$cache/lib/stub.c"
gcc -shared -fPIC -o "$cache/lib/libcuda.so" "$cache/lib/stub.c"
export CGO_ENABLED=1 CGO_CFLAGS="-w -I$cache/nvidia/cuda_runtime/include"
export CGO_LDFLAGS="-L$cache/lib -Wl,--unresolved-symbols=ignore-all" CGO_LDFLAGS_ALLOW='-Wl,--unresolved-symbols=ignore-all'
go build -tags gorgoniacu .
go vet -tags gorgoniacu .
echo "gorgoniacu compiles"
