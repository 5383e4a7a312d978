# SPDX-License-Identifier: Apache-2.0
"""Checks of a registered op's arguments where the call came through torch's dispatcher, perhaps from outside.

``fastfer.ops`` checks everything before it calls an op. A call of ``torch.ops.fastfer`` by somebody else has passed no
check: here numbers out of range, mixed dtypes and devices, and tensors without memory are refused by name, and
shapes that do not fit each other (`fastfer._shapes`): of the forward ops, not of the backward ones yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _memory, _shapes, backend

_LEAST = {"stride": 1, "kernel": 1, "padding": 0, "size": 0}
"""Smallest value of the numbers of a list, by the last part of its name."""


_KINDS = 3
"""Kinds of coordinate attention."""

_INTEGERS = {
    "labels": (torch.int64,), "target": (torch.int64,), "pairs": (torch.int64,), "channels": (torch.int32,),
    "positions": (torch.uint8, torch.int32),
}  # fmt: skip
"""Tensors that are not floats, by name."""

_LOWEST = 1 << 40
"""Addresses below are looked at twice: a tensor whose storage was freed has its offset alone for an address."""


def _in_range(op: str, name: str, least: int, values: Sequence[int]) -> None:
    for value in values:
        if not least <= value <= _checks.MOST:
            raise ValueError(f"{op}: {name}: expected ints of {least} to {_checks.MOST}, got {list(values)}")


def _code(op: str, name: str, code: int) -> None:
    count = _KINDS if name == "kind" else len(_checks.ACTIVATIONS)
    if not 0 <= code < count:
        raise ValueError(f"{op}: {name}: expected 0 <= code < {count}, got {code}")


def _tensors(op: str, given: Sequence[tuple[str, Tensor]]) -> None:
    first, x = given[0]
    half = backend.half_storage(x.device.type)
    computed: torch.dtype | None = None
    for name, t in given:
        if t.device != x.device:
            raise ValueError(f"{op}: {name}: expected device {x.device} as {first}, got {t.device}")
        if t.data_ptr() < _LOWEST:
            _memory.check(op, name, t)
        dtype = t.dtype
        if name in _INTEGERS and not (name == "target" and dtype.is_floating_point):
            if dtype not in _INTEGERS[name]:
                known = " or ".join(str(known) for known in _INTEGERS[name])
                raise TypeError(f"{op}: {name}: expected dtype {known}, got {dtype}")
        elif dtype in _checks.DTYPES:
            computed = computed or dtype
            if dtype != computed:
                raise TypeError(f"{op}: {name}: expected dtype {computed} as the others, got {dtype}")
        elif not (half and dtype in _checks.HALF_DTYPES):
            raise TypeError(f"{op}: {name}: expected dtype float32 or float64, got {dtype}")


def checker(op: str, schema: Any) -> Callable[[Sequence[Any]], None]:
    """The check of the arguments of one op; TypeError or ValueError names the argument."""
    names = [argument.name for argument in schema.arguments]
    types = [str(argument.type) for argument in schema.arguments]
    tensors = [i for i, kind in enumerate(types) if "Tensor" in kind]
    lists = [(i, _LEAST[names[i].rpartition("_")[2]]) for i, kind in enumerate(types) if kind == "List[int]"]
    codes = [i for i, kind in enumerate(types) if kind == "int"]  # of activations, and kinds of coordinate attention

    shapes = _shapes.lines(op, names)

    def check(args: Sequence[Any]) -> None:
        for i, least in lists:
            _in_range(op, names[i], least, args[i])
        for i in codes:
            _code(op, names[i], args[i])
        _tensors(op, [(names[i], args[i]) for i in tensors if args[i] is not None])
        if shapes:
            _shapes.check(op, shapes, dict(zip(names, args, strict=True)))

    return check
