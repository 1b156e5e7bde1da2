#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs everything that needs a GPU, on a machine with a driver but no Go and no network, within 20
# minutes. Raw results go to the folder named on the command line (default: results). Every step has
# a limit of its own; one that fails does not stop the others, and the last line says what failed.
set -u
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-$here/results}"
mkdir -p "$out"
cd "$here"
export PATH="$PATH:/usr/local/cuda/bin" KVIST_REQUIRE=cuda
failed=()

step() { # NAME SECONDS COMMAND...
  local name="$1" limit="$2" start
  shift 2
  start=$(date +%s)
  if timeout "$limit" "$@" >"$out/$name.txt" 2>&1; then
    echo "ok      $name ($(($(date +%s) - start)) s)"
  else
    echo "FAILED  $name, status $? ($(($(date +%s) - start)) s): see $out/$name.txt"
    failed+=("$name")
  fi
}

{ date -u; uname -a; cat commit.txt; nvidia-smi; } >"$out/machine.txt" 2>&1
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem \
  --format=csv >"$out/gpu.csv" 2>&1
step doctor 90 ./kvist doctor
step suite 200 ./cuda.test -test.v -test.run 'OnDevice' -test.timeout 190s
step roundtrip 60 bash -c './kvist compress capture.safetensors --form hot -o cuda.kvist --backend cuda --force &&
  ./kvist compress capture.safetensors --form hot -o cpu.kvist --backend cpu --force && cmp cpu.kvist cuda.kvist'
if command -v compute-sanitizer >/dev/null; then
  step memcheck 200 compute-sanitizer --tool memcheck --error-exitcode 9 ./cuda.test -test.short \
    -test.run 'OnDevice/(encode|decode|demote|attend-mixed|attend-pieces|residuals|relevance|repeat)'
  step memcheck-int8 200 compute-sanitizer --tool memcheck --error-exitcode 9 ./cuda.test -test.short \
    -test.run 'TensorCores_OnDevice/int8/(attend-planes|attend-mixed|repeat)'
  step racecheck 150 compute-sanitizer --tool racecheck --error-exitcode 9 ./cuda.test -test.short \
    -test.run 'SelfTest_OnDevice'
else
  echo "skipped memcheck, racecheck: no compute-sanitizer"
fi
step bench 330 ./cuda.test -test.run '^$' -test.bench . -test.benchtime 10x -test.timeout 320s
if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  step torch 120 python3 torch_attention.py
else
  echo "skipped torch: python3 has no torch with CUDA"
fi
rm -f cuda.kvist cpu.kvist
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all passed"
