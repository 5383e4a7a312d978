# SPDX-License-Identifier: Apache-2.0
"""The Numba kernels against float64 autograd of plain torch operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from flat import Flat
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("numba", reason="numba is not installed: pip install 'fastfer[numba]'")

from fastfer import _library
from fastfer.backends.numba import _depthwise, elementwise, separable_conv
from fastfer.signatures.separable_conv import keeps_y1

elementwise, separable_conv = Flat(elementwise), Flat(separable_conv)


def hardsigmoid(x: Tensor) -> Tensor:
    """As torch's, whose derivative holds 1/6 in float32."""
    return F.relu6(x + 3) / 6


ACTS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.clone,
    torch.relu,
    F.relu6,
    F.hardswish,
    hardsigmoid,
    F.silu,
    torch.sigmoid,
)
DTYPES = (torch.float32, torch.float64)
NONE4 = (None, None, None, None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def image(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def assert_close(name: str, got: Tensor, want: Tensor, terms: int, scale: float | None = None) -> None:
    """Error within 8 eps times the square root of the terms added up, of the largest value (or ``scale``)."""
    assert got.shape == want.shape, name
    if not got.numel():
        return
    size = max(float(want.abs().max()), 1e-30) if scale is None else scale
    error = float((got.double() - want.double()).abs().max())
    assert error <= 8 * torch.finfo(got.dtype).eps * (terms + 1) ** 0.5 * size, f"{name}: {error:.3g} of {size:.3g}"


def leaf(t: Tensor) -> Tensor:
    return t.to(torch.float64, copy=True).requires_grad_()


def is_channels_last(y: Tensor) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("act", range(7))
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation(act: int, dtype: torch.dtype) -> None:
    special = [float("nan"), float("inf"), -float("inf"), -3.0, 3.0, 0.0, -0.0, 6.0, -100.0, 100.0, -88.4, 88.4, -800.0]
    x = torch.cat([torch.tensor(special, dtype=dtype), 4 * torch.randn(50, dtype=dtype)])
    wide = x.double().requires_grad_()
    want = ACTS[act](wide)
    dy = torch.randn_like(x)
    want.backward(dy.double())
    assert wide.grad is not None
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(elementwise.activation(x, act).double(), want, rtol=4 * eps, atol=1e-30, equal_nan=True)
    got = elementwise.activation_backward(dy, x, act).double()
    torch.testing.assert_close(got, wide.grad, rtol=8 * eps, atol=8 * eps, equal_nan=True)


def test_activation_layouts() -> None:
    x = image(2, 3, 5, 4, dtype=torch.float32)
    for view in (x, x.contiguous(), x.transpose(1, 3), x[:, :, ::2], torch.tensor(2.5), x[:0]):
        y = elementwise.activation(view, 3)
        torch.testing.assert_close(y, F.hardswish(view))
        assert y.stride() == torch.empty_like(view).stride()
        mixed = elementwise.activation_backward(view.contiguous(), view, 1)
        torch.testing.assert_close(mixed, view * (view > 0))


CONVS = [  # N, C, O, H, W, kernel, stride, padding (top, left, bottom, right)
    (2, 5, 7, 9, 11, (3, 3), (1, 1), (1, 1, 1, 1)),
    (3, 24, 35, 10, 14, (3, 5), (2, 1), (0, 1, 2, 3)),
    (1, 16, 16, 7, 9, (2, 2), (2, 2), (0, 0, 0, 0)),
    (1, 40, 66, 6, 23, (5, 5), (1, 2), (2, 2, 2, 2)),
    (2, 3, 1, 6, 6, (4, 1), (3, 3), (2, 0, 0, 1)),
    (2, 1, 2, 1, 1, (3, 3), (1, 1), (1, 1, 1, 1)),
    (1, 8, 8, 3, 2, (2, 4), (1, 1), (3, 4, 3, 0)),
]


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, tuple(stride), groups=x.shape[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv", CONVS)
def test_depthwise(conv: tuple[Any, ...], dtype: torch.dtype) -> None:
    n, c, _, h, w, kernel, stride, padding = conv
    x, weight, bias = (
        image(n, c, h, w, dtype=dtype),
        torch.randn(c, 1, *kernel, dtype=dtype),
        torch.randn(c, dtype=dtype),
    )
    leaves = [leaf(t) for t in (x, weight, bias)]
    want = depthwise(leaves[0], leaves[1], leaves[2], stride, padding)
    got = separable_conv.depthwise_conv2d(x, weight, bias, list(stride), list(padding))
    taps = kernel[0] * kernel[1]
    assert_close("y", got, want.detach(), taps)
    assert is_channels_last(got)
    dy = image(*want.shape, dtype=dtype)
    want.backward(dy.double())
    grads = separable_conv.depthwise_conv2d_backward(dy, x, weight, list(stride), list(padding), [True] * 3)
    pixels = dy.numel() // c
    for name, grad, wide, terms in zip(("dx", "dw", "db"), grads, leaves, (taps, pixels, pixels), strict=True):
        assert wide.grad is not None
        assert_close(name, grad, wide.grad, terms)


def test_depthwise_taps_cover_the_axis_once() -> None:
    for transposed in (False, True):
        for length in range(1, 30):
            cut = _depthwise.tiles(length, length, 3, 2 if transposed else 1, 1, transposed, False)
            step = 2 if transposed else 1
            assert sorted(p + step * i for p, n, *_ in cut for i in range(n)) == list(range(length))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(2, 5, 7, 3, 3), (1, 33, 64, 10, 11), (3, 64, 31, 1, 7), (1, 1, 1, 1, 1)])
def test_pointwise(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    n, c, o, h, w = sizes
    x, weight, bias = image(n, c, h, w, dtype=dtype), torch.randn(o, c, 1, 1, dtype=dtype), torch.randn(o, dtype=dtype)
    leaves = [leaf(t) for t in (x, weight, bias)]
    want = F.conv2d(*leaves)
    got = separable_conv.pointwise_conv2d(x, weight, bias)
    assert_close("y", got, want.detach(), c)
    assert is_channels_last(got)
    dy = image(n, o, h, w, dtype=dtype)
    want.backward(dy.double())
    grads = separable_conv.pointwise_conv2d_backward(dy, x, weight, [True] * 3)
    for name, grad, wide, terms in zip(("dx", "dw", "db"), grads, leaves, (o, n * h * w, n * h * w), strict=True):
        assert wide.grad is not None
        assert_close(name, grad, wide.grad, terms)


def norm(channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Weight, bias, running mean, running variance."""
    return tuple(
        f(torch.randn(channels, dtype=dtype)) for f in (torch.clone, torch.clone, torch.clone, lambda v: v.abs() + 0.5)
    )


def norm_act(y: Tensor, tensors: Sequence[Tensor | None], act: int, batch: bool) -> Tensor:
    weight, bias, mean, var = tensors
    if weight is not None:
        assert mean is not None
        assert var is not None
        y = F.batch_norm(y, mean.detach().clone(), var.detach().clone(), weight, bias, batch)
    return ACTS[act](y)


BLOCKS = [  # act1, act2, norm1, norm2, biases
    (1, 3, True, True, False),
    (5, 0, False, True, True),
    (0, 6, True, False, True),
    (0, 0, False, False, False),
    (2, 4, False, False, True),
]


def block_case(
    conv: tuple[Any, ...], block: tuple[Any, ...], dtype: torch.dtype
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """x, dw, dw bias; norm1; pw, pw bias; norm2."""
    n, c, o, h, w, kernel, *_ = conv
    _, _, norm1, norm2, biases = block
    x, dw, pw = (
        image(n, c, h, w, dtype=dtype),
        torch.randn(c, 1, *kernel, dtype=dtype),
        torch.randn(o, c, 1, 1, dtype=dtype),
    )
    dw_bias, pw_bias = (torch.randn(size, dtype=dtype) if biases else None for size in (c, o))
    return (
        [x, dw, dw_bias],
        list(norm(c, dtype) if norm1 else NONE4),
        [pw, pw_bias],
        list(norm(o, dtype) if norm2 else NONE4),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv", [CONVS[1], CONVS[3], CONVS[4]])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_separable(block: tuple[Any, ...], batch: bool, conv: tuple[Any, ...], dtype: torch.dtype) -> None:
    stride, padding = list(conv[6]), list(conv[7])
    act1, act2, _, has2, _ = block
    first, n1, second, n2 = block_case(conv, block, dtype)
    leaves = [[None if t is None else leaf(t) for t in group] for group in (first, n1, second, n2)]
    (x, dw, db), m1, (pw, pb), m2 = leaves
    y1 = depthwise(x, dw, db, stride, padding)
    y2 = F.conv2d(norm_act(y1, m1, act1, batch), pw, pb)
    want = norm_act(y2, m2, act2, batch)
    args = (*first, *n1, 1e-5, act1, *second, *n2, 1e-5, act2, stride, padding)
    out, got1, got2, stats1, stats2 = separable_conv.separable_conv2d_train(*args, batch)
    pixels = want.numel() // want.shape[1]
    terms = 30 + dw.shape[2] * dw.shape[3] + pw.shape[1] + (pixels if batch else 0)
    assert_close("out", out, want.detach(), terms)
    if keeps_y1(_library.op_of("separable_conv2d").signature.unflatten(*args), *y1.shape[2:]):
        assert_close("y1", got1, y1.detach(), terms)
    else:
        assert got1.shape == (0,)
    if has2 or act2:
        assert_close("y2", got2, y2.detach(), terms)
    else:
        assert got2.numel() == 0
    for stats, y, tensors in ((stats1, y1, m1), (stats2, y2, m2)):
        if tensors[0] is None:
            assert stats.numel() == 0
        elif batch:
            var, mean = torch.var_mean(y.detach(), (0, 2, 3), correction=0)
            unbiased = var * pixels / (pixels - 1)
            for row, expected in zip(stats, (mean, (var + 1e-5).rsqrt(), unbiased), strict=True):
                assert_close("stats", row, expected, terms)
    if not batch:
        assert_close("inference", separable_conv.separable_conv2d(*args), want.detach(), terms)

    dout = image(*want.shape, dtype=dtype)
    want.backward(dout.double())
    names = ("x", "dw", "dw_bias", "n1_weight", "n1_bias", "pw", "pw_bias", "n2_weight", "n2_bias")
    inputs = (x, dw, db, m1[0], m1[1], pw, pb, m2[0], m2[1])
    rest = (
        out.contiguous(),
        first[0],
        got1,
        got2,
        first[1],
        n1[0],
        n1[1],
        stats1,
        act1,
        second[0],
        n2[0],
        n2[1],
        stats2,
    )
    for mask in ((True, True, True), (False, True, False), (True, False, False), (False, False, True)):
        grads = separable_conv.separable_conv2d_backward(dout, *rest[1:], act2, stride, padding, batch, [*mask, True])
        wanted = (mask[0], *(mask[1],) * 4, *(mask[2],) * 4)
        for name, grad, wide, asked in zip(names, grads, inputs, wanted, strict=True):
            if not asked or (wide is None and name[:2] in ("n1", "n2")):
                assert grad.numel() == 0, name
            elif wide is not None:
                assert wide.grad is not None
                # A bias that a batch norm follows has gradient 0: what is left is the rounding of its terms.
                scale = float(wide.grad.abs().max()) + (pixels**0.5 if "bias" in name else 0)
                assert_close(name, grad, wide.grad, 4 * terms + pixels, scale)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = image(*shape, dtype=torch.float32)
    dw, pw, bias = torch.randn(4, 1, 3, 3), torch.randn(6, 4, 1, 1), torch.randn(4)
    padding = [2, 2, 2, 2]
    y = separable_conv.depthwise_conv2d(x, dw, bias, [1, 1], padding)
    torch.testing.assert_close(y, bias.view(1, -1, 1, 1).expand(y.shape).contiguous(memory_format=torch.channels_last))
    dx, d_dw, d_db = separable_conv.depthwise_conv2d_backward(y, x, dw, [1, 1], padding, [True] * 3)
    assert dx.shape == x.shape
    assert not d_dw.any()
    torch.testing.assert_close(d_db, y.sum((0, 2, 3)))
    assert separable_conv.pointwise_conv2d(x, pw, None).shape == (shape[0], 6, *shape[2:])
    dx, d_pw, d_pb = separable_conv.pointwise_conv2d_backward(torch.zeros(shape[0], 6, *shape[2:]), x, pw, [True] * 3)
    assert dx.shape == x.shape
    assert not d_pw.any()
    assert not d_pb.any()
    n1, n2 = norm(4, torch.float32), norm(6, torch.float32)
    args = (x, dw, bias, *n1, 1e-5, 1, pw, None, *n2, 1e-5, 1, [1, 1], padding)
    assert separable_conv.separable_conv2d(*args).shape == (shape[0], 6, *y.shape[2:])
    out, y1, y2, stats1, stats2 = separable_conv.separable_conv2d_train(*args, False)
    grads = separable_conv.separable_conv2d_backward(
        out, x, y1, y2, dw, n1[0], n1[1], stats1, 1, pw, n2[0], n2[1], stats2, 1, [1, 1], padding, False, [True] * 4
    )
    assert [tuple(g.shape) for g in grads] == [shape, (4, 1, 3, 3), (4,), (4,), (4,), (6, 4, 1, 1), (6,), (6,), (6,)]


def test_masks() -> None:
    x, dw, pw = image(1, 4, 5, 5, dtype=torch.float32), torch.randn(4, 1, 3, 3), torch.randn(6, 4, 1, 1)
    full_dw = separable_conv.depthwise_conv2d_backward(x, x, dw, [1, 1], [1, 1, 1, 1], [True] * 3)
    dy = image(1, 6, 5, 5, dtype=torch.float32)
    full_pw = separable_conv.pointwise_conv2d_backward(dy, x, pw, [True] * 3)
    for bits in range(8):
        mask = [bool(bits >> i & 1) for i in range(3)]
        some_dw = separable_conv.depthwise_conv2d_backward(x, x, dw, [1, 1], [1, 1, 1, 1], mask)
        some_pw = separable_conv.pointwise_conv2d_backward(dy, x, pw, mask)
        for some, full in ((some_dw, full_dw), (some_pw, full_pw)):
            for wanted, a, b in zip(mask, some, full, strict=True):
                torch.testing.assert_close(a, b if wanted else torch.empty(0), rtol=0, atol=0)


def test_nan_and_inf_stay_where_torch_has_them() -> None:
    x = image(1, 20, 9, 9, dtype=torch.float32)
    x[0, 3, 4, 4], x[0, 17, 0, 8], x[0, 5, 8, 0] = float("nan"), float("inf"), -float("inf")
    dw, pw = torch.randn(20, 1, 3, 3), torch.randn(5, 20, 1, 1)
    y = separable_conv.depthwise_conv2d(x, dw, None, [1, 1], [1, 1, 1, 1])
    torch.testing.assert_close(y, F.conv2d(x, dw, None, 1, 1, groups=20), equal_nan=True)
    for channels in (pw, pw.expand(5, 20, 1, 1).repeat(7, 1, 1, 1)):
        z = separable_conv.pointwise_conv2d(x, channels, None)
        assert torch.equal(z.isnan(), F.conv2d(x, channels).isnan())
        assert torch.equal(z.isinf(), F.conv2d(x, channels).isinf())
    args = (x, dw, None, *norm(20, torch.float32), 1e-5, 0, pw, None, *NONE4, 0.0, 0, [1, 1], [1, 1, 1, 1])
    y1, stats = separable_conv.separable_conv2d_train(*args, True)[1::2][:2]
    assert torch.equal(stats[1].isnan(), torch.var(y1, (0, 2, 3)).isnan())
    assert torch.equal(stats[0].isnan(), y1.mean((0, 2, 3)).isnan())


def test_statistics_of_values_far_from_zero() -> None:
    x = image(4, 3, 16, 16, dtype=torch.float32) + 1e4
    args = (
        x, torch.ones(3, 1, 1, 1), None, *norm(3, torch.float32), 1e-5, 0,
        torch.eye(3).view(3, 3, 1, 1), None, *NONE4, 0.0, 0, [1, 1], [0, 0, 0, 0],
    )  # fmt: skip
    stats = separable_conv.separable_conv2d_train(*args, True)[3]
    torch.testing.assert_close(stats[2].double(), x.double().var((0, 2, 3)), rtol=1e-5, atol=0)
