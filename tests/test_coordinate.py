# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention and its pooling on every backend and ISA, against the equations in float64."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import pytest
import torch
from conftest import Variant
from coordinate_cases import (
    DTYPES,
    LEAVES,
    SHAPES,
    Case,
    Shape,
    call,
    check,
    dtypes,
    formula,
    kinds,
    make,
    run,
    shapes,
    well_posed,
)
from draws import kernels
from flat import Flat
from guard import Guarded
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor

from fastfer import backend, nn, ops
from fastfer._checks import act_code
from fastfer.ops.coordinate import KINDS

SEED = int(os.environ.get("FASTFER_TEST_SEED", "2026"))


@dtypes
@kinds
@shapes
def test_training(variant: Variant, shape: Shape, kind: str, dtype: torch.dtype) -> None:
    case = make(shape)
    act = "hardswish" if dtype == torch.float64 else "silu"  # in float32 rounding decides at hardswish's kinks
    for train in (True, False) if well_posed(shape) else (False,):
        with variant.runs(*kernels("coordinate_attention", dtype, "train", "bwd")):
            got = run(call, case, dtype, kind, act, train)
        check(got, run(formula, case, torch.float64, kind, act, train), shape, train)


@dtypes
@kinds
def test_inference(variant: Variant, kind: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        case = make(shape)
        leaves = {name: value.to(dtype) for name, value in case.leaves.items()}
        running = case.running[0].to(dtype), case.running[1].to(dtype)
        with torch.inference_mode(), variant.runs(*kernels("coordinate_attention", dtype, "fwd")):
            out = call(leaves, running, case, kind, "hardswish", False)
        assert out.is_contiguous(memory_format=torch.channels_last)
        want = formula(case.leaves, case.running, case, kind, "hardswish", False)
        assert_close(out, want, "chain", shape.c + shape.m, name=f"{shape}")
        assert torch.equal(running[0], case.running[0].to(dtype))


@dtypes
def test_channels(variant: Variant, dtype: torch.dtype) -> None:
    """Every tail of a vector."""
    for c in around_vectors():
        shape = Shape(2, c, 3, 4, 1 + c % 19)
        case = make(shape, c)
        check(
            run(call, case, dtype, "cpsca", "silu", False),
            run(formula, case, torch.float64, "cpsca", "silu", False),
            shape,
            False,
        )


def pooled(x: Tensor) -> tuple[Tensor, ...]:
    return x.mean(3), x.max(3)[0], x.mean(2), x.max(2)[0]


@dtypes
def test_pool(variant: Variant, dtype: torch.dtype) -> None:
    for c in around_vectors():
        n, h, w = 1 + c % 6, 1 + c % 5, 1 + c % 7
        g = torch.Generator().manual_seed(c)
        x = torch.randn(n, c, h, w, generator=g).to(dtype).requires_grad_()
        wide = x.detach().double().requires_grad_()
        want = pooled(wide)
        upstream = [torch.randn(t.shape, generator=g).to(dtype) for t in want]
        with variant.runs(*kernels("cpsca_pool", dtype, "fwd", "bwd")):
            got = ops.cpsca_pool(x)
            dx = torch.autograd.grad(got, x, upstream)[0]
        for name, each, right in zip(("row mean", "row max", "col mean", "col max"), got, want, strict=True):
            assert_close(each, right, "exact" if name.endswith("max") else "reduction", h + w, name=f"{name}, {c}")
        assert_close(dx, torch.autograd.grad(want, wide, [u.double() for u in upstream])[0], "reduction", 4, name="dx")


def test_ties_go_to_the_first(variant: Variant) -> None:
    """Equal maxima, and a -0 among zeros: the gradient of each goes where torch's goes."""
    x = torch.randint(-1, 2, (3, 20, 6, 5), generator=torch.Generator().manual_seed(0)).float()
    x[0] = 0
    x[0, :, ::2] = -0.0
    upstream = [torch.randn(t.shape) for t in pooled(x)]
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    grads = [torch.autograd.grad(f(t), t, upstream)[0] for f, t in zip((ops.cpsca_pool, pooled), leaves, strict=True)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
    shape = Shape(3, 20, 6, 5, 4)
    for kind in ("maxca", "cpsca"):
        case = make(shape)
        case.leaves["x"].copy_(x)
        check(
            run(call, case, torch.float32, kind, "silu", True),
            run(formula, case, torch.float64, kind, "silu", True),
            shape,
            True,
        )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@kinds
def test_non_finite(variant: Variant, kind: str, value: float) -> None:
    """What a NaN or infinity reaches in torch it reaches here, and no other image."""
    case = make(Shape(5, 18, 4, 5, 3))
    case.leaves["x"][1, 3, 2, 1] = value
    t = {name: leaf.float() for name, leaf in case.leaves.items()}
    running = case.running[0].float(), case.running[1].float()
    for train in (False, True):
        got = call(t, (running[0].clone(), running[1].clone()), case, kind, "hardswish", train)
        want = formula(case.leaves, (case.running[0].clone(), case.running[1].clone()), case, kind, "hardswish", train)
        assert torch.equal(got.isnan(), want.isnan()), train
        if not train:
            assert_close(got[[0, 2, 3, 4]], want[[0, 2, 3, 4]], "chain", 30)
    x = case.leaves["x"].float()
    for each, right in zip(ops.cpsca_pool(x), pooled(x), strict=True):
        torch.testing.assert_close(each, right, equal_nan=True)


@kinds
def test_layouts(kernel_variant: Variant, kind: str) -> None:
    shape = Shape(2, 5, 6, 7, 3)
    case = make(shape)
    want = run(call, case, torch.float32, kind, "silu", True)
    x, up = case.leaves["x"].float(), case.upstream.float()
    big = torch.full((3, 8, 8, 15), math.nan)
    sliced = big[1:, 2:7, 1:-1, 1::2]
    sliced.copy_(x)
    for each, grad in (
        (x.contiguous(memory_format=torch.channels_last), up),
        (sliced, up.transpose(2, 3).contiguous().transpose(2, 3)),
    ):
        leaves = {name: leaf.float().requires_grad_() for name, leaf in case.leaves.items()}
        leaves["x"] = each.requires_grad_()
        out = call(leaves, (case.running[0].float(), case.running[1].float()), case, kind, "silu", True)
        grads = torch.autograd.grad(out, list(leaves.values()), grad)
        assert torch.equal(out, want[0])
        for name, got in zip(leaves, grads, strict=True):
            assert torch.equal(got, want[1][name]), name


def test_expanded_gradient(cpu_backend: Variant) -> None:
    case = make(Shape(2, 6, 3, 4, 3))
    leaf = case.leaves["x"].float().requires_grad_()
    t = {**{name: value.float() for name, value in case.leaves.items()}, "x": leaf}
    running = case.running[0].float(), case.running[1].float()
    out = call(t, running, case, "cpsca", "silu", False)
    one = torch.ones(())
    assert torch.equal(
        torch.autograd.grad(out, leaf, one.expand(out.shape), retain_graph=True)[0],
        torch.autograd.grad(out, leaf, torch.ones_like(out))[0],
    )
    got = ops.cpsca_pool(leaf)
    a = torch.autograd.grad(got, leaf, [one.expand(t.shape) for t in got], retain_graph=True)[0]
    assert torch.equal(a, torch.autograd.grad(got, leaf, [torch.ones_like(t) for t in got])[0])


@kinds
def test_empty_batch(cpu_backend: Variant, kind: str) -> None:
    case = make(Shape(0, 5, 3, 4, 2))
    for train in (True, False):
        out, grads, running = run(call, case, torch.float32, kind, "hardswish", train)
        assert out.shape == (0, 5, 3, 4)
        for name, grad in grads.items():
            assert grad.shape == case.leaves[name].shape
            assert not bool(grad.any()), name
        assert torch.equal(running[0], case.running[0].float())
    assert [t.shape for t in ops.cpsca_pool(torch.zeros(0, 5, 3, 4))] == [(0, 5, 3), (0, 5, 3), (0, 5, 4), (0, 5, 4)]


@kinds
def test_only_what_is_asked_for(cpu_backend: Variant, kind: str) -> None:
    case = make(Shape(2, 6, 3, 4, 3))
    want = run(formula, case, torch.float64, kind, "silu", True)[1]
    for chosen in (("x",), ("weight",), ("h_bias", "n_weight"), ("x", "w_weight")):
        leaves = {name: value.clone().requires_grad_(name in chosen) for name, value in case.leaves.items()}
        out = call(leaves, (case.running[0].clone(), case.running[1].clone()), case, kind, "silu", True)
        grads = torch.autograd.grad(out, [leaves[name] for name in chosen], case.upstream)
        for name, grad in zip(chosen, grads, strict=True):
            assert_close(grad, want[name], "chain", 20, name=f"{name} of {chosen}")


@kinds
@pytest.mark.parametrize("train", [True, False])
def test_gradcheck(cpu_backend: Variant, kind: str, train: bool) -> None:
    case = make(Shape(2, 2, 2, 2, 2))

    def function(*values: Tensor) -> Tensor:
        leaves = dict(zip(LEAVES, values, strict=True))
        return call(leaves, (case.running[0].clone(), case.running[1].clone()), case, kind, "silu", train)

    assert torch.autograd.gradcheck(function, [case.leaves[name].clone().requires_grad_() for name in LEAVES])
    assert torch.autograd.gradcheck(ops.cpsca_pool, case.leaves["x"].clone().requires_grad_())


def arguments(case: Case, kind: str, dtype: torch.dtype, grad: bool) -> list[Any]:
    t = {name: value.to(dtype, copy=True) for name, value in case.leaves.items()}
    t["x"] = t["x"].contiguous(memory_format=torch.channels_last)
    for leaf in t.values():
        leaf.requires_grad_(grad)
    return [
        t["x"], t["weight"], t["bias"], t["n_weight"], t["n_bias"], *(r.to(dtype) for r in case.running), case.eps,
        act_code("test", "hardswish"), t["h_weight"], t["h_bias"], t["w_weight"], t["w_bias"], KINDS.index(kind),
    ]  # fmt: skip


def backward_arguments(args: list[Any], saved: tuple[Tensor, ...], dout: Tensor, mask: list[bool]) -> tuple[Any, ...]:
    x, weight, _, n_weight, n_bias, _, _, _, act, h_weight, _, w_weight, _, kind = args
    return dout, x, *saved, weight, n_weight, n_bias, act, h_weight, w_weight, kind, True, mask


@kinds
def test_opcheck(cpu_backend: Variant, kind: str) -> None:
    namespace, case = torch.ops.fastfer, make(Shape(2, 5, 3, 4, 3))
    cpu_backend.opcheck(namespace.coordinate_attention.default, tuple(arguments(case, kind, torch.float32, False)))
    args = arguments(case, kind, torch.float32, True)
    cpu_backend.opcheck(namespace.coordinate_attention_train.default, (*args, True))
    args = arguments(case, kind, torch.float32, False)
    out, *saved = namespace.coordinate_attention_train(*args, True)
    for mask in ([True, True], [False, True], [True, False]):
        cpu_backend.opcheck(
            namespace.coordinate_attention_backward.default,
            backward_arguments(args, tuple(saved), torch.ones_like(out), mask),
        )


def test_opcheck_pool(cpu_backend: Variant) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    cpu_backend.opcheck(torch.ops.fastfer.cpsca_pool.default, (x.clone().requires_grad_(),))
    grads = [torch.ones_like(t) for t in ops.cpsca_pool(x)]
    cpu_backend.opcheck(torch.ops.fastfer.cpsca_pool_backward.default, (*grads, x))


@pytest.mark.parametrize("train", [True, False])
def test_compile(cpu_backend: Variant, train: bool) -> None:
    case, results = make(Shape(2, 6, 3, 4, 3)), []

    def function(*args: Any) -> Tensor:
        out = call(*args)
        return out * ops.cpsca_pool(out)[1].unsqueeze(3)

    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        results.append(run(f, case, torch.float32, "cpsca", "silu", train))
    torch.testing.assert_close(results[1], results[0])


def test_module_under_autocast(cpu_backend: Variant) -> None:
    module, x = nn.CoordinateAttention(40, kind="cpsca", eps=1e-3, momentum=0.01), torch.randn(2, 40, 5, 4)
    assert [name for name, _ in module.named_parameters()] == [
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "conv_h.weight",
        "conv_h.bias",
        "conv_w.weight",
        "conv_w.bias",
    ]
    assert (module.norm.num_features, module.norm.eps, module.norm.momentum) == (8, 1e-3, 0.01)
    assert nn.CoordinateAttention(672).norm.num_features == 21
    want = module.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = module(x.bfloat16())
        assert ops.cpsca_pool(x.bfloat16())[0].dtype == cpu_backend.lowered
    assert got.dtype == cpu_backend.lowered
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    before = module.norm.running_mean.clone()
    module.train()(x)
    assert not torch.equal(module.norm.running_mean, before)
    assert int(module.norm.num_batches_tracked) == 1


@kinds
def test_threads_give_the_same_bits(kernel_variant: Variant, kind: str, threads: None) -> None:
    for shape in (Shape(5, 184, 14, 14, 8), Shape(1, 300, 9, 7, 21)):
        case, results = make(shape), []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            with torch.inference_mode():
                t = {name: value.float() for name, value in case.leaves.items()}
                out = call(t, (case.running[0].float(), case.running[1].float()), case, kind, "hardswish", False)
            trained = run(call, case, torch.float32, kind, "hardswish", True)
            pool = ops.cpsca_pool(t["x"])
            dx = torch.ops.fastfer.cpsca_pool_backward(*pool, t["x"])
            results.append([out.clone(), trained[0], *trained[1].values(), *trained[2], *pool, dx])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@dtypes
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, dtype: torch.dtype) -> None:
    module = Flat(backend.implementation("coordinate", "cpu"))
    for c, m in ((1, 1), (3, 17), (16, 8), (33, 15)):
        args = arguments(make(Shape(2, c, 3, 5, m)), "cpsca", dtype, False)
        x = args[0]
        pool = module.cpsca_pool(x)
        out, *saved = module.coordinate_attention_train(*args, True)
        for function, given in (
            (module.cpsca_pool, (x,)),
            (module.cpsca_pool_backward, (*pool, x)),
            (module.coordinate_attention, args),
            (module.coordinate_attention_train, (*args, True)),
            (module.coordinate_attention_backward, backward_arguments(args, tuple(saved), out, [True, True])),
        ):
            with Guarded() as guarded:
                function(*given)
            guarded.check()


@pytest.mark.parametrize("batch", range(3))
def test_drawn_cases(variant: Variant, batch: int) -> None:
    for seed in range(SEED + batch * 8, SEED + batch * 8 + 8):
        draw = random.Random(seed)
        shape = Shape(
            draw.randint(1, 6), draw.randint(1, 90), draw.randint(1, 9), draw.randint(1, 9), draw.randint(1, 24)
        )
        kind, dtype = draw.choice(KINDS), draw.choice(DTYPES)
        train = draw.random() < 0.6 and well_posed(shape)
        try:
            case = make(shape, seed)
            check(
                run(call, case, dtype, kind, "silu", train),
                run(formula, case, torch.float64, kind, "silu", train),
                shape,
                train,
            )
        except Exception as error:
            error.add_note(f"drawn from seed {seed} (FASTFER_TEST_SEED={SEED}): {shape}, {kind}, {train}, {dtype}")
            raise


def bad_calls() -> list[Any]:
    norm = ops.Norm(torch.ones(2), torch.zeros(2), torch.zeros(2), torch.ones(2))
    return [
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"x": torch.zeros(2, 3, 4)}, ValueError, "x: expected 4 dimensions"),
        ({"x": torch.zeros(1, 3, 0, 4)}, ValueError, "x: expected C, H and W >= 1"),
        ({"x": torch.zeros(1, 3, 4, 4).int()}, TypeError, "x: expected dtype"),
        ({"weight": torch.zeros(2, 3)}, ValueError, r"weight: expected shape \(M, 3, 1, 1\), got \(2, 3\)"),
        ({"weight": torch.zeros(2, 4, 1, 1)}, ValueError, r"weight: expected shape \(2, 3, 1, 1\)"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"norm": None}, TypeError, "norm: expected fastfer.ops.Norm"),
        ({"norm": norm._replace(bias=torch.zeros(3))}, ValueError, r"norm.bias: expected shape \(2,\)"),
        ({"h_weight": torch.zeros(2, 3, 1, 1)}, ValueError, r"h_weight: expected shape \(3, 2, 1, 1\)"),
        ({"w_bias": torch.zeros(3).double()}, TypeError, "w_bias: expected dtype"),
        ({"kind": "cpca"}, ValueError, "kind: expected one of ca, maxca, cpsca, got 'cpca'"),
        ({"act": "gelu"}, ValueError, "act: expected one of"),
    ]


@pytest.mark.parametrize(("change", "error", "message"), bad_calls())
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(2, 3, 4, 5),
        "weight": torch.zeros(2, 3, 1, 1),
        "bias": torch.zeros(2),
        "norm": ops.Norm(torch.ones(2), torch.zeros(2), torch.zeros(2), torch.ones(2)),
        "h_weight": torch.zeros(3, 2, 1, 1),
        "h_bias": torch.zeros(3),
        "w_weight": torch.zeros(3, 2, 1, 1),
        "w_bias": torch.zeros(3),
    }
    with pytest.raises(error, match=f"coordinate_attention: {message}"):
        ops.coordinate_attention(**{**good, **change})


def test_bad_pool_and_module() -> None:
    with pytest.raises(ValueError, match="cpsca_pool: x: expected C, H and W >= 1"):
        ops.cpsca_pool(torch.zeros(1, 3, 4, 0))
    with pytest.raises(ValueError, match="CoordinateAttention: kind: expected one of ca, maxca, cpsca"):
        nn.CoordinateAttention(8, kind="max")
    with pytest.raises(ValueError, match="CoordinateAttention: channels: expected an int >= 1, got 0"):
        nn.CoordinateAttention(0)
