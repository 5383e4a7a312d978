# SPDX-License-Identifier: Apache-2.0
"""Shapes beside the fields of a signature: what a call that has passed no check of ``fastfer.ops`` is held to.

``@shapes(x="n c h w", weight="o c p+ q+", bias="o")`` gives each tensor of a NamedTuple a line. A line has one part a
dimension: a letter is the same size wherever it stands in a call, ``+`` behind it asks for at least 1, all else is a
number or arithmetic over letters (``2*d``). Alternatives stand between bars. ``*`` is one shape of any rank, ``-`` asks
for None, and a line that begins with ``!`` for a tensor where torch's schema allows None. A function of the signature
gives a line that depends on the call.

``oh ow`` are the sizes of the output of windows over ``h w``: ``p q``, a weight's, or the field ``kernel``. ``ph pw``
are those of a pooling behind it. A field ``size`` is ``h w``.

The line of a group holds for each of its tensors; where the group has lines itself it takes the place of their ``_``. A
signature may give lines to the fields of its inline groups, too, which then count instead of the group's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Index:
    """The line of a tensor whose elements are places: from ``least`` on, and less than ``below``, which is arithmetic.

    With ``plane`` only the elements ``[:, plane]`` are. Without ``below`` any number will do. On the GPU the numbers
    are not looked at, since that would wait for it.
    """

    shape: str
    dtype: torch.dtype | None
    """None: as all other floats."""
    below: str = ""
    least: int = 0
    plane: int | None = None


Line = str | Index
Shape = Line | Callable[[Any], Line]
Rule = Callable[[Any, Mapping[str, int]], str]
"""Of a signature and the sizes by letter: what was expected besides, or nothing where it holds."""


@dataclass(frozen=True)
class Lines:
    """What `shapes` was given."""

    tensors: Mapping[str, Shape]
    rules: tuple[Rule, ...] = ()


def shapes(*rules: Rule, **tensors: Shape) -> Callable[[Class], Class]:
    """Give the tensors of a NamedTuple their shapes."""

    def mark(cls: Class) -> Class:
        cls.lines_of_shapes = Lines(tensors, rules)  # type: ignore[attr-defined]
        return cls

    return mark


def lines_of(cls: Any) -> Lines:
    """What the NamedTuple was given; nothing where it was not."""
    found: Lines = getattr(cls, "lines_of_shapes", Lines({}))
    return found
