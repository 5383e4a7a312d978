# SPDX-License-Identifier: Apache-2.0
"""Types of the fields of an op's signature, and groups of fields that several signatures share.

A signature is a NamedTuple. Its annotations say everything about its fields: ``Tensor`` (in the dtype that is computed
in), `Stored` (activations, in 16 bits where the backend stores those), ``Tensor | None``, ``float``, ``int``, ``bool``,
`Pair`, `Sides`, `Size`, a group of these, or ``None`` for no such group; ``Annotated[Group, "inline"]`` is another
signature's fields under their own names. A group of bools says which gradients are asked
for, each of the input of its name, or of any of those named in ``Annotated[bool, "weight", "bias"]``.
``fastfer._signature`` reads all this.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple, TypeAlias

from torch import Tensor

from fastfer.signatures.shapes import shapes

Stored: TypeAlias = Annotated[Tensor, "stored"]
"""Activations and their gradients. Autocast keeps them in 16 bits where the backend takes them so."""

Pair: TypeAlias = Annotated[list[int], "int[2]"]
"""Vertical and horizontal: a stride or a window."""
Sides: TypeAlias = Annotated[list[int], "int[4]"]
"""Padding: top, left, bottom, right."""
Size: TypeAlias = Annotated[list[int], "SymInt[2]"]
"""Height and width of an image, which a traced graph may leave open."""


class Window(NamedTuple):
    """The windows of a pooling."""

    kernel: Pair
    stride: Pair
    padding: Sides


@shapes(weight="_", bias="_", mean="_", var="_")
class RunningNorm(NamedTuple):
    """A batch normalisation with its running statistics: tensors (C,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float


@shapes(weight="_", bias="_")
class Affine(NamedTuple):
    """What backward needs of a normalisation besides its statistics: tensors (C,)."""

    weight: Tensor
    bias: Tensor


@shapes(mean="_", var="_")
class LeftNorm(NamedTuple):
    """A normalisation in training that an op leaves to the next: it computes the statistics alone. Tensors (C,)."""

    mean: Tensor
    var: Tensor
    eps: float


@shapes(stats="3 _", weight="_", bias="_")
class Link(NamedTuple):
    """A normalisation that the op before left to this one: its input is act((x - mean)·invstd·weight + bias).

    ``stats`` (3, C): mean, 1/sqrt(var + eps), unbiased variance; weight and bias (C,).
    """

    stats: Tensor
    weight: Tensor
    bias: Tensor
    act: int


class LinkGradients(NamedTuple):
    """Gradients of a link's tensors."""

    stats: Tensor
    weight: Tensor
    bias: Tensor
