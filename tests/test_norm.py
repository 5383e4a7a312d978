# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with an activation on every backend and ISA against float64 torch.

How it fits into torch, and drawn cases, are in test_conv2d_torch.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Variant
from conv_oracle import (
    DTYPES,
    Layer,
    alone,
    assert_result,
    assert_same_for_any_threads,
    expected,
    frozen,
    known,
    make,
    safe,
)
from draws import kernels
from oracle import Result, same_bits
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor

from fastfer import nn, ops
from fastfer._checks import ACTIVATIONS
from fastfer.ops import Norm
from fastfer.ops.norm import update_running, updates_together

LAYERS = (
    alone(2, 17, 5, 7),
    alone(4, 8, 6, 6),
    alone(3, 1, 4, 5),
    alone(1, 4, 3, 5),
    alone(2, 33, 1, 2),
    alone(5, 2, 1, 1),
)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@dtypes
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_gradients(variant: Variant, layer: Layer, dtype: torch.dtype, training: bool) -> None:
    case, want = safe(replace(layer, training=training), dtype)
    with variant.runs(*kernels("batch_norm", dtype, "train", "bwd")):
        got = case.measured(dtype)
    assert_result(got, want, case.layer)


@pytest.mark.parametrize("act", ACTIVATIONS)
@dtypes
def test_inference(variant: Variant, act: str, dtype: torch.dtype) -> None:
    for channels in (1, 3, 8, 19):
        case = make(alone(2, channels, 6, 4, act, training=False))
        leaves, running = case.tensors(dtype)
        with torch.inference_mode(), variant.runs(*kernels("batch_norm", dtype, "fwd")):
            out = case.call(leaves, running)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_close(out, expected(case).out, "chain", 4, name=f"{channels} channels")
        assert all(torch.equal(running[name], value.to(dtype)) for name, value in case.running.items())


def test_channels(variant: Variant) -> None:
    """Every tail of a vector, with rows that fill wide ones and rows that do not; several blocks."""
    for channels in around_vectors(40):
        for layer in (alone(1, channels, 8, 8, "silu"), alone(1, channels, 7, 9, "silu")):
            case, want = known(layer)
            assert_result(case.measured(torch.float32), want, layer)
    for layer in (alone(3, 1, 90, 80, "silu"), alone(2, 8, 60, 60, "silu"), alone(2, 200, 11, 13, "silu")):
        case, want = known(layer)
        assert_result(case.measured(torch.float32), want, layer)


@dtypes
def test_mean_far_from_zero(variant: Variant, dtype: torch.dtype) -> None:
    """Statistics are exact to the data's rounding when the mean is 1000 standard deviations."""
    for channels in (2, 5):
        case = make(alone(8, channels, 16, 16, "none"))
        case.leaves["x"] = (case.leaves["x"] + 1000).float().double()
        got, want = case.measured(dtype), expected(case)
        for name, value in want.running.items():
            assert_close(got.running[name], value, "chain", 12, scale=1000.0, name=name)
        assert_close(got.out, want.out, "chain", 12, scale=1000.0, name="out")


@pytest.mark.parametrize("training", [True, False])
def test_only_the_gradients_asked_for(cpu_backend: Variant, training: bool) -> None:
    case, want = safe(alone(2, 5, 4, 3, training=training), torch.float64)
    for wanted in (["x"], ["norm.weight"], ["norm.bias"], ["x", "norm.bias"], ["norm.weight", "norm.bias"]):
        got = case.measured(torch.float64, wanted)
        assert set(got.grads) == set(wanted)
        assert_result(got, want, case.layer)


def test_layouts_agree(kernel_variant: Variant) -> None:
    case = make(alone(3, 3, 5, 6, "silu"))
    want = case.measured(torch.float32)
    big = torch.full((6, 5, 9, 7), math.nan)
    sliced = big[::2, 1:4, 2:7, 1:]
    for x in (case.leaves["x"].float(), sliced.copy_(case.leaves["x"])):
        leaves, running = case.tensors(torch.float32, True)
        leaves["x"] = x.requires_grad_()
        out = case.call(leaves, running)
        grads = torch.autograd.grad(out, list(leaves.values()), case.upstream.float())
        same_bits(Result(out.detach(), dict(zip(leaves, grads, strict=True)), running), want)


def test_expanded_gradient(cpu_backend: Variant) -> None:
    leaves, running = make(alone(2, 3, 4, 4, "silu")).tensors(torch.float32, True)
    norm = Norm(leaves["norm.weight"], leaves["norm.bias"], running["mean"], running["var"])
    y = ops.batch_norm(leaves["x"], norm, act="silu", training=True)
    upstreams = torch.ones(()).expand(y.shape), torch.ones_like(y)
    one, two = (torch.autograd.grad(y, leaves["x"], g, retain_graph=True)[0] for g in upstreams)
    assert torch.equal(one, two)


@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_updates_nothing(cpu_backend: Variant, training: bool) -> None:
    case = make(alone(0, 3, 4, 4, training=training))
    got = case.measured(torch.float32)
    assert got.out.shape == (0, 3, 4, 4)
    assert not any(bool(grad.any()) for grad in got.grads.values())
    assert all(torch.equal(got.running[name], case.running[name].float()) for name in got.running)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite(variant: Variant, value: float) -> None:
    """In its place in evaluation, in its channel in training."""
    for channels in (2, 5):
        case = make(alone(2, channels, 3, 4, "none"))
        case.leaves["x"][0, 1, 2, 0] = value
        evaluation = replace(case, layer=frozen(case.layer)).measured(torch.float32)
        assert torch.equal(~evaluation.out.isfinite(), ~case.leaves["x"].isfinite())
        got = case.measured(torch.float32)
        bad = torch.zeros(channels, dtype=torch.bool)
        bad[1] = True
        assert torch.equal(got.out.isnan().all((0, 2, 3)), bad)
        assert torch.equal(got.out.isnan().any((0, 2, 3)), bad)
        assert torch.equal(~got.running["mean"].isfinite(), bad)
        assert torch.equal(got.grads["x"].isnan().any((0, 2, 3)), bad)


@pytest.mark.parametrize(
    "layer", [alone(5, 8, 48, 48, "relu6"), alone(3, 70, 9, 11, "silu"), alone(2, 1, 48, 48)], ids=str
)
def test_threads_give_the_same_bits(kernel_variant: Variant, layer: Layer, threads: None) -> None:
    assert_same_for_any_threads(layer)


def random_norm(channels: int, dtype: torch.dtype = torch.float64) -> Norm:
    torch.manual_seed(channels)
    mean, weight, bias = (torch.randn(channels, dtype=dtype) for _ in range(3))
    return Norm(weight, bias, mean, torch.rand(channels, dtype=dtype) + 0.5, momentum=0.2, eps=1e-3)


def test_update_running_is_what_training_does(cpu_backend: Variant) -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    one, two = random_norm(3), random_norm(3)
    ops.batch_norm(x, one, training=True)
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
def test_errors(x: Tensor, norm: Norm, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.batch_norm(x, norm, **kwargs)


def test_updates_together_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: momenta of their own, a norm that runs twice, one that averages over all batches."""
    monkeypatch.setattr("fastfer.ops.norm._native", None)
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 5, 5, generator=g) for _ in range(2)]

    def trained(device: str) -> dict[str, Tensor]:
        layers = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.5), nn.BatchNorm2d(3, momentum=None)]
        net = torch.nn.Sequential(*layers, layers[0])
        for x in batches:
            with updates_together(torch.empty(0, device=device)):
                net(x)
                counted = int(layers[0].num_batches_tracked)
            assert int(layers[0].num_batches_tracked) - counted == (device != "cpu")
        return net.state_dict()

    want, got = trained("cpu"), trained("meta")
    assert int(want["0.num_batches_tracked"]) == 4
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-7)


def test_updates_are_made_where_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the norms before the failure, as one by one."""
    monkeypatch.setattr("fastfer.ops.norm._native", None)
    layer = nn.BatchNorm2d(3)

    def failing() -> None:
        layer(torch.randn(2, 3, 4, 4))
        raise KeyError("after the norm")

    with pytest.raises(KeyError), updates_together(torch.empty(0, device="meta")):
        failing()
    assert int(layer.num_batches_tracked) == 1
    assert bool(layer.running_mean.any())
