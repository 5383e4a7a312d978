# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with norm and activation on every backend and ISA against float64 torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Variant
from conv_oracle import (
    DTYPES,
    Case,
    Layer,
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
from torch.nn import functional as F

from fastfer import ops
from fastfer._checks import ACTIVATIONS
from fastfer.ops import Norm, conv2d

LAYERS = (
    Layer(2, 1, 9, 7, 8, bias=True),
    Layer(1, 3, 8, 8, 5, stride=(2, 2), padding=(0, 0, 1, 1)),
    Layer(3, 4, 5, 11, 6, (1, 1), padding=(0, 0, 0, 0), bias=True),
    Layer(2, 17, 6, 5, 33, (1, 1), (2, 1), (0, 0, 0, 0)),
    Layer(2, 5, 7, 4, 19, (1, 1), (1, 1), (1, 0, 0, 2)),
    Layer(2, 2, 7, 6, 3, (5, 3), (2, 1), (4, 0, 1, 2)),
    Layer(1, 2, 9, 16, 1, (7, 7), padding=(3, 3, 3, 3)),
    Layer(2, 8, 6, 12, 8, bias=True),
    Layer(1, 16, 7, 9, 17, stride=(2, 2)),
    Layer(3, 5, 3, 3, 7, padding=(0, 0, 0, 0)),
    Layer(2, 3, 5, 6, 4, (2, 2), (3, 4), (0, 1, 0, 2)),
    Layer(1, 4, 2, 3, 2, (4, 6), (1, 2), (5, 7, 4, 6)),
    Layer(1, 33, 23, 6, 9, (3, 3)),
    Layer(2, 8, 37, 26, 8, bias=True),
    Layer(3, 16, 5, 25, 3, padding=(0, 2, 2, 0), bias=True),
    Layer(1, 12, 9, 31, 17, (5, 3), padding=(4, 1, 0, 1)),
    Layer(2, 9, 4, 24, 32, (1, 3), padding=(0, 1, 0, 1)),
    Layer(2, 3, 21, 50, 8, stride=(2, 2), padding=(0, 0, 1, 1)),
)
"""Pads wider than the image and the kernel, strides beyond the kernel, channels around vectors, bands of one image;
rows wide enough for bands in L1: several of an image, of odd widths and pads, beyond a vector of outputs, strided."""

REAL = (
    Layer(1, 8, 48, 48, 8, bias=True, act="silu"),
    Layer(1, 1, 32, 48, 32, act="silu"),
    Layer(1, 32, 12, 24, 64, act="silu"),
    Layer(2, 64, 12, 12, 128, act="silu"),
    Layer(1, 3, 40, 56, 32, stride=(2, 2), padding=(0, 0, 1, 1), act="silu"),
    Layer(4, 64, 6, 6, 128, (1, 1), padding=(0, 0, 0, 0), bias=True, act="none"),
    Layer(2, 2, 24, 24, 1, (7, 7), padding=(3, 3, 3, 3), act="none"),
    Layer(5, 128, 3, 3, 7, norm=False, act="none", bias=True),
)
EMPTY = (Layer(0, 4, 5, 5, 6, bias=True), Layer(0, 3, 0, 0, 2, padding=(2, 2, 2, 2)))
layers = pytest.mark.parametrize("layer", LAYERS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


@layers
@dtypes
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_gradients(variant: Variant, layer: Layer, dtype: torch.dtype, training: bool) -> None:
    case, want = safe(replace(layer, training=training), dtype)
    with variant.runs(*kernels("conv2d", dtype, "train", "bwd")):
        got = case.measured(dtype)
    assert_result(got, want, case.layer)


@layers
@dtypes
def test_inference(variant: Variant, layer: Layer, dtype: torch.dtype) -> None:
    for act in ("relu6", "silu"):
        case, want = known(replace(frozen(layer), act=act))
        leaves, running = case.tensors(dtype)
        with torch.inference_mode(), variant.runs(*kernels("conv2d", dtype, "fwd")):
            out = case.call(leaves, running)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_close(out, want.out, "chain", layer.terms, name="out")
        assert all(torch.equal(running[name], value.to(dtype)) for name, value in case.running.items())


def test_channels(variant: Variant) -> None:
    """Every tail of a vector, of the windows and of the outputs."""
    for size in around_vectors(40):
        for layer in (Layer(1, size, 4, 5, 3, (2, 2), norm=False), Layer(1, 2, 5, 4, size, norm=False)):
            case, want = safe(layer, torch.float32)
            assert_result(case.measured(torch.float32), want, layer)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(variant: Variant, act: str) -> None:
    for training in (True, False):
        for norm in (True, False):
            layer = Layer(2, 3, 6, 7, 8, bias=not norm, norm=norm, act=act, training=training)
            case, want = safe(layer, torch.float32)
            assert_result(case.measured(torch.float32), want, layer)
            if not training:
                assert_close(case.call(*case.tensors(torch.float32)), want.out, "chain", layer.terms)


@pytest.mark.parametrize("layer", REAL, ids=str)
def test_layers_of_the_networks(variant: Variant, layer: Layer) -> None:
    case, want = known(layer)
    assert_result(case.measured(torch.float32), want, layer)
    evaluation, want = known(frozen(layer))
    with torch.no_grad():
        out = evaluation.call(*evaluation.tensors(torch.float32))
    assert_close(out, want.out, "chain", layer.terms)


@dtypes
def test_mean_far_from_zero(variant: Variant, dtype: torch.dtype) -> None:
    """Statistics are exact to the data's rounding when the mean is 1000 standard deviations."""
    for outputs in (8, 5):
        case = make(Layer(3, 4, 12, 12, outputs, (1, 2), padding=(0, 0, 0, 0), bias=True, act="none"))
        case.leaves["bias"] += 3000
        case.leaves["bias"] = case.leaves["bias"].float().double()
        got, want = case.measured(dtype), expected(case)
        for name, value in want.running.items():
            assert_close(got.running[name], value, "chain", 12, scale=3000.0, name=name)
        assert_close(got.out, want.out, "chain", 12, scale=3000.0, name="out")


@pytest.mark.parametrize("training", [True, False])
def test_only_the_gradients_asked_for(cpu_backend: Variant, training: bool) -> None:
    case, want = safe(Layer(2, 5, 6, 4, 7, bias=True, training=training), torch.float64)
    names = list(case.leaves)
    for wanted in ([name] for name in names):
        got = case.measured(torch.float64, wanted)
        assert set(got.grads) == set(wanted)
        assert_result(got, want, case.layer)
    for left_out in names:
        assert_result(case.measured(torch.float64, [n for n in names if n != left_out]), want, case.layer)


def layouts(x: Tensor) -> dict[str, Tensor]:
    n, c, h, w = x.shape
    big = torch.full((n + 1, c + 3, h + 2, 2 * w + 1), math.nan, dtype=x.dtype)
    sliced = big[1:, 2 : c + 2, 1:-1, 1::2][..., :w]
    last = torch.full((n, h, w, c + 5), math.nan, dtype=x.dtype)[..., 3 : c + 3].permute(0, 3, 1, 2)
    return {
        "NCHW": x.contiguous(),
        "NCHW slice": sliced.copy_(x),
        "NHWC slice of channels": last.copy_(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (3, 1, 4, 4), (2, 6, 1, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
def test_input_layouts(kernel_variant: Variant, shape: tuple[int, int, int, int], kernel: tuple[int, int]) -> None:
    case = make(Layer(*shape, 9, kernel, padding=(kernel[0] // 2,) * 4, act="silu"))
    want = case.measured(torch.float32)
    upstreams = layouts(case.upstream.float())
    for name, x in layouts(case.leaves["x"].float()).items():
        leaves, running = case.tensors(torch.float32, True)
        leaves["x"] = x.requires_grad_()
        out = case.call(leaves, running)
        grads = torch.autograd.grad(out, list(leaves.values()), upstreams[name])
        same_bits(Result(out.detach(), dict(zip(leaves, grads, strict=True)), running), want, name)


def test_expanded_inputs(cpu_backend: Variant) -> None:
    x, weight = torch.randn(1, 1, 5, 6).expand(3, 4, 5, 6), torch.randn(1, 1, 3, 3).expand(7, 4, 3, 3)
    assert torch.equal(conv2d(x, weight), conv2d(x.contiguous(), weight.contiguous()))
    leaf = x.clone().requires_grad_()
    y = conv2d(leaf, weight, act="relu", padding=1)
    grads = [
        torch.autograd.grad(y, leaf, g, retain_graph=True)[0]
        for g in (torch.ones(()).expand(y.shape), torch.ones_like(y))
    ]
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("layer", EMPTY, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty(cpu_backend: Variant, layer: Layer, training: bool) -> None:
    case = make(replace(layer, training=training))
    got = case.measured(torch.float32)
    assert got.out.shape == layer.out_shape
    for name, grad in got.grads.items():
        assert grad.shape == case.leaves[name].shape
        assert not bool(grad.any()), name
    assert all(torch.equal(got.running[name], case.running[name].float()) for name in got.running)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "width"),
    [
        (2, 8, (3, 3), 16),
        (5, 6, (3, 3), 16),
        (2, 1, (5, 5), 16),
        (3, 9, (1, 1), 16),
        (8, 8, (3, 3), 24),
        (16, 4, (3, 3), 26),
    ],
)
def test_non_finite_as_torch(
    variant: Variant, value: float, channels: int, outputs: int, kernel: tuple[int, int], width: int
) -> None:
    """A NaN or infinity reaches what it reaches in torch: also through zero weights, and not beside its windows."""
    layer = Layer(2, channels, 8, width, outputs, kernel, padding=(kernel[0] // 2,) * 4, norm=False, act="none")
    case = make(layer)
    case.leaves["weight"][0, 0, 0] = 0
    for where in ("x", "upstream"):
        broken = Case(layer, {k: v.clone() for k, v in case.leaves.items()}, {}, case.upstream.clone())
        (broken.leaves["x"] if where == "x" else broken.upstream)[1, -1, 3, 7] = value
        got, want = broken.measured(torch.float32), expected(broken)
        assert_close(got.out, want.out, "reduction", layer.terms, name="out")
        for name, grad in got.grads.items():
            assert_close(grad, want.grads[name], "reduction", layer.terms, name=name)
        with torch.no_grad():
            leaves, _ = broken.tensors(torch.float32)
            out = conv2d(leaves["x"], leaves["weight"], act="relu6", padding=layer.padding)
        assert_close(out, F.relu6(want.out), "reduction", layer.terms, name="relu6")


def test_nan_in_training_stays_in_what_it_reaches(cpu_backend: Variant) -> None:
    case = make(Layer(2, 3, 5, 5, 4, act="none"))
    case.leaves["weight"][2] = 0
    case.leaves["weight"][1, 1] = math.nan
    got = case.measured(torch.float32)
    assert got.out.isnan().all((0, 2, 3)).tolist() == [False, True, False, False]
    assert got.out.isnan().any((0, 2, 3)).tolist() == [False, True, False, False]
    assert got.running["mean"].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("layer", [*REAL, Layer(9, 5, 13, 11, 21, (5, 4), (2, 1), (3, 1, 0, 2), act="relu6")], ids=str)
def test_threads_give_the_same_bits(kernel_variant: Variant, layer: Layer, threads: None) -> None:
    assert_same_for_any_threads(layer)


def random_norm(channels: int) -> Norm:
    return Norm(*(torch.rand(channels) + 0.5 for _ in range(4)), momentum=0.3, eps=1e-3)


X, W = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((None, W), {}, TypeError, "conv2d: x: expected a torch.Tensor, got NoneType"),
        ((X.int(), W), {}, TypeError, "conv2d: x: expected dtype"),
        ((X[0], W), {}, ValueError, "conv2d: x: expected 4 dimensions"),
        ((X[:, :2], W), {}, ValueError, "conv2d: x: expected 3 channels"),
        ((X, W[0]), {}, ValueError, r"conv2d: weight: expected shape \(O, C, KH, KW\)"),
        ((X, W[:0]), {}, ValueError, r"conv2d: weight: expected shape \(O, C, KH, KW\), got \(0, 3, 3, 3\)"),
        ((X, W.double()), {}, TypeError, "conv2d: weight: expected dtype"),
        ((X, W, torch.zeros(3)), {}, ValueError, r"conv2d: bias: expected shape \(4,\), got \(3,\)"),
        ((X, W), {"stride": 0}, ValueError, "conv2d: stride: expected"),
        ((X, W), {"padding": (1, 2, 3)}, ValueError, "conv2d: padding: expected"),
        ((X[:, :, :2], W), {}, ValueError, "conv2d: height: expected"),
        ((X, W), {"act": "gelu"}, ValueError, "conv2d: act: expected one of"),
        ((X, W), {"norm": torch.nn.BatchNorm2d(4)}, TypeError, "conv2d: norm: expected fastfer.ops.Norm"),
        ((X, W), {"norm": random_norm(3)}, ValueError, r"conv2d: norm.weight: expected shape \(4,\)"),
        ((X[:, :, :3, :3], W), {"norm": random_norm(4), "training": True}, ValueError, "more than one"),
    ],
)
def test_errors(args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.conv2d(*args, **kwargs)
