# SPDX-License-Identifier: Apache-2.0
"""Attention as torch ops and modules: gradcheck, opcheck, compilation, autocast, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attention_oracle import Sizes, additive_formula, additive_inputs, dot, dot_inputs
from conftest import Variant
from draws import dtypes, normal
from torch import Tensor

from fastfer import nn, ops


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
    cpu_backend.opcheck(space.dot_product_attention.default, (*plain, 0.5))
    cpu_backend.opcheck(space.dot_product_attention_train.default, (*leaves, 0.5))
    cpu_backend.opcheck(space.dot_product_attention_train.default, (*leaves[:3], None, 0.5))
    out, stats = space.dot_product_attention_train(*plain, 0.5)
    cpu_backend.opcheck(
        space.dot_product_attention_backward.default,
        (dout, *plain, 0.5, out, stats, [True, False, True, True]),
    )
    leaves, dout = additive_inputs(2, 3, 4, 5, dtype)
    plain = [leaf.detach() for leaf in leaves]
    cpu_backend.opcheck(space.additive_attention.default, tuple(plain))
    cpu_backend.opcheck(space.additive_attention_train.default, tuple(leaves))
    _, u, weights = space.additive_attention_train(*plain)
    x, h, weight, _, v, _ = plain
    cpu_backend.opcheck(
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
    assert out.dtype == cpu_backend.lowered
    out.sum().backward()
    assert q.grad is not None
    leaves, _ = additive_inputs(2, 5, 6, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.additive_attention(leaves[0].bfloat16(), *leaves[1:]).dtype == cpu_backend.lowered


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
