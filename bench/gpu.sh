#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a machine with an NVIDIA GPU, in two parts of under ten minutes each: `gpu.sh kernels` runs the GPU tests, every kernel
# at the shapes of a batch of 256, once more under compute-sanitizer, and times every op; `gpu.sh networks` times the five
# networks. Results go line by line into $OUT (bench/results), so that a run that is cut leaves what it reached.
# `--dry-run` as the second argument prints the steps and the cases instead; any further arguments go to bench.gpu.
#
# Nothing is downloaded. In the environment of $PYTHON: torch with CUDA, and pytest. Where fastfer's extension is not
# there yet, it is built here with nvcc and what pyproject.toml builds with; `gpu.sh build` does it beforehand,
# for the architectures of $FASTFER_CUDA_ARCHS and the Python of $PYTHON. Else CuPy compiles the kernels at first use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
PART=${1:-}
[[ $PART =~ ^(build|kernels|networks)$ ]] || { echo "usage: gpu.sh build|kernels|networks [--dry-run] [...]" >&2; exit 2; }
shift
DRY=
[[ ${1:-} != --dry-run ]] || { DRY=1; shift; }
failed=()

step() { # name, seconds at most, command ...; whether it passed
  local name=$1 limit=$2 start=$SECONDS passed=0
  shift 2
  echo "== $name (at most $limit s): $*"
  [[ -z $DRY ]] || return 0
  timeout "$limit" "$@" || passed=$?
  echo "== $name took $((SECONDS - start)) s"
  ((passed == 0)) || failed+=("$name")
  return "$passed"
}

built() { "$PYTHON" -c 'import sys; from fastfer.backends.cuda import loader; sys.exit(not any(loader.availability(n)[0] for n in ("cuda", "cupy")))'; }

build() { FASTFER_CUDA=on step build 120 "$PYTHON" -m pip install -q --no-index --no-build-isolation --no-deps -e .; }

if [[ $PART == build ]]; then
  build
  exit
fi
# Without kernels there is nothing to measure, only minutes to pay for.
if [[ -n $DRY ]] || ! built; then
  build || { echo "FAILED: build"; exit 1; }
fi
if [[ $PART == kernels ]]; then
  step tests 120 "$PYTHON" -m pytest -q tests/test_cuda.py tests/test_cuda_ops.py tests/test_cuda_train.py || true
  for tool in memcheck racecheck; do # one dtype a tool: the kernels of the others differ in arithmetic alone
    # Torch's cache hands out parts of large blocks: an access just outside one is inside another, and is not seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda.py -k 'test_family and cuda and float32' || true
  done
  step ops 200 "$PYTHON" -m bench.gpu ops --minutes 3 --folder "$OUT" "$@" || true
else
  step networks 560 "$PYTHON" -m bench.gpu networks --minutes 9 --folder "$OUT" "$@" || true
fi
if [[ -n $DRY ]]; then
  "$PYTHON" -m bench.gpu "${PART/kernels/ops}" --dry-run "$@"
elif ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
