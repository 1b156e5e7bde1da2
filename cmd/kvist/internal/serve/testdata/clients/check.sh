#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Serves the test model with a budget of an eighth and runs the official clients of OpenAI's API against it.
#
#   KVIST_CACHE   folder for the Python environment; default ~/.cache/kvist

set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cache=${KVIST_CACHE:-${HOME:?neither KVIST_CACHE nor HOME is set}/.cache/kvist}
env=$cache/openai
if [ "$(cat "$env/packages" 2>/dev/null)" != "openai==3.51.0" ]; then
	python3 -m venv "$env"
	"$env/bin/python" -m pip install --quiet --disable-pip-version-check openai==3.51.0
	printf 'openai==3.51.0' >"$env/packages"
fi
(cd "$here" && go build -C ../../../../../.. -o "$work/kvist" ./cmd/kvist)
KVIST_KEY=of-the-tests
export KVIST_KEY
echo "$KVIST_KEY" >"$work/keys"
"$work/kvist" serve smollm2 --addr 127.0.0.1:0 --context 2048 --kv-budget 12.5% --parallel 8 --keys "$work/keys" 2>"$work/log" &
server=$!
for _ in $(seq 100); do
	KVIST_URL=$(sed -n 's/^kvist: listening on //p' "$work/log")
	[ -z "$KVIST_URL" ] || break
	kill -0 "$server" || { cat "$work/log"; exit 1; }
	sleep 0.2
done
export KVIST_URL
(cd "$here" && go test -count=1 ./...)
"$env/bin/python" "$here/openai_client.py"
kill "$server"
wait "$server"
server=
