# SPDX-License-Identifier: Apache-2.0
"""Dense convolution against a sum over taps in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfer import ops
from fastfer.ops import Norm, conv2d

CASES = [  # N, C, H, W, O, kernel, stride, padding (top, left, bottom, right)
    (2, 1, 9, 7, 8, (3, 3), (1, 1), (1, 1, 1, 1)),
    (1, 3, 8, 8, 5, (3, 3), (2, 2), (0, 0, 1, 1)),
    (3, 4, 5, 11, 6, (1, 1), (1, 1), (0, 0, 0, 0)),
    (2, 2, 7, 6, 3, (5, 3), (2, 1), (4, 0, 1, 2)),
    (1, 5, 3, 3, 1, (3, 3), (1, 1), (0, 0, 0, 0)),
]


def taps(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, ...]) -> Tensor:
    n, c, h, w = x.shape
    top, left, bottom, right = padding
    padded = x.new_zeros(n, c, h + top + bottom, w + left + right)
    padded[:, :, top : top + h, left : left + w] = x
    kh, kw = weight.shape[2:]
    oh, ow = (padded.shape[2] - kh) // stride[0] + 1, (padded.shape[3] - kw) // stride[1] + 1
    y = x.new_zeros(n, weight.shape[0], oh, ow)
    for p in range(kh):
        for q in range(kw):
            rows, cols = slice(p, p + stride[0] * oh, stride[0]), slice(q, q + stride[1] * ow, stride[1])
            y = y + torch.einsum("nchw,oc->nohw", padded[:, :, rows, cols][:, :, :oh, :ow], weight[:, :, p, q])
    return y if bias is None else y + bias[:, None, None]


def random_norm(channels: int, dtype: torch.dtype = torch.float64) -> Norm:
    shape = (channels,)
    return Norm(
        *(torch.randn(shape, dtype=dtype) for _ in range(3)),
        torch.rand(shape, dtype=dtype) + 0.5,
        momentum=0.3,
        eps=1e-3,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_taps(case: tuple, dtype: torch.dtype) -> None:
    n, c, h, w, o, kernel, stride, padding = case
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, c, h, w).double(), torch.randn(o, c, *kernel).double(), torch.randn(o).double()
    want = taps(x, weight, bias, stride, padding)
    got = conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), stride=stride, padding=padding)
    assert got.shape == want.shape
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    bound = taps(x.abs(), weight.abs(), bias.abs(), stride, padding)
    error = (got.double() - want).abs()
    assert bool((error <= 16 * torch.finfo(dtype).eps * bound).all())


def test_layouts_agree() -> None:
    torch.manual_seed(1)
    big = torch.randn(4, 6, 11, 13, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    sliced = big[::2, 1:4, ::2, 1:-1]
    want = conv2d(sliced.contiguous(), weight, padding=1)
    for x in (sliced, sliced.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(conv2d(x, weight, padding=1), want, rtol=0, atol=0)
    expanded = big[:1, :1].expand(2, 3, 11, 13)
    torch.testing.assert_close(conv2d(expanded, weight), conv2d(expanded.contiguous(), weight), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_fused_is_the_composition(training: bool) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(3, 2, 6, 5, dtype=torch.float64), torch.randn(4, 2, 3, 3, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    fused = random_norm(4)
    apart = Norm(*(t.clone() for t in fused[:4]), *fused[4:])
    got = conv2d(x, weight, bias, norm=fused, act="hardswish", stride=2, padding=(1, 0), training=training)
    plain = taps(x, weight, bias, (2, 2), (1, 0, 1, 0))
    want = ops.hardswish(ops.batch_norm(plain, apart, training=training))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(fused.running_mean, apart.running_mean)
    torch.testing.assert_close(fused.running_var, apart.running_var)


@pytest.mark.parametrize("training", [False, True])
def test_gradient(training: bool) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(3, dtype=torch.float64, requires_grad=True)
    _, beta, mean, var, momentum, eps = random_norm(3)

    def run(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor) -> Tensor:
        norm = Norm(gamma, beta, mean.clone(), var.clone(), momentum, eps)
        return conv2d(x, weight, bias, norm=norm, act="silu", stride=(2, 1), padding=(0, 1, 2, 0), training=training)

    assert torch.autograd.gradcheck(run, (x, weight, bias, gamma))


def test_empty_batch() -> None:
    x, weight = torch.randn(0, 2, 6, 6, requires_grad=True), torch.randn(4, 2, 3, 3, requires_grad=True)
    norm = random_norm(4, torch.float32)
    before = norm.running_mean.clone()
    y = conv2d(x, weight, norm=norm, act="relu", padding=1, training=True)
    assert y.shape == (0, 4, 6, 6)
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_stays_in_its_windows(value: float) -> None:
    x, weight = torch.ones(1, 1, 7, 7), torch.ones(2, 1, 3, 3)
    x[0, 0, 3, 3] = value
    bad = ~conv2d(x, weight, padding=1).isfinite()
    want = torch.zeros(7, 7, dtype=torch.bool)
    want[2:5, 2:5] = True
    assert torch.equal(bad[0, 0], want)
    assert torch.equal(bad[0, 1], want)


X, W = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((None, W), {}, TypeError, "conv2d: x: expected a torch.Tensor, got NoneType"),
        ((X.int(), W), {}, TypeError, "conv2d: x: expected dtype"),
        ((X[0], W), {}, ValueError, "conv2d: x: expected 4 dimensions"),
        ((X[:, :2], W), {}, ValueError, "conv2d: x: expected 3 channels"),
        ((X, W[0]), {}, ValueError, r"conv2d: weight: expected shape \(O, C, KH, KW\)"),
        ((X, W.double()), {}, TypeError, "conv2d: weight: expected dtype"),
        ((X, W, torch.zeros(3)), {}, ValueError, r"conv2d: bias: expected shape \(4,\), got \(3,\)"),
        ((X, W), {"stride": 0}, ValueError, "conv2d: stride: expected"),
        ((X, W), {"padding": (1, 2, 3)}, ValueError, "conv2d: padding: expected"),
        ((X[:, :, :2], W), {}, ValueError, "conv2d: height: expected"),
        ((X, W), {"act": "gelu"}, ValueError, "conv2d: act: expected one of"),
        ((X, W), {"norm": torch.nn.BatchNorm2d(4)}, TypeError, "conv2d: norm: expected fastfer.ops.Norm"),
        ((X, W), {"norm": random_norm(3, torch.float32)}, ValueError, r"conv2d: norm.weight: expected shape \(4,\)"),
        ((X[:, :, :3, :3], W), {"norm": random_norm(4, torch.float32), "training": True}, ValueError, "more than one"),
    ],
)
def test_errors(args: tuple, kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        conv2d(*args, **kwargs)
