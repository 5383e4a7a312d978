# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention against its equations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastfer.ops import Norm, cbam, channel_gate, spatial_gate

SHAPES = [(2, 8, 6, 6), (1, 3, 5, 7), (3, 16, 1, 1), (2, 1, 9, 2)]


def parameters(channels: int, hidden: int, dtype: torch.dtype = torch.float64, kernel: int = 7) -> dict[str, Any]:
    torch.manual_seed(channels)
    one = (1,)
    norm = Norm(torch.randn(one), torch.randn(one), torch.randn(one), torch.rand(one) + 0.5, momentum=0.25, eps=1e-3)
    return {
        "w1": torch.randn(hidden, channels).to(dtype),
        "b1": torch.randn(hidden).to(dtype),
        "w2": torch.randn(channels, hidden).to(dtype),
        "b2": torch.randn(channels).to(dtype),
        "spatial_weight": (torch.randn(1, 2, kernel, kernel) / kernel).to(dtype),
        "spatial_norm": Norm(*(t.to(dtype) for t in norm[:4]), *norm[4:]),
    }


def channel_formula(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    flat = x.reshape(*x.shape[:2], -1)
    hidden = [(torch.einsum("nc,hc->nh", v, w1) + b1).clamp_min(0) for v in (flat.mean(-1), flat.amax(-1))]
    logits = torch.einsum("nh,ch->nc", hidden[0] + hidden[1], w2) + 2 * b2
    return torch.einsum("nchw,nc->nchw", x, 1 / (1 + torch.exp(-logits)))


def spatial_formula(x: Tensor, weight: Tensor, norm: Norm, training: bool) -> Tensor:
    n, _, h, w = x.shape
    size = weight.shape[-1]
    half = size // 2
    padded = x.new_zeros(n, 2, h + 2 * half, w + 2 * half)
    padded[:, 0, half : half + h, half : half + w] = x.amax(1)
    padded[:, 1, half : half + h, half : half + w] = x.mean(1)
    y = x.new_zeros(n, h, w)
    for p in range(size):
        for q in range(size):
            y += torch.einsum("nchw,c->nhw", padded[:, :, p : p + h, q : q + w], weight[0, :, p, q])
    mean, var = (y.mean(), y.var(unbiased=False)) if training else (norm.running_mean, norm.running_var)
    y = (y - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias
    return x / (1 + torch.exp(-y[:, None]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_matches_the_equations(shape: tuple, dtype: torch.dtype, training: bool) -> None:
    p = parameters(shape[1], max(1, shape[1] // 8))
    x = torch.randn(shape, dtype=torch.float64)
    gated = channel_formula(x, p["w1"], p["b1"], p["w2"], p["b2"])
    want = spatial_formula(gated, p["spatial_weight"], p["spatial_norm"], training)
    q = parameters(shape[1], max(1, shape[1] // 8), dtype)
    got = cbam(x.to(dtype), **q, training=training)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2000 * torch.finfo(dtype).eps)
    assert torch.equal(q["spatial_norm"].running_mean, p["spatial_norm"].running_mean.to(dtype)) != training


def test_gates_make_up_the_whole() -> None:
    p = parameters(8, 2)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    gated = channel_gate(x, p["w1"], p["b1"], p["w2"], p["b2"])
    torch.testing.assert_close(gated, channel_formula(x, p["w1"], p["b1"], p["w2"], p["b2"]))
    torch.testing.assert_close(spatial_gate(gated, p["spatial_weight"], p["spatial_norm"]), cbam(x, **p))


def test_running_statistics() -> None:
    p = parameters(4, 1, kernel=1)
    norm, weight = p["spatial_norm"], p["spatial_weight"]
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    y = x.amax(1) * weight[0, 0] + x.mean(1) * weight[0, 1]
    mean, var = 0.75 * norm.running_mean + 0.25 * y.mean(), 0.75 * norm.running_var + 0.25 * y.var()
    spatial_gate(x, weight, norm, training=True)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


@pytest.mark.parametrize("training", [False, True])
def test_gradient(training: bool) -> None:
    p = parameters(4, 2, kernel=3)
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias, mean, var, momentum, eps = p.pop("spatial_norm")
    leaves = [t.requires_grad_() for t in (*p.values(), weight, bias)]

    def run(x: Tensor, *tensors: Tensor) -> Tensor:
        norm = Norm(tensors[5], tensors[6], mean.clone(), var.clone(), momentum, eps)
        return cbam(x, *tensors[:5], norm, training=training)

    assert torch.autograd.gradcheck(run, (x, *leaves))


def test_layouts_agree() -> None:
    p = parameters(3, 1)
    x = torch.randn(4, 5, 12, 9, dtype=torch.float64)[::2, 1:4, ::2, 1:]
    torch.testing.assert_close(cbam(x, **p), cbam(x.contiguous(), **p), rtol=0, atol=1e-15)


def test_images_do_not_mix_in_evaluation() -> None:
    p = parameters(4, 1)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    clean = cbam(x, **p)
    x[1, 2, 3, 3] = float("nan")
    got = cbam(x, **p)
    assert bool(got[1].isnan().all())
    torch.testing.assert_close(got[[0, 2]], clean[[0, 2]])


def test_empty_batch() -> None:
    assert cbam(torch.zeros(0, 4, 5, 5, dtype=torch.float64), **parameters(4, 1), training=True).shape == (0, 4, 5, 5)


X = torch.zeros(1, 8, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "cbam: x: expected 4 dimensions"),
        ({"x": X.half()}, TypeError, "cbam: x: expected dtype"),
        ({"x": X[:, :, :0]}, ValueError, "cbam: x: expected C, H and W >= 1"),
        ({"x": X[:, :4]}, ValueError, r"cbam: w1: expected shape \(2, 4\), got \(2, 8\)"),
        ({"w1": torch.zeros(2).double()}, ValueError, r"cbam: w1: expected 2 dimensions"),
        ({"b1": torch.zeros(3).double()}, ValueError, r"cbam: b1: expected shape \(2,\), got \(3,\)"),
        ({"w2": None}, TypeError, "cbam: w2: expected a torch.Tensor"),
        ({"b2": torch.zeros(8)}, TypeError, "cbam: b2: expected dtype"),
        ({"spatial_weight": 7}, TypeError, "cbam: spatial_weight: expected a torch.Tensor"),
        ({"spatial_weight": torch.zeros(1, 2, 6, 6).double()}, ValueError, "with K odd"),
        ({"spatial_weight": torch.zeros(1, 1, 7, 7).double()}, ValueError, r"expected shape \(1, 2, 7, 7\)"),
        ({"spatial_norm": None}, TypeError, "cbam: spatial_norm: expected fastfer.ops.Norm"),
        ({"x": X[:, :, :1, :1], "training": True}, ValueError, "cbam: x: expected more than one value"),
    ],
)
def test_errors(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cbam(**{"x": X, **parameters(8, 2), **change})
