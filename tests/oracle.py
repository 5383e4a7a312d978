# SPDX-License-Identifier: Apache-2.0
"""Separable layers in float64 by torch's own functions and autograd: what every backend is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from shapes import Layer
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops
from fastfer._checks import ACTIVATIONS


def _hardsigmoid(x: Tensor) -> Tensor:
    # torch's CPU gradient of F.hardsigmoid multiplies by a float32 1/6, in float64 too.
    return F.relu6(x + 3) / 6


TORCH = dict(
    zip(ACTIVATIONS, (torch.clone, F.relu, F.relu6, F.hardswish, _hardsigmoid, F.silu, torch.sigmoid), strict=True)
)
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0), "hardsigmoid": (-3.0, 3.0)}

Stage = tuple[str, Tensor]
"""An activation and its input in the graph."""


@dataclass(frozen=True)
class Block:
    """What is fused around a layer's two convolutions."""

    biases: bool = False
    norm1: bool = True
    norm2: bool = True
    act1: str | None = "relu"
    act2: str | None = "relu"
    training: bool = True


@dataclass
class Case:
    """Leaves by name in float64 (their values exact in float32), the upstream gradient, running statistics."""

    layer: Layer
    block: Block
    leaves: dict[str, Tensor]
    running: dict[str, Tensor]
    momentum: float = 0.3
    eps: float = 1e-3
    upstream: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Result:
    """Output, gradients by leaf, running statistics afterwards, sizes of the terms behind gradients that may cancel."""

    out: Tensor
    grads: dict[str, Tensor]
    running: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)
    margin: float = float("inf")


def _values(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).double()


def out_size(layer: Layer) -> tuple[int, int]:
    top, left, bottom, right = layer.padding
    height = (layer.h + top + bottom - layer.kernel[0]) // layer.stride[0] + 1
    return height, (layer.w + left + right - layer.kernel[1]) // layer.stride[1] + 1


def pixels(layer: Layer) -> int:
    return layer.n * out_size(layer)[0] * out_size(layer)[1]


def make(layer: Layer, block: Block, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)
    n, c, h, w, kernel, _, _, o = layer
    leaves = {"x": _values(g, n, c, h, w), "dw_weight": _values(g, c, 1, *kernel), "pw_weight": _values(g, o, c, 1, 1)}
    running = {}
    for name, size in (("dw_bias", c), ("pw_bias", o)):
        if block.biases:
            leaves[name] = _values(g, size)
    for name, size, there in (("norm1", c, block.norm1), ("norm2", o, block.norm2)):
        if there:
            leaves[f"{name}.weight"], leaves[f"{name}.bias"] = _values(g, size), _values(g, size)
            running[f"{name}.running_mean"] = _values(g, size)
            running[f"{name}.running_var"] = (torch.rand(size, generator=g) + 0.5).double()
    return Case(layer, block, leaves, running, upstream=_values(g, n, o, *out_size(layer)))


@cache
def safe(layer: Layer, block: Block, dtype: torch.dtype, seed: int = 0) -> tuple[Case, Result]:
    """A case whose activations stay away from the jumps of their derivatives, where rounding would decide."""
    margin = 200 * torch.finfo(dtype).eps
    for attempt in range(200):
        case = make(layer, block, seed * 1000 + attempt)
        want = expected(case)
        if want.margin > margin:
            return case, want
    raise AssertionError(
        f"every draw for {layer} and {block} comes within {margin:.0e} of a kink: use a smooth activation"
    )


def _norm_act(case: Case, y: Tensor, name: str, act: str | None, t: dict[str, Tensor], stages: list[Stage]) -> Tensor:
    z = y
    if f"{name}.weight" in t and y.numel():
        mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
        weight, bias = t[f"{name}.weight"], t[f"{name}.bias"]
        z = F.batch_norm(y, mean, var, weight, bias, case.block.training, case.momentum, case.eps)
    stages.append((act or "none", z))
    return TORCH[act or "none"](z)


def expected(case: Case) -> Result:
    """The case in float64 on plain torch."""
    leaves = {name: value.clone().requires_grad_() for name, value in case.leaves.items()}
    running = {name: value.clone() for name, value in case.running.items()}
    t, layer, stages = {**leaves, **running}, case.layer, []
    top, left, bottom, right = layer.padding
    padded = F.pad(leaves["x"], (left, right, top, bottom))
    y1 = F.conv2d(padded, leaves["dw_weight"], leaves.get("dw_bias"), layer.stride, groups=layer.c)
    a1 = _norm_act(case, y1, "norm1", case.block.act1, t, stages)
    y2 = F.conv2d(a1, leaves["pw_weight"], leaves.get("pw_bias"))
    out = _norm_act(case, y2, "norm2", case.block.act2, t, stages)
    out.backward(case.upstream)
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    result = Result(out.detach(), grads, running)
    if out.numel():
        result.margin = min(
            (float((z.detach() - kink).abs().min()) for act, z in stages for kink in KINKS.get(act, ())), default=1.0
        )
        result.scales = _term_sizes(case, y1, a1.detach(), y2, stages)
    return result


def _slope(case: Case, name: str, y: Tensor) -> Tensor:
    """|weight| / sqrt(var + eps) of a normalisation, (1, C, 1, 1); 1 without one."""
    if f"{name}.weight" not in case.leaves:
        return torch.ones(())
    var = y.detach().var((0, 2, 3), correction=0) if case.block.training else case.running[f"{name}.running_var"]
    return (case.leaves[f"{name}.weight"].abs() / (var + case.eps).sqrt()).view(1, -1, 1, 1)


def _term_sizes(case: Case, y1: Tensor, a1: Tensor, y2: Tensor, stages: Sequence[Stage]) -> dict[str, Tensor]:
    """The largest sum of the sizes of the terms of each gradient, with the sizes carried through backward.

    Batch statistics subtract what has the size of the gradient itself, and all of it where a bias is concerned: the
    gradient that is left says nothing of the rounding that got there. No activation's slope exceeds 1.1.
    """
    layer, leaves, dims, scales = case.layer, case.leaves, (0, 2, 3), {}
    top, left, bottom, right = layer.padding
    upstream = 1.1 * case.upstream.abs()
    for name, bias, y, (_, z) in (("norm2", "pw_bias", y2, stages[1]), ("norm1", "dw_bias", y1, stages[0])):
        scales[f"{name}.bias"] = upstream.sum(dims).max()
        if f"{name}.weight" in leaves:
            unit = (z.detach() - leaves[f"{name}.bias"].view(1, -1, 1, 1)) / leaves[f"{name}.weight"].view(1, -1, 1, 1)
            scales[f"{name}.weight"] = (upstream * (1 + unit.abs())).sum(dims).max()
        upstream = upstream * _slope(case, name, y)
        scales[bias] = upstream.sum(dims).max()
        if name == "norm2":
            scales["pw_weight"] = torch.einsum("nohw,nchw->oc", upstream, a1.abs()).max()
            upstream = 1.1 * torch.einsum("nohw,oc->nchw", upstream, leaves["pw_weight"].abs()[:, :, 0, 0])
    padded = F.pad(leaves["x"], (left, right, top, bottom)).abs()
    dx, dw, _ = torch.ops.aten.convolution_backward(
        upstream,
        padded,
        leaves["dw_weight"].abs(),
        None,
        layer.stride,
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        layer.c,
        [True, True, False],
    )
    return {**scales, "dw_weight": dw.max(), "x": dx.max()}


def norms(case: Case, leaves: dict[str, Tensor], running: dict[str, Tensor]) -> dict[str, ops.Norm]:
    return {
        name: ops.Norm(
            leaves[f"{name}.weight"],
            leaves[f"{name}.bias"],
            running[f"{name}.running_mean"],
            running[f"{name}.running_var"],
            case.momentum,
            case.eps,
        )
        for name in ("norm1", "norm2")
        if f"{name}.weight" in leaves
    }


def call(case: Case, leaves: dict[str, Tensor], running: dict[str, Tensor]) -> Tensor:
    """fastfer's fused block on these tensors."""
    return ops.separable_conv2d(
        leaves["x"], leaves["dw_weight"], leaves["pw_weight"], stride=case.layer.stride, padding=case.layer.padding,
        dw_bias=leaves.get("dw_bias"), pw_bias=leaves.get("pw_bias"), act1=case.block.act1, act2=case.block.act2,
        training=case.block.training, **norms(case, leaves, running),
    )  # fmt: skip


def tensors(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the leaves and of the running statistics."""
    return (
        {name: value.to(dtype, copy=True) for name, value in case.leaves.items()},
        {name: value.to(dtype, copy=True) for name, value in case.running.items()},
    )


def measured(case: Case, dtype: torch.dtype, wanted: Sequence[str] | None = None) -> Result:
    """The case on fastfer in ``dtype``, with the gradients of the leaves in ``wanted`` (default: all)."""
    names = set(case.leaves if wanted is None else wanted)
    leaves, running = tensors(case, dtype)
    for name in names:
        leaves[name].requires_grad_()
    out = call(case, leaves, running)
    out.backward(case.upstream.to(dtype))
    return Result(out.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, running)


def same_bits(a: Result, b: Result, name: str = "") -> None:
    assert torch.equal(a.out, b.out), name
    assert set(a.grads) == set(b.grads)
    for key in a.grads:
        assert torch.equal(a.grads[key], b.grads[key]), f"{name} gradient of {key}"
    for key in a.running:
        assert torch.equal(a.running[key], b.running[key]), f"{name} {key}"
