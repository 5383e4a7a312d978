# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.launches``: launches and bytes of the networks on CUDA, counted without a GPU (launches.csv).

Networks and images are on the device "meta": every op runs the CUDA backend's own functions on tensors without memory,
over a `CountLaunch` that counts in place of launching. Torch's own operations on the way count one launch each, as
they are on a GPU, unless they only make a view. Bytes are those of the tensors that a launch is given, read or written
once: what a kernel that reads each once has to move.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastfer import _library, ops
from fastfer.backends.cuda.loader import Bound, Launch
from fastfer.models import create_model, list_models

TABLE = Path(__file__).parent / "results" / "launches.csv"
BATCH = 256
WORKS = ("training step", "inference")
_MULTIPROCESSORS = 132
_FREE = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
"""Operations of torch's that launch nothing, beside those that make views."""

_TOGETHER = {1: 110, 2: 64, 3: 48, 4: 36}
"""Tensors that a launch of torch's ``_foreach`` operations takes, by the number of lists."""


@dataclass
class Count:
    """Launches by kernel, those with their template arguments left out, and bytes."""

    launches: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[str, tuple[int, int, int], int, tuple[Any, ...]]] = field(default_factory=list)

    def add(self, name: str, tensors: Iterable[Any], launches: int = 1) -> None:
        self.launches[name] += launches
        seen = {id(t): t for t in tensors if isinstance(t, Tensor)}
        self.bytes[name] += sum(t.numel() * t.element_size() for t in seen.values())

    def total(self) -> tuple[int, int]:
        return self.launches.total(), self.bytes.total()


class CountLaunch(Launch):
    """Counts launches in place of making them; sees each kernel's name, grid, threads and arguments."""

    def __init__(self, count: Count) -> None:
        self.count = count

    def __call__(self, kernel: str, like: Tensor, grid: tuple[int, int, int], threads: int, *args: Any) -> None:
        if 0 in grid:
            return
        self.count.add(kernel.partition("<")[0], args)
        # No tensors: a gradient that is held here would be copied where it is otherwise taken over.
        self.count.calls.append((kernel, grid, threads, tuple(0 if isinstance(a, Tensor) else a for a in args)))

    def run(
        self, kernel: str, device: torch.device, grid: tuple[int, int, int], threads: int, words: tuple[Any, ...]
    ) -> None:
        raise NotImplementedError

    def tickets(self, like: Tensor, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int32, device=like.device)

    def multiprocessors(self, device: torch.device) -> int:
        return _MULTIPROCESSORS


class Counting(TorchDispatchMode):
    """Inside, fastfer's ops run the CUDA backend's functions, and they and torch's operations are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()
        self._launch = CountLaunch(self.count)
        self._families: dict[str, Bound] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")
        if name[0] == "fastfer":
            return self._op(name[2], args)
        result = func(*args, **(kwargs or {}))
        if not func.is_view and name[2] not in _FREE:
            lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
            launches = -(-len(lists[0]) // _TOGETHER[len(lists)]) if name[2].startswith("_foreach") else 1
            self.count.add(f"torch {name[2]}", torch.utils._pytree.tree_leaves((args, kwargs, result)), launches)
        return result

    def _op(self, name: str, args: Any) -> Any:
        op = _library.op_of(name)
        functions = self._families.get(op.family)
        if functions is None:
            module = importlib.import_module(f"fastfer.backends.cuda.{op.family}")
            functions = self._families[op.family] = Bound(module, self._launch)
        with self:
            result = getattr(functions, name)(op.signature.unflatten(*args))
        return result if op.results.single else tuple(result)


def count(network: str, work: str, batch: int = BATCH) -> Count:
    """Of forward, cross-entropy and backward, or of a forward pass in evaluation without gradients."""
    with torch.device("meta"):
        model = create_model(network)
        x = torch.empty(batch, model.in_chans, *model.input_size).to(memory_format=torch.channels_last)
        labels = torch.empty(batch, dtype=torch.long)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if work == "inference":
        with torch.no_grad(), Counting() as counting:
            model.eval()(x)
        return counting.count
    model.train()
    with Counting() as counting:
        ops.cross_entropy(model(x), labels).backward()
    return counting.count


def rows() -> list[dict[str, Any]]:
    """A row for every network and work. ``least_ms`` is a model: the bytes at an H200's 4.8 TB/s, 1 us a launch."""
    made = []
    for network in list_models():
        for work in WORKS:
            launches, size = count(network, work).total()
            least = size / 4.8e9 + launches / 1e3
            cells = {"launches": launches, "megabytes": round(size / 1e6), "least_ms": f"{least:.2f}"}
            made.append({"network": network, "work": work, **cells})
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.launches", description=__doc__)
    parser.add_argument("--kernels", metavar="NETWORK", help="print the launches of a network by kernel, write nothing")
    options = parser.parse_args()
    if options.kernels:
        for work in WORKS:
            counted = count(options.kernels, work)
            print(f"{work}: {counted.launches.total()}")
            for name, launches in counted.launches.most_common():
                print(f"{launches:6} {counted.bytes[name] / 1e6:8.0f} MB {name}")
        return 0
    made = rows()
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
