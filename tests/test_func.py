# SPDX-License-Identifier: Apache-2.0
"""Derivatives beside autograd's own: torch.func's transforms and forward mode, right for every public op and module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from properties import Case, Row, Values, draw_case
from property_rows import ROWS
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import fastfer
from fastfer import backend, ops

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
Function = Callable[..., tuple[Tensor, ...]]


def function(row: Row) -> tuple[Case, Function, dict[str, Tensor], dict[str, Tensor]]:
    """A case of ``row`` in float64 with images, as a function of its leaves and of its running statistics."""
    for seed in range(20):
        case, _ = draw_case(row, seed)
        if all(t.numel() for t in case.draw.leaves.values()):
            break

    def f(leaves: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, ...]:
        views = {name: case.draw.views.get(name, lambda t: t)(leaf) for name, leaf in leaves.items()}
        outputs = case.call(Values({**views, **state, **case.draw.constants}))
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    leaves = {name: t.clone() for name, t in case.draw.leaves.items()}
    return case, f, leaves, {name: t.double() for name, t in case.draw.state.items()}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in state.items()}


def upstream(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(3)
    return tuple(torch.randn(t.shape, generator=g, dtype=torch.float64) for t in outputs)


def by_autograd(f: Function, leaves: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by the op's own backward, on the active backend."""
    own = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    outputs = f(own, copied(state))
    pairs = [(y, d) for y, d in zip(outputs, upstream(outputs), strict=True) if y.requires_grad]
    if not pairs:
        return {name: torch.zeros_like(t) for name, t in leaves.items()}
    grads = torch.autograd.grad([y for y, _ in pairs], list(own.values()), [d for _, d in pairs], allow_unused=True)
    return {name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(leaves.items(), grads, strict=True)}


@rows
def test_reverse_mode(row: Row) -> None:
    _, f, leaves, state = function(row)
    outputs, pull = vjp(f, leaves, copied(state))
    got, _ = pull(upstream(outputs))
    torch.testing.assert_close(got, by_autograd(f, leaves, state), **TORCHS)


def dual(f: Function, leaves: dict[str, Tensor], tangents: dict[str, Tensor], state: dict[str, Tensor]) -> Any:
    with forward_ad.dual_level():
        made = {name: forward_ad.make_dual(t, tangents[name]) for name, t in leaves.items()}
        outputs = [forward_ad.unpack_dual(y) for y in f(made, copied(state))]
    zeros = [torch.zeros_like(y.primal) if y.tangent is None else y.tangent for y in outputs]
    return tuple(y.primal for y in outputs), tuple(zeros)


@rows
@pytest.mark.parametrize("how", ["jvp", "dual"])
def test_forward_mode(row: Row, how: str) -> None:
    """A derivative along a direction, against the gradients: d · (J t) = (Jᵀ d) · t."""
    _, f, leaves, state = function(row)
    g = torch.Generator().manual_seed(4)
    tangents = {name: torch.randn(t.shape, generator=g, dtype=torch.float64) for name, t in leaves.items()}
    if how == "dual":
        _, out = dual(f, leaves, tangents, state)
    else:
        still = {name: torch.zeros_like(t) for name, t in state.items()}
        _, out = jvp(f, (leaves, copied(state)), (tangents, still))
    forward = sum(float((d * t).sum()) for d, t in zip(upstream(out), out, strict=True))
    grads = by_autograd(f, leaves, state)
    backward = sum(float((grads[name] * tangents[name]).sum()) for name in leaves)
    assert forward == pytest.approx(backward, rel=1e-6, abs=1e-7)
    assert any(bool(t.any()) for t in out) or not any(bool(t.any()) for t in grads.values())


TORCHS = {"rtol": 1e-7, "atol": 1e-8}
"""torch's derivative of hardsigmoid in float64 is 1/6 in float32."""

X = torch.randn(3, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "build",
    [
        lambda: fastfer.nn.SeparableConv2d(4, 5, 3, 1, 1, norm1=True, act1="silu", norm2=True, act2="silu"),
        lambda: fastfer.nn.Conv2d(4, 5, 3, 1, 1, norm=True, act="silu", pool=fastfer.nn.MaxPool2d(3, 2, 1)),
        lambda: fastfer.nn.InvertedBottleneck(4, 8, 4, 3, 1, 1, act="silu"),
        lambda: fastfer.nn.CBAM(4, 2),
        lambda: fastfer.nn.CSA(4, pool=True),
        lambda: fastfer.nn.SqueezeExcite(4, 3),
        lambda: fastfer.nn.CoordinateAttention(4, kind="ca"),
        lambda: fastfer.nn.MaxPool2d(2),
        lambda: fastfer.nn.GlobalAvgPool(),
    ],
    ids=["separable", "conv", "bottleneck", "cbam", "csa", "se", "ca", "maxpool", "avgpool"],
)
def test_gradients_of_every_sample(build: Callable[[], torch.nn.Module]) -> None:
    """vmap over grad, as differential privacy asks for them, against one sample at a time."""
    torch.manual_seed(1)
    module = build().double().eval()
    params = dict(module.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, params, (x[None],)).square().sum()

    got = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(params, X)
    for i, x in enumerate(X):
        own = x.clone().requires_grad_()
        grads = torch.autograd.grad(module(own[None]).square().sum(), [*params.values(), own])
        for (name, each), want in zip({**got[0], "x": got[1]}.items(), grads, strict=True):
            torch.testing.assert_close(each[i], want, **TORCHS, msg=lambda text, name=name: f"{name}: {text}")


def test_vmap_in_training_keeps_gradients() -> None:
    x, w = X.clone().requires_grad_(), torch.randn(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    y = vmap(lambda v: ops.depthwise_conv2d(v[None], w, padding=1)[0])(x)
    want = ops.depthwise_conv2d(x, w, padding=1)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(
        torch.autograd.grad(y.sin().sum(), (x, w)), torch.autograd.grad(want.sin().sum(), (x, w))
    )


def test_jacobians_and_hessians() -> None:
    x = X[0, 0]
    want = torch.diag_embed(torch.func.vmap(grad(lambda v: v * torch.sigmoid(v)))(x.flatten()))
    torch.testing.assert_close(jacrev(ops.silu)(x.flatten()), want)
    got = hessian(lambda v: ops.silu(v).sum())(x.flatten())
    torch.testing.assert_close(got, hessian(lambda v: torch.nn.functional.silu(v).sum())(x.flatten()))


def test_training_norms_take_functional_buffers() -> None:
    module = fastfer.nn.Conv2d(4, 5, 3, norm=True, act="silu").double()
    tensors = {name: t.detach().clone() for name, t in (*module.named_parameters(), *module.named_buffers())}

    def loss(leaves: dict[str, Tensor], rest: dict[str, Tensor]) -> Tensor:
        return functional_call(module, {**leaves, **rest}, (X,)).square().sum()

    rest = {name: t.clone() for name, t in module.named_buffers()}
    leaves = {name: tensors[name] for name, _ in module.named_parameters()}
    got = grad(loss)(leaves, rest)
    loss_value = module(X).square().sum()
    want = torch.autograd.grad(loss_value, list(module.parameters()))
    torch.testing.assert_close(list(got.values()), list(want))


@pytest.mark.skipif(not backend.list_backends()["native"].available, reason="no native kernels")
def test_registered_ops_refuse_forward_mode() -> None:
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=r"activation: expected a call of fastfer\.ops"),
    ):
        torch.ops.fastfer.activation(forward_ad.make_dual(X, torch.ones_like(X)), 1)
