# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on every backend and ISA against float64 torch."""

from __future__ import annotations

import math
import random

import pytest
import torch
from attention_oracle import (
    ADDITIVE_NAMES,
    DOT_NAMES,
    Sizes,
    additive_case,
    additive_inputs,
    additive_oracle,
    additive_result,
    assert_all,
    dot,
    dot_case,
    dot_inputs,
    dot_length,
    dot_oracle,
    dot_result,
)
from conftest import Variant
from draws import dtypes, kernels, normal
from flat import Flat
from guard import Guarded
from tolerance import assert_close

from fastfer import backend, ops

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
    weight, module = torch.stack([one, zero], 1), Flat(backend.implementation("attention", "cpu"))
    _, u, _ = module.additive_attention_train(x, torch.zeros_like(x), weight, zero, one, zero)
    assert_close(u, x.double().tanh(), "elementwise", scale=0.0)


def test_random_shapes(variant: Variant) -> None:
    seed = random.randrange(1 << 30)
    draw = random.Random(seed)
    for _ in range(6):
        sizes = Sizes(
            draw.randint(1, 5),
            *(draw.choice((1, 2, 15, 47, draw.randint(1, 290))) for _ in range(2)),
            draw.randint(1, 70),
            draw.randint(1, 70),
        )
        leaves, dout = dot_inputs(sizes, torch.float32, seed)
        assert_all(
            dot_result(leaves, dout), dot_oracle(leaves, dout), DOT_NAMES, dot_length(sizes), f"{sizes} seed {seed}"
        )
        shape = (draw.randint(1, 5), draw.randint(1, 60), draw.randint(1, 70), draw.randint(1, 70))
        leaves, dout = additive_inputs(*shape, torch.float32, seed)
        assert_all(
            additive_result(leaves, dout),
            additive_oracle(leaves, dout),
            ADDITIVE_NAMES,
            sum(shape),
            f"{shape} seed {seed}",
        )


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


def test_scores_whose_rounding_exceeds_one(variant: Variant) -> None:
    """Scores of 1e12, 65536 apart at least: each query takes its best key's value, and exp never sees a remainder."""
    (q, k, v, _), _ = dot_inputs(Sizes(2, 20, 70, 16, 8), torch.float32)
    q, k = q.detach() * 1e6, k.detach() * 1e6
    out = ops.dot_product_attention(q, k, v)
    best = (q.double() @ k.double().transpose(1, 2)).argmax(2)
    torch.testing.assert_close(out, torch.gather(v, 1, best.unsqueeze(2).expand(-1, -1, v.shape[2])))


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
    module = Flat(backend.implementation("attention", "cpu"))
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
