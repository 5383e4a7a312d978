# SPDX-License-Identifier: Apache-2.0
"""The gates' cases, their equations in float64, and fastfer's results, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from oracle import TORCH
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops

DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))

Tensors = dict[str, Tensor]


def channel_mlp(t: Tensors, act: str, gate: str) -> Tensor:
    hidden = TORCH[act](F.linear(t["x"].mean((2, 3)), t["w1"].flatten(1), t["b1"]))
    return TORCH[gate](F.linear(hidden, t["w2"].flatten(1), t["b2"]))[:, :, None, None]


def channel_conv(t: Tensors) -> Tensor:
    logits = F.conv1d(t["x"].mean((2, 3))[:, None], t["k"], padding=t["k"].shape[-1] // 2)
    return logits[:, 0, :, None, None].sigmoid()


def pixel_pooled(t: Tensors) -> Tensor:
    both = torch.cat([t["x"].max(1, keepdim=True)[0], t["x"].mean(1, keepdim=True)], 1)
    return F.conv2d(both, t["sw"], t["sb"]).sigmoid()


class Kind(NamedTuple):
    """A public function, the equation, and the leaves besides x."""

    call: Callable[[Tensors], Tensor]
    formula: Callable[[Tensors], Tensor]
    leaves: tuple[str, ...]
    least: int = 1


MLP, SPATIAL = ("w1", "b1", "w2", "b2"), ("sw", "sb")


def excite(act: str, gate: str) -> Kind:
    return Kind(
        lambda t: ops.squeeze_excite(*(t[n] for n in ("x", *MLP)), act=act, gate=gate),
        lambda t: t["x"] * channel_mlp(t, act, gate),
        MLP,
    )


KINDS: dict[str, Kind] = {
    "squeeze_excite": excite("silu", "sigmoid"),
    "squeeze_excite_hard": excite("relu", "hardsigmoid"),
    "eca": Kind(lambda t: ops.eca(t["x"], t["k"]), lambda t: t["x"] * channel_conv(t), ("k",)),
    "csa": Kind(
        lambda t: ops.csa(t["x"], t["k"], t["sw"], t["sb"]),
        lambda t: t["x"] * (channel_conv(t) + pixel_pooled(t)),
        ("k", *SPATIAL),
    ),
    "csa_pool": Kind(
        lambda t: ops.csa(t["x"], t["k"], t["sw"], t["sb"], pool=True),
        lambda t: F.max_pool2d(t["x"] * (channel_conv(t) + pixel_pooled(t)), 2),
        ("k", *SPATIAL),
        2,
    ),
    "sa": Kind(lambda t: ops.sa(t["x"], t["sw"], t["sb"]), lambda t: t["x"] * pixel_pooled(t), SPATIAL),
    "scse": Kind(
        lambda t: ops.scse(*(t[n] for n in ("x", *MLP, "sl", "sb"))),
        lambda t: t["x"] * (channel_mlp(t, "relu", "sigmoid") + F.conv2d(t["x"], t["sl"], t["sb"]).sigmoid()),
        (*MLP, "sl", "sb"),
    ),
}
KINKED = {"squeeze_excite_hard", "scse", "csa_pool"}
kinds = pytest.mark.parametrize("kind", KINDS)


class Shape(NamedTuple):
    n: int
    c: int
    h: int
    w: int
    hidden: int = 4
    taps: int = 3


SHAPES = (
    Shape(2, 17, 5, 7),
    Shape(1, 3, 2, 2, 1, 5),
    Shape(5, 33, 4, 6, 8),
    Shape(1, 16, 9, 3, 9, 7),
    Shape(3, 70, 2, 5, 17, 1),
    Shape(1, 1, 5, 2, 2),
    Shape(2, 8, 12, 11, 3),
    Shape(1, 260, 16, 16, 24, 5),
)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "{}x{}x{}x{}".format(*s))


def make(shape: Shape, seed: int = 0) -> Tensors:
    """Every leaf and the upstream gradient "up" and "up_pool", float64 with values exact in float32."""
    g = torch.Generator().manual_seed(seed)
    n, c, h, w, hidden, taps = shape
    sizes = {
        "x": (n, c, h, w), "up": (n, c, h, w), "up_pool": (n, c, h // 2, w // 2),
        "w1": (hidden, c), "b1": (hidden,), "w2": (c, hidden), "b2": (c,), "k": (1, 1, taps),
        "sw": (1, 2, 1, 1), "sl": (1, c, 1, 1), "sb": (1,),
    }  # fmt: skip
    t = {name: torch.randn(size, generator=g) for name, size in sizes.items()}
    t["w1"], t["w2"], t["sl"] = t["w1"] * 2, t["w2"] * hidden**-0.5, t["sl"] * c**-0.5
    return {name: value.double() for name, value in t.items()}


def safe(shape: Shape, kind: str, seed: int = 0) -> Tensors:
    """A draw where no hidden unit, gate or winner of a 2×2 window changes by the rounding of float32."""
    for attempt in range(100):
        t = make(shape, seed * 100 + attempt)
        hidden = F.linear(t["x"].mean((2, 3)), t["w1"], t["b1"])
        margins = [hidden.abs().min()]
        if kind == "squeeze_excite_hard":
            logits = F.linear(hidden.relu(), t["w2"], t["b2"])
            margins.append((logits.abs() - 3).abs().min())
        if kind == "csa_pool":
            y = F.unfold(t["x"] * (channel_conv(t) + pixel_pooled(t)), 2, stride=2)
            top = y.view(shape.n, shape.c, 4, -1).topk(2, 2)[0]
            margins = [(top[:, :, 0] - top[:, :, 1]).min()]
        if kind not in KINKED or float(min(margins)) > 1e-5:
            return t
    raise AssertionError(f"every draw of {shape} for {kind} comes near a kink")


Result = tuple[Tensor, Tensors]


def run(function: Callable[[Tensors], Tensor], t: Tensors, kind: str, dtype: torch.dtype) -> Result:
    leaves = {name: t[name].to(dtype, copy=True).requires_grad_() for name in ("x", *KINDS[kind].leaves)}
    out = function(leaves)
    up = t["up_pool" if kind == "csa_pool" else "up"].to(dtype)
    return out.detach(), dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), up), strict=True))


def check(t: Tensors, kind: str, dtype: torch.dtype) -> None:
    got, want = run(KINDS[kind].call, t, kind, dtype), run(KINDS[kind].formula, t, kind, torch.float64)
    terms = t["x"].shape[1] + t["x"][0, 0].numel()
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(got[0], want[0], "chain", terms, name=f"{kind}: out")
    for name, grad in got[1].items():
        # One number for the whole batch may cancel to less than the rounding of its terms.
        scale = float((t["up"] * t["x"]).abs().sum()) * 1e-2 if name in ("sb", "sw", "k") else None
        assert_close(grad, want[1][name], "chain", terms, scale=scale, name=f"{kind}: gradient of {name}")
