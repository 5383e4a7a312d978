# SPDX-License-Identifier: Apache-2.0
"""A network as a list of calls of torch ops, for any number of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastfer.engine.outputs import Structure
from fastfer.engine.views import BATCH, Images


@dataclass(frozen=True)
class Ref:
    """A tensor or a number of the program, by number."""

    number: int


@dataclass(frozen=True)
class Scalar:
    """A number that depends on the number of images: sympy's expression of one symbol, as torch writes it."""

    expression: Any

    def __call__(self, images: int) -> Any:
        """Its value for so many images: an int, a float or a bool."""
        value = self.expression.subs(dict.fromkeys(self.expression.free_symbols, images))
        if value.is_Boolean:
            return bool(value)
        return int(value) if value.is_integer else float(value)

    def sample(self) -> Any:
        """`Images` where it is a multiple of the number of images, else None."""
        symbols = list(self.expression.free_symbols)
        each = self.expression / symbols[0] if len(symbols) == 1 and not self.expression.is_Boolean else None
        return Images(int(each)) if each is not None and each.is_Integer else None


@dataclass(frozen=True)
class Call:
    """``outputs`` = ``target`` of ``args`` and ``kwargs``, in which tensors are `Ref`; ``where`` is the module's path.

    Outputs that nothing reads may be None.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Ref | None, ...]
    where: str = ""

    @property
    def name(self) -> str:
        """Namespace and name, without the overload and the mark of one in place: "aten.conv2d"."""
        return str(self.target._schema.name).replace("::", ".").rstrip("_")

    def bound(self) -> dict[str, Any]:
        """The arguments by the names of the op's schema, defaults filled in."""
        values: dict[str, Any] = {}
        for index, argument in enumerate(self.target._schema.arguments):
            if index < len(self.args):
                values[argument.name] = self.args[index]
            else:
                values[argument.name] = self.kwargs.get(argument.name, argument.default_value)
        return values

    def refs(self) -> set[Ref]:
        """What it takes."""
        found: set[Ref] = set()
        mapped((self.args, self.kwargs), Ref, found.add)
        return found

    @property
    def is_random(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.target.tags

    def run(self, values: dict[Ref, Any]) -> tuple[Any, ...]:
        """Its results in torch, for the values of what it takes."""
        args, kwargs = (mapped(part, Ref, values.__getitem__) for part in (self.args, self.kwargs))
        # A plan's results may have other strides than in the trace, in which a reshape was found to be a view.
        target = torch.ops.aten.reshape.default if self.target is torch.ops.aten.view.default else self.target
        result = target(*args, **kwargs)
        return tuple(result) if isinstance(result, (list, tuple)) else (result,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with the op's name: torch's op itself cannot be pickled."""
        return _call, (
            self.target._schema.name,
            self.target._overloadname,
            self.args,
            self.kwargs,
            self.outputs,
            self.where,
        )

    def __str__(self) -> str:
        return f"{self.name}" + (f" in {self.where}" if self.where else "")


def _call(name: str, overload: str, *rest: Any) -> Call:
    namespace, _, op = name.partition("::")
    return Call(getattr(getattr(getattr(torch.ops, namespace), op), overload), *rest)


@dataclass
class Program:
    """Calls in order, from the ``input`` to the ``outputs``, tensors and numbers that ``structure`` puts together.

    ``sizes`` are the shapes of all tensors for `BATCH` images, in which a size that is a multiple of the number of
    images is `Images`, one that depends on it in another way None. ``scalars`` are numbers that depend on it.
    ``classes`` are the named tuples of the structure, by name. ``each`` is the number of images that a file fixes, 0:
    any; plans do without it, as they mix no images.
    """

    input: Ref
    outputs: tuple[Ref, ...] = ()
    calls: list[Call] = field(default_factory=list)
    constants: dict[Ref, Tensor] = field(default_factory=dict)
    sizes: dict[Ref, tuple[int | None, ...]] = field(default_factory=dict)
    dtypes: dict[Ref, torch.dtype] = field(default_factory=dict)
    scalars: dict[Ref, Scalar] = field(default_factory=dict)
    structure: Structure | None = None
    classes: dict[str, type] = field(default_factory=dict)
    each: int = 0

    def describe(self, ref: Ref, sizes: Sequence[Any], dtype: torch.dtype) -> None:
        """Note a tensor's shape, in which some sizes are `Scalar`, and dtype."""
        self.sizes[ref] = tuple(size.sample() if isinstance(size, Scalar) else int(size) for size in sizes)
        self.dtypes[ref] = dtype

    def image_size(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(int(size or 0) for size in self.sizes[self.input][1:])

    def only_needed(self) -> Program:
        """Without the calls, and results of calls, that no output needs."""
        needed, calls = set(self.outputs), []
        for call in reversed(self.calls):
            if not needed.isdisjoint(call.outputs):
                needed |= call.refs()
                calls.append(replace(call, outputs=tuple(ref if ref in needed else None for ref in call.outputs)))
        self.calls = calls[::-1]
        return self


def of_batch(sizes: Sequence[int | None]) -> bool:
    """Whether the first of a tensor's sizes is the number of images, and no other depends on it."""
    first = isinstance(sizes[0], Images) and sizes[0] == BATCH if sizes else False
    return first and not any(size is None or isinstance(size, Images) for size in sizes[1:])


def mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Arguments, nested ones too, with those of ``kind`` replaced."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(v, kind, function) for v in value)
    if isinstance(value, dict):
        return {key: mapped(v, kind, function) for key, v in value.items()}
    return value
