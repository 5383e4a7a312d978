# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with a norm and a max pooling after it, on every backend and ISA, against the two ops apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Variant
from draws import kernels
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import nn, ops

LAYERS: tuple[tuple[Any, ...], ...] = (  # n, c, h, w, o, kernel, stride, padding, pool
    (3, 5, 9, 8, 16, 3, 1, 1, ops.Pool(2)),
    (2, 8, 12, 12, 16, 1, 1, 0, ops.Pool(3, 2, 1)),
    (2, 1, 13, 11, 33, 3, 1, 1, ops.Pool(2, 2)),
    (1, 17, 10, 9, 7, 3, 2, 1, ops.Pool(3, 2, 1)),
    (2, 3, 8, 8, 8, 3, 1, (0, 1, 2, 1), ops.Pool((3, 2), (1, 2), (1, 0, 0, 1))),
    (9, 4, 6, 6, 3, 1, 1, 0, ops.Pool(4, 3, 2)),
    (1, 8, 9, 26, 8, 3, 1, 1, ops.Pool(3, 2, 1)),
    (1, 64, 40, 40, 64, 1, 1, 0, ops.Pool(3, 2, 1)),
    (2, 32, 13, 11, 33, 3, 1, 1, ops.Pool(2)),
    (3, 16, 12, 12, 24, 3, 1, (0, 1, 2, 1), ops.Pool(3, 2, 1)),
)
NAMES = ("x", "weight", "bias", "norm weight", "norm bias")
layers = pytest.mark.parametrize(
    "layer", LAYERS, ids=lambda x: "{1}x{2}x{3}-{4}-k{5}".format(*x) if isinstance(x, tuple) else ""
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=("f32", "f64"))


def leaves_of(layer: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    n, c, h, w, o, kernel = layer[:6]
    g = torch.Generator().manual_seed(7)
    sizes = (n, c, h, w), (o, c, kernel, kernel), (o,), (o,), (o,)
    return [torch.randn(size, generator=g).to(dtype).requires_grad_() for size in sizes]


def running_of(layer: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.zeros(layer[4], dtype=dtype), torch.ones(layer[4], dtype=dtype)]


def run(
    layer: tuple[Any, ...], leaves: list[Tensor], running: list[Tensor], training: bool, act: str = "silu"
) -> Tensor:
    stride, padding, pool = layer[6:]
    x, weight, bias, n_weight, n_bias = leaves
    norm = ops.Norm(n_weight, n_bias, *running)
    return ops.conv2d(x, weight, bias, norm=norm, act=act, stride=stride, padding=padding, pool=pool, training=training)


def oracle(layer: tuple[Any, ...], leaves: list[Tensor], running: list[Tensor], training: bool) -> Tensor:
    """float64 throughout, with the reference's pooling: four-sided pads."""
    stride, padding, pool = layer[6:]
    top, left, bottom, right = (padding,) * 4 if isinstance(padding, int) else padding
    x, weight, bias, n_weight, n_bias = leaves
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride)
    z = F.silu(F.batch_norm(y, *running, n_weight, n_bias, training))
    sides = (pool.padding,) * 4 if isinstance(pool.padding, int) else pool.padding
    z = F.pad(z, (sides[1], sides[3], sides[0], sides[2]), value=float("-inf"))
    return F.max_pool2d(z, pool.kernel, pool.kernel if pool.stride is None else pool.stride)


@dtypes
@layers
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_conv2d_pool(variant: Variant, layer: tuple[Any, ...], dtype: torch.dtype, training: bool) -> None:
    leaves, running = leaves_of(layer, dtype), running_of(layer, dtype)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wide_running = running_of(layer, torch.float64)
    want = oracle(layer, wide, wide_running, training)
    dout = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    with variant.runs(*kernels("conv2d", dtype, "train", "bwd")):
        out = run(layer, leaves, running, training)
        grads = torch.autograd.grad(out, leaves, dout)
    assert out.is_contiguous(memory_format=torch.channels_last)
    terms = leaves[0].numel() + leaves[1].numel()
    assert_close(out, want.detach(), "chain", terms, name="out")
    wanted = torch.autograd.grad(want, wide, dout.double())
    scale = torch.stack([grad.abs().max() for grad in wanted]).max()
    for name, got, right in zip(NAMES, grads, wanted, strict=True):
        assert_close(got, right, "chain", terms, scale=scale if name == "bias" else None, name=f"gradient of {name}")
    for got, right in zip(running, wide_running, strict=True):
        assert_close(got, right, "chain", terms, name="running statistics")


@pytest.mark.parametrize("training", [True, False])
def test_equals_pass_gradient_to_the_first(cpu_backend: Variant, training: bool) -> None:
    """Saturated activations are ties: the bits are those of the convolution and the pooling one after the other."""
    layer = (2, 4, 9, 9, 8, 3, 1, 1, ops.Pool(3, 2, 1))
    results = []
    for together in (True, False):
        leaves, running = leaves_of(layer, torch.float32), running_of(layer, torch.float32)
        if together:
            out = run(layer, leaves, running, training, "relu6")
        else:
            out = ops.max_pool2d(run((*layer[:8], None), leaves, running, training, "relu6"), 3, 2, 1)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_inference_is_the_two_ops(cpu_backend: Variant) -> None:
    layer = LAYERS[1]
    leaves, running = leaves_of(layer, torch.float32), running_of(layer, torch.float32)
    with torch.inference_mode():
        out = run(layer, leaves, running, False)
        apart = ops.max_pool2d(run((*layer[:8], None), leaves, running, False), 3, 2, 1)
    assert torch.equal(out, apart)


@pytest.mark.parametrize("channels", [8, 16])
def test_bits_do_not_depend_on_threads(kernel_variant: Variant, channels: int, threads: None) -> None:
    layer, results = (5, channels, 24, 23, 16, 3, 1, 1, ops.Pool(2)), []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        leaves, running = leaves_of(layer, torch.float32), running_of(layer, torch.float32)
        out = run(layer, leaves, running, True)
        results.append((out.detach(), *running, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_opcheck_and_gradcheck(cpu_backend: Variant) -> None:
    layer = (2, 3, 6, 5, 4, 3, 1, 1, ops.Pool(2))
    leaves, running = leaves_of(layer, torch.float64), running_of(layer, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: run(layer, list(t), [r.clone() for r in running], True), leaves)
    x, weight, bias, n_weight, n_bias = (t.detach().contiguous() for t in leaves)
    x = x.contiguous(memory_format=torch.channels_last)
    window = [2, 2], [2, 2], [0, 0, 0, 0]
    namespace = torch.ops.fastfer
    arguments = [x, weight, bias, n_weight, n_bias, *running, 1e-5, 5, [1, 1], [1, 1, 1, 1], *window, True]
    cpu_backend.opcheck(namespace.conv2d_pool_train.default, arguments)
    out, y, best, positions, stats = namespace.conv2d_pool_train(*arguments)
    arguments = [
        torch.ones_like(out), x, y, best, positions, weight, n_weight, n_bias, stats, 5, [1, 1], [1, 1, 1, 1], *window,
        True, [True] * 3,
    ]  # fmt: skip
    cpu_backend.opcheck(namespace.conv2d_pool_backward.default, arguments)


def test_compile(cpu_backend: Variant) -> None:
    module = nn.Conv2d(3, 4, 3, 1, 1, norm=True, act="relu", pool=nn.MaxPool2d(2))
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_no_images(cpu_backend: Variant) -> None:
    layer = (0, 3, 6, 6, 4, 3, 1, 1, ops.Pool(2))
    leaves, running = leaves_of(layer, torch.float32), running_of(layer, torch.float32)
    out = run(layer, leaves, running, True)
    assert out.shape == (0, 4, 3, 3)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), leaves))


def test_bad_pools() -> None:
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 1, 1)
    with pytest.raises(TypeError, match=r"conv2d: pool: expected fastfer.ops.Pool, got int"):
        ops.conv2d(x, weight, pool=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="conv2d: height: expected padded size >= kernel 5"):
        ops.conv2d(x, weight, pool=ops.Pool(5))
    with pytest.raises(TypeError, match=r"Conv2d: pool: expected a fastfer.nn.MaxPool2d, got int"):
        nn.Conv2d(3, 4, 1, pool=2)  # type: ignore[arg-type]
