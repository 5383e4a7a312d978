# SPDX-License-Identifier: Apache-2.0
"""A module of several inputs as one of a single vector an image, in which they stand behind one another."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn


class Packed(nn.Module):
    """Takes (N, elements) apart into tensors (N, \\*shape) and calls the module with them."""

    def __init__(self, model: nn.Module, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.model, self.shapes = model, [tuple(shape) for shape in shapes]
        self.train(model.training)

    def forward(self, x: Tensor) -> Any:
        parts, at = [], 0
        for shape in self.shapes:
            parts.append(x[:, at : at + prod(shape)].reshape(x.shape[0], *shape))
            at += prod(shape)
        return self.model(*parts)


def several(example: Any) -> list[tuple[int, ...]] | None:
    """The shapes, without N, of an example that is a tuple or list of inputs or of their shapes; None for another."""
    if not isinstance(example, (tuple, list)) or not example:
        return None
    if not all(isinstance(part, (Tensor, tuple, list)) for part in example):
        return None
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else tuple(part) for part in example]
    for shape in shapes:
        if len(shape) < 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"compile: example: expected inputs of shapes (N, ...), got {shape}")
    return [shape[1:] for shape in shapes]


def names(model: nn.Module, count: int) -> list[str]:
    """The names of a forward's first arguments."""
    known = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return known[:count] if len(known) >= count else [f"input{i}" for i in range(count)]
