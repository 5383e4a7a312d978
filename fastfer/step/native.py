# SPDX-License-Identifier: Apache-2.0
"""Operators of torch that stand between kernels, as kernels: where they give the same bits.

Others are called as they are, each of which ends one native call and begins another.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from fastfer import _C
from fastfer.step.record import Call, Params, Ref

_FLOATS = (torch.float32, torch.float64)
_FEW = 1 << 20
_aten = torch.ops.aten
_Make = Callable[[Call, int], Call | None]


def as_kernel(call: Call, threads: int) -> Call | None:
    """The kernel that computes what the operator does, or None."""
    make = _KERNELS.get(call.function)
    return None if make is None else make(call, threads)


def _is_dense(t: Ref) -> bool:
    """Whether the elements of ``t`` fill its memory without gaps, in some order."""
    steps = sorted((stride, size) for stride, size in zip(t.stride, t.shape, strict=True) if size > 1)
    expected = 1
    for stride, size in steps:
        if stride != expected:
            return False
        expected *= size
    return True


def _alike(*tensors: Any) -> bool:
    """Whether all are dense tensors of one type that lie alike, elements in the same order."""
    if not all(isinstance(t, Ref) for t in tensors):
        return False
    first = tensors[0]
    return _is_dense(first) and all(t.dtype == first.dtype and _order(t) == _order(first) for t in tensors)


def _order(t: Ref) -> tuple[Any, ...]:
    return t.shape, tuple(stride for stride, size in zip(t.stride, t.shape, strict=True) if size > 1)


def _kernel(name: str, f64: bool, kind: type, **values: Any) -> Call:
    return Call(name, (f64, Params(kind, values)))


def _sum(call: Call, threads: int) -> Call | None:
    a, b, *_ = call.args
    out = a if call.made is None else call.made
    if call.kwargs.get("alpha", 1) != 1:
        return None
    if a.dtype == torch.int64 and out is a and not a.shape and type(b) is int:
        return _kernel("step_count", False, _C.CountParams, by=b, counter=a)
    if a.dtype not in _FLOATS or not _alike(a, b, out):
        return None
    f64 = a.dtype == torch.float64
    return _kernel("step_add", f64, _C.AddParams, count=prod(a.shape), a=a, b=b, out=out, threads=threads)


def _scaled(call: Call, threads: int) -> Call | None:
    """A product with a tensor of one element."""
    a, b = call.args
    if not (isinstance(b, Ref) and b.shape == ()):
        a, b = b, a
    if not isinstance(b, Ref) or b.shape or not _alike(a, call.made) or a.dtype not in _FLOATS or b.dtype != a.dtype:
        return None
    return _kernel("step_scale", a.dtype == torch.float64, _C.ScaleParams, count=prod(a.shape), a=a, b=b, out=call.made)


def _copied(source: Any, to: Any, threads: int) -> Call | None:
    if not _alike(source, to):
        return _rearranged(source, to)
    size = prod(to.shape) * to.dtype.itemsize
    return _kernel("step_copy", False, _C.CopyParams, bytes=size, source=source, target=to, threads=threads)


def _rearranged(source: Any, to: Any) -> Call | None:
    """A copy to another layout, of so few elements that one thread does it."""
    size = source.dtype.itemsize
    if source.dtype != to.dtype or source.shape != to.shape or size not in (4, 8) or not 1 < len(to.shape) <= 4:
        return None
    if prod(to.shape) > _FEW:
        return None
    missing = 4 - len(to.shape)
    sizes: dict[str, Any] = {}
    for letter, values in (("n", to.shape), ("source", source.stride), ("target", to.stride)):
        padded = (1,) * missing + tuple(values)
        sizes |= {f"{letter}{i}": value for i, value in enumerate(padded)}
    return _kernel("step_strided_copy", size == 8, _C.StridedCopyParams, **sizes, source=source, target=to)


def _filled(out: Any, value: float) -> Call | None:
    if not isinstance(out, Ref) or out.dtype not in _FLOATS or not _is_dense(out):
        return None
    f64 = out.dtype == torch.float64
    return _kernel("step_fill", f64, _C.FillParams, count=prod(out.shape), value=float(value), out=out)


_KERNELS: dict[Any, _Make] = {
    _aten.add.Tensor: _sum,
    _aten.add_.Tensor: _sum,
    _aten.clone.default: lambda call, threads: _copied(call.args[0], call.made, threads),
    _aten.copy_.default: lambda call, threads: _copied(call.args[1], call.args[0], threads),
    _aten.mul.Tensor: _scaled,
    _aten.ones_like.default: lambda call, threads: _filled(call.made, 1),
    _aten.zeros_like.default: lambda call, threads: _filled(call.made, 0),
    _aten.zeros.default: lambda call, threads: _filled(call.made, 0),
    _aten.new_zeros.default: lambda call, threads: _filled(call.made, 0),
    _aten.zero_.default: lambda call, threads: _filled(call.args[0], 0),
}
