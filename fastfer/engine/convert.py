# SPDX-License-Identifier: Apache-2.0
"""Conversion of calls of torch ops into the nodes of a graph.

A handler, registered with `covers` under an op's name, takes the `Conversion` and the op's arguments by name, in which
activations are `View` and constants torch tensors; it returns a View, a tuple of them, or raises `Uncovered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.engine import tensors, views
from fastfer.engine.graph import Array, Graph, GraphError, Shape, vector
from fastfer.engine.program import Call, Program, Ref, mapped
from fastfer.engine.strided import Strided, settled
from fastfer.engine.views import Images, Uncovered, View

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
GENERAL: dict[str, Handler] = {}
"""Handlers for tensors of any dimensions, `Strided` among them: asked where `HANDLERS` has none, or refuses."""
_TAKE_SIZES = (
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand", "aten.repeat",
    "aten.affine_grid_generator",
)  # fmt: skip
"""Ops whose sizes may be multiples of the number of images."""


class Lazy:
    """A tensor that has no value in the graph, only together with the calls that follow: scores of an attention."""

    def through(self, into: Conversion, name: str, values: dict[str, Any]) -> Any:
        """What an op makes of arguments of which this is one."""
        return HANDLERS[name](into, **values)

    def settled(self, into: Conversion) -> View | Strided:
        """The tensor itself, for ops that have no part in what it was kept back for."""
        raise NotImplementedError


class UncoveredError(NotImplementedError):
    """A model calls an op that a plan does not have; the message names the op and the module that calls it."""


def covers(*names: str) -> Callable[[Handler], Handler]:
    """Decorator: the handler of the ops ``names``."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def generally(*names: str) -> Callable[[Handler], Handler]:
    """Decorator: the handler of the ops ``names`` for tensors of any dimensions."""

    def register(handler: Handler) -> Handler:
        GENERAL.update(dict.fromkeys(names, handler))
        return handler

    return register


def numbers(t: Tensor) -> Array:
    """A constant as float64."""
    return vector(t.detach().double().cpu().numpy())


class Conversion:
    """A graph under construction, and what each tensor of the program has become in it."""

    def __init__(self, program: Program, source: Ref) -> None:
        sizes = [int(size or 1) for size in program.sizes[source]]
        self.graph = Graph([Shape(*sizes[1:], *(1,) * (4 - len(sizes)))], 0)
        self.scalars = {ref: scalar.sample() for ref, scalar in program.scalars.items()}
        self.dtype = program.dtypes.get(source)
        form = views.image if len(sizes) == 4 else views.vector
        self.known: dict[Ref, Any] = {**program.constants, source: form(0, self.graph.values[0])}

    def add(self, op: str, inputs: Sequence[View], attrs: Sequence[int] = (), weights: Sequence[Array] = ()) -> int:
        """A node; the number of its output."""
        try:
            return self.graph.add(op, [view.value for view in inputs], attrs, weights)
        except GraphError as error:
            raise Uncovered(str(error)) from None

    def image(self, op: str, x: View, attrs: Sequence[int] = (), weights: Sequence[Array] = ()) -> View:
        """A node that takes and gives an image (N, C, H, W)."""
        if not views.is_image(x):
            raise Uncovered(f"expected an image (N, C, H, W), got dimensions {x.axes} of one")
        return self.view(views.image, self.add(op, [x], attrs, weights))

    def pixelwise(self, op: str, x: View, attrs: Sequence[int] = (), weights: Sequence[Array] = ()) -> View:
        """A node that treats each pixel alone: the tensor keeps its dimensions."""
        return self.seen_as(x, self.add(op, [x], attrs, weights))

    def view(self, form: Callable[[int, Shape], View], value: int) -> View:
        return form(value, self.graph.values[value])

    def seen_as(self, x: View, value: int) -> View:
        """Another value with the dimensions of ``x``."""
        return x.same_axes(self.graph.values[value], value)

    def affine(self, x: View, scale: Any, shift: Any, act: int = 0) -> View:
        """x · scale + shift, each a number or one value a channel."""
        ones = vector([1.0]).repeat(x.shape.channels)
        return self.pixelwise("affine", x, [act], [ones * scale, ones * shift])

    def handled(self, name: str, values: dict[str, Any]) -> Any:
        """What the handler of the op makes of its arguments."""
        lazy = next((value for value in _leaves(values) if isinstance(value, Lazy)), None)
        plain = not any(isinstance(value, Strided) for value in _leaves(values))
        reason = Uncovered("no such op in a plan")
        if name in HANDLERS and plain:
            try:
                return HANDLERS[name](self, **values) if lazy is None else lazy.through(self, name, values)
            except Uncovered as refused:
                reason = refused
        if lazy is not None:
            values = mapped(values, Lazy, lambda value: value.settled(self))
        try:
            if name in GENERAL:
                return GENERAL[name](self, **values)
            if name in HANDLERS and not (plain and lazy is None):
                return HANDLERS[name](self, **mapped(values, Strided, self.settled))
        except GraphError as error:
            raise Uncovered(str(error)) from None
        raise reason

    def settled(self, x: View | Strided) -> View:
        """A tensor as a View of all of a map."""
        y = settled(self.graph, x)
        if isinstance(y, Strided):
            raise Uncovered(f"a tensor of dimensions {x.axes}")
        return y

    def scaled(self, x: View | Strided, scale: float, shift: float) -> View | Strided:
        """x · scale + shift of a tensor of any form."""
        return self._each(x, "affine", [0], lambda channels: [np.full(channels, scale), np.full(channels, shift)])

    def activated(self, x: View | Strided, act: str) -> View | Strided:
        """An activation of a tensor of any form."""
        return self._each(x, "act", [ACTIVATIONS.index(act)], lambda channels: [])

    def _each(
        self, x: View | Strided, op: str, attrs: Sequence[int], weights: Callable[[int], list[Array]]
    ) -> View | Strided:
        """An operation of each element, on all of the map where that is not more than the tensor has."""
        if isinstance(x, Strided) and prod(x.shape) > prod(x.sizes):
            x = settled(self.graph, x)
        value = self.graph.add(op, [x.value], attrs, weights(x.shape.channels))
        return replace(x, value=value, shape=self.graph.values[value])

    def call(self, call: Call) -> None:
        """Convert one call. Raises Uncovered with the reason."""
        numbers: dict[Ref, Any] = {ref: self.scalars[ref] for ref in call.refs() & self.scalars.keys()}
        if numbers and (call.name not in _TAKE_SIZES or None in numbers.values()):
            raise Uncovered("a calculation with the number of images")
        known = {**self.known, **numbers} if numbers else self.known
        values = mapped(call.bound(), Ref, known.__getitem__)
        if _views(values) or (call.name == "aten.expand" and any(isinstance(n, Images) for n in numbers.values())):
            results = self.handled(call.name, values)
        elif call.is_random or numbers:
            raise Uncovered("a tensor of random numbers" if call.is_random else "a size that is the number of images")
        else:  # of constants alone: done now
            with torch.no_grad():
                results = call.run(self.known)
        results = results if isinstance(results, tuple) else (results,)
        wanted = max((n for n, ref in enumerate(call.outputs) if ref is not None), default=0)
        if wanted >= len(results) and call.name in GENERAL:
            results = GENERAL[call.name](self, **values)
        for number, ref in enumerate(call.outputs):
            if ref is not None and number >= len(results):
                raise Uncovered(f"its output {number}")
            if ref is not None:
                self.known[ref] = results[number]


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in nested arguments."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _views(value: Any) -> bool:
    """Whether anything in the arguments depends on the input."""
    return any(isinstance(leaf, (View, Strided, Lazy)) for leaf in _leaves(value))


def converted(program: Program) -> Graph:
    """The graph of a whole program. Raises UncoveredError naming the op that has no place in it."""
    conversion = Conversion(program, program.input)
    for call in program.calls:
        try:
            conversion.call(call)
        except Uncovered as reason:
            raise UncoveredError(f'compile: {call}: {reason}; fallback="torch" runs it in torch') from None
    results = [ref for ref in program.outputs if ref not in program.scalars]
    conversion.graph.outputs = tuple(output_value(conversion, conversion.known[ref]) for ref in results)
    for ref in results:
        if program.dtypes[ref] not in (torch.float32, conversion.dtype, torch.int64, torch.int32, torch.bool):
            raise UncoveredError(f"compile: output: expected dtype float32, got {program.dtypes[ref]}")
    return conversion.graph


def output_value(into: Conversion, result: Any) -> int:
    """The value that an output shows, its elements in order. Raises UncoveredError for another form."""
    if isinstance(result, Lazy):
        result = result.settled(into)
    if isinstance(result, View):
        flat = tuple(axis for axis in result.axes if axis)
        if result.axes[:1] == ("N",) and "".join(flat) == "N" + result.present("CHW"):
            return result.value
    if isinstance(result, (View, Strided)):
        try:
            return tensors.output(into.graph, result)
        except Uncovered as reason:
            raise UncoveredError(f"compile: output: {reason}") from None
    raise UncoveredError(f"compile: output: expected a tensor of each image, got {described(result)}")


def described(result: Any) -> str:
    if isinstance(result, (View, Strided)):
        return f"a tensor of dimensions {result.axes}"
    return f"a constant of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
