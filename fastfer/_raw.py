# SPDX-License-Identifier: Apache-2.0
"""Checks of a registered op's arguments where the call came through torch's dispatcher, perhaps from outside.

``fastfer.ops`` checks everything before it calls an op. A call of ``torch.ops.fastfer`` by somebody else has passed no
check: here numbers out of range, mixed dtypes and devices, tensors without memory and shapes that do not fit each
other (`fastfer._shapes`) are refused by name, of forward and of backward ops. Plain calls do not come here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _memory, backend
from fastfer._shapes import Shapes
from fastfer._signature import Signature

_LEAST = {"stride": 1, "kernel": 1, "padding": 0, "size": 0}
"""Smallest value of the numbers of a list, by the last part of its name."""

_KINDS = 3
"""Kinds of coordinate attention."""


def _in_range(op: str, name: str, least: int, values: Sequence[int]) -> None:
    for value in values:
        if not least <= value <= _checks.MOST:
            raise ValueError(f"{op}: {name}: expected ints of {least} to {_checks.MOST}, got {list(values)}")


def _code(op: str, name: str, code: int) -> None:
    count = _KINDS if name == "kind" else len(_checks.ACTIVATIONS)
    if not 0 <= code < count:
        raise ValueError(f"{op}: {name}: expected 0 <= code < {count}, got {code}")


def _tensors(op: str, given: Sequence[tuple[str, Tensor]], places: frozenset[str]) -> None:
    """Devices, memory and dtypes; those of ``places`` have dtypes of their own."""
    first, x = given[0]
    half = backend.half_storage(x.device.type)
    computed: torch.dtype | None = None
    for name, t in given:
        if t.device != x.device:
            raise ValueError(f"{op}: {name}: expected device {x.device} as {first}, got {t.device}")
        if t.data_ptr() < _memory.LOWEST:
            _memory.check(op, name, t)
        dtype = t.dtype
        if name in places:
            continue
        if dtype in _checks.DTYPES:
            computed = computed or dtype
            if dtype != computed:
                raise TypeError(f"{op}: {name}: expected dtype {computed} as the others, got {dtype}")
        elif not (half and dtype in _checks.HALF_DTYPES):
            raise TypeError(f"{op}: {name}: expected dtype float32 or float64, got {dtype}")


def checker(op: str, signature: Signature, shapes: Shapes) -> Callable[[Sequence[Any]], Any]:
    """The check of the arguments of one op, which gives them as its signature; an error names the argument.

    What forward ops kept is dense in it whatever it was: backends take its address as it comes.
    """
    leaves = [(i, leaf.name, leaf.type) for i, leaf in enumerate(signature.leaves)]
    tensors = [(i, name) for i, name, kind in leaves if kind.startswith("Tensor")]
    lists = [(i, name, _LEAST[name.rpartition("_")[2]]) for i, name, kind in leaves if "nt[" in kind]
    needed = [(i, name) for i, name, kind in leaves if kind == "Tensor"]
    codes = [(i, name) for i, name, kind in leaves if kind == "int"]  # activations, and kinds of coordinate attention

    def check(args: Sequence[Any]) -> Any:
        for i, name in needed:
            if args[i] is None:  # torch takes it for a tensor without values
                raise TypeError(f"{op}: {name}: expected a tensor, got None")
        for i, name, least in lists:
            _in_range(op, name, least, args[i])
        for i, name in codes:
            _code(op, name, args[i])
        fields = signature.unflatten(*args)
        _tensors(op, [(name, args[i]) for i, name in tensors if args[i] is not None], shapes.places(fields))
        shapes.check(args, fields)
        dense = shapes.dense(args)
        return fields if dense is None else signature.unflatten(*dense)

    return check
