# SPDX-License-Identifier: Apache-2.0
"""What the GPU benchmark needs no GPU for: its plan, its script's steps, a case on the host, the table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_host
import pytest
import torch

from fastfer.models import list_models

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "bench" / "gpu.sh").is_file(), reason="bench is not beside the tests")


def run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _skips_itself(path: Path) -> bool:
    """Whether all of a file's tests are for a GPU."""
    return "sees no CUDA device" in path.read_text(encoding="utf-8")


def test_dry_run_lists_steps_and_cases() -> None:
    """Every step, every network in inference and training, and a table for every family, in both dtypes."""
    lines = run("bash", "bench/gpu.sh", "--dry-run").splitlines()
    steps = [line for line in lines if line.startswith("== ")]
    assert [step.split()[1] for step in steps] == ["build", "tests", "memcheck", "racecheck", "timings"]
    assert sum(int(re.findall(r"at most (\d+) s", step)[0]) for step in steps) <= 8 * 60
    assert all(f"tests/{path.name}" in steps[1] for path in ROOT.glob("tests/test_cuda*.py") if _skips_itself(path))
    cases = [line for line in lines if line not in steps]
    for model in list_models():
        for work in (f"network inference {model}-forward", f"training step {model}-step"):
            for dtype in ("float32", "bfloat16"):
                matching = [case for case in cases if case.startswith(f"{work}-batch256 {dtype}: ")]
                assert len(matching) == 2, work  # beside the eager peers, then beside the compiled one
                assert "torch_channels_last" in matching[0]
                assert "torch_compile" in matching[1]
    words = {"elementwise", "block", "bottleneck", "dense", "batch_norm", "pool", "cbam", "coordinate", "gate"}
    words |= {"attention", "loss"}
    assert len(words) == len(cuda_host.families())
    assert all(any(word in case for case in cases) for word in words)


def test_a_case_on_the_host(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--batch", "2", "--rounds", "2", "--only", "cpsca_pool", "--folder", str(tmp_path))
    assert "2 of 2 cases measured, 0 failed" in run(sys.executable, "-m", "bench.gpu", *arguments)
    result = json.loads((tmp_path / "gpu.json").read_text())
    rows = result["results"]
    assert {(row["dtype"], row["contender"]) for row in rows} == {
        (dtype, name) for dtype in ("float32", "bfloat16") for name in ("fastfer", "torch_nchw", "torch_channels_last")
    }
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows)
    assert result["left_out"] == []
    assert "| cpsca_pool training | float32 | 1 |" in (tmp_path / "gpu.md").read_text()


def test_tensors_are_made_on_the_device() -> None:
    from bench.gpu import OnDevice

    generator = torch.Generator().manual_seed(0)
    with OnDevice("meta"):
        assert torch.randn(2, generator=generator).device.type == "meta"
        assert torch.zeros(2, device="cpu").device.type == "cpu"
    assert torch.zeros(2).device.type == "cpu"


def test_table() -> None:
    from bench.gpu_report import table

    def row(contender: str, seconds: float) -> dict[str, Any]:
        case = {"work": "w", "dtype": "float32", "network": "n", "shape": "s", "bytes": 50 * 10**9}
        return {**case, "contender": contender, "seconds": seconds}

    rows = [row("fastfer", 0.5), row("torch_nchw", 2.0), row("fastfer", 1.0), row("torch_compile_channels_last", 1.5)]
    rows.append({**row("torch_channels_last", 0.0), "failure": "out of memory"})
    del rows[-1]["seconds"]
    text = table(
        {
            "machine": {"device": "cuda", "gpu": "G", "torch": "2"},
            "ceilings": {"copy": 200.0},
            "results": rows,
            "left_out": ["x"],
        }
    )
    assert "| w | float32 | 1 | 4.00 |  | 3.00 | 50% |" in text
    assert "Not measured, the time was over: 1 cases." in text
