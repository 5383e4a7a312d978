# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention's cases, its equations in float64, and fastfer's result, side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from oracle import TORCH
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops
from fastfer.ops.coordinate import KINDS

DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))
kinds = pytest.mark.parametrize("kind", KINDS)
LEAVES = ("x", "weight", "bias", "n_weight", "n_bias", "h_weight", "h_bias", "w_weight", "w_bias")


class Shape(NamedTuple):
    n: int
    c: int
    h: int
    w: int
    m: int


SHAPES = (
    Shape(2, 17, 5, 7, 3),
    Shape(1, 3, 1, 1, 8),
    Shape(6, 33, 4, 6, 8),
    Shape(1, 16, 7, 7, 9),
    Shape(3, 70, 1, 3, 21),
    Shape(1, 1, 9, 2, 1),
    Shape(5, 300, 3, 2, 17),
    Shape(2, 672, 7, 7, 21),
)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "{}x{}x{}x{}-m{}".format(*s))


class Case(NamedTuple):
    leaves: dict[str, Tensor]
    running: tuple[Tensor, Tensor]
    upstream: Tensor
    momentum: float = 0.3
    eps: float = 1e-3


def make(shape: Shape, seed: int = 0) -> Case:
    """Float64 tensors whose values are exact in float32."""
    g = torch.Generator().manual_seed(seed)
    n, c, h, w, m = shape

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=g)).double()

    leaves = {
        "x": draw(n, c, h, w),
        "weight": draw(m, c, 1, 1, scale=2 * c**-0.5),
        "bias": draw(m),
        "n_weight": draw(m),
        "n_bias": draw(m),
        "h_weight": draw(c, m, 1, 1, scale=m**-0.5),
        "h_bias": draw(c),
        "w_weight": draw(c, m, 1, 1, scale=m**-0.5),
        "w_bias": draw(c),
    }
    leaves = {name: value.float().double() for name, value in leaves.items()}
    running = draw(m), (torch.rand(m, generator=g) + 0.5).double()
    return Case(leaves, running, draw(n, c, h, w))


def formula(
    t: dict[str, Tensor], running: tuple[Tensor, Tensor], case: Case, kind: str, act: str, train: bool
) -> Tensor:
    """The equations as they are written: concatenate, convolve each group, add, normalise, split."""
    x = t["x"]
    mean, largest = (x.mean(3, keepdim=True), x.mean(2, keepdim=True)), (x.max(3, True)[0], x.max(2, True)[0])
    groups = {
        "ca": [mean],
        "maxca": [largest],
        "cpsca": [(mean[0], largest[1]), (largest[0], mean[1])],
    }[kind]
    y = sum(F.conv2d(torch.cat([rows, cols.transpose(2, 3)], 2), t["weight"], t["bias"]) for rows, cols in groups)
    assert isinstance(y, Tensor)
    z = TORCH[act](F.batch_norm(y, *running, t["n_weight"], t["n_bias"], train, case.momentum, case.eps))
    rows, cols = z.split([x.shape[2], x.shape[3]], 2)
    g_h = F.conv2d(rows, t["h_weight"], t["h_bias"]).sigmoid()
    g_w = F.conv2d(cols.transpose(2, 3), t["w_weight"], t["w_bias"]).sigmoid()
    return x * g_h * g_w


def call(t: dict[str, Tensor], running: tuple[Tensor, Tensor], case: Case, kind: str, act: str, train: bool) -> Tensor:
    norm = ops.Norm(t["n_weight"], t["n_bias"], *running, case.momentum, case.eps)
    return ops.coordinate_attention(
        t["x"], t["weight"], t["bias"], norm, t["h_weight"], t["h_bias"], t["w_weight"], t["w_bias"],
        kind=kind, act=act, training=train,
    )  # fmt: skip


Result = tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]


def run(function: Any, case: Case, dtype: torch.dtype, kind: str, act: str, train: bool) -> Result:
    """Output, gradients by leaf, running statistics afterwards."""
    leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in case.leaves.items()}
    running = (case.running[0].to(dtype, copy=True), case.running[1].to(dtype, copy=True))
    out = function(leaves, running, case, kind, act, train)
    grads = torch.autograd.grad(out, list(leaves.values()), case.upstream.to(dtype))
    return out.detach(), dict(zip(leaves, grads, strict=True)), running


def check(got: Result, want: Result, shape: Shape, train: bool) -> None:
    terms = shape.n * (shape.h + shape.w) + shape.c + shape.m
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(got[0], want[0], "chain", terms, name="out")
    for name, grad in got[1].items():
        # Of a bias before batch statistics nothing is left but the rounding of its terms.
        scale = float(want[1]["weight"].abs().max()) if name == "bias" and train else None
        assert_close(grad, want[1][name], "chain", terms, scale=scale, name=f"gradient of {name}")
    for name, value, right in zip(("mean", "var"), got[2], want[2], strict=True):
        assert_close(value, right, "chain", terms, name=f"running_{name}")


def well_posed(shape: Shape) -> bool:
    """Whether batch statistics leave anything of a gradient: they undo scaling, and want more than a few values."""
    return shape.c > 1 and shape.n * (shape.h + shape.w) >= 8
