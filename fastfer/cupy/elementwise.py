# SPDX-License-Identifier: Apache-2.0
"""The functions of ``fastfer.cuda.elementwise`` over kernels compiled by CuPy, and the launches themselves."""

from __future__ import annotations

from fastfer import jit
from fastfer._checks import ACTIVATIONS
from fastfer.cuda.elementwise import Elementwise

HEADER = "elementwise/cuda.cuh"
THREADS = 256
_STORAGE = (("float", 4), ("double", 8), ("ff::cuda::bf16", 2), ("ff::cuda::f16", 2))
"""Type and bytes of each dtype code."""


def expression(kernel: str, dtype: int, act: int, vec: int) -> str:
    """The template instance of ``kernel`` as C++ writes it."""
    return f"ff::cuda::{kernel}<{_STORAGE[dtype][0]}, ff::cuda::Act::{ACTIVATIONS[act]}, {vec}, {THREADS}>"


class Kernels:
    """The launches of ``fastfer._C.cuda``, through CuPy."""

    def activation_fwd(self, dtype: int, act: int, x: int, y: int, n: int, stream: int) -> None:
        _launch("activation_fwd", dtype, act, (x, y), n, stream)

    def activation_bwd(self, dtype: int, act: int, dy: int, x: int, dx: int, n: int, stream: int) -> None:
        _launch("activation_bwd", dtype, act, (dy, x, dx), n, stream)


def _launch(kernel: str, dtype: int, act: int, addresses: tuple[int, ...], n: int, stream: int) -> None:
    if n == 0:
        return
    aligned = not any(address % 16 for address in addresses)
    vec = 16 // _STORAGE[dtype][1] if aligned else 1
    jit.launch(HEADER, expression(kernel, dtype, act, vec), -(-n // vec), THREADS, (*addresses, n), stream)


_cupy = Elementwise(Kernels)
activation = _cupy.activation
activation_backward = _cupy.activation_backward
