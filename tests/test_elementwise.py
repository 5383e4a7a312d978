# SPDX-License-Identifier: Apache-2.0
"""Activations on every backend and ISA against torch's own in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import Variant
from draws import kernels
from flat import Flat
from guard import Guarded
from oracle import TORCH
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor

from fastfer import backend, ops
from fastfer._checks import ACTIVATIONS, act_code

DTYPES = [torch.float32, torch.float64]
NAMES = ACTIVATIONS[1:]
SPECIAL = (math.inf, -math.inf, 0.0, -0.0, 6.0, -6.0, 3.0, -3.0, 1e-3, -1e-30, -30.0, 30.0, -90.0, 90.0, -800.0, 800.0)


def expected(x: Tensor, dy: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """act(x) and dy · act'(x) in float64 by torch."""
    wide, grad = x.detach().double().contiguous().requires_grad_(), dy.double().contiguous()
    y = TORCH[act](wide)
    if act == "hardsigmoid":  # torch passes no gradient at NaN here, unlike in the parts it could be written in
        return y.detach(), torch.where((wide > -3) & (wide < 3), grad / 6, torch.zeros_like(grad)).detach()
    return y.detach(), torch.autograd.grad(y, wide, grad)[0]


def measured(x: Tensor, dy: Tensor, act: str) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = ops.activation(leaf, act)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


def check(x: Tensor, dy: Tensor, act: str) -> None:
    before = x.clone()
    (y, dx), (want_y, want_dx) = measured(x, dy, act), expected(x, dy, act)
    assert y.stride() == torch.empty_like(x).stride()
    assert torch.equal(x, before)
    assert_close(y, want_y, "elementwise", scale=1.0, name=f"{act}, forward")
    assert_close(dx, want_dx, "elementwise", scale=dy.double().abs().nan_to_num(1.0, 1.0), name=f"{act}, backward")


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", NAMES)
def test_sizes(variant: Variant, act: str, dtype: torch.dtype) -> None:
    with variant.runs(*kernels("activation", dtype, "fwd", "bwd")):
        for size in (*around_vectors(), 16383, 40001):
            check(random(size, dtype=dtype, seed=size), random(size, dtype=dtype, seed=size + 1), act)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", NAMES)
def test_kinks_infinities_and_saturation(variant: Variant, act: str, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL * 3, dtype=dtype)
    y, dx = measured(x, torch.ones_like(x), act)
    want_y, want_dx = expected(x, torch.ones_like(x), act)
    # silu'(±inf) is NaN in torch: inf · 0.
    assert_close(y, want_y, "elementwise", scale=1.0, name=act)
    assert_close(dx, want_dx, "elementwise", scale=1.0, name=act)


@pytest.mark.parametrize("act", NAMES)
def test_nan(variant: Variant, act: str) -> None:
    x = random(37, dtype=torch.float32)
    x[::3] = math.nan
    y, dx = measured(x, torch.ones_like(x), act)
    assert torch.equal(y.isnan(), TORCH[act](x).isnan())
    # torch's own gradient at NaN differs between its vectors and its tails for these two.
    if act not in ("relu6", "hardswish"):
        assert torch.equal(dx.isnan(), expected(x, torch.ones_like(x), act)[1].isnan())
    assert not bool(dx[~x.isnan()].isnan().any())


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_layouts(variant: Variant, act: str) -> None:
    x = random(2, 5, 7, 9, dtype=torch.float32)
    last = x.to(memory_format=torch.channels_last)
    views = (
        x,
        last,
        last[:, :, 1:, ::2],
        x[:, 1:],
        x.transpose(1, 3),
        x[:, :1].expand(2, 5, 7, 9),
        x.view(-1)[1:],
        x[0, 0, 0, 0],
    )
    for view in views:
        check(view, random(*view.shape, dtype=torch.float32, seed=1), act)
    check(last, random(2, 9, 5, 7, dtype=torch.float32, seed=1).permute(0, 2, 3, 1), act)


@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0, 1, 5)])
def test_empty(variant: Variant, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    y = ops.hardswish(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_none_is_the_input() -> None:
    x = torch.zeros(3)
    assert ops.activation(x, None) is x
    assert ops.activation(x, "none") is x


@pytest.mark.parametrize("act", NAMES)
def test_named_functions(act: str) -> None:
    x = random(33, dtype=torch.float32)
    assert torch.equal(getattr(ops, act)(x), ops.activation(x, act))


@pytest.mark.parametrize("act", NAMES)
def test_gradcheck(cpu_backend: Variant, act: str) -> None:
    x = torch.linspace(-7.1, 7.3, 29, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ops.activation(t, act), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(cpu_backend: Variant, dtype: torch.dtype) -> None:
    x = random(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
    namespace = torch.ops.fastfer
    cpu_backend.opcheck(namespace.activation.default, (x.requires_grad_(), act_code("test", "hardswish")))
    cpu_backend.opcheck(namespace.activation_backward.default, (random(2, 3, 4, 5, dtype=dtype), x.detach(), 5))


def test_compile(cpu_backend: Variant) -> None:
    def function(x: Tensor) -> Tensor:
        return ops.silu(x).mul(2).sum() + ops.relu6(x).sum()

    grads = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        x = random(3, 5, 4, 4, dtype=torch.float32).requires_grad_()
        value = run(x)
        grads.append((value.detach(), torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(cpu_backend: Variant, source: torch.dtype) -> None:
    x = random(2, 40, dtype=torch.float32).to(source).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.silu(x)
    assert y.dtype == (source if cpu_backend.stores_half else torch.float32)
    assert torch.equal(y, ops.silu(x.detach().float()).to(y.dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == source


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_give_the_same_bits(kernel_variant: Variant, dtype: torch.dtype, threads: None) -> None:
    x, dy = random(100_003, dtype=dtype), random(100_003, dtype=dtype, seed=1)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(measured(x, dy, "silu"))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


def test_concurrent_python_threads(cpu_backend: Variant) -> None:
    inputs = [random(5000 + 77 * i, dtype=torch.float32, seed=i) for i in range(8)]
    want = [measured(x, torch.ones_like(x), "silu") for x in inputs]

    def repeat(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [measured(x, torch.ones_like(x), "silu") for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for got, (y, dx) in zip(pool.map(repeat, inputs), want, strict=True):
            assert all(torch.equal(a, y) and torch.equal(b, dx) for a, b in got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beside_the_output_is_written(kernel_variant: Variant, dtype: torch.dtype) -> None:
    module = Flat(backend.implementation("elementwise", "cpu"))
    for size in around_vectors():
        x = random(size, dtype=dtype)
        with Guarded() as guarded:
            module.activation(x, 1)
            module.activation_backward(x, x, 1)
        guarded.check(at_least=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.relu([1.0]), TypeError, "activation: x: expected a torch.Tensor, got list"),
        (
            lambda: ops.relu(torch.zeros(3, dtype=torch.int32)),
            TypeError,
            "x: expected dtype float32 or float64, got int32",
        ),
        (lambda: ops.silu(torch.zeros(3, dtype=torch.int32)), TypeError, "float32 or float64, got int32"),
        (lambda: ops.activation(torch.zeros(3), "gelu"), ValueError, "act: expected one of none, relu, .* got 'gelu'"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
