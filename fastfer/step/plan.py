# SPDX-License-Identifier: Apache-2.0
"""A recorded step laid out in memory, as a list of native calls with torch's operators in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastfer import _C
from fastfer.step.arena import Span, layout
from fastfer.step.native import as_kernel
from fastfer.step.record import Call, Memory, Params, Ref


class Plan:
    """The calls of a step over one arena. `bind` puts them there, `run` does them.

    ``scratch_bytes`` is what the arena holds in the course of a step, ``arena_bytes`` its own size.
    """

    def __init__(self, calls: Sequence[Call], memories: Sequence[Memory], threads: int) -> None:
        self._calls = [_replaced(call, threads) for call in calls]
        self._memories = list(memories)
        self._offsets, self.arena_bytes = self._layout()
        self.scratch_bytes = sum(self._memories[number].size for number in self._offsets)
        self._parts: list[Callable[[], object]] = []

    def _layout(self) -> tuple[dict[int, int], int]:
        spans: dict[int, Span] = {}
        for at, call in enumerate(self._calls):
            for number in call.touched():
                memory = self._memories[number]
                if memory.outside is None:
                    first = spans[number].first if number in spans else at
                    spans[number] = Span(memory.size, first, at)
        offsets, size = layout(list(spans.values()))
        return dict(zip(spans, offsets, strict=True)), size

    def bind(self, arena: torch.UntypedStorage) -> None:
        """Compute in ``arena`` from now on."""
        self._arena = arena
        parts: list[Any] = []
        for call in self._calls:
            bound = self._bound(call)
            if isinstance(bound, tuple):
                if not parts or not isinstance(parts[-1], list):
                    parts.append([])
                parts[-1].append(bound)
            else:
                parts.append(bound)
        self._parts = [_C.Steps(part).run if isinstance(part, list) else part for part in parts]

    def run(self) -> None:
        """The step again, with what lies in the memories outside now."""
        for part in self._parts:
            part()

    def each(self) -> list[tuple[Call, Callable[[], object]]]:
        """The calls of `run` one by one, to time them."""
        bound = [(call, self._bound(call)) for call in self._calls]
        return [(call, _C.Steps([one]).run if isinstance(one, tuple) else one) for call, one in bound]

    def counts(self) -> tuple[int, int, int]:
        """Kernel calls, native calls that they make up, operators of torch."""
        kernels = sum(isinstance(call.function, str) for call in self._calls)
        operators = len(self._calls) - kernels
        return kernels, len(self._parts) - operators, operators

    def _bound(self, call: Call) -> Any:
        """(kernel, f64, params), or a function."""
        if isinstance(call.function, str):
            f64, params = call.args
            return getattr(_C, call.function), f64, self._params(params)
        args, kwargs, made = (tree_map(self._tensor, part) for part in (call.args, call.kwargs, call.made))
        return _operator(call.function, args, kwargs, made)

    def _params(self, params: Params) -> Any:
        def value(leaf: Any) -> Any:
            return self._params(leaf) if isinstance(leaf, Params) else self._tensor(leaf)

        return params.kind(**{name: value(leaf) for name, leaf in params.values.items()})

    def _tensor(self, leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        memory, made = self._memories[leaf.memory], torch.empty(0, dtype=leaf.dtype, device="cpu")
        storage, offset = memory.outside, leaf.offset
        if storage is None:
            if leaf.memory not in self._offsets:  # nothing touches it
                return torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device="cpu")
            storage, offset = self._arena, offset + self._offsets[leaf.memory] // leaf.dtype.itemsize
        return made.set_(storage, offset, leaf.shape, leaf.stride)


def _replaced(call: Call, threads: int) -> Call:
    return call if isinstance(call.function, str) else as_kernel(call, threads) or call


def _operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Callable[[], object]:
    """A call of ``func`` that leaves its results in ``made``."""
    if made is None:
        return lambda: func(*args, **kwargs)
    into = out_variant(func)
    if into is not None and isinstance(made, Tensor):
        overload, name = into
        given = kwargs | {name: made}
        return lambda: overload(*args, **given)
    places = [made] if isinstance(made, Tensor) else list(made)

    def call() -> None:
        results = func(*args, **kwargs)
        for place, result in zip(places, [results] if isinstance(results, Tensor) else results, strict=True):
            if isinstance(place, Tensor):
                place.copy_(result)

    return call


def out_variant(func: Any) -> tuple[Any, str] | None:
    """The overload of ``func`` that takes the same and writes its one result where the caller says, and that name."""

    def takes(arguments: Any) -> list[tuple[str, str]]:
        return [(argument.name, str(argument.type)) for argument in arguments]

    wanted = takes(func._schema.arguments)
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        outs = [argument for argument in overload._schema.arguments if argument.is_out]
        rest = [argument for argument in overload._schema.arguments if not argument.is_out]
        if len(outs) == 1 and takes(rest) == wanted:
            return overload, outs[0].name
    return None
