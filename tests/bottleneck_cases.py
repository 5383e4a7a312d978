# SPDX-License-Identifier: Apache-2.0
"""Inverted bottlenecks in float64 by torch's own functions and autograd: what every backend is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from oracle import KINKS, TORCH, Result
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops
from fastfer._checks import act_code

NORMS = ("norm1", "norm2", "norm3")


@dataclass(frozen=True)
class Block:
    """x (n, c, h, w) -> hidden channels -> depthwise -> o channels, or without a projection for o = 0."""

    n: int
    c: int
    h: int
    w: int
    hidden: int
    o: int = 0
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, left, bottom, right
    act: str = "silu"
    residual: bool = False
    training: bool = True

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        top, left, bottom, right = self.padding
        height = (self.h + top + bottom - self.kernel[0]) // self.stride[0] + 1
        return self.n, self.o or self.hidden, height, (self.w + left + right - self.kernel[1]) // self.stride[1] + 1

    @property
    def terms(self) -> int:
        """The longest sum."""
        return max(self.n * self.h * self.w + self.c + self.hidden + self.kernel[0] * self.kernel[1], 1)

    def __str__(self) -> str:
        return (
            f"{self.n}x{self.c}x{self.h}x{self.w}-e{self.hidden}-k{self.kernel[0]}x{self.kernel[1]}"
            f"-s{self.stride[0]}x{self.stride[1]}-o{self.o}"
        )


BLOCKS = (
    Block(2, 5, 9, 7, 17, 5, residual=True),
    Block(1, 3, 8, 11, 33, 9, stride=(2, 2), padding=(0, 1, 2, 0)),
    Block(3, 16, 6, 19, 48, 24, (5, 5), padding=(2, 2, 2, 2)),
    Block(2, 8, 13, 9, 31, 0, (5, 5), (2, 2), (3, 1, 0, 2)),
    Block(3, 7, 8, 12, 12, 0),
    Block(1, 4, 7, 9, 16, 4, (2, 2), (3, 3), (0, 0, 0, 0)),
    Block(2, 1, 5, 6, 3, 1, (3, 5), (2, 1), (1, 4, 0, 2)),
    Block(2, 6, 4, 3, 9, 6, padding=(5, 4, 6, 3)),
    Block(1, 17, 5, 5, 40, 17, residual=True),
    Block(4, 9, 1, 1, 15, 7, (1, 1), padding=(0, 0, 0, 0)),
    Block(2, 24, 40, 44, 144, 24, residual=True),
    Block(1, 40, 28, 28, 240, 16, (5, 5), (2, 2), (2, 2, 2, 2)),
    Block(3, 16, 80, 30, 64, 24, stride=(2, 2)),
)
"""Every stride and unequal pads, channels around vectors, images in several bands and channels in several slices."""

EMPTY = (Block(0, 4, 5, 5, 8, 4, residual=True), Block(0, 5, 6, 6, 9, stride=(2, 2)))


@dataclass
class Case:
    """Leaves by name in float64 (their values exact in float32), running statistics, the upstream gradient."""

    block: Block
    leaves: dict[str, Tensor]
    running: dict[str, Tensor]
    upstream: Tensor
    momentum: float = 0.3
    eps: float = 1e-3

    def tensors(self, dtype: torch.dtype, grad: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        leaves = {k: v.to(dtype, copy=True).requires_grad_(grad) for k, v in self.leaves.items()}
        return leaves, {k: v.to(dtype, copy=True) for k, v in self.running.items()}

    def call(self, leaves: dict[str, Tensor], running: dict[str, Tensor]) -> Tensor:
        """fastfer's op on these tensors."""
        block = self.block
        tensors = {**leaves, **running}
        norms = [
            ops.Norm(*(tensors[f"{n}.{field}"] for field in ("weight", "bias", "mean", "var")), self.momentum, self.eps)
            for n in NORMS
            if f"{n}.weight" in leaves
        ]
        projection = (leaves["project"], norms[2]) if block.o else ()
        return ops.inverted_bottleneck(
            leaves["x"], leaves["expand"], norms[0], leaves["dw"], norms[1], *projection, act=block.act,
            stride=block.stride, padding=block.padding, residual=block.residual, training=block.training,
        )  # fmt: skip

    def measured(self, dtype: torch.dtype) -> Result:
        leaves, running = self.tensors(dtype)
        out = self.call(leaves, running)
        out.backward(self.upstream.to(dtype))
        return Result(out.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}, running)

    def raw(self, dtype: torch.dtype, grad: bool) -> list[object]:
        """Arguments of the op below the public function, without ``batch_stats``."""
        leaves, running = self.tensors(dtype, grad)
        x = leaves["x"].detach().contiguous(memory_format=torch.channels_last).requires_grad_(grad)
        args: list[object] = [x]
        for weight, norm in zip(("expand", "dw", "project"), NORMS, strict=True):
            args += [
                leaves.get(weight),
                leaves.get(f"{norm}.weight"),
                leaves.get(f"{norm}.bias"),
                running.get(f"{norm}.mean"),
                running.get(f"{norm}.var"),
                self.eps if weight in leaves else 0.0,
            ]
        block = self.block
        return [*args, act_code("test", block.act), block.residual, list(block.stride), list(block.padding)]


def make(block: Block, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).double()

    leaves = {
        "x": values(block.n, block.c, block.h, block.w),
        "expand": values(block.hidden, block.c, 1, 1),
        "dw": values(block.hidden, 1, *block.kernel),
    }
    if block.o:
        leaves["project"] = values(block.o, block.hidden, 1, 1)
    running = {}
    for name, size in zip(NORMS, (block.hidden, block.hidden, block.o), strict=True):
        if size:
            leaves[f"{name}.weight"], leaves[f"{name}.bias"] = values(size), values(size)
            running[f"{name}.mean"] = values(size)
            running[f"{name}.var"] = (torch.rand(size, generator=g) + 0.5).double()
    return Case(block, leaves, running, values(*block.out_shape))


@cache
def safe(block: Block, dtype: torch.dtype) -> tuple[Case, Result]:
    """A case whose activations stay away from the jumps of their derivatives, where rounding would decide."""
    margin = 200 * torch.finfo(dtype).eps
    for seed in range(200):
        case = make(block, seed)
        want = expected(case)
        if want.margin > margin:
            return case, want
    raise AssertionError(f"every draw for {block} comes within {margin:.0e} of a kink: use a smooth activation")


def expected(case: Case) -> Result:
    """The case in float64 on plain torch."""
    block, stages = case.block, []
    leaves = {name: value.clone().requires_grad_() for name, value in case.leaves.items()}
    running = {name: value.clone() for name, value in case.running.items()}
    top, left, bottom, right = block.padding

    def norm(y: Tensor, name: str) -> Tensor:
        if not y.numel():
            return y
        mean, var = running[f"{name}.mean"], running[f"{name}.var"]
        weight, bias = leaves[f"{name}.weight"], leaves[f"{name}.bias"]
        return F.batch_norm(y, mean, var, weight, bias, block.training, case.momentum, case.eps)

    def act(z: Tensor) -> Tensor:
        stages.append(z.detach())
        return TORCH[block.act](z)

    a = act(norm(F.conv2d(leaves["x"], leaves["expand"]), "norm1"))
    y = F.conv2d(F.pad(a, (left, right, top, bottom)), leaves["dw"], None, block.stride, groups=block.hidden)
    out = act(norm(y, "norm2"))
    if block.o:
        out = norm(F.conv2d(out, leaves["project"]), "norm3")
    if block.residual:
        out = out + leaves["x"]
    out.backward(case.upstream)
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    result = Result(out.detach(), grads, running)
    if out.numel():
        kinks = KINKS.get(block.act, ())
        result.margin = min((float((z - kink).abs().min()) for z in stages for kink in kinks), default=1.0)
        result.scales = _scales(grads)
    return result


def _scales(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sizes of the terms that cancel in the gradients of a norm's weight and bias and of the weights before it.

    The batch's statistics subtract what has the size of the gradient itself, so that what is left may say nothing of
    the rounding that got there: the largest gradient of the three stands for it.
    """
    scales = {}
    for weight, norm in zip(("expand", "dw", "project"), NORMS, strict=True):
        names = [name for name in (weight, f"{norm}.weight", f"{norm}.bias") if name in grads]
        scales |= {name: torch.stack([grads[other].abs().max() for other in names]).max() for name in names}
    return scales


def assert_result(got: Result, want: Result, block: Block) -> None:
    assert got.out.is_contiguous(memory_format=torch.channels_last)
    assert_close(got.out, want.out, "chain", block.terms, name="out")
    assert set(got.grads) == set(want.grads)
    for name, grad in got.grads.items():
        assert_close(
            grad, want.grads[name], "chain", block.terms, scale=want.scales.get(name), name=f"gradient of {name}"
        )
    for name, value in got.running.items():
        assert_close(value, want.running[name], "chain", block.terms, name=name)


def frozen(block: Block) -> Block:
    """The block with running statistics."""
    return replace(block, training=False)
