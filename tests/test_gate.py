# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on every backend and ISA, against their equations in float64."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import pytest
import torch
from conftest import Variant
from draws import kernels
from flat import Flat
from gate_cases import (
    DTYPES,
    KINDS,
    MLP,
    SHAPES,
    Shape,
    Tensors,
    check,
    dtypes,
    excite,
    kinds,
    make,
    run,
    safe,
    shapes,
)
from guard import Guarded
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import backend, nn
from fastfer._checks import act_code

SEED = int(os.environ.get("FASTFER_TEST_SEED", "2026"))


@dtypes
@kinds
@shapes
def test_training(variant: Variant, shape: Shape, kind: str, dtype: torch.dtype) -> None:
    t = safe(shape, kind)
    with variant.runs(*kernels("gate", dtype, "train", "bwd")):
        check(t, kind, dtype)


@dtypes
@kinds
def test_inference(variant: Variant, kind: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        t = make(shape)
        with torch.inference_mode(), variant.runs(*kernels("gate", dtype, "fwd")):
            out = KINDS[kind].call({name: value.to(dtype) for name, value in t.items()})
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_close(out, KINDS[kind].formula(t), "chain", shape.c + shape.h * shape.w, name=f"{shape}")


@pytest.mark.parametrize("kind", ["csa", "csa_pool", "scse"])
def test_channels(variant: Variant, kind: str) -> None:
    """Every tail of a vector, over the channels and over the pixels of a row."""
    for c in around_vectors():
        check(safe(Shape(1 + c % 2, c, 2 + c % 3, 2 + c % 5), kind, c), kind, DTYPES[c % 2])


@pytest.mark.parametrize("kind", ["csa", "sa", "csa_pool"])
def test_ties_go_to_the_first(variant: Variant, kind: str) -> None:
    """Rectified inputs: equal channels of a pixel, and windows of equal products."""
    t = make(Shape(2, 37, 6, 5))
    t["x"] = torch.randint(-2, 2, t["x"].shape, generator=torch.Generator().manual_seed(1)).double().relu()
    check(t, kind, torch.float64)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@kinds
def test_non_finite(variant: Variant, kind: str, value: float) -> None:
    """What a NaN or infinity reaches in torch it reaches here, and no other image."""
    t = make(Shape(3, 19, 4, 6, 3, 3))
    t["x"][1, 3, 2, 1] = value
    got, want = KINDS[kind].call({name: leaf.float() for name, leaf in t.items()}), KINDS[kind].formula(t)
    assert_close(got[[0, 2]], want[[0, 2]], "chain", 50, name="other images")
    assert torch.equal(got.isnan(), want.isnan())


@kinds
def test_layouts(kernel_variant: Variant, kind: str) -> None:
    t = make(Shape(2, 5, 6, 7))
    want = run(KINDS[kind].call, t, kind, torch.float32)
    x, up = t["x"].float(), t["up_pool" if kind == "csa_pool" else "up"].float()
    big = torch.full((3, 8, 8, 15), math.nan)
    sliced = big[1:, 2:7, 1:-1, 1::2]
    sliced.copy_(x)
    for each, grad in (
        (x.contiguous(memory_format=torch.channels_last), up),
        (sliced, up.transpose(2, 3).contiguous().transpose(2, 3)),
    ):
        leaves = {name: t[name].float().requires_grad_() for name in KINDS[kind].leaves}
        leaves["x"] = each.requires_grad_()
        out = KINDS[kind].call(leaves)
        assert torch.equal(out, want[0])
        for name, got in zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True):
            assert torch.equal(got, want[1][name]), name


@kinds
def test_expanded_inputs(cpu_backend: Variant, kind: str) -> None:
    t = {name: value.float() for name, value in make(Shape(2, 6, 4, 4)).items()}
    wide = {**t, "x": t["x"][:1].expand(2, 6, 4, 4)}
    dense = {**t, "x": wide["x"].contiguous()}
    results = []
    for each in (wide, dense):
        leaf = each["x"].detach().requires_grad_()
        out = KINDS[kind].call({**each, "x": leaf})
        results.append((out, torch.autograd.grad(out, leaf, torch.ones(()).expand(out.shape))[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@kinds
def test_empty_batch(cpu_backend: Variant, kind: str) -> None:
    t = make(Shape(0, 5, 4, 6))
    out, grads = run(KINDS[kind].call, t, kind, torch.float32)
    assert out.shape == KINDS[kind].formula(t).shape
    for name, grad in grads.items():
        assert grad.shape == t[name].shape
        assert not bool(grad.any()), name


@kinds
def test_only_what_is_asked_for(cpu_backend: Variant, kind: str) -> None:
    t = safe(Shape(2, 6, 4, 5), kind)
    want = run(KINDS[kind].formula, t, kind, torch.float64)[1]
    up = t["up_pool" if kind == "csa_pool" else "up"]
    for name in ("x", *KINDS[kind].leaves):
        leaves = {key: value.clone().requires_grad_(key == name) for key, value in t.items()}
        grad = torch.autograd.grad(KINDS[kind].call(leaves), leaves[name], up)[0]
        assert_close(grad, want[name], "chain", 40, scale=1.0, name=f"{name} alone")


@kinds
def test_gradcheck(cpu_backend: Variant, kind: str) -> None:
    t = safe(Shape(2, 3, 2, 3, 2), kind)
    names = ("x", *KINDS[kind].leaves)

    def function(*values: Tensor) -> Tensor:
        return KINDS[kind].call(dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(function, [t[name].clone().requires_grad_() for name in names])


def arguments(t: Tensors, kind: str, grad: bool, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Arguments of the op ``gate_train`` behind a public function."""
    leaves = {name: t[name].to(dtype, copy=True).requires_grad_(grad) for name in ("x", *KINDS[kind].leaves)}
    x = leaves["x"].detach().contiguous(memory_format=torch.channels_last).requires_grad_(grad)
    mlp = [leaves.get(name) for name in MLP] if "w1" in leaves else [leaves.get("k"), None, None, None]
    linear = "sl" in leaves
    codes = [act_code("test", "relu"), act_code("test", "hardsigmoid" if kind.endswith("hard") else "sigmoid")]
    return [x, *mlp, *codes, leaves.get("sl" if linear else "sw"), leaves.get("sb"), linear, kind == "csa_pool"]


@kinds
def test_opcheck(cpu_backend: Variant, kind: str) -> None:
    namespace, t = torch.ops.fastfer, make(Shape(2, 5, 4, 6))
    cpu_backend.opcheck(namespace.gate.default, tuple(arguments(t, kind, False)))
    cpu_backend.opcheck(namespace.gate_train.default, tuple(arguments(t, kind, True)))
    x, *rest = arguments(t, kind, False)
    out, means, pixels = namespace.gate_train(x, *rest)
    for mask in ([True, True, True], [True, False, False]):
        cpu_backend.opcheck(namespace.gate_backward.default, (torch.ones_like(out), x, means, pixels, *rest, mask))


def test_compile(cpu_backend: Variant) -> None:
    t = make(Shape(2, 5, 4, 6))
    leaves = ("x", *MLP, "k", "sw", "sb")
    results = []

    def function(tensors: Tensors) -> Tensor:
        y = KINDS["squeeze_excite"].call(tensors)
        y = KINDS["csa_pool"].call({**tensors, "x": y * 2})
        return KINDS["eca"].call({**tensors, "x": y}).square().sum()

    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        tensors = {name: t[name].float().requires_grad_() for name in leaves}
        value = f(tensors)
        results.append((value.detach(), torch.autograd.grad(value, list(tensors.values()))))
    torch.testing.assert_close(results[1], results[0])


@dtypes
@kinds
def test_threads_give_the_same_bits(kernel_variant: Variant, kind: str, dtype: torch.dtype, threads: None) -> None:
    for shape in (Shape(5, 120, 14, 14, 32), Shape(1, 24, 40, 37, 8, 5)):
        t, results = make(shape), []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            with torch.inference_mode():
                out = KINDS[kind].call({name: value.to(dtype) for name, value in t.items()}).clone()
            trained, grads = run(KINDS[kind].call, t, kind, dtype)
            results.append([out, trained, *grads.values()])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@dtypes
@kinds
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, kind: str, dtype: torch.dtype) -> None:
    module = Flat(backend.implementation("gate", "cpu"))
    for c, hidden in ((1, 1), (3, 17), (16, 8), (33, 15)):
        x, *rest = arguments(make(Shape(2, c, 3, 5, hidden)), kind, False, dtype)
        out, means, pixels = module.gate_train(x, *rest)
        for function, given in (
            (module.gate, (x, *rest)),
            (module.gate_train, (x, *rest)),
            (module.gate_backward, (out, x, means, pixels, *rest, [True] * 3)),
        ):
            with Guarded() as guarded:
                function(*given)
            guarded.check()


@pytest.mark.parametrize("batch", range(3))
def test_drawn_cases(variant: Variant, batch: int) -> None:
    for seed in range(SEED + batch * 8, SEED + batch * 8 + 8):
        draw = random.Random(seed)
        kind, dtype = draw.choice(list(KINDS)), draw.choice(DTYPES)
        shape = Shape(
            draw.randint(1, 6),
            draw.randint(1, 90),
            draw.randint(2, 9),
            draw.randint(2, 9),
            draw.randint(1, 24),
            draw.choice((1, 3, 5, 7)),
        )
        try:
            check(safe(shape, kind, seed), kind, dtype)
        except Exception as error:
            error.add_note(f"drawn from seed {seed} (FASTFER_TEST_SEED={SEED}): {shape}, {kind}, {dtype}")
            raise


def test_modules(cpu_backend: Variant) -> None:
    modules = {
        nn.SqueezeExcite(120): ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"],
        nn.ECA(64): ["weight"],
        nn.SpatialAttention(): ["weight", "bias"],
        nn.CSA(64): ["channel.weight", "spatial.weight", "spatial.bias"],
        nn.ScSE(16): ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "spatial.weight", "spatial.bias"],
    }
    for module, names in modules.items():
        assert [name for name, _ in module.named_parameters()] == names
        channels = 120 if isinstance(module, nn.SqueezeExcite) else 16 if isinstance(module, nn.ScSE) else 64
        x = torch.randn(2, channels, 6, 4)
        want = module(x)
        assert want.shape == x.shape
        with torch.autocast("cpu", torch.bfloat16):
            got = module(x.bfloat16())
        assert got.dtype == cpu_backend.lowered
        torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    csa = nn.CSA(64)
    csa_pool = nn.CSA(64, pool=True)
    csa_pool.load_state_dict(csa.state_dict())
    x = torch.randn(2, 64, 6, 5)
    torch.testing.assert_close(csa_pool(x), F.max_pool2d(csa(x), 2))


def test_sizes_of_modules() -> None:
    assert [nn.SqueezeExcite(c).fc1.out_channels for c in (16, 72, 120, 240, 960)] == [8, 24, 32, 64, 240]
    assert [nn.ECA(c).weight.shape[-1] for c in (1, 64, 128, 256, 512)] == [1, 3, 5, 5, 5]
    assert nn.ECA(64, 7).weight.shape == (1, 1, 7)
    assert nn.SqueezeExcite(16, 5).fc1.weight.shape == (5, 16, 1, 1)


def bad_calls() -> list[Any]:
    return [
        ("eca", {"x": None}, TypeError, "eca: x: expected a torch.Tensor, got NoneType"),
        ("eca", {"x": torch.zeros(3, 4, 5)}, ValueError, "eca: x: expected 4 dimensions"),
        ("sa", {"x": torch.zeros(1, 3, 0, 4)}, ValueError, "sa: x: expected C >= 1, H and W >= 1, got shape"),
        ("csa_pool", {"x": torch.zeros(1, 3, 1, 4)}, ValueError, "csa: x: expected C >= 1, H and W >= 2, got shape"),
        ("eca", {"k": torch.zeros(1, 1, 4)}, ValueError, r"eca: weight: expected shape \(1, 1, K\) with K odd"),
        ("csa", {"k": torch.zeros(2, 1, 3)}, ValueError, r"csa: channel_weight: expected shape \(1, 1, 3\)"),
        ("csa", {"sw": torch.zeros(1, 3, 1, 1)}, ValueError, r"csa: spatial_weight: expected shape \(1, 2, 1, 1\)"),
        ("csa", {"sb": torch.zeros(1).double()}, TypeError, "csa: spatial_bias: expected dtype"),
        ("sa", {"sw": torch.zeros(1, 2, 3, 3)}, ValueError, r"sa: weight: expected shape \(1, 2, 1, 1\)"),
        ("sa", {"sb": torch.zeros(2)}, ValueError, r"sa: bias: expected shape \(1,\), got \(2,\)"),
        ("squeeze_excite", {"w1": torch.zeros(4, 2)}, ValueError, r"squeeze_excite: w1: expected shape \(4, 3\)"),
        ("squeeze_excite", {"w1": torch.zeros(0, 3)}, ValueError, r"squeeze_excite: w1: expected shape \(H, 3\)"),
        ("squeeze_excite", {"w2": torch.zeros(3, 4, 1)}, ValueError, r"squeeze_excite: w2: expected shape \(3, 4\)"),
        ("squeeze_excite", {"b1": torch.zeros(3)}, ValueError, r"squeeze_excite: b1: expected shape \(4,\)"),
        ("scse", {"b2": None}, TypeError, "scse: b2: expected a torch.Tensor"),
        ("scse", {"sl": torch.zeros(1, 2, 1, 1)}, ValueError, r"scse: spatial_weight: expected shape \(1, 3, 1, 1\)"),
    ]


@pytest.mark.parametrize(("kind", "change", "error", "message"), bad_calls())
def test_bad_input(kind: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    t = {name: value.float() for name, value in make(Shape(1, 3, 4, 4)).items()}
    with pytest.raises(error, match=message):
        KINDS[kind].call({**t, **change})


def test_bad_names() -> None:
    t = {name: value.float() for name, value in make(Shape(1, 3, 4, 4)).items()}
    with pytest.raises(ValueError, match=r"squeeze_excite: gate: expected one of .* got 'softmax'"):
        excite("relu", "softmax").call(t)
    with pytest.raises(ValueError, match="ECA: kernel_size: expected an odd int, got 4"):
        nn.ECA(8, 4)
    with pytest.raises(ValueError, match="SqueezeExcite: gate: expected one of"):
        nn.SqueezeExcite(8, gate="tanh")
