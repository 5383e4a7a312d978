# SPDX-License-Identifier: Apache-2.0
"""The ops on CuPy arrays and whatever else speaks DLPack, without torch tensors; they run on CuPy's current stream.

Arguments are read in place, results are new CuPy arrays, gradients are functions of their own.
"""

from __future__ import annotations

from typing import Any

from fastfer import jit
from fastfer._checks import act_code
from fastfer.cupy.elementwise import Kernels

_DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}


def activation(x: Any, act: str | None) -> Any:
    """``act`` applied element by element to a device array of any shape and strides; see ``fastfer.ops.activation``."""
    code = act_code("activation", act)
    source = _array("activation", "x", x)
    dtype = _dtype("activation", source)
    y = jit.import_cupy().empty_like(source)
    source = _in_order_of(y, source)
    with y.device:
        Kernels().activation_fwd(dtype, code, source.data.ptr, y.data.ptr, y.size, _stream())
    return y


def activation_backward(dy: Any, x: Any, act: str | None) -> Any:
    """dy · act'(x); ``dy`` has the shape, dtype and device of ``x``."""
    op = "activation_backward"
    code = act_code(op, act)
    grad, source = _array(op, "dy", dy), _array(op, "x", x)
    dtype = _dtype(op, source)
    if (grad.shape, grad.dtype, grad.device) != (source.shape, source.dtype, source.device):
        expected = f"{source.dtype} {source.shape} on {source.device} as x"
        raise ValueError(f"{op}: dy: expected {expected}, got {grad.dtype} {grad.shape} on {grad.device}")
    dx = jit.import_cupy().empty_like(source)
    grad, source = _in_order_of(dx, grad), _in_order_of(dx, source)
    with dx.device:
        Kernels().activation_bwd(dtype, code, grad.data.ptr, source.data.ptr, dx.data.ptr, dx.size, _stream())
    return dx


def _array(op: str, name: str, x: Any) -> Any:
    """``x`` as a CuPy array on the same memory."""
    cupy = jit.import_cupy()
    if isinstance(x, cupy.ndarray):
        return x
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{op}: {name}: expected a CuPy or DLPack array, got {type(x).__name__}")
    return cupy.from_dlpack(x)


def _dtype(op: str, x: Any) -> int:
    try:
        return _DTYPES[x.dtype.name]
    except KeyError:
        raise TypeError(f"{op}: x: expected dtype {', '.join(_DTYPES)}, got {x.dtype}") from None


def _in_order_of(dense: Any, x: Any) -> Any:
    """``x`` with the strides of ``dense``: itself, or a copy."""
    if x.strides == dense.strides:
        return x
    copy = jit.import_cupy().empty_like(dense)
    copy[...] = x
    return copy


def _stream() -> int:
    return int(jit.import_cupy().cuda.get_current_stream().ptr)
