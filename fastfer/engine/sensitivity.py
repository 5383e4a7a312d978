# SPDX-License-Identifier: Apache-2.0
"""What each step of an int8 plan costs in agreement with float32 when it alone is int8, and plans that keep the dearest
steps in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fastfer.engine.calibrate import is_dense
from fastfer.engine.file import ByteNotes, to_bytes
from fastfer.engine.graph import Array, Graph
from fastfer.runtime import native


@dataclass(frozen=True)
class Step:
    """Dense convolutions of one value, ``name``; with it alone in bytes the share of images of the same class as in
    float32, and the mean change of a logit over the largest one."""

    name: str
    agrees: float
    error: float
    kept: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """The table, dearest steps first; ``agrees`` is that of the plan, whose ``kept`` steps stay bfloat16."""

    steps: tuple[Step, ...]
    images: int
    asked: float
    agrees: float

    def record(self) -> dict[str, Any]:
        """The table as JSON values."""
        return asdict(self)


class _Measured:
    """Plans of one graph on some images, beside float32."""

    def __init__(self, graph: Graph, notes: ByteNotes, images: Array, threads: int, strict: bool) -> None:
        self.graph, self.notes, self.images = graph, notes, images
        self.threads, self.strict = threads, strict
        self.exact = self._logits(None)

    def _logits(self, notes: ByteNotes | None) -> Array:
        data, dtype = to_bytes(self.graph, {}, notes), "float32" if notes is None else "int8"
        plan = native().EnginePlan(data, self.threads, dtype, strict=self.strict)
        out = np.zeros((len(self.images), self.graph.values[self.graph.outputs[0]].channels), np.float32)
        plan.run(self.images.ctypes.data, "float32", len(self.images), [out.ctypes.data])
        return out

    def beside(self, notes: ByteNotes) -> tuple[float, float]:
        """Agreement, and the mean change of a logit over the largest."""
        got = self._logits(notes)
        agrees = float((got.argmax(1) == self.exact.argmax(1)).mean())
        return agrees, float(np.abs(got - self.exact).mean() / max(np.abs(self.exact).max(), 1e-30))

    def only(self, values: Iterable[int]) -> ByteNotes:
        """Notes of which these values alone are bytes."""
        chosen = set(values)
        ranges = [pair if value in chosen else (0.0, 0.0) for value, pair in enumerate(self.notes.ranges)]
        return replace(self.notes, ranges=ranges)

    def without(self, values: Iterable[int]) -> ByteNotes:
        """Notes of which these values stay bfloat16."""
        chosen = frozenset(values)
        ranges = [(0.0, 0.0) if value in chosen else pair for value, pair in enumerate(self.notes.ranges)]
        return replace(self.notes, ranges=ranges, halves=chosen)


def groups(graph: Graph) -> dict[str, list[int]]:
    """The values of each step by its name: what dense convolutions read, and what depthwise ones read of theirs."""
    deep = {node.inputs[0] for node in graph.nodes if node.op == "conv" and node.attr("groups") > 1}
    found: dict[int, list[int]] = {}
    names: dict[int, list[str]] = {}
    for node in graph.nodes:
        y = graph.values[node.output]
        value = node.inputs[0] if node.inputs else graph.input
        if not is_dense(node) or value == graph.input or y.height * y.width == 1:
            continue
        x = graph.values[value]
        names.setdefault(value, []).append(f"{node.attr('kh')}×{node.attr('kw')} {x.channels}→{y.channels}")
        found.setdefault(value, [value])
        if node.output in deep:
            found[value].append(node.output)
    shapes = graph.values
    return {
        f"{value}: {', '.join(names[value])} of {shapes[value].height}×{shapes[value].width}": values
        for value, values in found.items()
    }


def kept(
    graph: Graph, notes: ByteNotes, batches: Sequence[Array], agreement: float, threads: int, strict: bool
) -> tuple[ByteNotes, Sensitivity]:
    """Notes of a plan that chooses float32's class on a share ``agreement`` of the images, with as few steps in
    bfloat16 as that takes, the dearest first; and the table of what each costs.

    Raises ValueError where no plan with a step in bytes does, saying what could be done.
    """
    if len(graph.outputs) != 1 or graph.values[graph.outputs[0]].height * graph.values[graph.outputs[0]].width != 1:
        raise ValueError("compile: agreement: expected a network with logits (N, classes) as its output")
    measured = _Measured(graph, notes, np.concatenate(batches), threads, strict)
    members = groups(graph)
    alone = {name: measured.beside(measured.only(values)) for name, values in members.items()}
    order = sorted(alone, key=lambda name: -alone[name][1])
    best = 0.0
    for count in range(max(len(order), 1)):
        halves = [value for name in order[:count] for value in members[name]]
        found = measured.without(halves)
        agrees = measured.beside(found)[0]
        best = max(best, agrees)
        if agrees >= agreement:
            steps = tuple(Step(name, *alone[name], kept=place < count) for place, name in enumerate(order))
            return found, Sensitivity(steps, len(measured.images), agreement, agrees)
    raise ValueError(
        f"compile: agreement: expected a share that int8 reaches on these {len(measured.images)} images, got "
        f"{agreement:g}: with all steps but one in bfloat16 it is {best:.2%} at most. Take dtype bfloat16 or float32, "
        "a lower share, another rule of ranges, or fine-tune: python -m fastfer.train --quantize int8"
    )


def table(record: Any) -> str:
    """The table of a plan's ``metadata["sensitivity"]`` as text; empty for none."""
    if not isinstance(record, dict):
        return ""
    head = ("step alone in bytes", "agrees", "error", "")
    rows = [
        (row["name"], f"{row['agrees']:.2%}", f"{row['error']:.1e}", "bfloat16" if row["kept"] else "")
        for row in record["steps"]
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    count = sum(row["kept"] for row in record["steps"])
    last = (
        f"The plan agrees on {record['agrees']:.2%} of {record['images']} images, asked {record['asked']:.2%}, with "
        f"{count} of {len(rows)} steps in bfloat16."
    )
    return "\n".join(line.rstrip() for line in (*lines, last))
