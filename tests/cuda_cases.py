# SPDX-License-Identifier: Apache-2.0
"""Checks of the CUDA elementwise family, run on a GPU by test_cuda.py and on the host by test_cuda_host.py."""

from __future__ import annotations

import math
from itertools import product

import torch
from flat import Flat
from torch import Tensor
from torch.nn import functional as F

from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda.elementwise import run
from fastfer.backends.cuda.loader import DTYPES, Launch

CODES = range(len(ACTIVATIONS))
TYPES = tuple(DTYPES)
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 255, 1023, 1025, 6143, 8195)
"""Around the packs of 2, 4 and 8 elements, around a block of 256 threads, and more than one round of a small grid."""

_TORCH = (torch.clone, F.relu, F.relu6, F.hardswish, F.hardsigmoid, F.silu, torch.sigmoid)
_SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 6.0, -6.0, 3.0, -3.0, 1e-3, -90.0, 90.0)


def expected(x: Tensor, dy: Tensor, act: int) -> tuple[Tensor, Tensor]:
    """act(x) and dy · act'(x) by torch, in float64 on the CPU."""
    wide = x.detach().double().cpu().contiguous().requires_grad_()
    y = _TORCH[act](wide)
    grad = dy.double().cpu().contiguous()
    if ACTIVATIONS[act] == "hardsigmoid":  # torch's CPU gradient multiplies by a float32 1/6, in float64 too
        return y.detach(), torch.where((wide > -3) & (wide < 3), grad / 6, torch.zeros_like(grad)).detach()
    return y.detach(), torch.autograd.grad(y, wide, grad)[0]


def close(got: Tensor, want: Tensor, scale: float = 1.0) -> None:
    """Within 4 eps of the storage type, plus 8 eps of the arithmetic type for cancellation near zeros of act'."""
    info = torch.finfo(got.dtype)
    arithmetic = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32)
    atol = 8 * arithmetic.eps * scale + info.smallest_normal * info.eps
    torch.testing.assert_close(got.double().cpu(), want, rtol=4 * info.eps, atol=atol, equal_nan=True)


def check(family: Flat, x: Tensor, act: int) -> None:
    """Values, strides and the input left alone, forward and backward; dy in an order of its own."""
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x)
    before = x.clone()
    y, dx = family.activation(x, act), family.activation_backward(dy, x, act)
    want_y, want_dx = expected(x, dy, act)
    for got in (y, dx):
        like = torch.empty_like(x)
        assert (got.shape, got.stride(), got.dtype, got.device) == (like.shape, like.stride(), like.dtype, like.device)
    close(y, want_y, scale=4.0)
    close(dx, want_dx, scale=8.0)
    assert torch.equal(before, x)


def random(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(device, dtype)


def check_sizes(family: Flat, dtype: torch.dtype, act: int, device: str) -> None:
    for n in SIZES:
        check(family, random((n,), dtype, device), act)


def check_layouts(family: Flat, dtype: torch.dtype, device: str) -> None:
    x = random((2, 5, 7, 9), dtype, device)
    last = x.to(memory_format=torch.channels_last)
    views = (x, last, last[:, :, 1:, ::2], x[:, 1:], x.transpose(1, 3), x[:, :1].expand(2, 5, 7, 9), x.view(-1)[1:])
    for view in (*views, x[0, 0, 0, 0], x[:0], last[:, :, :0]):
        check(family, view, ACTIVATIONS.index("silu"))


def check_special(family: Flat, dtype: torch.dtype, act: int, device: str) -> None:
    """NaN, infinities and kinks, with an ordinary gradient and, where sides saturate, an infinite one: as torch."""
    x = torch.tensor(_SPECIAL * 4, dtype=dtype, device=device)
    name = ACTIVATIONS[act]
    y = family.activation(x, act)
    # The gradient at NaN of these two differs between torch's vectors, its tails and its CUDA kernels.
    compared = ~x.isnan().cpu() if name in ("relu6", "hardswish") else slice(None)
    for value in (1.0, math.inf) if name in ("relu", "relu6", "hardsigmoid") else (1.0,):
        dy = torch.full_like(x, value)
        want_y, want_dx = expected(x, dy, act)
        close(y, want_y)
        close(family.activation_backward(dy, x, act).cpu()[compared], want_dx[compared])


def check_guard(launch: Launch, device: str) -> None:
    """Nothing is written outside [0, n), whatever the alignment of each argument."""
    relu = ACTIVATIONS.index("relu")
    for dtype, n in product(DTYPES, (1, 7, 8, 9, 1025)):
        x = random((n + 32,), dtype, device)
        for at_x, at_dy, at_out in product((1, 16), repeat=3):
            source, dy = x[at_x:][:n], x.flip(0)[at_dy:][:n]
            for name, inputs, result in (
                ("activation_fwd", (source,), source.clamp_min(0)),
                ("activation_bwd", (dy, source), torch.where(source > 0, dy, torch.zeros_like(dy))),
            ):
                out = torch.full((n + 32,), 7.0, dtype=dtype, device=device)
                want = out.clone()
                want[at_out:][:n] = result
                run(launch, name, DTYPES[dtype], relu, *inputs, out[at_out:][:n])
                assert torch.equal(out, want), (dtype, n, at_x, at_dy, at_out, name)
