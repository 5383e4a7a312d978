# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on every backend and ISA against float64 torch, and inside torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from bottleneck_cases import (
    BLOCKS,
    EMPTY,
    Block,
    Case,
    assert_result,
    expected,
    frozen,
    make,
    safe,
)
from conftest import Variant
from draws import dtypes, kernels
from oracle import Result, same_bits
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor

from fastfer import nn as ff_nn
from fastfer import ops
from fastfer._checks import ACTIVATIONS

blocks = pytest.mark.parametrize("block", BLOCKS, ids=str)
SMALL = Block(2, 4, 6, 5, 9, 4, residual=True)


@dtypes
@blocks
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
def test_block(variant: Variant, block: Block, dtype: torch.dtype, training: bool) -> None:
    case = make(replace(block, training=training))
    with variant.runs(*kernels("inverted_bottleneck", dtype, "train", "bwd")):
        got = case.measured(dtype)
    assert_result(got, expected(case), block)


@dtypes
@blocks
def test_inference(variant: Variant, block: Block, dtype: torch.dtype) -> None:
    case = make(frozen(block))
    leaves, running = case.tensors(dtype, grad=False)
    with torch.inference_mode(), variant.runs(*kernels("inverted_bottleneck", dtype, "fwd")):
        out = case.call(leaves, running)
    assert_close(out, expected(case).out, "chain", block.terms, name="out")
    assert all(torch.equal(running[name], case.running[name].to(dtype)) for name in running)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(variant: Variant, act: str) -> None:
    for block in (Block(2, 3, 6, 7, 10, 3, act=act, residual=True), Block(2, 3, 5, 6, 8, act=act)):
        for training in (True, False):
            case, want = safe(replace(block, training=training), torch.float32)
            assert_result(case.measured(torch.float32), want, block)
            if training:
                continue
            with torch.no_grad():
                out = case.call(*case.tensors(torch.float32, grad=False))
            assert_close(out, want.out, "chain", block.terms, name=act)


def test_channels(variant: Variant) -> None:
    """Every tail of a vector in each of the three numbers of channels."""
    for channels in around_vectors(34):
        for block in (Block(2, channels, 3, 4, 6, 5), Block(2, 3, 3, 4, channels, channels)):
            case = make(block)
            assert_result(case.measured(torch.float32), expected(case), block)


@dtypes
def test_mean_far_from_zero(variant: Variant, dtype: torch.dtype) -> None:
    """The expansion's statistics, which follow from those of x, are exact to the data's rounding at 1000 deviations."""
    block = Block(4, 8, 12, 12, 24, 5)
    case = make(block)
    case.leaves["x"] = (case.leaves["x"] + 1000).float().double()
    got, want = case.measured(dtype), expected(case)
    for name, value in want.running.items():
        assert_close(got.running[name], value, "chain", block.terms, scale=1000 * value.abs().max(), name=name)
    assert_close(got.out, want.out, "chain", block.terms, scale=1000 * float(want.out.abs().max()), name="out")


def test_correlated_channels(variant: Variant) -> None:
    """Channels of x that nearly agree, and weights that take their difference: the covariance cancels a hundredfold."""
    block = Block(4, 8, 16, 16, 24, 5)
    case = make(block)
    x, expand = case.leaves["x"], case.leaves["expand"]
    x[:, 1::2] = (x[:, ::2] + 0.1 * x[:, 1::2]).float()
    expand[:, 1::2] = -expand[:, ::2]
    got, want = case.measured(torch.float32), expected(case)
    assert_close(got.running["norm1.var"], want.running["norm1.var"], "chain", block.terms, name="variance")
    assert_close(got.out, want.out, "chain", block.terms, scale=10 * float(want.out.abs().max()), name="out")


def test_only_the_gradients_asked_for(cpu_backend: Variant) -> None:
    for block in (SMALL, replace(SMALL, o=0, residual=False)):
        for training in (True, False):
            case = make(replace(block, training=training))
            want = expected(case)
            for wanted in (*((name,) for name in case.leaves), ("x", "dw"), tuple(n for n in case.leaves if n != "x")):
                leaves, running = case.tensors(torch.float64, grad=False)
                for name in wanted:
                    leaves[name].requires_grad_()
                case.call(leaves, running).backward(case.upstream)
                grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
                assert set(grads) == set(wanted)
                for name, grad in grads.items():
                    assert_close(grad, want.grads[name], "chain", block.terms, scale=want.scales.get(name), name=name)


@pytest.mark.parametrize("layout", ["NCHW", "slice", "slice of channels", "transposed"])
def test_input_layouts(kernel_variant: Variant, layout: str) -> None:
    case = make(SMALL)
    want = case.measured(torch.float32)
    leaves, running = case.tensors(torch.float32)
    x = case.leaves["x"].float()
    n, c, h, w = x.shape
    views = {
        "NCHW": lambda: x.contiguous(),
        "slice": lambda: torch.full((n + 1, c + 3, h + 2, 2 * w + 1), math.nan)[1:, 2 : c + 2, 1:-1, 1::2],
        "slice of channels": lambda: torch.full((n, h, w, c + 5), math.nan)[..., 3 : c + 3].permute(0, 3, 1, 2),
        "transposed": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    leaves["x"] = views[layout]().copy_(x).requires_grad_()
    out = case.call(leaves, running)
    grads = torch.autograd.grad(out, list(leaves.values()), case.upstream.float().contiguous())
    same_bits(Result(out.detach(), dict(zip(leaves, grads, strict=True)), running), want, layout)


def test_expanded_inputs(cpu_backend: Variant) -> None:
    case = make(SMALL)
    leaves, running = case.tensors(torch.float32, grad=False)
    leaves["x"] = torch.randn(1, 1, 6, 5).expand(2, 4, 6, 5)
    leaves["dw"] = torch.randn(1, 1, 3, 3).expand(9, 1, 3, 3)
    out = case.call(leaves, {name: t.clone() for name, t in running.items()})
    dense = {name: t.contiguous() for name, t in leaves.items()}
    assert torch.equal(out, case.call(dense, running))


@pytest.mark.parametrize("block", EMPTY, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty(cpu_backend: Variant, block: Block, training: bool) -> None:
    case = make(replace(block, training=training))
    got = case.measured(torch.float32)
    assert got.out.shape == block.out_shape
    for name, grad in got.grads.items():
        assert grad.shape == case.leaves[name].shape
        assert not bool(grad.any()), name
    assert all(torch.equal(got.running[name], case.running[name].float()) for name in got.running)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_non_finite_as_torch(variant: Variant, value: float, training: bool) -> None:
    """With batch statistics one value spoils all; with running ones its windows, also through zero weights."""
    case = make(replace(SMALL, act="relu", training=training))
    case.leaves["x"][0, 2, 3, 2] = value
    case.leaves["expand"][5, 2] = 0
    leaves, running = case.tensors(torch.float32, grad=False)
    want = expected(case).out
    out = case.call(leaves, running)
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out.isinf(), want.isinf())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n", [1, 5])
def test_bits_do_not_depend_on_threads(kernel_variant: Variant, threads: None, n: int, training: bool) -> None:
    for block in (
        Block(n, 8, 30, 41, 40, 8, residual=True),
        Block(n, 12, 15, 17, 260, 0, (5, 5), (2, 2), (2, 2, 2, 2)),
    ):
        case = make(replace(block, training=training))
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(case.measured(torch.float32))
            if not training:
                with torch.no_grad():
                    results[-1].running["inference"] = case.call(*case.tensors(torch.float32, grad=False))
        for result in results[1:]:
            same_bits(result, results[0])


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(cpu_backend: Variant, training: bool) -> None:
    for block in (
        Block(2, 2, 4, 3, 3, 2, residual=True, training=training),
        Block(2, 2, 5, 4, 3, stride=(2, 1), training=training),
    ):
        case = make(block)
        names = list(case.leaves)

        def function(*values: Tensor, case: Case = case, names: list[str] = names) -> Tensor:
            return case.call(dict(zip(names, values, strict=True)), {k: v.clone() for k, v in case.running.items()})

        assert torch.autograd.gradcheck(function, [v.clone().requires_grad_() for v in case.leaves.values()])


@pytest.mark.parametrize("block", [SMALL, replace(SMALL, o=0, residual=False, training=False)], ids=str)
def test_opcheck(cpu_backend: Variant, block: Block) -> None:
    namespace, case = torch.ops.fastfer, make(block)
    plain = case.raw(torch.float32, False)
    cpu_backend.opcheck(namespace.inverted_bottleneck.default, tuple(plain))
    cpu_backend.opcheck(namespace.inverted_bottleneck_train.default, (*case.raw(torch.float32, True), block.training))
    out, y1, y2, covariance, *stats = namespace.inverted_bottleneck_train(*plain, block.training)
    args: list[Any] = [torch.ones_like(out), plain[0], y1, y2, covariance]
    for at, of_norm in zip((1, 7, 13), stats, strict=True):
        args += [*plain[at : at + 3], of_norm]
    args += [*plain[19:], block.training, [True, True]]
    cpu_backend.opcheck(namespace.inverted_bottleneck_backward.default, tuple(args))


@pytest.mark.parametrize("training", [True, False])
def test_compile(cpu_backend: Variant, training: bool) -> None:
    case = make(replace(SMALL, training=training))
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        leaves, running = case.tensors(torch.float32)
        out = wrap(lambda leaves, running: case.call(leaves, running) * 2)(leaves, running)
        grads = torch.autograd.grad(out, list(leaves.values()), case.upstream.float())
        results.append(Result(out.detach(), dict(zip(leaves, grads, strict=True)), {}))
        for name, value in expected(case).running.items():
            assert_close(running[name], value, "chain", case.block.terms, name=name)
    same_bits(*results)


def test_autocast(cpu_backend: Variant) -> None:
    case = make(SMALL)
    leaves, running = case.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = case.call({**leaves, "x": leaves["x"].bfloat16()}, running)
    assert out.dtype == cpu_backend.lowered
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), list(leaves.values())))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"expand": (9, 3, 1, 1)}, ValueError, r"expand_weight: expected shape \(E, 4, 1, 1\), got \(9, 3, 1, 1\)"),
        ({"dw": (8, 1, 3, 3)}, ValueError, r"dw_weight: expected shape \(9, 1, KH, KW\), got \(8, 1, 3, 3\)"),
        ({"project": (4, 8, 1, 1)}, ValueError, r"project_weight: expected shape \(O, 9, 1, 1\), got \(4, 8, 1, 1\)"),
        ({"project": (5, 9, 1, 1)}, ValueError, r"norm3.weight: expected shape \(5,\), got \(4,\)"),
        ({"norm2.weight": (4,)}, ValueError, r"norm2.weight: expected shape \(9,\), got \(4,\)"),
        ({"x": (2, 4, 6)}, ValueError, r"x: expected 4 dimensions"),
        ({"dw": (9, 1, 9, 9)}, ValueError, r"height: expected padded size >= kernel 9"),
        ({"x": (1, 4, 1, 1), "dw": (9, 1, 1, 1)}, ValueError, "expected more than one value per channel"),
    ],
)
def test_errors(change: dict[str, tuple[int, ...]], error: type[Exception], message: str) -> None:
    case = make(replace(SMALL, padding=(0, 0, 0, 0), residual=False))
    leaves, running = case.tensors(torch.float32, grad=False)
    leaves |= {name: torch.ones(shape) for name, shape in change.items()}
    with pytest.raises(error, match=f"inverted_bottleneck: {message}" if "value per" not in message else message):
        case.call(leaves, running)


def test_errors_of_the_residual_and_the_third_norm() -> None:
    case = make(SMALL)
    leaves, running = case.tensors(torch.float32, grad=False)
    norms = [
        ops.Norm(leaves[f"{n}.weight"], leaves[f"{n}.bias"], running[f"{n}.mean"], running[f"{n}.var"])
        for n in ("norm1", "norm2", "norm3")
    ]
    args = leaves["x"], leaves["expand"], norms[0], leaves["dw"], norms[1]
    with pytest.raises(ValueError, match=r"norm3: expected a Norm with project_weight, got None"):
        ops.inverted_bottleneck(*args, leaves["project"])
    with pytest.raises(ValueError, match=r"norm3: expected None without project_weight"):
        ops.inverted_bottleneck(*args, None, norms[2])
    with pytest.raises(ValueError, match=r"residual: expected a projection of x's shape \(4, 6, 5\), got \(4, 4, 3\)"):
        ops.inverted_bottleneck(*args, leaves["project"], norms[2], residual=True)
    with pytest.raises(TypeError, match=r"norm1: expected fastfer\.ops\.Norm"):
        ops.inverted_bottleneck(leaves["x"], leaves["expand"], None, leaves["dw"], norms[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("hidden", [6, 20])
@pytest.mark.parametrize("mode", ["train", "eval", "one norm frozen"])
def test_module(cpu_backend: Variant, attention: bool, hidden: int, mode: str) -> None:
    """The module is its convolutions, norms and attention one after the other, in every mode."""
    torch.manual_seed(0)
    gate = ff_nn.SqueezeExcite(hidden) if attention else None
    block = ff_nn.InvertedBottleneck(6, hidden, 6, 3, 1, 1, act="silu", attention=gate).double().train(mode != "eval")
    if mode == "one norm frozen":
        next(m for m in block.modules() if isinstance(m, ff_nn.BatchNorm2d)).eval()
    x = torch.randn(3, 6, 5, 7).double().requires_grad_()
    state = {name: t.clone() for name, t in block.state_dict().items()}
    results = []
    for function in (block, lambda t: t + block.body(block.expand(t))):
        block.load_state_dict(state)
        out = function(x)
        grads = torch.autograd.grad(out, [x, *block.parameters()], torch.ones_like(out) + x.detach())
        results.append([out.detach(), *grads, *(t.clone() for t in block.buffers())])
    for got, want in zip(*results, strict=True):
        assert_close(got.double(), want.double(), "chain", 200, scale=1.0)


def test_module_without_a_residual(cpu_backend: Variant) -> None:
    block = ff_nn.InvertedBottleneck(6, 12, 8, 5, 2, 2, act="relu").eval()
    x = torch.randn(2, 6, 9, 8)
    with torch.inference_mode():
        assert block(x).shape == (2, 8, 5, 4)
        assert_close(block(x), block.body(block.expand(x)).double(), "chain", 50)
    with pytest.raises(ValueError, match="InvertedBottleneck: hidden: expected an int >= 1, got 0"):
        ff_nn.InvertedBottleneck(6, 0, 8, 3)
