# SPDX-License-Identifier: Apache-2.0
"""Activations on CUDA tensors: float32, float64, and bfloat16 and float16 with float32 arithmetic.

``x`` of any shape and strides; the result is dense, in the order of dimensions of ``x`` (as ``torch.empty_like``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.backends.cuda.loader import Launch, lanes, type_name
from fastfer.signatures.elementwise import Activation, ActivationBackward

THREADS = 256


def activation(launch: Launch, a: Activation) -> Tensor:
    """act(x); TypeError for a dtype without kernels."""
    dtype, y = type_name("activation", a.x), torch.empty_like(a.x)
    run(launch, "activation_fwd", dtype, a.act, _in_order_of(y, a.x), y)
    return y


def activation_backward(launch: Launch, a: ActivationBackward) -> Tensor:
    """d_out · act'(x), in the layout of ``x``; ``d_out`` has its shape, dtype and device."""
    dtype, dx = type_name("activation", a.x), torch.empty_like(a.x)
    run(launch, "activation_bwd", dtype, a.act, _in_order_of(dx, a.d_out), _in_order_of(dx, a.x), dx)
    return dx


def kernel(name: str, dtype: str, act: int, vec: int) -> str:
    """The template instance of ``name``."""
    return f"{name}<{dtype}, Act::{ACTIVATIONS[act]}, {vec}, {THREADS}>"


def run(launch: Launch, name: str, dtype: str, act: int, *tensors: Tensor) -> None:
    """The kernel ``name`` over ``tensors``, dense, of one size and order: its inputs, then its output."""
    n, vec = tensors[0].numel(), lanes(*tensors)
    launch.strided(kernel(name, dtype, act, vec), tensors[0], -(-n // vec), THREADS, *tensors, n)


def _in_order_of(dense: Tensor, t: Tensor) -> Tensor:
    """``t`` with the strides of ``dense``: itself, or a copy where it is sliced, expanded or in another order."""
    return t if t.stride() == dense.stride() else torch.empty_like(dense).copy_(t)
