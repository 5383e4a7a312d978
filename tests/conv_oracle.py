# SPDX-License-Identifier: Apache-2.0
"""Dense convolutions and normalisations in float64 by torch's own functions: what every backend is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from oracle import KINKS, TORCH, Result, same_bits
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops
from fastfer._checks import act_code

DTYPES = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Layer:
    """x (n, c, h, w) -> act(norm(convolution + bias)) of o channels; without a kernel the norm of x alone."""

    n: int
    c: int
    h: int
    w: int
    o: int = 0
    kernel: tuple[int, int] | None = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, left, bottom, right
    bias: bool = False
    norm: bool = True
    act: str = "relu"
    training: bool = True

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        if self.kernel is None:
            return self.n, self.c, self.h, self.w
        top, left, bottom, right = self.padding
        height = (self.h + top + bottom - self.kernel[0]) // self.stride[0] + 1
        return self.n, self.o, height, (self.w + left + right - self.kernel[1]) // self.stride[1] + 1

    @property
    def pixels(self) -> int:
        n, _, h, w = self.out_shape
        return n * h * w

    @property
    def terms(self) -> int:
        """The longest sum."""
        return self.pixels + (self.c + self.o) * math.prod(self.kernel or (1, 1))

    def __str__(self) -> str:
        window = f"k{self.kernel[0]}x{self.kernel[1]}-s{self.stride[0]}x{self.stride[1]}-" if self.kernel else ""
        return f"{self.n}x{self.c}x{self.h}x{self.w}-{window}o{self.o}"


def alone(n: int, c: int, h: int, w: int, act: str = "relu", training: bool = True) -> Layer:
    """A normalisation without a convolution."""
    return Layer(n, c, h, w, kernel=None, act=act, training=training)


@dataclass
class Case:
    """Leaves by name in float64 (their values exact in float32), running statistics, the upstream gradient."""

    layer: Layer
    leaves: dict[str, Tensor]
    running: dict[str, Tensor]
    upstream: Tensor
    momentum: float = 0.3
    eps: float = 1e-3

    def call(self, leaves: dict[str, Tensor], running: dict[str, Tensor]) -> Tensor:
        """fastfer's op on these tensors."""
        layer, norm = self.layer, None
        if layer.norm:
            norm = ops.Norm(
                leaves["norm.weight"], leaves["norm.bias"], running["mean"], running["var"], self.momentum, self.eps
            )
        if layer.kernel is None:
            assert norm is not None
            return ops.batch_norm(leaves["x"], norm, act=layer.act, training=layer.training)
        return ops.conv2d(
            leaves["x"],
            leaves["weight"],
            leaves.get("bias"),
            norm=norm,
            act=layer.act,
            stride=layer.stride,
            padding=layer.padding,
            training=layer.training,
        )

    def tensors(
        self, dtype: torch.dtype, grad: Sequence[str] | bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the leaves, those in ``grad`` (True: all) requiring gradients, and of the running statistics."""
        names = set(self.leaves if grad is True else grad or ())
        leaves = {k: v.to(dtype, copy=True).requires_grad_(k in names) for k, v in self.leaves.items()}
        return leaves, {k: v.to(dtype, copy=True) for k, v in self.running.items()}

    def measured(self, dtype: torch.dtype, wanted: Sequence[str] | bool = True) -> Result:
        """The case on fastfer, with the gradients of the leaves in ``wanted``."""
        leaves, running = self.tensors(dtype, wanted)
        out = self.call(leaves, running)
        out.backward(self.upstream.to(dtype))
        return Result(out.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}, running)

    def raw(self, dtype: torch.dtype, grad: bool) -> list[object]:
        """Arguments of the op below the public function, without ``batch_stats``."""
        leaves, running = self.tensors(dtype, grad)
        x = leaves["x"].detach().contiguous(memory_format=torch.channels_last).requires_grad_(grad)
        norm = [leaves.get("norm.weight"), leaves.get("norm.bias"), running.get("mean"), running.get("var")]
        tail = [self.eps if self.layer.norm else 0.0, act_code("test", self.layer.act)]
        if self.layer.kernel is None:
            return [x, *norm, *tail]
        return [x, leaves["weight"], leaves.get("bias"), *norm, *tail, [*self.layer.stride], [*self.layer.padding]]


def make(layer: Layer, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).double()

    leaves = {"x": values(layer.n, layer.c, layer.h, layer.w)}
    if layer.kernel is not None:
        leaves["weight"] = values(layer.o, layer.c, *layer.kernel)
        if layer.bias:
            leaves["bias"] = values(layer.o)
    running = {}
    channels = layer.out_shape[1]
    if layer.norm:
        leaves["norm.weight"], leaves["norm.bias"] = values(channels), values(channels)
        running = {"mean": values(channels), "var": (torch.rand(channels, generator=g) + 0.5).double()}
    return Case(layer, leaves, running, values(*layer.out_shape))


@cache
def known(layer: Layer, seed: int = 0) -> tuple[Case, Result]:
    """A case, not to be changed, and what it should give."""
    case = make(layer, seed)
    return case, expected(case)


@cache
def safe(layer: Layer, dtype: torch.dtype, seed: int = 0) -> tuple[Case, Result]:
    """A case whose activations stay away from the jumps of their derivatives, where rounding would decide."""
    margin = 200 * torch.finfo(dtype).eps * math.sqrt(layer.terms / 50)
    for attempt in range(200):
        case, want = known(layer, seed * 1000 + attempt)
        if want.margin > margin:
            return case, want
    raise AssertionError(f"every draw for {layer} comes within {margin:.0e} of a kink: use a smooth activation")


def _padded(layer: Layer, x: Tensor) -> Tensor:
    top, left, bottom, right = layer.padding
    return F.pad(x, (left, right, top, bottom))


def expected(case: Case) -> Result:
    """The case in float64 on plain torch."""
    layer = case.layer
    leaves = {name: value.clone().requires_grad_() for name, value in case.leaves.items()}
    running = {name: value.clone() for name, value in case.running.items()}
    y = leaves["x"]
    if layer.kernel is not None:
        y = F.conv2d(_padded(layer, y), leaves["weight"], leaves.get("bias"), layer.stride)
    z = y
    if layer.norm and y.numel():
        z = F.batch_norm(
            y,
            running["mean"],
            running["var"],
            leaves["norm.weight"],
            leaves["norm.bias"],
            layer.training,
            case.momentum,
            case.eps,
        )
    out = TORCH[layer.act](z)
    out.backward(case.upstream)
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    result = Result(out.detach(), grads, running)
    if out.numel():
        kinks = KINKS.get(layer.act, ())
        result.margin = min((float((z.detach() - kink).abs().min()) for kink in kinks), default=1.0)
        result.scales = _term_sizes(case, y.detach(), z.detach())
    return result


def _term_sizes(case: Case, y: Tensor, z: Tensor) -> dict[str, Tensor]:
    """The largest sum of the sizes of the terms of each gradient: what rounding is relative to where terms cancel."""
    layer, leaves, dims, column = case.layer, case.leaves, (0, 2, 3), (1, -1, 1, 1)
    upstream, scales = 1.1 * case.upstream.abs(), {}  # no activation's slope exceeds 1.1
    if layer.norm:
        weight = leaves["norm.weight"].view(column)
        unit = (z - leaves["norm.bias"].view(column)) / weight
        scales["norm.bias"] = upstream.sum(dims).max()
        scales["norm.weight"] = (upstream * (1 + unit.abs())).sum(dims).max()
        var = y.var(dims, correction=0) if layer.training else case.running["var"]
        upstream = upstream * weight.abs() / (var + case.eps).sqrt().view(column)
        if layer.training:  # batch statistics subtract what has the size of the gradient itself
            upstream = upstream + upstream.mean(dims, keepdim=True) * (1 + unit.abs())
    if layer.kernel is None:
        return {**scales, "x": upstream.max()}
    dx, dw, _ = torch.ops.aten.convolution_backward(
        upstream, _padded(layer, leaves["x"]).abs(), leaves["weight"].abs(), None, layer.stride, [0, 0], [1, 1], False,
        [0, 0], 1, [True, True, False],
    )  # fmt: skip
    return {**scales, "x": dx.max(), "weight": dw.max(), "bias": upstream.sum(dims).max()}


def assert_result(got: Result, want: Result, layer: Layer) -> None:
    assert got.out.is_contiguous(memory_format=torch.channels_last)
    assert_close(got.out, want.out, "chain", layer.terms, name="out")
    for name, grad in got.grads.items():
        assert_close(grad, want.grads[name], "chain", scale=want.scales.get(name), name=f"gradient of {name}")
    for name, value in got.running.items():
        assert_close(value, want.running[name], "chain", layer.terms, name=name)


def assert_same_for_any_threads(layer: Layer) -> None:
    """Training, frozen statistics and inference give the same bits on 1, 2, 3 and 7 threads."""
    case, evaluation = make(layer), make(frozen(layer))
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        with torch.inference_mode():
            out = evaluation.call(*evaluation.tensors(torch.float32))
        results.append((case.measured(torch.float32), evaluation.measured(torch.float32), Result(out.clone(), {}, {})))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            same_bits(a, b)


def frozen(layer: Layer) -> Layer:
    """The layer with running statistics."""
    return replace(layer, training=False)
