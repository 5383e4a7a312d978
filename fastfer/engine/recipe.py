# SPDX-License-Identifier: Apache-2.0
"""How an engine of a network is made at any size, and engines at the sizes that were asked for, a bounded number."""

from __future__ import annotations

import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastfer.engine import sensitivity
from fastfer.engine.calibrate import batches_of, observed, with_trained
from fastfer.engine.convert import UncoveredError, converted
from fastfer.engine.file import ByteNotes, to_bytes
from fastfer.engine.fuse import fused
from fastfer.engine.graph import Graph
from fastfer.engine.outputs import placed, usual
from fastfer.engine.paddings import paddings
from fastfer.engine.program import Program
from fastfer.engine.quantised import as_bytes, ranges_of
from fastfer.engine.rules import USUAL
from fastfer.engine.subject import Size, Subject
from fastfer.runtime import Engine, default_threads

MOST_SIZES = 8
"""Plans of other sizes that an engine keeps; the one that was asked for longest ago goes."""
_planning = threading.RLock()


def _after_fork() -> None:
    """The child has none of the parent's threads, so nobody would ever release a lock that one of them holds."""
    global _planning
    _planning = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass
class Recipe:
    """Arguments of `compile`, checked; ``notes`` are those of an int8 plan, whose graph has ``ops``, where they were
    measured, by ``rule`` and for a least ``agreement``, if any. ``by_file``: int8 because the file is quantised, which
    brings its ranges along at any size."""

    subject: Subject
    header: dict[str, Any]
    threads: int | None
    dtype: str
    fallback: str
    rule: str = USUAL
    agreement: float | None = None
    notes: ByteNotes | None = None
    ops: tuple[str, ...] = ()
    by_file: bool = False
    table: sensitivity.Sensitivity | None = None
    trained: list[list[float]] | None = None

    def engine(self, size: Size, calibration: Iterable[Any] | None = None) -> Engine:
        """The engine for images of ``size``. Raises as `compile`."""
        header = dict(self.header)
        try:
            program = paddings(self.subject.traced(size))
            graph = converted(program)
            keeps = self.dtype == "int8" and calibration is None and self.notes is None and self.trained is None
            graph = fused(as_bytes(graph) if keeps else graph)
            described = dict(header)
            _describe_outputs(described, program)
        except UncoveredError:
            if self.fallback == "error":
                raise
            if self.dtype == "int8" and not self.by_file:
                raise ValueError(
                    f"compile: dtype: expected float32 or bfloat16 with {self.fallback} islands, got int8"
                ) from None
            return self._fallen_back(header, size)
        if not graph.outputs:
            raise ValueError("compile: model: expected a tensor among its outputs, got none")
        if calibration is not None:
            self.notes = self._measured(graph, calibration)
            self.ops = _ops(graph)
        elif self.trained is not None:
            self.notes = with_trained(graph, self.trained)
        elif self.notes is not None and self.ops != _ops(graph):
            raise ValueError(f"compile: dtype: expected a network whose int8 ranges hold at any size, got it at {size}")
        if self.table is not None:
            described["sensitivity"] = self.table.record()
        data = to_bytes(graph, described, ByteNotes(ranges_of(graph)) if keeps else self.notes)
        return Engine(data, threads=self.threads, classes=program.classes)

    def _measured(self, graph: Graph, calibration: Iterable[Any]) -> ByteNotes:
        threads = default_threads(self.threads)
        if self.agreement is None:
            return observed(graph, calibration, threads).notes(graph, self.rule)
        batches = list(batches_of(calibration, graph.values[graph.input]))
        notes = observed(graph, batches, threads).notes(graph, self.rule)
        strict = self.header["strict"]
        notes, self.table = sensitivity.kept(graph, notes, batches, self.agreement, threads, strict)
        return notes

    def _fallen_back(self, header: dict[str, Any], size: Size) -> Engine:
        """An engine of which torch, or ONNX Runtime, runs what no plan has; then a quantised file is float, too."""
        dtype = header["dtype"] = "float32" if self.dtype == "int8" else self.dtype
        if self.fallback == "onnxruntime":
            assert self.subject.in_onnxruntime is not None
            engine: Engine = self.subject.in_onnxruntime(header, size, self.threads)
            return engine
        from fastfer.engine.islands import Islands

        program = self.subject.traced(size)
        if self.subject.in_torch is not None:
            program = self.subject.in_torch(program, size)
        return Islands(program, header, self.threads, dtype)


def _ops(graph: Graph) -> tuple[str, ...]:
    return tuple(node.op for node in graph.nodes)


class Sizes:
    """Engines of one network at other sizes than its own; pickled and copied as the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.engines: OrderedDict[Size, Engine] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "engines": OrderedDict()}

    def is_picklable(self) -> bool:
        """Whether the network is; modules of functions written in place are not."""
        try:
            pickle.dumps(self.recipe)
        except Exception:  # of any kind, by what a module holds
            return False
        return True

    def at(self, size: Size) -> Engine:
        """The engine for images of ``size``, planned at the first call. Raises ValueError where there is none."""
        with _planning:
            if size in self.engines:
                self.engines.move_to_end(size)
                return self.engines[size]
            try:
                engine = self.recipe.engine(size)
            except (ValueError, NotImplementedError) as reason:
                own = self.recipe.subject.size
                raise ValueError(
                    f"engine: x: expected shape (N, {', '.join(map(str, own))}), or another size that the network "
                    f"takes, got images of {size}: {reason}"
                ) from None
            self.engines[size] = engine
            if len(self.engines) > MOST_SIZES:
                self.engines.popitem(last=False)
            return engine


def _describe_outputs(header: dict[str, Any], program: Program) -> None:
    """Into the metadata: the shapes of the outputs, and what holds them where that is not one tensor or a tuple."""
    tensors = [ref for ref in program.outputs if ref not in program.scalars]
    header["outputs"] = [list(program.sizes[ref][1:]) for ref in tensors]
    dtypes = [str(program.dtypes[ref]).removeprefix("torch.") for ref in tensors]
    whole = [dtype if dtype in ("int64", "int32", "bool") else "float32" for dtype in dtypes]
    if whole != ["float32"] * len(whole):
        header["dtypes"] = whole
    leaves: list[list[Any]] = []
    for ref in program.outputs:
        if ref in program.scalars:
            size = program.scalars[ref].sample()
            if size is None:
                raise UncoveredError(
                    "compile: output: expected numbers that are multiples of the number of images, got another; "
                    'fallback="torch" computes it'
                )
            leaves.append(["images", size.each])
        else:
            leaves.append(["tensor", tensors.index(ref)])
    structure = placed(program.structure or usual(len(leaves)), leaves)
    if structure != usual(len(tensors)):
        header["structure"] = structure
