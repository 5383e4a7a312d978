# SPDX-License-Identifier: Apache-2.0
"""Conversion of calls of torch ops into the nodes of a graph.

A handler, registered with `covers` under an op's name, takes the `Conversion` and the op's arguments by name, in which
activations are `View` and constants torch tensors; it returns a View, a tuple of them, or raises `Uncovered`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer.engine import views
from fastfer.engine.graph import Array, Graph, GraphError, Shape, vector
from fastfer.engine.program import Call, Program, Ref, mapped
from fastfer.engine.views import Uncovered, View

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
_TAKE_SIZES = ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand")
"""Ops whose sizes may be multiples of the number of images."""


class Lazy:
    """A tensor that has no value in the graph, only together with the calls that follow: scores of an attention."""

    def through(self, into: Conversion, name: str, values: dict[str, Any]) -> Any:
        """What an op makes of arguments of which this is one."""
        return HANDLERS[name](into, **values)


class UncoveredError(NotImplementedError):
    """A model calls an op that a plan does not have; the message names the op and the module that calls it."""


def covers(*names: str) -> Callable[[Handler], Handler]:
    """Decorator: the handler of the ops ``names``."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
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
        if name not in HANDLERS:
            raise Uncovered("no such op in a plan")
        lazy = next((value for value in values.values() if isinstance(value, Lazy)), None)
        return HANDLERS[name](self, **values) if lazy is None else lazy.through(self, name, values)

    def call(self, call: Call) -> None:
        """Convert one call. Raises Uncovered with the reason."""
        numbers = {ref: self.scalars[ref] for ref in call.refs() & self.scalars.keys()}
        if numbers and (call.name not in _TAKE_SIZES or None in numbers.values()):
            raise Uncovered("a calculation with the number of images")
        known = {**self.known, **numbers} if numbers else self.known
        values = mapped(call.bound(), Ref, known.__getitem__)
        if _views(values):
            results = self.handled(call.name, values)
        elif call.is_random or numbers:
            raise Uncovered("a tensor of random numbers" if call.is_random else "a size that is the number of images")
        else:  # of constants alone: done now
            with torch.no_grad():
                results = call.run(self.known)
        results = results if isinstance(results, tuple) else (results,)
        for number, ref in enumerate(call.outputs):
            if ref is not None and number >= len(results):
                raise Uncovered(f"its output {number}")
            if ref is not None:
                self.known[ref] = results[number]


def _views(value: Any) -> bool:
    """Whether anything in the arguments depends on the input."""
    if isinstance(value, (list, tuple)):
        return any(map(_views, value))
    if isinstance(value, dict):
        return any(map(_views, value.values()))
    return isinstance(value, (View, Lazy))


def converted(program: Program) -> Graph:
    """The graph of a whole program. Raises UncoveredError naming the op that has no place in it."""
    conversion = Conversion(program, program.input)
    for call in program.calls:
        try:
            conversion.call(call)
        except Uncovered as reason:
            raise UncoveredError(f'compile: {call}: {reason}; fallback="torch" runs it in torch') from None
    tensors = [ref for ref in program.outputs if ref not in program.scalars]
    conversion.graph.outputs = tuple(output_value(conversion.known[ref]) for ref in tensors)
    for ref in tensors:
        if program.dtypes[ref] not in (torch.float32, conversion.dtype):
            raise UncoveredError(f"compile: output: expected dtype float32, got {program.dtypes[ref]}")
    return conversion.graph


def output_value(result: Any) -> int:
    """The value that an output shows: an image or a vector. Raises UncoveredError for another form."""
    if isinstance(result, View):
        flat = tuple(axis for axis in result.axes if axis)
        if result.axes[:1] == ("N",) and "".join(flat) == "N" + result.present("CHW"):
            return result.value
    raise UncoveredError(f"compile: output: expected a vector or an image of each image, got {described(result)}")


def described(result: Any) -> str:
    if isinstance(result, View):
        return f"a tensor of dimensions {result.axes}"
    return f"a constant of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
