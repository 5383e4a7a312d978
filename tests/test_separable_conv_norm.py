# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution with norm and activation, and activations too large for the caches, on all backends."""

from __future__ import annotations

import pytest
import torch
from conftest import Variant
from draws import kernels
from oracle import out_size, pixels
from shapes import EMPTY, LAYERS, Layer
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import ops

layers = pytest.mark.parametrize("layer", LAYERS, ids=lambda x: "{1}x{2}x{3}-k{4[0]}x{4[1]}-s{5[0]}x{5[1]}".format(*x))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=("f32", "f64"))
NAMES = ("x", "weight", "bias", "norm weight", "norm bias")


def leaves_of(layer: Layer, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Leaves as NAMES, running mean and variance, and the upstream gradient."""
    g = torch.Generator().manual_seed(seed)
    c = layer.c
    sizes = (layer.n, c, layer.h, layer.w), (c, 1, *layer.kernel), (c,), (c,), (c,)
    leaves = [torch.randn(size, generator=g).to(dtype).requires_grad_() for size in sizes]
    running = [torch.randn(c, generator=g).to(dtype), torch.rand(c, generator=g).to(dtype) + 0.5]
    return leaves, running, torch.randn((layer.n, c, *out_size(layer)), generator=g).to(dtype)


def run(layer: Layer, leaves: list[Tensor], running: list[Tensor], act: str | None, training: bool) -> Tensor:
    x, weight, bias, n_weight, n_bias = leaves
    norm = ops.Norm(n_weight, n_bias, *running)
    return ops.depthwise_conv2d(x, weight, bias, layer.stride, layer.padding, norm=norm, act=act, training=training)


def oracle(layer: Layer, leaves: list[Tensor], running: list[Tensor], act: str | None, training: bool) -> Tensor:
    x, weight, bias, n_weight, n_bias = leaves
    top, left, bottom, right = layer.padding
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, layer.stride, groups=layer.c)
    z = F.batch_norm(y, *running, n_weight, n_bias, training)
    return {None: lambda v: v, "silu": F.silu, "relu6": F.relu6, "hardswish": F.hardswish}[act](z)


@dtypes
@layers
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_depthwise_norm(variant: Variant, layer: Layer, dtype: torch.dtype, training: bool) -> None:
    if training and pixels(layer) == 1:
        pytest.skip("one value per channel has no variance")
    leaves, running, dout = leaves_of(layer, dtype)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wide_running = [t.double() for t in running]
    with variant.runs(*kernels("depthwise_norm", dtype, "train", "bwd")):
        out = run(layer, leaves, running, "silu", training)
        grads = torch.autograd.grad(out, leaves, dout)
    want = oracle(layer, wide, wide_running, "silu", training)
    length = pixels(layer) + 49
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, want.detach(), "chain", length, name="out")
    wanted = torch.autograd.grad(want, wide, dout.double())
    scale = torch.stack([grad.abs().max() for grad in wanted]).max()  # the bias has no gradient before a norm
    for name, got, right in zip(NAMES, grads, wanted, strict=True):
        assert_close(got, right, "chain", length, scale=scale if name == "bias" else None, name=f"gradient of {name}")
    for got, right in zip(running, wide_running, strict=True):
        assert_close(got, right, "chain", length, name="running statistics")


@dtypes
@pytest.mark.parametrize("act", [None, "relu6", "hardswish"])
def test_depthwise_norm_inference(variant: Variant, act: str | None, dtype: torch.dtype) -> None:
    for layer in LAYERS:
        leaves, running, _ = leaves_of(layer, dtype)
        before = [t.clone() for t in running]
        with torch.inference_mode(), variant.runs(*kernels("depthwise_norm", dtype, "fwd")):
            out = run(layer, leaves, running, act, False)
        want = oracle(layer, [t.detach().double() for t in leaves], [t.double() for t in running], act, False)
        assert_close(out, want, "chain", pixels(layer) + 49, name="out")
        assert all(map(torch.equal, running, before))


@pytest.mark.parametrize("layer", EMPTY)
@pytest.mark.parametrize("training", [True, False])
def test_depthwise_norm_empty(cpu_backend: Variant, layer: Layer, training: bool) -> None:
    leaves, running, dout = leaves_of(layer, torch.float32)
    before = [t.clone() for t in running]
    out = run(layer, leaves, running, "relu6", training)
    assert out.shape == dout.shape
    grads = torch.autograd.grad(out, leaves, dout)
    assert all(grad.shape == leaf.shape and not grad.any() for grad, leaf in zip(grads, leaves, strict=True))
    assert all(map(torch.equal, running, before))


def test_depthwise_norm_bits_do_not_depend_on_threads(kernel_variant: Variant, threads: None) -> None:
    layer = Layer(5, 24, 19, 17, (5, 5), padding=(2, 2, 2, 2))
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        leaves, running, dout = leaves_of(layer, torch.float32)
        out = run(layer, leaves, running, "hardswish", True)
        results.append((out.detach(), *running, *torch.autograd.grad(out, leaves, dout)))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_depthwise_norm_gradcheck(cpu_backend: Variant, training: bool) -> None:
    layer = Layer(2, 3, 5, 4, stride=(2, 1))
    leaves, running, _ = leaves_of(layer, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *t: run(layer, list(t), [r.clone() for r in running], "silu", training), leaves
    )


def test_depthwise_norm_opcheck(cpu_backend: Variant) -> None:
    namespace, layer = torch.ops.fastfer, Layer(2, 3, 6, 5)
    leaves, running, dout = leaves_of(layer, torch.float32)
    x = leaves[0].detach().contiguous(memory_format=torch.channels_last)
    plain = [x, *(leaf.detach() for leaf in leaves[1:])]
    rest = [*running, 1e-5, 4, [1, 1], [1, 1, 1, 1]]
    cpu_backend.opcheck(namespace.depthwise_norm.default, (*plain, *rest))
    cpu_backend.opcheck(
        namespace.depthwise_norm_train.default, (*(t.clone().requires_grad_() for t in plain), *rest, True)
    )
    out, y, stats = namespace.depthwise_norm_train(*plain, *rest, True)
    arguments = (dout, x, y, plain[1], plain[3], plain[4], stats, 4, [1, 1], [1, 1, 1, 1], True, [True] * 3)
    cpu_backend.opcheck(namespace.depthwise_norm_backward.default, arguments)
    assert out.shape == dout.shape


def test_large_activations_are_written_past_the_caches(kernel_variant: Variant) -> None:
    """Above 16 MiB stores bypass the caches: both convolutions' outputs, the block's, and gradients."""
    if kernel_variant.backend != "native":
        pytest.skip("only native kernels have that path")
    g = torch.Generator().manual_seed(3)
    x = torch.randn((2, 16, 372, 371), generator=g).contiguous(memory_format=torch.channels_last)
    assert x.numel() * 4 > 16 << 20
    dw, pw = torch.randn((16, 1, 3, 3), generator=g), torch.randn((16, 16, 1, 1), generator=g)
    affine = [torch.rand(16, generator=g) + 0.5 for _ in range(4)]
    dout = torch.randn(x.shape, generator=g)
    leaves = [x, dw, pw, *affine]

    def block(t: list[Tensor]) -> Tensor:
        norms = [
            ops.Norm(t[i], t[i + 1], torch.zeros(16, dtype=t[0].dtype), torch.ones(16, dtype=t[0].dtype))
            for i in (3, 5)
        ]
        return ops.separable_conv2d(
            t[0], t[1], t[2], norm1=norms[0], act1="silu", norm2=norms[1], act2="silu", padding=1, training=True
        )

    own = [t.clone().requires_grad_() for t in leaves]
    out = block(own)
    grads = torch.autograd.grad(out, own, dout)
    wide = [t.double().requires_grad_() for t in leaves]
    y = F.conv2d(wide[0], wide[1], None, 1, 1, groups=16)
    y = F.conv2d(F.silu(F.batch_norm(y, None, None, wide[3], wide[4], True)), wide[2])
    want = F.silu(F.batch_norm(y, None, None, wide[5], wide[6], True))
    assert_close(out, want.detach(), "chain", x.numel() // 16, name="out")
    for got, right in zip(grads, torch.autograd.grad(want, wide, dout.double()), strict=True):
        assert_close(got, right, "chain", x.numel() // 16, name="gradient")
