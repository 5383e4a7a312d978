# SPDX-License-Identifier: Apache-2.0
"""Tensors joined along pixels, as coordinate attention joins its rows and columns: kept apart, each part by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastfer._types import ACTIVATIONS
from fastfer.engine import tensors
from fastfer.engine.convert import HANDLERS, Conversion, Lazy, covers
from fastfer.engine.strided import Strided
from fastfer.engine.views import Uncovered, View

_SPLITS = ("aten.split_with_sizes", "aten.split")
_POINTWISE = {"aten.batch_norm", "aten.add", "aten.dropout", *(f"aten.{act}" for act in ACTIVATIONS[1:])}


@dataclass(frozen=True)
class Joined(Lazy):
    """The parts of a concatenation along dimension ``dim``, which holds pixels."""

    parts: tuple[View, ...]
    dim: int

    def sizes(self) -> list[int]:
        return [part.sizes[self.dim] for part in self.parts]

    def through(self, into: Conversion, name: str, values: dict[str, Any]) -> Any:
        """Part by part for an op that treats each pixel alone; a second tensor must be joined the same way."""
        if name in _SPLITS:
            return HANDLERS[name](into, **values)
        weight = values.get("weight")
        pointwise = name in _POINTWISE or (name == "aten.conv2d" and tuple(weight.shape[2:]) == (1, 1))  # type: ignore[union-attr]
        others = [value for value in values.values() if isinstance(value, (View, Lazy))]
        if not pointwise or any(not isinstance(o, Joined) or o.sizes() != self.sizes() for o in others):
            raise Uncovered("a tensor joined along pixels in an op that does not treat each pixel alone")
        parts = []
        for index in range(len(self.parts)):
            own = {key: v.parts[index] if isinstance(v, Joined) else v for key, v in values.items()}
            parts.append(HANDLERS[name](into, **own))
        return Joined(tuple(parts), self.dim)

    def settled(self, into: Conversion) -> View | Strided:
        return tensors.joined(into.graph, self.parts, self.dim)


@covers(*_SPLITS)
def _split(into: Conversion, self: Any, dim: int = 0, **rest: Any) -> tuple[View, ...]:
    (sizes,) = rest.values()
    if isinstance(self, Joined) and dim == self.dim and _parts(sizes, sum(self.sizes())) == self.sizes():
        return self.parts
    raise Uncovered("a split that does not undo a concatenation")


def _parts(sizes: int | Sequence[int], total: int) -> list[int]:
    if not isinstance(sizes, int):
        return list(sizes)
    return [min(sizes, total - start) for start in range(0, total, sizes)]
