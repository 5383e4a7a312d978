# SPDX-License-Identifier: Apache-2.0
"""The ops of ``fastfer.ops`` on CuPy arrays and whatever else speaks DLPack, without torch tensors.

``arrays.activation(x, "silu")`` reads x in place, runs on CuPy's current stream and returns a new CuPy array; arguments
that are no arrays go to the op as they are. `gradients` gives an op's gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

from fastfer import jit, ops


def __getattr__(name: str) -> Callable[..., Any]:
    function = getattr(ops, name, None)
    if name not in ops.__all__ or not callable(function):
        raise AttributeError(f"fastfer.arrays: expected an op of fastfer.ops, got {name!r}")

    @functools.wraps(function)
    def on_arrays(*args: Any, **kwargs: Any) -> Any:
        with _on_cupy_stream(), torch.no_grad():
            tensors = [_tensor(arg) for arg in args], {key: _tensor(value) for key, value in kwargs.items()}
            return _arrays(function(*tensors[0], **tensors[1]))

    return on_arrays


def gradients(name: str, dout: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Gradients of ``fastfer.ops.<name>(*args, **kwargs)`` by its floating positional arrays; ``dout`` is its output's.

    Raises AttributeError for an unknown op, ValueError where ``dout`` has not the output's shape, dtype and device.
    """
    if name not in ops.__all__:
        raise AttributeError(f"gradients: name: expected an op of fastfer.ops, got {name!r}")
    with _on_cupy_stream(), torch.enable_grad():
        tensors = [_tensor(arg) for arg in args]
        leaves = [t.requires_grad_() for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
        out = getattr(ops, name)(*tensors, **{key: _tensor(value) for key, value in kwargs.items()})
        upstream = _tensor(dout)
        if not isinstance(upstream, Tensor) or (upstream.shape, upstream.dtype, upstream.device) != (
            out.shape,
            out.dtype,
            out.device,
        ):
            got = f"{upstream.dtype} {tuple(upstream.shape)}" if isinstance(upstream, Tensor) else type(dout).__name__
            raise ValueError(f"gradients: dout: expected {out.dtype} {tuple(out.shape)} on {out.device}, got {got}")
        return tuple(map(_arrays, torch.autograd.grad(out, leaves, upstream)))


def _tensor(value: Any) -> Any:
    """An array's memory as a tensor; anything else unchanged."""
    return torch.utils.dlpack.from_dlpack(value) if hasattr(value, "__dlpack__") else value


def _arrays(result: Any) -> Any:
    if isinstance(result, Tensor):
        return jit.import_cupy().from_dlpack(result)
    return tuple(map(_arrays, result)) if isinstance(result, tuple) else result


def _on_cupy_stream() -> Any:
    stream = jit.import_cupy().cuda.get_current_stream()
    return torch.cuda.stream(torch.cuda.ExternalStream(int(stream.ptr)))  # type: ignore[no-untyped-call]
