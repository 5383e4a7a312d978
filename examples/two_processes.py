# SPDX-License-Identifier: Apache-2.0
"""Train in two processes that share each batch, and see that it is the training of one.

    python examples/two_processes.py

On one machine this shows how; more machines take torchrun's --nnodes and --rdzv-endpoint. Needs the extra `train`.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

OPTIONS = [
    "--model=fgw_fer", "--epochs=1", "--train-images=28", "--validation-images=7", "--batch-size=14", "--threads=1",
    "--device=cpu",
    # Norms over both halves of a batch, which one backend has; no random changes, of which each process has its own.
    "--sync-norms=true", "--backend=reference",
    *(f"--augment.{kind}=0" for kind in ("flip", "degrees", "shift", "zoom", "contrast")),
]  # fmt: skip


def losses(out: Path) -> list[float]:
    with open(out / "metrics.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        curves = []
        for processes in (1, 2):
            out = Path(folder) / str(processes)
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [sys.executable, *launcher, "-m", "fastfer.train", *OPTIONS, f"--out={out}"]
            print("$", " ".join(["python", *command[1:]]))
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            curves.append(losses(out))
    for epoch, (one, two) in enumerate(zip(*curves, strict=True), 1):
        print(f"epoch {epoch}: loss {one:.4f} in one process, {two:.4f} in two")


if __name__ == "__main__":
    main()
