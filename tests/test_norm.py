# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfer.ops import Norm, batch_norm
from fastfer.ops.norm import update_running

SHAPES = [(1, 1, 3, 5), (4, 3, 7, 5), (2, 17, 1, 1), (3, 8, 6, 1)]


def random_norm(channels: int, dtype: torch.dtype = torch.float64) -> Norm:
    torch.manual_seed(channels)
    mean, weight, bias = (torch.randn(channels, dtype=dtype) for _ in range(3))
    return Norm(weight, bias, mean, torch.rand(channels, dtype=dtype) + 0.5, momentum=0.2, eps=1e-3)


def formula(x: Tensor, norm: Norm, mean: Tensor, var: Tensor) -> Tensor:
    column = (1, -1, 1, 1)
    scale = norm.weight / torch.sqrt(var + norm.eps)
    return (x - mean.view(column)) * scale.view(column) + norm.bias.view(column)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation(shape: tuple, dtype: torch.dtype) -> None:
    norm = random_norm(shape[1])
    x = torch.randn(shape, dtype=torch.float64)
    want = formula(x, norm, norm.running_mean, norm.running_var)
    got = batch_norm(x.to(dtype), Norm(*(t.to(dtype) for t in norm[:4]), *norm[4:]))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", SHAPES)
def test_training(shape: tuple) -> None:
    norm = random_norm(shape[1])
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    values = x.transpose(0, 1).flatten(1)
    mean, var = values.mean(1), values.var(1, unbiased=False)
    running_mean = 0.8 * norm.running_mean + 0.2 * mean
    running_var = 0.8 * norm.running_var + 0.2 * values.var(1, unbiased=True)
    got = batch_norm(x, norm, act="relu", training=True)
    torch.testing.assert_close(got, formula(x, norm, mean, var).clamp_min(0))
    torch.testing.assert_close(norm.running_mean, running_mean)
    torch.testing.assert_close(norm.running_var, running_var)


def test_large_mean_keeps_its_variance() -> None:
    norm = Norm(torch.ones(2), torch.zeros(2), torch.zeros(2), torch.ones(2))
    x = torch.randn(8, 2, 16, 16) + 1e3
    got = batch_norm(x, norm, training=True)
    want = formula(x.double(), norm, x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), unbiased=False))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("act", [None, "silu"])
def test_gradient(training: bool, act: str | None) -> None:
    weight, bias, mean, var, momentum, eps = random_norm(3)
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    weight.requires_grad_()
    bias.requires_grad_()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        norm = Norm(weight, bias, mean.clone(), var.clone(), momentum, eps)
        return batch_norm(x, norm, act=act, training=training)

    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_layouts_agree() -> None:
    norm = random_norm(3)
    x = torch.randn(6, 5, 9, 7, dtype=torch.float64)[::2, 1:4, ::2, 1:]
    want = batch_norm(x.contiguous(), norm)
    torch.testing.assert_close(batch_norm(x, norm), want, rtol=0, atol=0)


def test_empty_batch_updates_nothing() -> None:
    norm = random_norm(3)
    before = [t.clone() for t in norm[:4]]
    assert batch_norm(torch.zeros(0, 3, 4, 4, dtype=torch.float64), norm, training=True).shape == (0, 3, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, norm[:4], strict=True))


def test_nan_stays_in_place_in_evaluation_and_in_its_channel_in_training() -> None:
    norm = random_norm(2)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    x[0, 1, 2, 0] = float("nan")
    assert torch.equal(batch_norm(x, norm, act="relu").isnan(), x.isnan())
    bad = batch_norm(x, norm, training=True).isnan()
    assert bool(bad[:, 1].all())
    assert not bool(bad[:, 0].any())
    assert norm.running_mean.isnan().tolist() == [False, True]


def test_update_running_is_what_training_does() -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    one, two = random_norm(3), random_norm(3)
    batch_norm(x, one, training=True)
    update_running(two, torch.stack([x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), x.var((0, 2, 3))]))
    torch.testing.assert_close(one.running_mean, two.running_mean)
    torch.testing.assert_close(one.running_var, two.running_var)
    update_running(None, torch.empty(0))


@pytest.mark.parametrize(
    ("x", "norm", "kwargs", "error", "message"),
    [
        (1.0, random_norm(3), {}, TypeError, "batch_norm: x: expected a torch.Tensor, got float"),
        (torch.zeros(2, 3), random_norm(3), {}, ValueError, "batch_norm: x: expected 4 dimensions"),
        (torch.zeros(2, 4, 2, 2).double(), random_norm(3), {}, ValueError, r"norm.weight: expected shape \(4,\)"),
        (torch.zeros(2, 3, 2, 2), random_norm(3), {}, TypeError, "norm.weight: expected dtype torch.float32"),
        (torch.zeros(2, 3, 2, 2), None, {}, TypeError, "norm: expected fastfer.ops.Norm, got NoneType"),
        (torch.zeros(1, 3, 1, 1).double(), random_norm(3), {"training": True}, ValueError, "x: expected more than one"),
        (torch.zeros(1, 3, 1, 1).double(), random_norm(3), {"act": "tanh"}, ValueError, "act: expected one of"),
    ],
)
def test_errors(x: Tensor, norm: Norm, kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        batch_norm(x, norm, **kwargs)
