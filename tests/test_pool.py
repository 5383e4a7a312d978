# SPDX-License-Identifier: Apache-2.0
"""Pooling on every backend and ISA against torch's own in float64."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from conftest import Variant
from draws import kernels
from flat import Flat
from guard import Guarded
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import backend, ops
from fastfer.ops import global_avg_max_pool, global_avg_pool, global_max_pool, max_pool2d

SEED = int(os.environ.get("FASTFER_TEST_SEED", "2026"))
DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


class Window(NamedTuple):
    """x (n, c, h, w), and what is taken from it."""

    n: int
    c: int
    h: int
    w: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)


WINDOWS = (
    Window(2, 17, 9, 7),
    Window(1, 16, 12, 12),
    Window(2, 3, 8, 11, padding=(0, 1, 1, 0)),
    Window(1, 5, 1, 1),
    Window(2, 33, 8, 6, (2, 2), (2, 2), (0, 0, 0, 0)),
    Window(1, 16, 7, 9, (2, 2), (2, 2), (0, 1, 1, 0)),
    Window(1, 4, 9, 8, (3, 3), (1, 1)),
    Window(2, 4, 7, 8, (3, 2), (2, 1), (0, 1, 1, 0)),
    Window(1, 9, 5, 5, (5, 4), (1, 3), (2, 0, 1, 2)),
    Window(1, 2, 3, 3, (1, 1), (2, 1), (0, 0, 0, 0)),
    Window(1, 6, 6, 9, (2, 2), (5, 4), (0, 0, 0, 0)),
    Window(1, 18, 21, 20, (17, 17), (3, 2), (8, 3, 8, 5)),
)


def data(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers around zero, all of one sign in places, that float32 holds exactly."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) - 0.5).to(dtype)


def expected(case: Window, x: Tensor) -> Tensor:
    top, left, bottom, right = case.padding
    return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-math.inf), case.kernel, case.stride)


def results(pool: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient for a fixed upstream one."""
    leaf = x.detach().clone().requires_grad_()
    y = pool(leaf)
    dy = data(*y.shape, seed=1).to(x.dtype)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


def ours(case: Window) -> Callable[[Tensor], Tensor]:
    return lambda x: max_pool2d(x, case.kernel, case.stride, case.padding)


def check(case: Window, x: Tensor) -> None:
    y, dx = results(ours(case), x)
    want, want_dx = results(lambda t: expected(case, t), x.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, want, "exact", name=f"{case}: y")
    assert_close(dx, want_dx, "reduction", math.prod(case.kernel), name=f"{case}: dx")
    with torch.no_grad():
        assert torch.equal(ours(case)(x), y)


@dtypes
@pytest.mark.parametrize("case", WINDOWS, ids=lambda c: f"{c.c}x{c.h}x{c.w}-k{c.kernel[0]}x{c.kernel[1]}")
def test_max_pool(variant: Variant, case: Window, dtype: torch.dtype) -> None:
    with variant.runs(*kernels("max_pool2d", dtype, "fwd", "train", "bwd")):
        check(case, data(*case[:4], dtype=dtype))


@dtypes
def test_channels(kernel_variant: Variant, dtype: torch.dtype) -> None:
    for channels in around_vectors():
        for case in (
            Window(1, channels, 5, 6),
            Window(1, channels, 4, 6, (2, 2), padding=(0,) * 4),
            Window(1, channels, 4, 3, (3, 2), (1, 1)),
        ):
            check(case, data(*case[:4], dtype=dtype))
        for height, width in ((3, 3), (4, 6)):
            check_global(data(2, channels, height, width, dtype=dtype))


def check_global(x: Tensor) -> None:
    pixels = x.shape[2] * x.shape[3]
    leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    davg, dmax = (data(*x.shape[:2], seed=seed).to(x.dtype) for seed in (1, 2))
    avg, most = global_avg_max_pool(leaf)
    want = wide.mean((2, 3)), F.adaptive_max_pool2d(wide, 1).flatten(1)
    assert_close(avg, want[0], "reduction", pixels, scale=1.0, name=f"{tuple(x.shape)}: avg")
    assert_close(most, want[1], "exact", name=f"{tuple(x.shape)}: max")
    assert torch.equal(global_avg_pool(x), avg)
    assert torch.equal(global_max_pool(x), most)
    for got, right, upstream in (
        ((avg, most), want, (davg, dmax)),
        (global_avg_pool(leaf), want[0], davg),
        (global_max_pool(leaf), want[1], dmax),
    ):
        wide_upstream = tuple(d.double() for d in upstream) if isinstance(upstream, tuple) else upstream.double()
        (grad,) = torch.autograd.grad(got, leaf, upstream)
        (want_grad,) = torch.autograd.grad(right, wide, wide_upstream, retain_graph=True)
        eps = torch.finfo(x.dtype).eps
        torch.testing.assert_close(grad.double(), want_grad, rtol=4 * eps, atol=4 * eps)


@dtypes
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 8, 16, 16), (1, 480, 7, 7), (64, 7, 3, 3), (1, 2, 40, 41)])
def test_global_pools(variant: Variant, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    names = ("global_avg_pool", "global_max_pool", "global_avg_max_pool")
    with variant.runs(*(kernel for op in names for kernel in kernels(op, dtype, "fwd", "bwd"))):
        check_global(data(*shape, dtype=dtype))


def test_stride_defaults_to_the_kernel() -> None:
    x = torch.randn(1, 2, 6, 9)
    assert torch.equal(max_pool2d(x, (2, 3)), max_pool2d(x, (2, 3), (2, 3)))


def special(*shape: int, seed: int = 0) -> Tensor:
    """Few values, so that there are ties, with NaN and infinities among them."""
    values = torch.tensor([0.0, -0.0, 1.0, 1.0, -1.0, math.inf, -math.inf, -math.inf, math.nan])
    return values[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(
    "case",
    [
        Window(3, 19, 9, 8),
        Window(3, 17, 6, 8, (2, 2), padding=(0,) * 4),
        Window(2, 5, 7, 7, (5, 3), (1, 2), (2, 1, 2, 1)),
    ],
)
def test_ties_nan_and_infinities_as_torch(variant: Variant, case: Window) -> None:
    top, left = case.padding[:2]
    for seed in range(4):
        x = special(*case[:4], seed=seed)
        x[:, :, : case.h // 2][x[:, :, : case.h // 2] > -1] = -math.inf  # windows of nothing else
        y, dx = results(ours(case), x)
        want, want_dx = results(lambda t: F.max_pool2d(t, case.kernel, case.stride, (top, left)), x)
        torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(dx, want_dx)


def test_global_ties_nan_and_infinities_as_torch(variant: Variant) -> None:
    for shape in ((4, 19, 3, 3), (4, 4, 4, 8), (2, 8, 5, 5), (2, 33, 1, 2)):
        x = special(*shape)
        x[0] = x[0].nan_to_num(0.0, 1.0, -1.0)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        got, want = global_max_pool(leaves[0]), F.adaptive_max_pool2d(leaves[1], 1).flatten(1)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        grads = [
            torch.autograd.grad(y.nan_to_num(1, 1, 1).sum(), leaf)[0]
            for y, leaf in zip((got, want), leaves, strict=True)
        ]
        torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
        torch.testing.assert_close(global_avg_pool(x), x.mean((2, 3)), equal_nan=True)


@pytest.mark.parametrize("pool", [lambda x: max_pool2d(x, 2), global_max_pool])
def test_one_of_equal_maxima_gets_the_gradient(variant: Variant, pool: Callable[[Tensor], Tensor]) -> None:
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    pool(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[[1, 0], [0, 0]]]]


def test_layouts(variant: Variant) -> None:
    x = data(2, 6, 8, 9, dtype=torch.float32)
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (x, last, last[:, 1:, 1:, ::2], x[:, :, ::2], x.transpose(2, 3), x[:, :1].expand(2, 6, 8, 9)):
        check(Window(*view.shape), view)
        check_global(view.contiguous())
        assert torch.equal(global_max_pool(view), global_max_pool(view.contiguous()))
    leaf = x.clone().requires_grad_()
    y = max_pool2d(leaf, 2)
    grads = [
        torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]
        for dy in (torch.ones(()).expand(y.shape), torch.ones_like(y))
    ]
    assert torch.equal(*grads)


def test_empty_batch(cpu_backend: Variant) -> None:
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    pooled = max_pool2d(x, 3, 2, 1), global_avg_pool(x), global_max_pool(x), *global_avg_max_pool(x)
    assert [tuple(y.shape) for y in pooled] == [(0, 3, 2, 2), *[(0, 3)] * 4]
    for y in pooled:
        assert torch.autograd.grad(y.sum(), x, retain_graph=True)[0].shape == x.shape
    nothing = torch.zeros(2, 3, 0, 4, requires_grad=True)
    mean = global_avg_pool(nothing)
    assert bool(mean.isnan().all())
    assert torch.autograd.grad(mean.sum(), nothing)[0].shape == nothing.shape


@pytest.mark.parametrize("case", [WINDOWS[2], WINDOWS[7], WINDOWS[4]])
def test_gradcheck(cpu_backend: Variant, case: Window) -> None:
    case = case._replace(n=1, c=2)
    count = math.prod(case[:4])
    x = torch.randperm(count, generator=torch.Generator().manual_seed(1)).double().view(case[:4]) / 7
    assert torch.autograd.gradcheck(ours(case), x.requires_grad_())
    for pool in (global_avg_pool, global_max_pool, global_avg_max_pool):
        assert torch.autograd.gradcheck(pool, x)


@dtypes
def test_opcheck(cpu_backend: Variant, dtype: torch.dtype) -> None:
    library, check_op = torch.ops.fastfer, torch.library.opcheck
    x = data(2, 3, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    window = ([3, 3], [2, 2], [1, 0, 1, 1])
    y, positions = library.max_pool2d_train(x, *window)
    assert positions.dtype == torch.uint8
    check_op(library.max_pool2d.default, (x, *window))
    check_op(library.max_pool2d_backward.default, (torch.ones_like(y), positions, [6, 5], *window))
    avg, most, places = library.global_avg_max_pool(x)
    check_op(library.global_avg_pool_backward.default, (avg, [6, 5]))
    check_op(library.global_max_pool_backward.default, (most, places, [6, 5]))
    check_op(library.global_avg_max_pool_backward.default, (avg, most, places, [6, 5]))
    x.requires_grad_()
    check_op(library.max_pool2d_train.default, (x, *window))
    for name in ("global_avg_pool", "global_max_pool", "global_avg_max_pool"):
        check_op(getattr(library, name).default, (x,))


def test_compile(cpu_backend: Variant) -> None:
    def function(x: Tensor) -> Tensor:
        avg, most = global_avg_max_pool(max_pool2d(x, 3, 2, 1))
        return (avg * most + global_avg_pool(x) + global_max_pool(x)).square().sum()

    values = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        x = data(2, 5, 7, 6, dtype=torch.float32).requires_grad_()
        value = run(x)
        values.append((value.detach(), torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def test_autocast_computes_in_float32(cpu_backend: Variant) -> None:
    x = data(2, 5, 6, 6, dtype=torch.float32).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = max_pool2d(x, 2), global_avg_pool(x), global_max_pool(x), *global_avg_max_pool(x)
    assert {y.dtype for y in pooled} == {cpu_backend.lowered}
    pooled[0].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


@dtypes
def test_threads_give_the_same_bits(kernel_variant: Variant, dtype: torch.dtype, threads: None) -> None:
    case, runs = Window(9, 24, 30, 31), []
    x = data(*case[:4], dtype=dtype)
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        avg, most = global_avg_max_pool(leaf)
        runs.append([*results(ours(case), x), avg, torch.autograd.grad((avg, most), leaf, (avg, most))[0]])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@dtypes
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, dtype: torch.dtype) -> None:
    module = Flat(backend.implementation("pool", "cpu"))
    for channels in (1, 3, 15, 17, 33):
        x = data(2, channels, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for kernel, pads in (([3, 3], [1] * 4), ([2, 2], [0] * 4), ([4, 3], [2, 1, 1, 0])):
            window = (kernel, [2, 2], pads)
            with Guarded() as guarded:
                y, positions = module.max_pool2d_train(x, *window)
                module.max_pool2d_backward(y, positions, [5, 7], *window)
            guarded.check(at_least=2)
        with Guarded() as guarded:
            avg, most, places = module.global_avg_max_pool(x)
            module.global_avg_max_pool_backward(avg, most, places, [5, 7])
        guarded.check(at_least=3)


def drawn(seed: int) -> tuple[Window, torch.dtype]:
    draw = random.Random(seed)
    kernel = (draw.randint(1, 6), draw.randint(1, 6))
    stride = (draw.randint(1, 4), draw.randint(1, 4))
    if draw.random() < 0.5:  # as the unrolled kernels want it
        kernel, stride = (draw.choice((2, 3)),) * 2, (2, 2)
    top, left, bottom, right = (draw.randint(0, size // 2) for size in (*kernel, *kernel))
    height = draw.randint(max(1, kernel[0] - top - bottom), 14)
    width = draw.randint(max(1, kernel[1] - left - right), 14)
    case = Window(draw.randint(1, 3), draw.randint(1, 40), height, width, kernel, stride, (top, left, bottom, right))
    return case, draw.choice(DTYPES)


def test_drawn_cases(variant: Variant) -> None:
    for seed in range(SEED, SEED + 60):
        case, dtype = drawn(seed)
        try:
            check(case, data(*case[:4], seed=seed, dtype=dtype))
            check_global(data(*case[:4], seed=seed, dtype=dtype))
        except Exception as error:
            error.add_note(f"drawn from seed {seed} (FASTFER_TEST_SEED={SEED}): {case}, {dtype}")
            raise


def test_exported() -> None:
    assert {"global_avg_max_pool", "global_avg_pool", "global_max_pool", "max_pool2d"} <= set(ops.__all__)


X = torch.zeros(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: max_pool2d(X[0], 2), ValueError, "max_pool2d: x: expected 4 dimensions"),
        (lambda: max_pool2d(X.long(), 2), TypeError, "max_pool2d: x: expected dtype"),
        (lambda: max_pool2d(X, 0), ValueError, "max_pool2d: kernel: expected"),
        (lambda: max_pool2d(X, 2, (1, 0)), ValueError, "max_pool2d: stride: expected"),
        (lambda: max_pool2d(X, 3, 1, 2), ValueError, "max_pool2d: padding: expected at most half the kernel"),
        (lambda: max_pool2d(X, 5), ValueError, "max_pool2d: height: expected"),
        (lambda: max_pool2d(X[:, :, :0], 2, 2, 1), ValueError, "max_pool2d: x: expected H and W >= 1"),
        (lambda: global_max_pool(X[..., :0]), ValueError, "global_max_pool: x: expected H and W >= 1"),
        (lambda: global_avg_pool([X]), TypeError, "global_avg_pool: x: expected a torch.Tensor, got list"),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
