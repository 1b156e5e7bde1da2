#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Sets up a Python environment with torch, transformers and gguf, at pinned versions, and prints the path
# of its interpreter. It takes 6 GB, most of it libraries of CUDA that torch's package asks for and
# nothing here uses. Only fixtures are made with it; no test needs it.
#
#   KVIST_CACHE   folder to keep it in; default ~/.cache/kvist

set -eu

packages="torch==2.9.1 transformers==4.57.6 gguf==0.17.1 safetensors==0.8.0 sentencepiece==0.2.3 tokenizers==0.22.2"

cache=${KVIST_CACHE:-${HOME:?neither KVIST_CACHE nor HOME is set}/.cache/kvist}
env=$cache/python
if [ "$(cat "$env/packages" 2>/dev/null)" != "$packages" ]; then
	python3 -m venv "$env" >&2
	# The list of packages has no spaces within words.
	# shellcheck disable=SC2086
	"$env/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2
	printf '%s' "$packages" >"$env/packages"
fi
echo "$env/bin/python"
