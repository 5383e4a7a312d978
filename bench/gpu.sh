#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a machine with an NVIDIA GPU: builds for it, runs the GPU tests, once more under compute-sanitizer, and times every op
# and network, into bench/results/gpu.json and gpu.md. `--dry-run` prints the steps and the cases instead; any further
# arguments go to bench.gpu. Eight minutes at most. Needs nvcc, and in the environment of $PYTHON torch with CUDA and what
# pyproject.toml builds with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
DRY=
[[ ${1:-} != --dry-run ]] || { DRY=1; shift; }
export FASTFER_CUDA=on
failed=()

step() { # name, seconds at most, command ...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name (at most $limit s): $*"
  [[ -z $DRY ]] || return 0
  timeout "$limit" "$@" || failed+=("$name")
  echo "== $name took $((SECONDS - start)) s"
}

step build 120 "$PYTHON" -m pip install -q --no-build-isolation --no-deps -e .
step tests 90 "$PYTHON" -m pytest -q tests/test_cuda.py tests/test_cuda_ops.py tests/test_cuda_train.py
for tool in memcheck racecheck; do # one dtype a tool: the kernels of the others differ in arithmetic alone
  step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda.py -k 'test_family and cuda and float32'
done
step timings 180 "$PYTHON" -m bench.gpu --minutes 2.5 "$@"
if [[ -n $DRY ]]; then
  "$PYTHON" -m bench.gpu --dry-run "$@"
elif ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
