# SPDX-License-Identifier: Apache-2.0
"""Normalisations that one op leaves to the next: `Chain` against its blocks one by one in float64, and the ops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import Variant
from tolerance import assert_close
from torch import Tensor, nn

from fastfer import backend
from fastfer.nn import CSA, BatchNorm2d, Chain, Conv2d, DepthwiseConv2d, SeparableConv2d, chain
from fastfer.ops._linked import Linked, linked_conv2d, linked_csa, linked_depthwise_conv2d, linked_separable_conv2d
from fastfer.ops.norm import Norm
from fastfer.signatures.fields import Link

DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


def block(a: int, b: int, kernel: int = 3, stride: int = 1, padding: Any = 1, **options: Any) -> SeparableConv2d:
    return SeparableConv2d(a, b, kernel, stride, padding, **{"norm2": True, "act2": "silu", **options})


def between(a: int, b: int, stride: int = 1, padding: Any = 1) -> SeparableConv2d:
    return block(a, b, 3, stride, padding, norm1=True, act1="silu")


CHAINS: dict[str, tuple[Any, tuple[int, int, int, int]]] = {
    "stem-blocks-pooled-csa": (
        lambda: [
            Conv2d(1, 33, 3, 1, 1, bias=False, norm=True, act="silu"),
            block(33, 40),
            block(40, 24),
            CSA(24, pool=True),
        ],
        (9, 1, 13, 11),
    ),
    "few-images": (lambda: [block(20, 36), block(36, 17, act2="relu"), CSA(17)], (2, 20, 9, 8)),
    "norm-between": (
        lambda: [
            Conv2d(3, 16, 3, 2, (0, 0, 1, 1), norm=True, act="hardswish"),
            between(16, 24),
            between(24, 40, 2, (0, 0, 1, 1)),
            between(40, 12),
        ],
        (5, 3, 27, 30),
    ),
    "wide": (lambda: [block(8, 264), block(264, 272), block(272, 5)], (3, 8, 6, 7)),
    "kernels": (
        lambda: [
            block(16, 20, 5, 2, 2, dw_bias=True, pw_bias=True),
            block(20, 20, 4, 4, (1, 0, 2, 1)),
            block(20, 9, 2, 1, 0, norm2=False, act2=None, pw_bias=True),
        ],
        (4, 16, 37, 35),
    ),
    "pointwise-stem": (
        lambda: [Conv2d(12, 20, 1, norm=True, act="relu"), block(20, 20, act2=None), block(20, 7)],
        (3, 12, 9, 10),
    ),
    "depthwise": (
        lambda: [
            Conv2d(10, 24, 1, bias=False, norm=True, act="hardswish"),
            DepthwiseConv2d(24, 5, 2, 2, bias=False, norm=True, act="hardswish"),
            block(24, 12),
            DepthwiseConv2d(12, 3, 1, 1, bias=False, norm=True),
        ],
        (3, 10, 18, 19),
    ),
}


@pytest.fixture
def linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links ops on every backend, not only on the one that gains by it."""
    monkeypatch.setattr(chain, "_links", lambda: True)


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[Chain, Tensor]:
    torch.manual_seed(0)
    layers, shape = CHAINS[name]
    model = Chain(*layers()).to(torch.float64)
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers by name; the upstream gradient is the same each time."""
    x = x.detach().clone().requires_grad_()
    out = model(x)
    generator = torch.Generator().manual_seed(1)
    (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)).sum().backward()
    result = {"out": out.detach(), "x": x.grad}
    result |= {name: p.grad for name, p in model.named_parameters()}
    result |= {name: b.clone() for name, b in model.named_buffers()}
    return result


def one_by_one(model: Chain, x: Tensor) -> dict[str, Tensor]:
    """In float64 on the reference backend, each block for itself."""
    wide = copy.deepcopy(model).double()
    with backend.use("reference"):
        assert not backend.links("cpu")
        return run(wide, x.double())


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], length: int) -> None:
    for name, value in want.items():
        if value.dtype.is_floating_point:
            scale = value.abs().max().clamp(min=1)  # a bias before a norm has no gradient but rounding
            assert_close(got[name], value, "chain", length, scale=scale, name=name)
        else:
            assert torch.equal(got[name], value), name


@dtypes
@pytest.mark.parametrize("name", CHAINS)
def test_chain(variant: Variant, linked: None, name: str, dtype: torch.dtype) -> None:
    model, x = build(name, dtype)
    want = one_by_one(model, x)
    assert_same(run(model, x), want, x.shape[0] * x.shape[2] * x.shape[3])


@pytest.mark.parametrize("name", ["stem-blocks-pooled-csa", "norm-between", "wide"])
def test_bits_do_not_depend_on_threads(kernel_variant: Variant, threads: None, linked: None, name: str) -> None:
    if kernel_variant.backend != "native":
        pytest.skip("composed of torch's sums elsewhere, which no number of threads is promised for")
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        model, x = build(name, torch.float32)
        results.append(run(model, x))
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


def linked_input(dtype: torch.dtype) -> tuple[Linked, list[Tensor]]:
    """A linked normalisation of 18 channels whose tensors are leaves."""
    torch.manual_seed(2)
    y = torch.randn(3, 18, 7, 6, dtype=torch.float64) * 2 + 1
    stats = torch.stack([y.mean((0, 2, 3)), (y.var((0, 2, 3), correction=0) + 1e-5).rsqrt(), y.var((0, 2, 3))])
    leaves = [t.to(dtype).requires_grad_() for t in (y, stats, torch.rand(18) + 0.5, torch.randn(18))]
    return as_linked(leaves), leaves


def as_linked(tensors: list[Tensor]) -> Linked:
    y, stats, weight, bias = tensors
    return Linked(y, Link(stats, weight, bias, 5))  # silu


def normalised(d: Linked) -> Tensor:
    mean, invstd, weight, bias = (
        v.view(1, -1, 1, 1) for v in (d.link.stats[0], d.link.stats[1], d.link.weight, d.link.bias)
    )
    return nn.functional.silu((d.y - mean) * invstd * weight + bias)


def test_empty_batch(cpu_backend: Variant) -> None:
    """No image, no statistics to leave, but gradients of what came are zeros."""
    values, leaves = linked_input(torch.float32)
    none = values._replace(y=values.y.detach()[:0].requires_grad_())
    channel, spatial, bias = (torch.randn(shape) for shape in SHAPES["csa"])
    out = linked_csa(none, channel, spatial, bias, pool=True)
    assert out.shape == (0, 18, 3, 3)
    for grad, leaf in zip(torch.autograd.grad(out.sum(), (none.y, *leaves[1:])), (none.y, *leaves[1:]), strict=True):
        assert grad.shape == leaf.shape
        assert not bool(grad.any())


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "block": ((18, 1, 3, 3), (9, 18, 1, 1)),
    "depthwise": ((18, 1, 3, 3), (18,), (18,)),
    "csa": ((1, 1, 3), (1, 2, 1, 1), (1,)),
}


@dtypes
@pytest.mark.parametrize("kind", list(SHAPES))
def test_gradients_of_the_linked_tensors(variant: Variant, kind: str, dtype: torch.dtype) -> None:
    """Each of y, statistics, weight and bias as a tensor of its own, whatever it comes from."""
    values, leaves = linked_input(dtype)
    torch.manual_seed(3)
    weights = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES[kind]]

    def result(d: Linked, parts: list[Tensor], link: bool) -> Tensor:
        if kind == "csa":
            if link:
                return linked_csa(d, *parts, pool=False)
            z, (w, sw, sb) = normalised(d), parts
            channel = torch.sigmoid(nn.functional.conv1d(z.mean((2, 3))[:, None], w, padding=1))[:, 0, :, None, None]
            pixel = torch.stack([z.amax(1), z.mean(1)], 1)
            return z * (channel + torch.sigmoid(nn.functional.conv2d(pixel, sw, sb)))
        if kind == "depthwise":
            weight, *affine = parts
            if link:
                norm = Norm(*affine, torch.zeros(18, dtype=dtype), torch.ones(18, dtype=dtype), eps=1e-3)
                return linked_depthwise_conv2d(d, weight, None, norm, "silu", 1, 1)
            z = nn.functional.conv2d(normalised(d), weight, padding=1, groups=18)
            return nn.functional.silu(nn.functional.batch_norm(z, None, None, *affine, training=True, eps=1e-3))
        if link:
            options: dict[str, Any] = {"norm1": None, "act1": None, "norm2": None, "act2": None}
            y = linked_separable_conv2d(
                d, *parts, **options, stride=1, padding=1, dw_bias=None, pw_bias=None, leaves=False
            )
            assert isinstance(y, Tensor)
            return y
        z = nn.functional.conv2d(normalised(d), parts[0], padding=1, groups=18)
        return nn.functional.conv2d(z, parts[1])

    wide = [t.detach().double().requires_grad_() for t in (*leaves, *weights)]
    want = result(as_linked(wide[:4]), wide[4:], False)
    upstream = torch.randn_like(want)
    grads = torch.autograd.grad(want, wide, upstream)
    got = result(values, weights, True)
    assert_close(got, want, "chain", 64, name="out")
    for name, grad, expected in zip(
        ("y", "stats", "weight", "bias", "first", "second", "third"),
        torch.autograd.grad(got, [*leaves, *weights], upstream.to(dtype)),
        grads,
        strict=False,
    ):
        assert_close(grad, expected, "chain", 128, name=name)


def wide_stats(leaves: list[Tensor]) -> Tensor:
    y = nn.functional.conv2d(*leaves, padding=1)
    return torch.stack([y.mean((0, 2, 3)), (y.var((0, 2, 3), correction=0) + 1e-3).rsqrt(), y.var((0, 2, 3))])


@dtypes
def test_gradient_through_the_statistics(variant: Variant, dtype: torch.dtype) -> None:
    """A loss of y and of all three statistics: mean, 1/sqrt(var + eps), unbiased variance."""
    torch.manual_seed(4)
    x, weight = torch.randn(3, 2, 8, 9, dtype=torch.float64), torch.randn(10, 2, 3, 3, dtype=torch.float64)
    bias = torch.randn(10, dtype=torch.float64)
    of_y, of_stats = torch.randn(3, 10, 8, 9, dtype=torch.float64), torch.randn(3, 10, dtype=torch.float64)
    wide = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y, stats = nn.functional.conv2d(*wide, padding=1), wide_stats(wide)
    want = torch.autograd.grad((y * of_y).sum() + (stats * of_stats).sum(), wide)
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
    norm = Norm(*(torch.ones(10, dtype=dtype) for _ in range(4)), eps=1e-3)
    got = linked_conv2d(*leaves, norm, None, 1, 1)
    assert_close(got.y, y, "chain", 18, name="y")
    assert_close(got.link.stats, stats, "chain", 216, name="statistics")
    loss = (got.y * of_y.to(dtype)).sum() + (got.link.stats * of_stats.to(dtype)).sum()
    for name, grad, expected in zip(("x", "weight", "bias"), torch.autograd.grad(loss, leaves), want, strict=True):
        assert_close(grad, expected, "chain", 216, name=name)
    alone = linked_conv2d(*leaves, norm, None, 1, 1)
    only = torch.autograd.grad((alone.link.stats * of_stats.to(dtype)).sum(), leaves)
    want = torch.autograd.grad((wide_stats(wide) * of_stats).sum(), wide)
    for name, grad, expected in zip(("x", "weight", "bias"), only, want, strict=True):
        assert_close(grad, expected, "chain", 216, name=name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite(cpu_backend: Variant, linked: None, value: float) -> None:
    model, x = build("stem-blocks-pooled-csa", torch.float32)
    x[0, 0, 3, 3] = value
    want = one_by_one(model, x)
    got = run(model, x)
    for name in want:
        if want[name].dtype.is_floating_point:
            assert torch.equal(got[name].isfinite(), want[name].isfinite()), name


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    for kind in (Conv2d, SeparableConv2d, CSA):
        name = f"{kind.__name__}.linked"
        monkeypatch.setattr(
            kind,
            "linked",
            lambda self, *args, _f=kind.linked, _n=name: (seen.append(_n), _f(self, *args))[1],
        )
    return seen


ALL = ["Conv2d.linked", "SeparableConv2d.linked", "SeparableConv2d.linked", "CSA.linked"]


def test_what_is_linked(monkeypatch: pytest.MonkeyPatch, linked: None) -> None:
    model, x = build("stem-blocks-pooled-csa", torch.float32)
    seen = calls(monkeypatch)
    model(x)
    assert seen == ALL
    seen.clear()
    with torch.no_grad():
        model(x)
    model.eval()(x)
    assert seen == []
    model.train()
    model[1].norm2.eval()
    model(x)
    assert seen == ["CSA.linked", "SeparableConv2d.linked"][::-1] or seen == ["SeparableConv2d.linked", "CSA.linked"]


def test_hooks_see_tensors(monkeypatch: pytest.MonkeyPatch, linked: None) -> None:
    model, x = build("stem-blocks-pooled-csa", torch.float32)
    outputs: list[Tensor] = []
    handle = model[1].register_forward_hook(lambda module, args, output: outputs.extend([args[0], output]))
    seen = calls(monkeypatch)
    got = model(x)
    handle.remove()
    assert all(type(t) is Tensor for t in outputs)
    assert seen == ["SeparableConv2d.linked", "CSA.linked"]
    assert_close(got, copy.deepcopy(model).eval().train()(x).detach().double(), "chain", 4096)


def test_only_the_native_kernels_link_by_default(cpu_backend: Variant) -> None:
    assert backend.links("cpu") == (cpu_backend.backend == "native")


def test_autocast_and_compile_do_not_link(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("pointwise-stem", torch.float32)
    seen = calls(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    torch.compile(model, backend="eager", fullgraph=True)(x)
    assert seen == []


def test_opcheck(cpu_backend: Variant) -> None:
    namespace = torch.ops.fastfer
    values, _ = linked_input(torch.float32)
    link = values.link
    pick = {"test_utils": ("test_schema", "test_autograd_registration", "test_faketensor")}
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3, requires_grad=True)
    ones = torch.ones(4)
    cpu_backend.opcheck(
        namespace.conv2d_linked.default, (x, weight, None, ones, ones, 1e-5, [1, 1], [1, 1, 1, 1]), **pick
    )
    dw, pw = torch.randn(18, 1, 3, 3, requires_grad=True), torch.randn(4, 18, 1, 1, requires_grad=True)
    for leaves in (False, True):
        norm2 = (None, None, None, None, 0.0) if leaves else (ones, ones, ones, ones, 1e-5)
        block = (dw, None, None, None, None, None, 0.0, 0, pw, None, *norm2, 0, [1, 1], [1, 1, 1, 1])
        left = (ones, ones, 1e-5) if leaves else (None, None, 0.0)
        args = (values.y, *block, *link, *left)
        cpu_backend.opcheck(namespace.separable_conv2d_linked.default, args, **pick)
    wide = torch.ones(18)
    depthwise = (dw, None, wide, wide, wide, wide, 1e-5, 3, [1, 1], [1, 1, 1, 1])
    cpu_backend.opcheck(namespace.depthwise_norm_linked.default, (values.y, *depthwise, *link), **pick)
    gates = (torch.randn(1, 1, 3), None, None, None, 0, 6, torch.randn(1, 2, 1, 1), torch.randn(1), False, True)
    cpu_backend.opcheck(namespace.gate_linked.default, (values.y, *link, *gates), **pick)
