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


def script(*arguments: str) -> tuple[list[str], list[str]]:
    """Steps and cases that the script would run."""
    lines = run("bash", "bench/gpu.sh", *arguments, "--dry-run").splitlines()
    steps = [line for line in lines if line.startswith("== ")]
    assert sum(int(re.findall(r"at most (\d+) s", step)[0]) for step in steps if "== build" not in step) < 10 * 60
    return steps, [line for line in lines if line not in steps]


def test_dry_run_of_the_kernels() -> None:
    """Every step, and a table for every family, in both precisions."""
    steps, cases = script("kernels")
    assert [step.split()[1] for step in steps] == ["build", "tests", "memcheck", "racecheck", "ops"]
    assert all(f"tests/{path.name}" in steps[1] for path in ROOT.glob("tests/test_cuda*.py") if _skips_itself(path))
    words = {"elementwise", "block", "bottleneck", "dense", "batch_norm", "pool", "cbam", "coordinate", "gate"}
    words |= {"attention", "loss"}
    assert len(words) == len(cuda_host.families())
    for name in ("ieee", "bfloat16"):
        assert all(any(word in case and f" {name}: " in case for case in cases) for word in words)


def test_dry_run_of_the_networks() -> None:
    """Training and inference of 256 images and of one, in every precision, all eager peers first."""
    steps, cases = script("networks")
    assert [step.split()[1] for step in steps] == ["build", "networks"]
    works = (
        "training step {}-step-batch256",
        "network inference {}-forward-batch256",
        "network inference {}-one-batch1",
    )
    named = [
        f"{work.format(model)} {name}: fastfer, {peer}"
        for peer in ("torch_channels_last", "torch_compile_channels_last")
        for work in works
        for model in list_models()
        for name in ("ieee", "tf32", "bfloat16")
    ]
    assert sorted(cases) == sorted(named)
    assert not any("compile" in case for case in cases[: len(cases) // 2])


def test_a_failed_build_stops_the_script(tmp_path: Path) -> None:
    """Nothing is measured without kernels: the minutes would be lost."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "called $*"\nexit 1\n')
    python.chmod(0o755)
    command = ["bash", "bench/gpu.sh", "kernels"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "FAILED: build"
    assert "== tests" not in done.stdout


def test_memcheck_sees_every_allocation(tmp_path: Path) -> None:
    """Torch's cache would hand out parts of large blocks, between which an overrun is none."""
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text("#!/bin/sh\nexit 0\n")
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(f'#!/bin/sh\necho "$PYTORCH_NO_CUDA_MEMORY_CACHING $2" >> {seen}\n')
    for file in (python, sanitizer):
        file.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "bench/gpu.sh", "kernels"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert seen.read_text().split("\n")[:2] == ["1 memcheck", "1 racecheck"]


def test_gpu_tests_are_collected_without_extras() -> None:
    """One file that could not be imported would keep pytest from running the others."""
    missing = ("accelerate", "captum", "jsonargparse", "matplotlib", "numba", "onnx", "rich", "sklearn", "torchmetrics")
    lines = (
        "import sys, pytest, torch",
        "sys.path.insert(0, 'tests')",
        f"sys.modules.update(dict.fromkeys({missing!r}))",
        "torch.cuda.is_available = lambda: True",
        "files = [f'tests/test_cuda{name}.py' for name in ('', '_ops', '_train')]",
        "sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', '-n', '0', *files]))",
    )
    listed = run(sys.executable, "-c", "\n".join(lines))
    assert "tests/test_cuda.py::test_family" in listed
    assert "tests/test_cuda_ops.py::test_against_float64" in listed
    assert "tests/test_cuda_train.py::" not in listed


def test_a_case_on_the_host(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--batch", "2", "--rounds", "2", "--only", "cpsca_pool", "--folder", str(tmp_path))
    assert "2 of 2 cases measured, 0 failed" in run(sys.executable, "-m", "bench.gpu", "ops", *arguments)
    lines = [json.loads(line) for line in (tmp_path / "gpu-ops.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["machine", "ceilings", *["result"] * 4, "left_out"]
    rows = [line for line in lines if line["kind"] == "result"]
    assert {(row["precision"], row["contender"]) for row in rows} == {
        (name, contender) for name in ("ieee", "bfloat16") for contender in ("fastfer", "torch_channels_last")
    }
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows)
    assert lines[-1]["cases"] == []
    assert "| cpsca_pool training | ieee | 1 |" in (tmp_path / "gpu-ops.md").read_text()


def test_tensors_are_made_on_the_device() -> None:
    """Those of modules, too, which pass the device they were asked for: None."""
    from bench.gpu import OnDevice

    generator = torch.Generator().manual_seed(0)
    with OnDevice("meta"):
        assert torch.randn(2, generator=generator).device.type == "meta"
        assert torch.zeros(2, device="cpu").device.type == "cpu"
        stock = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 2))
    assert {t.device.type for t in (*stock.parameters(), *stock.buffers())} == {"meta"}
    assert torch.zeros(2).device.type == "cpu"


def test_precision_is_the_same_for_all() -> None:
    """tf32 or not for torch's products, for cuDNN and for fastfer; autocast keeps no casts between calls."""
    from bench.gpu import precision
    from fastfer.backends.cuda.loader import product_types

    x = torch.zeros(1)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    for name, allowed, types in (("ieee", "ieee", "float, float"), ("tf32", "tf32", "float, tf32")):
        with precision("cpu", name):
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == allowed
            assert product_types("test", x) == types
            assert not torch.is_autocast_enabled("cpu")
    with precision("cpu", "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()
    assert before == (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)


def test_a_problem_that_cannot_be_built_fails_alone() -> None:
    """Its contenders are rows with the reason; nothing is raised."""
    from bench.cases import Case
    from bench.gpu import HostClock, Work, measured

    def broken() -> Any:
        raise RuntimeError("out of memory")

    work = Work(Case("w", "n", "s", 2, 1, broken, ("torch_channels_last",)), "ieee", ("fastfer", "torch_channels_last"))
    rows = list(measured(work, "cpu", HostClock(), 1))
    assert [(row["contender"], row["failure"]) for row in rows] == [
        (name, "RuntimeError: out of memory") for name in work.names
    ]


def results() -> list[dict[str, Any]]:
    def row(contender: str, seconds: float, network: str = "n") -> dict[str, Any]:
        case = {"kind": "result", "work": "w", "precision": "ieee", "network": network, "shape": "s"}
        return {**case, "contender": contender, "seconds": seconds, "bytes": 50 * 10**9, "macs": 10**12}

    rows = [row("fastfer", 0.5), row("torch_channels_last", 2.0), row("fastfer", 1.0)]
    rows += [row("torch_compile_channels_last", 1.5), row("fastfer", 0.5, "m"), row("torch_channels_last", 0.25, "m")]
    rows += [row("fastfer", 0.5, "k"), {**row("torch_channels_last", 0.0, "k"), "failure": "out of memory"}]
    del rows[-1]["seconds"]
    return [{"kind": "machine", "device": "cuda", "gpu": "G", "torch": "2"}, {"kind": "ceilings", "copy": 200.0}, *rows]


def test_table() -> None:
    """The better of fastfer's two times stands beside each peer; a run that was cut says so."""
    from bench.gpu_report import summary, table

    text = table(results())
    assert "| w | ieee | 3 | 1.41 | 3.00 | 100 | 50% | 4.0 |" in text
    assert "The run was cut." in text
    done = table([*results(), {"kind": "left_out", "cases": ["x"]}])
    assert "Not measured, the time was over: 1 cases." in done
    assert summary(results()).splitlines() == [
        "won 1: w ieee n s 3.00",
        "lost 1: w ieee m s 0.50",
        "no ratio 1: w ieee k s",
    ]


def test_lines_that_were_cut(tmp_path: Path) -> None:
    from bench.gpu_report import Lines, read

    file = Lines(tmp_path / "deep" / "gpu.jsonl")
    file.write({"a": 1})
    with file.path.open("a") as cut:
        cut.write('{"b": ')
    assert read(file.path) == [{"a": 1}]
