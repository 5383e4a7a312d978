# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.run``: all benchmarks under both allocator settings, then the report.

"installed": glibc as it comes, which hands every block above 32 MiB back to the kernel when it is freed, so that the
next tensor faults its pages in again. "tuned": glibc keeps them. The second pass repeats what works on large tensors.
Whole training steps have a process of their own, as training has: behind other work glibc has learnt to keep more of
what is freed, and stock PyTorch is faster (patt_lite 165 instead of 236 ms).
Any further arguments go to pytest, for instance ``-k training``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench import report

ROOT = Path(__file__).parent.parent
# A number in exponent form would be read up to the "e".
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
_LARGE = "training_step or block_training or depthwise_backward or (block_inference and batch32)"


_NETWORKS = "bench/bench_networks.py"
_PARTS = {"": ["bench", f"--ignore={_NETWORKS}"], "-networks": [_NETWORKS]}
_NOTHING_SELECTED = 5


def measure(setting: str, what: list[str], target: Path, arguments: list[str]) -> int:
    """Run pytest in a process of its own, since glibc reads its settings at start; the exit status."""
    environment = {key: value for key, value in os.environ.items() if key not in TUNED}
    command = [sys.executable, "-m", "pytest", *what, "--benchmark-only", "--benchmark-quiet", "-q"]
    command += ["--benchmark-json", str(target), "-p", "no:cacheprovider"]
    if setting == "tuned":
        environment |= TUNED
        command += ["-k", _LARGE]
    print(f"{setting} allocator", flush=True)
    status = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=False).returncode
    return 0 if status == _NOTHING_SELECTED else status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--name", default="cpu", help="name of the result files in bench/results (default: cpu)")
    parser.add_argument("--allocator", choices=("both", "installed", "tuned"), default="both")
    parser.add_argument("--page", action="store_true", help="refresh the results in docs/results.md")
    options, arguments = parser.parse_known_args()
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    settings = ("installed", "tuned") if options.allocator == "both" else (options.allocator,)
    files, failed = [], 0
    for setting in settings:
        for part, what in _PARTS.items():
            target = folder / f"{options.name}-{setting}{part}.json"
            target.unlink(missing_ok=True)
            failed |= measure(setting, what, target, arguments)
            if target.exists() and target.stat().st_size:
                files.append(target)
    if not files:
        print("no results", file=sys.stderr)
        return failed or 1
    report.write(files, options.name, ROOT / "docs" / "results.md" if options.page else None)
    return failed


if __name__ == "__main__":
    sys.exit(main())
