# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.gpu networks|ops``: the networks, or every op, on a GPU beside stock PyTorch.

Ops are the cases of the CPU benchmarks (bench/bench_*.py), built on the GPU with larger batches. Each contender is
captured into a CUDA graph and replayed, interleaved with the others, after a write that empties the cache. "fastfer" is
the public function on the CUDA backend; torch_compile is max-autotune. A run may be cut: every result is a line of
JSON, written when it is there (gpu-networks.jsonl, gpu-ops.jsonl), and the table (.md) is of what was reached. When the
time is over, what is left is listed and not measured. ``--dry-run`` lists all cases; ``--device cpu`` runs them without
graphs, to try the cases where there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import fastfer
from bench import contenders, gpu_report, layers, measure, networks
from bench.cases import Case, verify

ROOT = Path(__file__).parent.parent
PEERS = ("torch_channels_last", "torch_compile", "torch_compile_channels_last")
PRECISIONS = ("ieee", "tf32", "bfloat16")
"""What products round float32 to, for all contenders alike; bfloat16 is autocast."""
_OWN = "fastfer_native"
"""The name under which problems build fastfer's side; its tensors decide on the backend."""
_FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange",
        "empty",
        "full",
        "linspace",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "tensor",
        "zeros",
    )
}
_LOW_LIMIT = 0.1
"""Largest difference from float64 in the Euclidean norm that tf32 and autocast may leave."""


class OnDevice(TorchFunctionMode):
    """New tensors are made on the host, by its generators, and moved: the cases' values are those of the host."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        asked = (kwargs or {}).get("device")  # modules pass the device that they were asked for: None for any
        return result.to(self.device) if func in _FACTORIES and asked is None else result


@dataclass(frozen=True)
class Work:
    """A case in one precision, and the contenders that are timed together."""

    case: Case
    precision: str
    names: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.case.work} {self.case.id} {self.precision}"


def collect_networks(batch: int) -> list[Case]:
    """The five networks: a training step and inference of ``batch`` images, and inference of one."""
    whole = (("training step", "step", batch), ("network inference", "forward", batch), ("network inference", "one", 1))
    build = {"training step": networks.training_step, "network inference": networks.inference}
    return [
        Case(work, network, shape, size, 1, partial(build[work], network, size), networks.CONTENDERS)
        for work, shape, size in whole
        for network in layers.TRAIN_BATCH
    ]


def collect_ops(batch: int) -> list[Case]:
    """Every case of the op benchmarks at ``batch`` images."""
    layers.TRAIN_BATCH.update(dict.fromkeys(layers.TRAIN_BATCH, batch))
    layers.INFERENCE_BATCHES = (batch,)
    cases: dict[tuple[str, str], Case] = {}
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if path.stem in ("bench_dispatch", "bench_networks"):  # what a call costs the host; `collect_networks`
            continue
        module = importlib.import_module(f"bench.{path.stem}")
        for name, function in vars(module).items():
            for mark in getattr(function, "pytestmark", ()) if name.startswith("test_") else ():
                if mark.name == "parametrize" and mark.args[0] == ("case", "contender"):
                    cases.update({(p.values[0].work, p.values[0].id): p.values[0] for p in mark.args[1]})
    return list(cases.values())


def plan(part: str, batch: int) -> list[Work]:
    """Eager peers of all cases, of the ops one of each table in turn; then compiled ones, which take long to build."""
    tables: dict[str, list[Case]] = {}
    for case in collect_ops(batch) if part == "ops" else collect_networks(batch):
        tables.setdefault(case.work, []).append(case)
    turns = [case for turn in itertools.zip_longest(*tables.values()) for case in turn if case is not None]
    precisions = ("ieee", "bfloat16") if part == "ops" else PRECISIONS
    works = []
    for compiled in (False, True):
        for case, name in itertools.product(turns, precisions):
            peers = tuple(p for p in PEERS if p in case.contenders and ("compile" in p) == compiled)
            if peers:
                works.append(Work(case, name, ("fastfer", *peers)))
    return works


class HostClock:
    """Calls as they are, by the system's clock."""

    def prepared(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run

    def read(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class GpuClock:
    """Calls captured into a graph, timed on the device after a write of more than the cache holds."""

    def __init__(self) -> None:
        self._flushed = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def prepared(self, run: Callable[[], Any]) -> Callable[[], Any]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()
        return lambda: (graph.replay(), kept)

    def read(self, call: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


Clock = HostClock | GpuClock


def interleaved(clock: Clock, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, the contenders in turn, in an order that rotates."""
    readings: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            readings[name].append(clock.read(calls[name]))
    return readings


@contextmanager
def precision(device: str, name: str) -> Iterator[None]:
    """One of `PRECISIONS` for torch, cuDNN and fastfer alike.

    Autocast keeps no casts: those of one graph would be those of the next, and casts made while a graph is captured
    bind gradients to the capture's stream.
    """
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in products]
    for backend in products:
        backend.fp32_precision = "tf32" if name == "tf32" else "ieee"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False):
            yield
    finally:
        for backend, value in zip(products, before, strict=True):
            backend.fp32_precision = value


def checked(work: Work, problem: contenders.Problem, run: measure.Runner, expected: list[Tensor]) -> float:
    """Error of the results; AssertionError where it is beyond the precision's limit."""
    if work.precision == "ieee":
        return max(verify(problem, run, expected))
    found = max(measure.error(got, want)[1] for got, want in zip(run(0)[:1], expected[:1], strict=True))
    if not found <= _LOW_LIMIT:
        raise AssertionError(f"expected relative error <= {_LOW_LIMIT}, got {found:.1e}")
    return found


def measured(work: Work, device: str, clock: Clock, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for every contender: its times, or its failure; one that fails leaves the others to be timed."""
    row = {
        "kind": "result",
        "work": work.case.work,
        "network": work.case.network,
        "shape": work.case.shape,
        "batch": work.case.batch,
        "count": work.case.count,
        "precision": work.precision,
    }
    calls, errors, failed = {}, {}, {}
    try:
        with OnDevice(device):
            problem = work.case.problem()
            expected = problem.oracle()
    except Exception as failure:
        yield from ({**row, "contender": name, "failure": _text(failure)} for name in work.names)
        return
    for name in work.names:
        try:
            with OnDevice(device), problem.mode():
                run = problem.build(_OWN if name == "fastfer" else name)
            with problem.mode(), precision(device, work.precision):
                errors[name] = checked(work, problem, run, expected)
                calls[name] = clock.prepared(lambda run=run: run(0))
        except Exception as failure:
            failed[name] = _text(failure)
    del expected
    with problem.mode(), precision(device, work.precision):
        readings = interleaved(clock, calls, rounds)
    for name in work.names:
        if name in failed:
            yield {**row, "contender": name, "failure": failed[name]}
            continue
        times = sorted(readings[name])
        yield {
            **row,
            "contender": name,
            "seconds": statistics.median(times),
            "p10": times[len(times) // 10],
            "error": errors[name],
            "bytes": problem.traffic,
            "macs": problem.macs,
        }


def _text(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"[:400]


def ceilings(device: str, clock: Clock) -> dict[str, Any]:
    """Best of copies (GB/s read plus written) and of square products (TFLOP/s)."""
    count, size = (256 << 20, 8192) if device == "cuda" else (1 << 20, 256)
    source, target = torch.rand(count, device=device), torch.empty(count, device=device)
    copy = clock.prepared(lambda: target.copy_(source))
    found: dict[str, Any] = {"kind": "ceilings", "copy": 8 * count / min(clock.read(copy) for _ in range(10)) / 1e9}
    for name in PRECISIONS:
        a = torch.rand(size, size, device=device)
        with precision(device, name):
            product = clock.prepared(lambda a=a: a @ a)
        found[name] = 2 * size**3 / min(clock.read(product) for _ in range(5)) / 1e12
    return found


def machine(device: str) -> dict[str, Any]:
    """What the results were measured on, and with."""
    found: dict[str, Any] = {"kind": "machine", "torch": torch.__version__, "fastfer": fastfer.__version__}
    found["device"] = device
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "sm": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        found |= {"multiprocessors": properties.multi_processor_count, "memory_gib": properties.total_memory >> 30}
    return found | {"plan": fastfer.backend.plan(device)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("part", choices=("networks", "ops"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=4.0, help="time for measuring; what is left is listed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--dry-run", action="store_true", help="list the cases and measure nothing")
    options = parser.parse_args()
    works = [work for work in plan(options.part, options.batch) if options.only in work.id]
    if options.dry_run:
        for work in works:
            print(f"{work.id}: {', '.join(work.names)}")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device", file=sys.stderr)
        return 1
    contenders.COMPILE_OPTIONS["max_autotune"] = options.device == "cuda"
    clock: Clock = GpuClock() if options.device == "cuda" else HostClock()
    file = gpu_report.Lines(options.folder / f"gpu-{options.part}.jsonl")
    file.write(machine(options.device))
    file.write(ceilings(options.device, clock))
    deadline = time.monotonic() + 60 * options.minutes
    done = 0
    for work in works:
        if time.monotonic() > deadline:
            break
        for row in measured(work, options.device, clock, options.rounds):
            file.write(row)
        torch._dynamo.reset()
        done += 1
    file.write({"kind": "left_out", "cases": [work.id for work in works[done:]]})
    rows = gpu_report.read(file.path)
    file.path.with_suffix(".md").write_text(gpu_report.table(rows), encoding="utf-8")
    results = [row for row in rows if row["kind"] == "result"]
    failures = [row for row in results if row["contender"] == "fastfer" and "failure" in row]
    for row in failures:
        print(f"{row['work']} {row['network']} {row['shape']} {row['precision']}: {row['failure']}", file=sys.stderr)
    print(gpu_report.summary(rows))
    print(f"{done} of {len(works)} cases measured, {len(failures)} failed")
    return 1 if failures or not results else 0


if __name__ == "__main__":
    sys.exit(main())
