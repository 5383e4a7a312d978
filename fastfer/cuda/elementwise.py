# SPDX-License-Identifier: Apache-2.0
"""Activations on CUDA tensors: float32, float64, and bfloat16 and float16 with float32 arithmetic.

``x`` of any shape and strides; the result is dense, in the order of dimensions of ``x`` (as ``torch.empty_like``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fastfer.cuda import loader


class Kernels(Protocol):
    """The kernels as launches: dtype and activation codes, device addresses, number of elements, stream."""

    def activation_fwd(self, dtype: int, act: int, x: int, y: int, n: int, stream: int) -> None: ...

    def activation_bwd(self, dtype: int, act: int, dy: int, x: int, dx: int, n: int, stream: int) -> None: ...


class Elementwise:
    """The family's functions over the kernels of one loader, fetched at the first call."""

    def __init__(self, load: Callable[[], Kernels], launch: Callable[..., None] = loader.launch) -> None:
        self._load = load
        self._launch = launch
        self._kernels: Kernels | None = None

    def activation(self, x: Tensor, act: int) -> Tensor:
        """act(x); TypeError for a dtype without kernels."""
        dtype = _code(x)
        y = torch.empty_like(x)
        source = _in_order_of(y, x)  # a local: an address alone would not keep a copy alive
        self._launch(self._get().activation_fwd, y.device, dtype, act, source.data_ptr(), y.data_ptr(), y.numel())
        return y

    def activation_backward(self, dy: Tensor, x: Tensor, act: int) -> Tensor:
        """dy · act'(x), in the layout of ``x``; ``dy`` has its shape, dtype and device."""
        dtype = _code(x)
        dx = torch.empty_like(x)
        grad, source = _in_order_of(dx, dy), _in_order_of(dx, x)
        addresses = (grad.data_ptr(), source.data_ptr(), dx.data_ptr())
        self._launch(self._get().activation_bwd, dx.device, dtype, act, *addresses, dx.numel())
        return dx

    def _get(self) -> Any:
        if self._kernels is None:
            self._kernels = self._load()
        return self._kernels


def _code(x: Tensor) -> int:
    try:
        return loader.DTYPES[x.dtype]
    except KeyError:
        expected = ", ".join(str(d).removeprefix("torch.") for d in loader.DTYPES)
        raise TypeError(f"activation: x: expected dtype {expected}, got {x.dtype}") from None


def _in_order_of(dense: Tensor, t: Tensor) -> Tensor:
    """``t`` with the strides of ``dense``: itself, or a copy where it is sliced, expanded or in another order."""
    return t if t.stride() == dense.stride() else torch.empty_like(dense).copy_(t)


_nvcc = Elementwise(loader.extension)
activation = _nvcc.activation
activation_backward = _nvcc.activation_backward
