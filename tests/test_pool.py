# SPDX-License-Identifier: Apache-2.0
"""Pooling against explicit windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfer.ops import global_avg_pool, global_max_pool, max_pool2d

CASES = [  # N, C, H, W, kernel, stride, padding (top, left, bottom, right)
    (2, 3, 9, 7, (3, 3), (2, 2), (1, 1, 1, 1)),
    (1, 1, 1, 1, (3, 3), (2, 2), (1, 1, 1, 1)),
    (1, 5, 8, 6, (2, 2), (2, 2), (0, 0, 0, 0)),
    (2, 4, 7, 8, (3, 2), (2, 1), (0, 1, 1, 0)),
    (1, 2, 5, 5, (5, 4), (1, 3), (2, 0, 1, 2)),
]


def windows(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...]) -> Tensor:
    n, c, h, w = x.shape
    top, left, bottom, right = padding
    padded = x.new_full((n, c, h + top + bottom, w + left + right), float("-inf"))
    padded[:, :, top : top + h, left : left + w] = x
    return padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_max_pool(case: tuple, dtype: torch.dtype) -> None:
    n, c, h, w, kernel, stride, padding = case
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w, dtype=dtype) - 3
    got = max_pool2d(x, kernel, stride, padding)
    assert torch.equal(got, windows(x, kernel, stride, padding).amax(-1))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_stride_defaults_to_the_kernel() -> None:
    x = torch.randn(1, 2, 6, 9)
    assert torch.equal(max_pool2d(x, (2, 3)), max_pool2d(x, (2, 3), (2, 3)))


@pytest.mark.parametrize("case", CASES)
def test_max_pool_gradient(case: tuple) -> None:
    n, c, h, w, kernel, stride, padding = case
    count = n * c * h * w
    x = torch.randperm(count, generator=torch.Generator().manual_seed(1)).double().view(n, c, h, w) / 7
    assert torch.autograd.gradcheck(lambda t: max_pool2d(t, kernel, stride, padding), x.requires_grad_())


def test_global_pools() -> None:
    x = torch.randn(3, 5, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(global_avg_pool(x), torch.einsum("nchw->nc", x) / 28)
    assert torch.equal(global_max_pool(x), x.permute(0, 1, 3, 2).amax((2, 3)))
    sliced = x[:, ::2, 1:, ::3]
    assert torch.equal(global_max_pool(sliced), sliced.amax((2, 3)))
    torch.testing.assert_close(global_avg_pool(sliced), sliced.contiguous().mean((2, 3)))
    for pool in (global_avg_pool, global_max_pool):
        assert torch.autograd.gradcheck(pool, x.clone().requires_grad_())


@pytest.mark.parametrize("pool", [lambda x: max_pool2d(x, 2), global_max_pool])
def test_one_of_equal_maxima_gets_the_gradient(pool) -> None:
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    pool(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[[1, 0], [0, 0]]]]


def test_nan_wins_and_infinities_pass() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 1], x[0, 0, 3, 3], x[0, 0, 2:, :2] = float("nan"), float("inf"), float("-inf")
    got = max_pool2d(x, 2)[0, 0]
    assert got.isnan().tolist() == [[True, False], [False, False]]
    assert got[1].tolist() == [float("-inf"), float("inf")]
    assert bool(global_max_pool(x).isnan())
    assert bool(global_avg_pool(x).isnan())


def test_empty_batch() -> None:
    x = torch.zeros(0, 3, 4, 4)
    assert max_pool2d(x, 3, 2, 1).shape == (0, 3, 2, 2)
    assert global_avg_pool(x).shape == global_max_pool(x).shape == (0, 3)


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
