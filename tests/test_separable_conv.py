# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and fused separable convolution on every backend and ISA against float64 torch."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from conftest import Variant
from draws import kernels
from oracle import Block, Case, Result, call, expected, make, measured, out_size, pixels, safe, tensors
from shapes import EMPTY, LAYERS, REAL, Layer, around_vectors
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops
from fastfer._checks import ACTIVATIONS

DTYPES = [torch.float32, torch.float64]
layers = pytest.mark.parametrize(
    "layer", LAYERS, ids=lambda x: "{1}x{2}x{3}-k{4[0]}x{4[1]}-s{5[0]}x{5[1]}-o{7}".format(*x)
)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


def assert_result(got: Result, want: Result, length: int) -> None:
    assert got.out.is_contiguous(memory_format=torch.channels_last)
    assert_close(got.out, want.out, "chain", length, name="out")
    for name, grad in got.grads.items():
        assert_close(grad, want.grads[name], "chain", scale=want.scales.get(name), name=f"gradient of {name}")
    for name, value in got.running.items():
        assert_close(value, want.running[name], "chain", length, name=name)


def length(layer: Layer) -> int:
    return pixels(layer) + layer.c + layer.o + math.prod(layer.kernel)


def depthwise(layer: Layer, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Leaves x, weight, bias and the upstream gradient."""
    g = torch.Generator().manual_seed(seed)
    sizes = (layer.n, layer.c, layer.h, layer.w), (layer.c, 1, *layer.kernel), (layer.c,)
    leaves = [torch.randn(size, generator=g).to(dtype).requires_grad_() for size in sizes]
    return leaves, torch.randn((layer.n, layer.c, *out_size(layer)), generator=g).to(dtype)


def depthwise_oracle(layer: Layer, leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    x, weight, bias = (leaf.detach().double().requires_grad_() for leaf in leaves)
    top, left, bottom, right = layer.padding
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, layer.stride, groups=layer.c)
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy.double())


@layers
@dtypes
def test_depthwise(variant: Variant, layer: Layer, dtype: torch.dtype) -> None:
    leaves, dy = depthwise(layer, dtype)
    with variant.runs(*kernels("depthwise_conv2d", dtype, "fwd", "bwd")):
        y = ops.depthwise_conv2d(*leaves, layer.stride, layer.padding)
        grads = torch.autograd.grad(y, leaves, dy)
    assert y.is_contiguous(memory_format=torch.channels_last)
    lengths = (math.prod(layer.kernel), math.prod(layer.kernel), pixels(layer), pixels(layer))
    for name, got, want, terms in zip(
        ["y", "dx", "dw", "db"], (y, *grads), depthwise_oracle(layer, leaves, dy), lengths, strict=True
    ):
        assert_close(got, want, "reduction", terms, name=name)


@dtypes
def test_depthwise_channels(variant: Variant, dtype: torch.dtype) -> None:
    """Every tail of a vector, on the unrolled and the general tiles."""
    for channels in around_vectors():
        for layer in (Layer(1, channels, 4, 9), Layer(1, channels, 4, 4, (2, 3), padding=(0, 2, 1, 0))):
            leaves, dy = depthwise(layer, dtype)
            y = ops.depthwise_conv2d(*leaves, layer.stride, layer.padding)
            got = (y, *torch.autograd.grad(y, leaves, dy))
            for each, want in zip(got, depthwise_oracle(layer, leaves, dy), strict=True):
                assert_close(each, want, "reduction", 40, name=f"{channels} channels")


@dtypes
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise(variant: Variant, dtype: torch.dtype, bias: bool) -> None:
    for n, c, h, w, o in (
        (1, 1, 1, 1, 1),
        (2, 3, 5, 7, 33),
        (1, 17, 3, 3, 5),
        (3, 32, 9, 5, 16),
        (1, 70, 6, 6, 49),
        (2, 8, 40, 17, 24),
    ):
        g = torch.Generator().manual_seed(c)
        shapes = [(n, c, h, w), (o, c, 1, 1), *([(o,)] if bias else [])]
        leaves = [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes]
        dy = torch.randn((n, o, h, w), generator=g).to(dtype)
        with variant.runs(*kernels("pointwise_conv2d", dtype, "fwd", "bwd")):
            y = ops.pointwise_conv2d(*leaves)
            grads = torch.autograd.grad(y, leaves, dy)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        want = F.conv2d(*wide)
        assert_close(y, want, "reduction", c, name="y")
        names, lengths = ("dx", "dw", "db"), (o, n * h * w, n * h * w)
        for name, got, right, terms in zip(
            names, grads, torch.autograd.grad(want, wide, dy.double()), lengths, strict=False
        ):
            assert_close(got, right, "reduction", terms, name=name)


@dtypes
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
@layers
def test_separable(variant: Variant, layer: Layer, dtype: torch.dtype, training: bool) -> None:
    if training and pixels(layer) == 1:
        pytest.skip("one value per channel has no variance")
    case, want = safe(layer, Block(biases=not training, act1="relu", act2="hardswish", training=training), dtype)
    with variant.runs(*kernels("separable_conv2d", dtype, "train", "bwd")):
        got = measured(case, dtype)
    assert_result(got, want, length(layer))


@dtypes
@pytest.mark.parametrize("norm2", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        Layer(9, 17, 13, 11, o=21),
        Layer(8, 33, 40, 40, (5, 5), padding=(2, 2, 2, 2), o=16),
        Layer(2, 40, 33, 29, o=24),
        Layer(11, 8, 20, 19, stride=(2, 2), padding=(0, 1, 1, 0), o=40),
        Layer(8, 24, 35, 32, (4, 4), (4, 4), (0, 0, 1, 0), o=48),
        Layer(8, 256, 12, 9, o=64),
    ],
    ids=str,
)
def test_nothing_between_the_convolutions(variant: Variant, layer: Layer, norm2: bool, dtype: torch.dtype) -> None:
    """Training keeps no depthwise output: by bands of whole images' rows, in several bands, and for few images."""
    case, want = safe(layer, Block(False, False, norm2, None, "hardswish", True), dtype)
    with variant.runs(*kernels("separable_conv2d", dtype, "train", "bwd")):
        got = measured(case, dtype)
    assert_result(got, want, length(layer))


@dtypes
@layers
def test_inference(variant: Variant, layer: Layer, dtype: torch.dtype) -> None:
    case = make(layer, Block(biases=True, act1="relu6", act2="silu", training=False))
    leaves, running = tensors(case, dtype)
    before = {name: value.clone() for name, value in running.items()}
    with torch.inference_mode(), variant.runs(*kernels("separable_conv2d", dtype, "fwd")):
        out = call(case, leaves, running)
    assert_close(out, expected(case).out, "chain", length(layer), name="out")
    assert all(torch.equal(running[name], before[name]) for name in running)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(variant: Variant, act: str) -> None:
    layer = Layer(2, 5, 6, 7, o=9)
    for first, second in ((act, "none"), ("none", act)):
        for training in (True, False):
            for norms in (True, False):
                block = Block(not norms, norms, norms, first, second, training)
                case, want = safe(layer, block, torch.float32)
                assert_result(measured(case, torch.float32), want, length(layer))
                with torch.no_grad():
                    out = call(case, *tensors(case, torch.float32))
                assert_close(out, want.out, "chain", length(layer), name=f"{block}")


@pytest.mark.parametrize(("norm1", "norm2"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_norms_on_and_off(variant: Variant, norm1: bool, norm2: bool, biases: bool, training: bool) -> None:
    layer = Layer(2, 6, 5, 9, stride=(2, 1), o=19)
    case, want = safe(layer, Block(biases, norm1, norm2, "silu", None, training), torch.float32)
    assert_result(measured(case, torch.float32), want, length(layer))


@pytest.mark.parametrize("layer", REAL, ids=lambda x: f"{x.c}x{x.h}-o{x.o}")
def test_layers_of_the_networks(variant: Variant, layer: Layer) -> None:
    # silu has no kink: among so many values some come as near to one as float32 rounds.
    case = make(layer, Block(act1="silu", act2="silu"))
    assert_result(measured(case, torch.float32), expected(case), length(layer))


@dtypes
def test_mean_far_from_zero(variant: Variant, dtype: torch.dtype) -> None:
    """Statistics are exact to the data's rounding when the mean is 1000 standard deviations."""
    layer = Layer(4, 8, 12, 12, (1, 1), padding=(0, 0, 0, 0), o=4)
    case = make(layer, Block(act1=None, act2=None))
    case.leaves["x"] = (case.leaves["x"] + 1000).float().double()
    case.leaves["dw_weight"].fill_(1)
    got, want = measured(case, dtype), expected(case)
    for name, value in want.running.items():
        spread = 1000 * (10 if name == "norm2.running_var" else 1)
        assert_close(got.running[name], value, "chain", length(layer), scale=spread, name=name)
    assert_close(got.out, want.out, "chain", length(layer), scale=1000.0, name="out")


def requiring(case: Case) -> list[tuple[str, ...]]:
    names = list(case.leaves)
    single = [(name,) for name in names]
    without = [tuple(other for other in names if other != name) for name in names]
    return [*single, *without, ("x", "pw_weight"), ("dw_weight", "norm2.bias"), ("dw_bias", "pw_bias")]


@pytest.mark.parametrize("training", [True, False])
def test_only_the_gradients_asked_for(cpu_backend: Variant, training: bool) -> None:
    layer = Layer(2, 5, 6, 4, o=7)
    case, want = safe(layer, Block(True, training=training), torch.float64)
    for wanted in requiring(case):
        got = measured(case, torch.float64, wanted)
        assert set(got.grads) == set(wanted)
        assert_result(got, want, length(layer))


def test_only_the_gradients_asked_for_unfused(cpu_backend: Variant) -> None:
    layer = Layer(1, 6, 5, 4)
    leaves, dy = depthwise(layer, torch.float64)
    weight = torch.randn(layer.c, layer.c, 1, 1, dtype=torch.float64, requires_grad=True)
    dw_want = depthwise_oracle(layer, leaves, dy)[1:]
    y = F.conv2d(leaves[0], weight, leaves[2])
    pw_leaves = [leaves[0], weight, leaves[2]]
    pw_want = torch.autograd.grad(y, pw_leaves, dy)
    for count in (1, 2, 3):
        for chosen in combinations(range(3), count):
            for op, inputs, want in (("depthwise", leaves, dw_want), ("pointwise", pw_leaves, pw_want)):
                args = [t.detach().requires_grad_(i in chosen) for i, t in enumerate(inputs)]
                got = ops.depthwise_conv2d(*args, 1, 1) if op == "depthwise" else ops.pointwise_conv2d(*args)
                for i, grad in zip(chosen, torch.autograd.grad(got, [args[i] for i in chosen], dy), strict=True):
                    assert_close(grad, want[i], "reduction", 40, name=f"{op} {i} of {chosen}")


def layouts(x: Tensor) -> dict[str, Tensor]:
    n, c, h, w = x.shape
    big = torch.full((n + 1, c + 3, h + 2, 2 * w + 1), math.nan, dtype=x.dtype)
    sliced = big[1:, 2 : c + 2, 1:-1, 1::2][..., :w]
    sliced.copy_(x)
    last = torch.full((n, h, w, c + 5), math.nan, dtype=x.dtype)[..., 3 : c + 3].permute(0, 3, 1, 2)
    last.copy_(x)
    return {
        "NCHW": x.contiguous(),
        "NHWC": x.contiguous(memory_format=torch.channels_last),
        "NCHW slice": sliced,
        "NHWC slice of channels": last,
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (3, 1, 4, 4), (2, 6, 1, 1), (1, 4, 3, 5)])
def test_input_layouts(kernel_variant: Variant, shape: tuple[int, int, int, int]) -> None:
    layer = Layer(*shape, o=9)
    case, _ = safe(layer, Block(act2="silu"), torch.float32)
    want = measured(case, torch.float32)
    inputs, upstreams = layouts(case.leaves["x"].float()), layouts(case.upstream.float())
    for name, x in inputs.items():
        leaves, running = tensors(case, torch.float32)
        leaves["x"] = x
        for leaf in leaves.values():
            leaf.requires_grad_()
        out = call(case, leaves, running)
        grads = torch.autograd.grad(out, list(leaves.values()), upstreams[name])
        assert torch.equal(out, want.out), name
        for key, grad in zip(leaves, grads, strict=True):
            assert torch.equal(grad, want.grads[key]), f"{name}: {key}"


def test_expanded_inputs(cpu_backend: Variant) -> None:
    x = torch.randn(1, 1, 5, 6).expand(3, 4, 5, 6)
    weight, dw = torch.randn(7, 4, 1, 1), torch.randn(1, 1, 3, 3).expand(4, 1, 3, 3)
    assert torch.equal(ops.pointwise_conv2d(x, weight), ops.pointwise_conv2d(x.contiguous(), weight))
    assert torch.equal(ops.depthwise_conv2d(x, dw), ops.depthwise_conv2d(x.contiguous(), dw.contiguous()))
    leaf = x.clone().requires_grad_()
    y = ops.separable_conv2d(leaf, dw, weight, act2="relu", padding=1)
    grad = torch.autograd.grad(y, leaf, torch.ones(()).expand(y.shape))[0]
    assert torch.equal(
        grad,
        torch.autograd.grad(ops.separable_conv2d(leaf, dw, weight, act2="relu", padding=1), leaf, torch.ones_like(y))[
            0
        ],
    )


@pytest.mark.parametrize("layer", EMPTY)
@pytest.mark.parametrize("training", [True, False])
def test_empty(cpu_backend: Variant, layer: Layer, training: bool) -> None:
    case = make(layer, Block(True, training=training))
    got, want = measured(case, torch.float32), expected(case)
    assert got.out.shape == want.out.shape
    for name, grad in got.grads.items():
        assert grad.shape == case.leaves[name].shape
        assert not bool(grad.any()), name
    assert all(torch.equal(got.running[name], case.running[name].float()) for name in got.running)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_as_torch(variant: Variant, value: float) -> None:
    """A NaN or infinity reaches what it reaches in torch: also through zero weights, and not beside its windows."""
    layer = Layer(2, 5, 7, 6, o=6)
    leaves, dy = depthwise(layer, torch.float32)
    with torch.no_grad():
        leaves[0][0, 2, 3, 2] = value
        leaves[1][2, 0, 1] = 0
    y = ops.depthwise_conv2d(*leaves, 1, 1)
    got = (y, *torch.autograd.grad(y, leaves, dy))
    for name, each, want in zip(["y", "dx", "dw", "db"], got, depthwise_oracle(layer, leaves, dy), strict=True):
        assert_close(each, want, "reduction", 100, name=name)
    for act in (None, "relu", "relu6", "sigmoid"):
        case = make(layer, Block(biases=True, norm1=False, norm2=False, act1=act, act2=None, training=False))
        case.leaves["x"][1, 3, 0, 5] = value
        with torch.no_grad():
            out = call(case, *tensors(case, torch.float32))
        assert_close(out, expected(case).out, "chain", length(layer), name=f"{act}")


def test_nan_in_training_stays_in_what_it_reaches(cpu_backend: Variant) -> None:
    case = make(Layer(2, 3, 5, 5, o=4), Block(act1=None, act2=None))
    case.leaves["x"][0, 1, 2, 2] = math.nan
    got = measured(case, torch.float32)
    assert bool(got.out.isnan().all())  # channel 1 is NaN everywhere, and every output reads it
    assert got.running["norm1.running_mean"].isnan().tolist() == [False, True, False]


def test_one_value_per_channel_in_training_is_an_error(cpu_backend: Variant) -> None:
    with pytest.raises(ValueError, match="separable_conv2d: x: expected more than one value per channel in training"):
        measured(make(Layer(1, 3, 3, 3, padding=(0, 0, 0, 0), o=4), Block()), torch.float32)


def bad_calls() -> list[Any]:
    x, dw, pw = torch.zeros(2, 3, 8, 8), torch.zeros(3, 1, 3, 3), torch.zeros(4, 3, 1, 1)
    norm = ops.Norm(torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3))
    d, p, s = ops.depthwise_conv2d, ops.pointwise_conv2d, ops.separable_conv2d
    return [
        (d, (None, dw), {}, TypeError, "depthwise_conv2d: x: expected a torch.Tensor, got NoneType"),
        (d, (x[0], dw), {}, ValueError, r"x: expected 4 dimensions \(N, C, H, W\), got shape \(3, 8, 8\)"),
        (d, (x.int(), dw), {}, TypeError, "x: expected dtype float32 or float64, got int32"),
        (d, (x, dw[:2]), {}, ValueError, r"weight: expected shape \(3, 1, KH, KW\), got \(2, 1, 3, 3\)"),
        (d, (x, pw), {}, ValueError, r"weight: expected shape \(3, 1, KH, KW\)"),
        (d, (x, dw.double()), {}, TypeError, "weight: expected dtype torch.float32 as x, got torch.float64"),
        (d, (x, dw.to("meta")), {}, ValueError, "weight: expected device cpu as x, got meta"),
        (d, (x, dw, torch.zeros(4)), {}, ValueError, r"bias: expected shape \(3,\), got \(4,\)"),
        (d, (x, dw), {"stride": 0}, ValueError, "stride: expected an int or a pair of ints >= 1, got 0"),
        (d, (x, dw), {"stride": (1, 2, 3)}, ValueError, "stride: expected"),
        (d, (x, dw), {"padding": -1}, ValueError, "padding: expected .* got -1"),
        (d, (x, dw), {"padding": (1, 2, 3)}, ValueError, "padding: expected"),
        (d, (x[:, :, :2], dw), {}, ValueError, "height: expected padded size >= kernel 3, got 2"),
        (p, (x, pw[:, :2]), {}, ValueError, r"weight: expected shape \(O, 3, 1, 1\), got \(4, 2, 1, 1\)"),
        (p, (x, pw, torch.zeros(3)), {}, ValueError, r"bias: expected shape \(4,\), got \(3,\)"),
        (s, (x, dw, pw[:, :2]), {}, ValueError, r"pw_weight: expected shape \(O, 3, 1, 1\)"),
        (s, (x, dw, pw), {"norm1": "batch"}, TypeError, "norm1: expected fastfer.ops.Norm, got str"),
        (s, (x, dw, pw), {"norm2": norm}, ValueError, r"norm2.weight: expected shape \(4,\), got \(3,\)"),
        (s, (x, dw, pw), {"act1": "gelu"}, ValueError, "act1: expected one of none, relu, .* got 'gelu'"),
        (s, (x, dw, pw), {"act2": "tanh"}, ValueError, "act2: expected one of"),
        (s, (x, dw, pw), {"dw_bias": torch.zeros(2)}, ValueError, r"dw_bias: expected shape \(3,\), got \(2,\)"),
    ]


@pytest.mark.parametrize(("function", "args", "kwargs", "error", "message"), bad_calls())
def test_bad_input(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*args, **kwargs)
