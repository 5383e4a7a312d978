# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on every backend and ISA against float64 torch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from conftest import Variant
from guard import Guarded
from tolerance import assert_close
from torch import Tensor

from fastfer import backend, nn, ops

DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


class Sizes(NamedTuple):
    """Batch, queries, keys, features of q and k, features of v."""

    b: int
    t: int
    s: int
    d: int
    e: int


SIZES = (
    Sizes(16, 4, 4, 32, 32),  # the heads of the networks
    Sizes(3, 36, 36, 128, 128),
    Sizes(1, 1, 1, 1, 1),
    Sizes(2, 5, 7, 3, 9),
    Sizes(1, 17, 33, 16, 31),
    Sizes(3, 1, 40, 24, 8),
    Sizes(2, 33, 1, 5, 17),
    Sizes(1, 130, 270, 20, 7),  # more than one tile each way
    Sizes(1, 100, 600, 4, 40),
    Sizes(9, 97, 64, 8, 16),
)
ADDITIVE = ((64, 4, 16, 8), (3, 36, 128, 128), (1, 1, 1, 1), (2, 5, 7, 3), (4, 33, 15, 17), (1, 700, 9, 33))
"""B, T, D, A."""


def kernels(op: str, dtype: torch.dtype, *directions: str) -> list[str]:
    return [f"{op}_{direction}_{'f64' if dtype == torch.float64 else 'f32'}" for direction in directions]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dot_inputs(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """q, k, v, scale and the upstream gradient."""
    b, t, s, d, e = sizes
    shapes = ((b, t, d), (b, s, d), (b, s, e))
    leaves = [normal(*shape, dtype=dtype, seed=3 * seed + i) for i, shape in enumerate(shapes)]
    leaves.append(torch.tensor(0.75, dtype=dtype))
    return [leaf.requires_grad_() for leaf in leaves], normal(b, t, e, dtype=dtype, seed=3 * seed + 7)


def dot_oracle(leaves: list[Tensor], dout: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    """Output and gradients in float64 for factor 1/√D, and for the gradients the sizes of the terms they sum."""
    q, k, v, scale = (leaf.detach().double().requires_grad_() for leaf in leaves)
    root = max(q.shape[2], 1) ** -0.5
    raw = q @ k.transpose(1, 2)
    weights = torch.softmax(raw * (scale * root), 2)
    out = weights @ v
    grads = torch.autograd.grad(out, (q, k, v, scale), dout.double())
    with torch.no_grad():
        wide = dout.double()
        down = weights * ((wide.abs() @ v.abs().transpose(1, 2)) + (wide * out).abs().sum(2, keepdim=True))
        terms = [
            (down @ k.abs()) * root,
            (down.transpose(1, 2) @ q.abs()) * root,
            weights.transpose(1, 2) @ wide.abs(),
            (down * raw.abs()).sum() * root,
        ]
    return [out.detach(), *grads], [None, *(t.max() if t.numel() else None for t in terms)]


Case = tuple[list[Tensor], Tensor, tuple[list[Tensor], list[Tensor | None]]]


@cache
def dot_case(sizes: Sizes, dtype: torch.dtype) -> Case:
    leaves, dout = dot_inputs(sizes, dtype)
    return leaves, dout, dot_oracle(leaves, dout)


def dot(leaves: list[Tensor]) -> Tensor:
    q, k, v, scale = leaves
    return ops.dot_product_attention(q, k, v, scale=scale, factor=max(q.shape[2], 1) ** -0.5)


def dot_result(leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    out = dot(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def additive_inputs(b: int, t: int, d: int, a: int, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """x, h, weight, bias, v, v_bias and the upstream gradient."""
    shapes = ((b, t, d), (b, t, d), (a, 2 * d), (a,), (a,), (1,))
    leaves = [normal(*shape, dtype=dtype, seed=7 * seed + i) for i, shape in enumerate(shapes)]
    leaves[2] = leaves[2] / max(d, 1) ** 0.5
    return [leaf.requires_grad_() for leaf in leaves], normal(b, d, dtype=dtype, seed=7 * seed + 6)


def additive_formula(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    scores = torch.tanh(torch.cat([x, h], 2) @ weight.t() + bias) @ v.reshape(-1) + v_bias
    return (torch.softmax(scores, 1)[:, :, None] * x).sum(1)


def additive_oracle(leaves: list[Tensor], dout: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out = additive_formula(*wide)
    grads = torch.autograd.grad(out, wide, dout.double())
    with torch.no_grad():
        x, h, weight, bias, v, v_bias = wide
        u = torch.tanh(torch.cat([x, h], 2) @ weight.t() + bias)
        a = torch.softmax(u @ v + v_bias, 1)
        reach = x.abs() @ dout.double().abs()[:, :, None]
        de = a * (reach[:, :, 0] + (a[:, :, None] * reach).sum(1))
        dz = de[:, :, None] * v.abs()
        through = dz @ weight.abs()
        sizes = (
            a[:, :, None] * dout.double().abs()[:, None] + through[:, :, : x.shape[2]],
            through[:, :, x.shape[2] :],
            torch.einsum("bta,btd->ad", dz, torch.cat([x, h], 2).abs()),
            dz.sum((0, 1)),
            torch.einsum("bt,bta->a", de, u.abs()),
            de.sum(),
        )
    return [out.detach(), *grads], [None, *(t.max() if t.numel() else None for t in sizes)]


@cache
def additive_case(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Case:
    leaves, dout = additive_inputs(*sizes, dtype)
    return leaves, dout, additive_oracle(leaves, dout)


def additive_result(leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    out = ops.additive_attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def assert_all(
    got: list[Tensor], oracle: tuple[list[Tensor], list[Tensor | None]], names: str, length: int, text: str = ""
) -> None:
    for name, each, want, scale in zip(names.split(), got, *oracle, strict=True):
        assert each.is_contiguous(), name
        assert_close(each, want, "chain", length, scale=scale, name=f"{name} {text}")


DOT_NAMES = "out dq dk dv dscale"
ADDITIVE_NAMES = "out dx dh dweight dbias dv dv_bias"


def dot_length(sizes: Sizes) -> int:
    return sizes.d + sizes.s + sizes.e


@dtypes
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_dot_product(variant: Variant, sizes: Sizes, dtype: torch.dtype) -> None:
    leaves, dout, oracle = dot_case(sizes, dtype)
    with variant.runs(*kernels("dot_product_attention", dtype, "fwd", "bwd")):
        got = dot_result(leaves, dout)
    assert_all(got, oracle, DOT_NAMES, dot_length(sizes))
    with torch.inference_mode(), variant.runs(*kernels("dot_product_attention", dtype, "fwd")):
        assert torch.equal(dot(leaves), got[0])


@dtypes
def test_dot_product_tails(variant: Variant, dtype: torch.dtype) -> None:
    """Every tail of a vector, of queries, keys and features in turn."""
    for size in (1, 2, 3, 5, 8, 9, 15, 17, 31, 33):
        for sizes in (
            Sizes(1, size, 3, 4, 5),
            Sizes(1, 3, size, 4, 5),
            Sizes(1, 3, 4, size, 5),
            Sizes(1, 3, 4, 5, size),
        ):
            leaves, dout, oracle = dot_case(sizes, dtype)
            assert_all(dot_result(leaves, dout), oracle, DOT_NAMES, dot_length(sizes), f"{sizes}")


@dtypes
@pytest.mark.parametrize("sizes", ADDITIVE, ids=lambda s: "x".join(map(str, s)))
def test_additive(variant: Variant, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    leaves, dout, oracle = additive_case(sizes, dtype)
    with variant.runs(*kernels("additive_attention", dtype, "fwd", "bwd")):
        got = additive_result(leaves, dout)
    assert_all(got, oracle, ADDITIVE_NAMES, sum(sizes))
    with torch.inference_mode(), variant.runs(*kernels("additive_attention", dtype, "fwd")):
        assert torch.equal(ops.additive_attention(*leaves), got[0])


@dtypes
def test_additive_tails(variant: Variant, dtype: torch.dtype) -> None:
    for size in (1, 2, 3, 5, 8, 9, 15, 17, 31, 33):
        for sizes in ((2, size, 3, 4), (2, 3, size, 4), (2, 3, 4, size)):
            leaves, dout, oracle = additive_case(sizes, dtype)
            assert_all(additive_result(leaves, dout), oracle, ADDITIVE_NAMES, 40, f"{sizes}")


@dtypes
def test_tanh(variant: Variant, dtype: torch.dtype) -> None:
    """The hidden layer of one unit with weight 1 on x and 0 on h is tanh(x), to a few ulp at every size."""
    sizes = torch.cat(
        [torch.linspace(-10, 10, 4001), torch.logspace(-30, 1, 500), torch.tensor([0.625, 0.62499, 88.9])]
    )
    x = torch.cat([sizes, -sizes, torch.tensor([math.inf, -math.inf, math.nan])]).to(dtype).view(1, -1, 1)
    one, zero = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    weight, module = torch.stack([one, zero], 1), backend.implementation("attention", "cpu")
    _, u, _ = module.additive_attention_train(x, torch.zeros_like(x), weight, zero, one, zero)
    assert_close(u, x.double().tanh(), "elementwise", scale=0.0)


def test_random_shapes(variant: Variant) -> None:
    seed = random.randrange(1 << 30)
    draw = random.Random(seed)
    for _ in range(6):
        sizes = Sizes(draw.randint(1, 5), *(draw.choice((1, 2, 15, 47, draw.randint(1, 290))) for _ in range(2)),
                      draw.randint(1, 70), draw.randint(1, 70))  # fmt: skip
        leaves, dout = dot_inputs(sizes, torch.float32, seed)
        assert_all(dot_result(leaves, dout), dot_oracle(leaves, dout), DOT_NAMES, dot_length(sizes),
                   f"{sizes} seed {seed}")  # fmt: skip
        shape = (draw.randint(1, 5), draw.randint(1, 60), draw.randint(1, 70), draw.randint(1, 70))
        leaves, dout = additive_inputs(*shape, torch.float32, seed)
        assert_all(additive_result(leaves, dout), additive_oracle(leaves, dout), ADDITIVE_NAMES, sum(shape),
                   f"{shape} seed {seed}")  # fmt: skip


def test_scale(cpu_backend: Variant) -> None:
    leaves, _ = dot_inputs(Sizes(2, 5, 6, 9, 4), torch.float64)
    q, k, v, scale = leaves
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ops.dot_product_attention(q, k, v), want)
    want = torch.softmax(0.75 * q @ k.transpose(1, 2), 2) @ v
    for each in (0.75, scale, scale.detach().view(1)):
        torch.testing.assert_close(ops.dot_product_attention(q, k, v, scale=each), want)
    torch.testing.assert_close(ops.dot_product_attention(q, k, v, scale=0.25, factor=3.0), want)
    out = ops.dot_product_attention(q, k, v, scale=scale.detach().view(1).requires_grad_())
    out.sum().backward()
    for value in (0.0, -2.0):
        s = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        got = torch.autograd.grad(ops.dot_product_attention(q, k, v, scale=s).square().sum(), s)
        want_grad = torch.autograd.grad((torch.softmax(s * q @ k.transpose(1, 2), 2) @ v).square().sum(), s)
        torch.testing.assert_close(got, want_grad)


def test_large_scores(variant: Variant) -> None:
    """Scores of a thousand: nothing overflows, and the probabilities keep their digits in backward too."""
    leaves, dout = dot_inputs(Sizes(2, 20, 300, 16, 8), torch.float32)
    with torch.no_grad():
        leaves[0][:, :, 0] = 64.0
        leaves[1][:, :, 0] = 64.0
    q, k, v, _ = leaves
    out = ops.dot_product_attention(q, k, v)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves[:3]]
    want = torch.nn.functional.scaled_dot_product_attention(*wide)
    assert_close(out, want.detach(), "chain", 1000 * 16, name="out")
    for got, right in zip(
        torch.autograd.grad(out, leaves[:3], dout), torch.autograd.grad(want, wide, dout.double()), strict=True
    ):
        assert_close(got, right, "chain", 1000 * 16, name="gradient")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_non_finite_as_torch(variant: Variant, where: int, value: float) -> None:
    for sizes in (Sizes(2, 5, 6, 9, 4), Sizes(1, 3, 300, 4, 3)):
        leaves, dout = dot_inputs(sizes, torch.float32)
        with torch.no_grad():
            leaves[where][0, 1, 2] = value
        got, (want, _) = dot_result(leaves, dout), dot_oracle(leaves, dout)
        assert_close(got[0], want[0], "chain", 400, name="out")
        for name, each, right in zip(("dq", "dk", "dv"), got[1:4], want[1:4], strict=True):
            assert torch.equal(each.isfinite(), right.isfinite()), name


def test_masked_scores(variant: Variant) -> None:
    """A score of -inf takes no part; a query with only those gives NaN, and no other query does."""
    q, k, v = torch.ones(1, 3, 2), torch.ones(1, 600, 2), normal(1, 600, 4, dtype=torch.float32)
    k[0, :500, 0] = -math.inf
    q[0, 1, 1] = math.inf
    k[0, 500:, 1] = -1.0
    want = torch.softmax(q @ k.transpose(1, 2), 2).nan_to_num(math.nan) @ v
    got = ops.dot_product_attention(q, k, v, scale=1.0)
    assert torch.equal(got.isnan(), want.isnan())
    assert_close(got[:, ::2], want[:, ::2].double(), "chain", 100, name="out")
    k[0, :, 0] = -math.inf
    assert bool(ops.dot_product_attention(q[:, :1], k, v).isnan().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_additive_non_finite_as_torch(variant: Variant, where: int, value: float) -> None:
    leaves, dout = additive_inputs(3, 5, 6, 7, torch.float32)
    with torch.no_grad():
        leaves[where][1, 2, 3] = value
    got, (want, _) = additive_result(leaves, dout), additive_oracle(leaves, dout)
    assert_close(got[0], want[0], "chain", 100, name="out")
    for name, each, right in zip(ADDITIVE_NAMES.split()[1:3], got[1:3], want[1:3], strict=True):
        assert torch.equal(each.isfinite()[[0, 2]], right.isfinite()[[0, 2]]), name
    assert not bool(got[3].isfinite().all())


EMPTY = (Sizes(0, 4, 4, 8, 8), Sizes(2, 0, 3, 4, 5), Sizes(2, 3, 0, 4, 5), Sizes(2, 3, 4, 0, 5), Sizes(2, 3, 4, 5, 0))


@pytest.mark.parametrize("sizes", EMPTY)
def test_empty(variant: Variant, sizes: Sizes) -> None:
    leaves, dout = dot_inputs(sizes, torch.float32)
    for each, want in zip(dot_result(leaves, dout), dot_oracle(leaves, dout)[0], strict=True):
        assert_close(each, want, "chain", 8)


@pytest.mark.parametrize("sizes", [(0, 4, 8, 3), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_additive_empty(variant: Variant, sizes: tuple[int, int, int, int]) -> None:
    leaves, dout = additive_inputs(*sizes, torch.float32)
    for each, want in zip(additive_result(leaves, dout), additive_oracle(leaves, dout)[0], strict=True):
        assert_close(each, want, "chain", 8)


def test_only_the_gradients_asked_for(cpu_backend: Variant) -> None:
    for inputs, run in (
        (dot_inputs(Sizes(2, 5, 6, 9, 4), torch.float64), dot),
        (additive_inputs(2, 5, 6, 9, torch.float64), lambda leaves: ops.additive_attention(*leaves)),
    ):
        leaves, dout = inputs
        want = torch.autograd.grad(run(leaves), leaves, dout)
        for chosen in [(i,) for i in range(len(leaves))] + [(0, 1), (1, 2), (0, 2)]:
            args = [leaf.detach().requires_grad_(i in chosen) for i, leaf in enumerate(leaves)]
            for i, grad in zip(chosen, torch.autograd.grad(run(args), [args[i] for i in chosen], dout), strict=True):
                torch.testing.assert_close(grad, want[i])


def test_views(kernel_variant: Variant) -> None:
    """Tokens of a map in either layout, slices, transposes and expanded tensors give the same as dense copies."""
    image = normal(2, 12, 3, 5, dtype=torch.float32)
    big = normal(2, 40, 30, dtype=torch.float32)
    views = (
        image.flatten(2).transpose(1, 2),
        image.contiguous(memory_format=torch.channels_last).flatten(2).transpose(1, 2),
        big[:, 3:18, 5:29:2],
        big[:1, :15, :12].expand(2, 15, 12),
        big[:, :1, :12].expand(2, 15, 12),
    )
    (_, _, weight, bias, v, v_bias), _ = additive_inputs(2, 15, 12, 9, torch.float32)
    spread = torch.randn(1, 1, 1).expand(2, 15, 12)
    for view in views:
        x, dense = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
        for run in (
            lambda t: ops.dot_product_attention(t, t, t),
            lambda t: ops.additive_attention(t, t, weight.t().contiguous().t(), bias, v.view(1, -1), v_bias)[:, None],
        ):
            got, want = run(x), run(dense)
            assert torch.equal(got, want)
            upstream = spread[:, : got.shape[1]]
            assert torch.equal(
                torch.autograd.grad(got, x, upstream)[0], torch.autograd.grad(want, dense, upstream.contiguous())[0]
            )


@dtypes
def test_threads_give_the_same_bits(kernel_variant: Variant, dtype: torch.dtype, threads: None) -> None:
    cases = [dot_inputs(Sizes(13, 36, 36, 64, 64), dtype), dot_inputs(Sizes(1, 250, 300, 24, 20), dtype)]
    additive = additive_inputs(20, 36, 48, 33, dtype)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append([*(t for case in cases for t in dot_result(*case)), *additive_result(*additive)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@dtypes
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, dtype: torch.dtype) -> None:
    module = backend.implementation("attention", "cpu")
    for sizes in (Sizes(2, 5, 7, 3, 9), Sizes(1, 97, 20, 17, 15), Sizes(2, 3, 260, 4, 1)):
        leaves, dout = dot_inputs(sizes, dtype)
        q, k, v, scale = (leaf.detach() for leaf in leaves)
        with Guarded() as guarded:
            out, stats = module.dot_product_attention_train(q, k, v, scale, 0.5)
            module.dot_product_attention_backward(dout, q, k, v, scale, 0.5, out, stats, [True] * 4)
        guarded.check(at_least=4)
    for shape in ((2, 5, 7, 3), (1, 40, 17, 33)):
        leaves, dout = additive_inputs(*shape, dtype)
        x, h, weight, bias, v, v_bias = (leaf.detach() for leaf in leaves)
        with Guarded() as guarded:
            _, u, weights = module.additive_attention_train(x, h, weight, bias, v, v_bias)
            module.additive_attention_backward(dout, x, h, weight, v, u, weights, [True] * 3)
        guarded.check(at_least=4)


def test_gradcheck(cpu_backend: Variant) -> None:
    leaves, _ = dot_inputs(Sizes(2, 3, 4, 2, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda *args: dot(list(args)), leaves)
    leaves, _ = additive_inputs(2, 3, 2, 4, torch.float64)
    assert torch.autograd.gradcheck(ops.additive_attention, leaves)


@dtypes
def test_opcheck(cpu_backend: Variant, dtype: torch.dtype) -> None:
    space = torch.ops.fastfer
    leaves, dout = dot_inputs(Sizes(2, 3, 5, 4, 6), dtype)
    plain = [leaf.detach() for leaf in leaves]
    torch.library.opcheck(space.dot_product_attention.default, (*plain, 0.5))
    torch.library.opcheck(space.dot_product_attention_train.default, (*leaves, 0.5))
    torch.library.opcheck(space.dot_product_attention_train.default, (*leaves[:3], None, 0.5))
    out, stats = space.dot_product_attention_train(*plain, 0.5)
    torch.library.opcheck(
        space.dot_product_attention_backward.default,
        (dout, *plain, 0.5, out, stats, [True, False, True, True]),
    )
    leaves, dout = additive_inputs(2, 3, 4, 5, dtype)
    plain = [leaf.detach() for leaf in leaves]
    torch.library.opcheck(space.additive_attention.default, tuple(plain))
    torch.library.opcheck(space.additive_attention_train.default, tuple(leaves))
    _, u, weights = space.additive_attention_train(*plain)
    x, h, weight, _, v, _ = plain
    torch.library.opcheck(
        space.additive_attention_backward.default, (dout, x, h, weight, v, u, weights, [True, True, True])
    )


def test_compile(cpu_backend: Variant) -> None:
    leaves, _ = additive_inputs(2, 5, 6, 4, torch.float32)

    def function(x: Tensor, h: Tensor, *rest: Tensor) -> Tensor:
        return (
            ops.additive_attention(x, h, *rest).sum() + ops.dot_product_attention(h, x, x, scale=rest[3]).square().sum()
        )

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        value = run(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_autocast_computes_in_float32(cpu_backend: Variant) -> None:
    q = normal(2, 5, 8, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.dot_product_attention(q.bfloat16(), q, q)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert q.grad is not None
    leaves, _ = additive_inputs(2, 5, 6, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.additive_attention(leaves[0].bfloat16(), *leaves[1:]).dtype == torch.float32


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dot_product_attention([1], zeros(1, 2, 3), zeros(1, 2, 3)), TypeError, "q: expected a torch"),
        (lambda: ops.dot_product_attention(zeros(2, 3), zeros(1, 2, 3), zeros(1, 2, 3)), ValueError,
         "dot_product_attention: q: expected 3 dimensions"),
        (lambda: ops.dot_product_attention(zeros(1, 2, 3), zeros(1, 4, 5), zeros(1, 4, 3)), ValueError,
         r"k: expected shape \(1, 4, 3\), got \(1, 4, 5\)"),
        (lambda: ops.dot_product_attention(zeros(1, 2, 3), zeros(1, 4, 3), zeros(1, 5, 3)), ValueError,
         r"v: expected shape \(1, 4, 3\), got \(1, 5, 3\)"),
        (lambda: ops.dot_product_attention(*[zeros(1, 2, 3)] * 3, scale=zeros(2)), ValueError, "scale: expected a"),
        (lambda: ops.dot_product_attention(*[zeros(1, 2, 3)] * 3, scale="x"), TypeError, "scale: expected a number"),
        (lambda: ops.dot_product_attention(*[zeros(1, 2, 3)] * 3, scale=zeros(1, dtype=torch.float64)), TypeError,
         "scale: expected dtype torch.float32 as q"),
        (lambda: ops.additive_attention(zeros(1, 2, 3), zeros(1, 2, 4), *[zeros(1)] * 4), ValueError,
         r"h: expected shape \(1, 2, 3\), got \(1, 2, 4\)"),
        (lambda: ops.additive_attention(*[zeros(1, 2, 3)] * 2, zeros(4, 5), *[zeros(1)] * 3), ValueError,
         r"weight: expected shape \(4, 6\), got \(4, 5\)"),
        (lambda: ops.additive_attention(*[zeros(1, 2, 3)] * 2, zeros(4, 6), zeros(4), zeros(5), zeros(1)), ValueError,
         r"additive_attention: v: expected shape \(4,\), got \(5,\)"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("learnt", [False, True])
def test_dot_product_module(learnt: bool) -> None:
    module = nn.DotProductAttention(learnt, dtype=torch.float64)
    assert [name for name, _ in module.named_parameters()] == (["scale"] if learnt else [])
    q, k, v = (leaf.detach() for leaf in dot_inputs(Sizes(2, 5, 6, 9, 4), torch.float64)[0][:3])
    factor = 1.0
    if module.scale is not None:
        assert module.scale.shape == ()
        assert module.scale == 1
        torch.nn.init.constant_(module.scale, 1.5)
        factor = 1.5
    torch.testing.assert_close(module(q, k, v), torch.softmax(factor / 3 * q @ k.transpose(1, 2), 2) @ v)
    assert torch.equal(module(q), module(q, q, q))
    assert torch.equal(module(q, k), module(q, k, k))
    assert repr(module) == f"DotProductAttention(learnt_scale={learnt})"


def test_additive_module() -> None:
    module = nn.AdditiveAttention(6, 5, dtype=torch.float64)
    assert sum(p.numel() for p in module.parameters()) == 5 * 12 + 5 + 5 + 1
    x, h = (leaf.detach() for leaf in additive_inputs(2, 7, 6, 5, torch.float64)[0][:2])
    out = module(x, h)
    parameters = [module.proj.weight, module.proj.bias, module.score.weight, module.score.bias]
    torch.testing.assert_close(out, additive_formula(x, h, *parameters))
    assert torch.equal(module(x), module(x, x))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in parameters)
    with pytest.raises(ValueError, match="AdditiveAttention: hidden: expected an int >= 1, got 0"):
        nn.AdditiveAttention(6, 0)
