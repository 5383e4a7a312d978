# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention on every backend and ISA against stock torch in float64."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Variant
from draws import kernels
from flat import Flat
from guard import Guarded
from shapes import around_vectors
from tolerance import assert_close
from torch import Tensor
from torch.nn import functional as F

from fastfer import backend, ops
from fastfer.ops import Norm, cbam, channel_gate, spatial_gate

SEED = int(os.environ.get("FASTFER_TEST_SEED", "2026"))
DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))
GATES = ("cbam", "channel_gate", "spatial_gate")
MLP, SPATIAL = ("w1", "b1", "w2", "b2"), ("spatial_weight", "weight", "bias")
EPS, MOMENTUM = 1e-3, 0.25


class Shape(NamedTuple):
    n: int
    c: int
    h: int
    w: int
    hidden: int = 2
    kernel: int = 7


SHAPES = (
    Shape(2, 8, 6, 6, 1),
    Shape(1, 3, 5, 7, 1),
    Shape(3, 16, 1, 1),
    Shape(2, 1, 9, 2, 1, 3),
    Shape(1, 33, 4, 21, 5, 5),
    Shape(2, 4, 19, 17, 3, 1),
    Shape(5, 128, 3, 3, 16),
    Shape(40, 8, 12, 12, 1),
)


@dataclass
class Case:
    """Leaves by name in float64 (their values exact in float32), running statistics, the upstream gradient."""

    gate: str
    leaves: dict[str, Tensor]
    running: tuple[Tensor, Tensor]
    upstream: Tensor
    training: bool


def make(gate: str, shape: Shape, training: bool, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=g).double()

    n, c, h, w, hidden, kernel = shape
    leaves = {
        "x": draw(n, c, h, w), "w1": (draw(hidden, c) / 4).float().double(), "b1": draw(hidden), "w2": draw(c, hidden),
        "b2": draw(c), "spatial_weight": (draw(1, 2, kernel, kernel) / 4).float().double(), "weight": draw(1),
        "bias": draw(1),
    }  # fmt: skip
    running = draw(1), (draw(1).abs() + 0.5).float().double()
    absent = {"cbam": (), "channel_gate": SPATIAL, "spatial_gate": MLP}[gate]
    kept = {name: value for name, value in leaves.items() if name not in absent}
    return Case(gate, kept, running, draw(n, c, h, w), training)


def stock(case: Case, t: dict[str, Tensor], running: tuple[Tensor, Tensor]) -> Tensor:
    """The gates in torch's own functions."""
    u = t["x"]
    if "w1" in t:

        def mlp(v: Tensor) -> Tensor:
            return F.linear(F.relu(F.linear(v, t["w1"], t["b1"])), t["w2"], t["b2"])

        u = u * torch.sigmoid(mlp(u.mean((2, 3))) + mlp(F.adaptive_max_pool2d(u, 1).flatten(1)))[:, :, None, None]
    if "spatial_weight" not in t:
        return u
    planes = torch.cat([u.max(1, keepdim=True).values, u.mean(1, keepdim=True)], 1)
    y = F.conv2d(planes, t["spatial_weight"], padding=t["spatial_weight"].shape[-1] // 2)
    if y.numel():
        y = F.batch_norm(y, *running, t["weight"], t["bias"], case.training, MOMENTUM, EPS)
    return u * torch.sigmoid(y)


def call(case: Case, t: dict[str, Tensor], running: tuple[Tensor, Tensor]) -> Tensor:
    """fastfer's op on these tensors."""
    if case.gate == "channel_gate":
        return channel_gate(*(t[name] for name in ("x", *MLP)))
    norm = Norm(t["weight"], t["bias"], *running, MOMENTUM, EPS)
    if case.gate == "spatial_gate":
        return spatial_gate(t["x"], t["spatial_weight"], norm, training=case.training)
    return cbam(*(t[name] for name in ("x", *MLP)), t["spatial_weight"], norm, training=case.training)


def run(
    case: Case, function: Callable[..., Tensor], dtype: torch.dtype, wanted: Sequence[str] | None = None
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
    """Output, gradients of the leaves in ``wanted`` (default: all), running statistics afterwards."""
    leaves = {name: value.to(dtype, copy=True) for name, value in case.leaves.items()}
    running = tuple(value.to(dtype, copy=True) for value in case.running)
    names = list(leaves if wanted is None else wanted)
    for name in names:
        leaves[name].requires_grad_()
    out = function(case, leaves, running)
    grads = torch.autograd.grad(out, [leaves[name] for name in names], case.upstream.to(dtype))
    return out.detach(), dict(zip(names, grads, strict=True)), running


def check(case: Case, dtype: torch.dtype, wanted: Sequence[str] | None = None) -> None:
    out, grads, running = run(case, call, dtype, wanted)
    want, want_grads, want_running = run(case, stock, torch.float64)
    assert out.is_contiguous(memory_format=torch.channels_last)
    n, c, h, w = out.shape
    length = n * c * h * w + 100
    assert_close(out, want, "chain", length, name="out")
    # Gradients of parameters are sums over everything, in which batch statistics leave only a small part.
    size = float(case.upstream.abs().sum())
    for name, grad in grads.items():
        scale = None if name == "x" else 0.05 * size + float(want_grads[name].abs().max())
        assert_close(grad, want_grads[name], "chain", length if name == "x" else 16, scale=scale, name=f"d {name}")
    for got, right in zip(running, want_running, strict=True):
        assert_close(got, right, "chain", length, scale=1.0, name="running statistics")
    if not case.training:
        with torch.no_grad():
            leaves = {name: value.to(dtype) for name, value in case.leaves.items()}
            got = call(case, leaves, tuple(value.to(dtype) for value in case.running))
        assert_close(got, want, "chain", length, name="inference")


def passes(training: bool) -> tuple[str, ...]:
    return ("train", "bwd") if training else ("fwd", "train", "bwd")


@dtypes
@pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.c}x{s.h}x{s.w}")
def test_cbam(variant: Variant, shape: Shape, training: bool, dtype: torch.dtype) -> None:
    with variant.runs(*kernels("cbam", dtype, *passes(training))):
        check(make("cbam", shape, training), dtype)


@dtypes
@pytest.mark.parametrize("gate", GATES[1:])
def test_gates_alone(variant: Variant, gate: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[:5]:
        for training in (False, True)[: 1 + (gate == "spatial_gate")]:
            with variant.runs(*kernels(gate, dtype, *passes(training))):
                check(make(gate, shape, training), dtype)


@dtypes
def test_channels(kernel_variant: Variant, dtype: torch.dtype) -> None:
    for channels in around_vectors():
        check(make("cbam", Shape(2, channels, 4, 5, 3, 3), True, channels), dtype)


def test_gates_make_up_the_whole(variant: Variant) -> None:
    case = make("cbam", SHAPES[0], False)
    t = case.leaves
    norm = Norm(t["weight"], t["bias"], *case.running, MOMENTUM, EPS)
    gated = channel_gate(*(t[name] for name in ("x", *MLP)))
    torch.testing.assert_close(spatial_gate(gated, t["spatial_weight"], norm), call(case, t, case.running))


@pytest.mark.parametrize("gate", GATES)
def test_only_the_gradients_asked_for(cpu_backend: Variant, gate: str) -> None:
    case = make(gate, SHAPES[1], gate != "channel_gate")
    names = list(case.leaves)
    for wanted in [*([name] for name in names), *([other for other in names if other != name] for name in names)]:
        check(case, torch.float64, wanted)


@pytest.mark.parametrize("gate", GATES)
def test_ties_as_torch(variant: Variant, gate: str) -> None:
    """Few values, so that pixels and channels have equal maxima; the gradient goes to one of them."""
    case = make(gate, Shape(2, 19, 4, 5, 2, 3), False)
    case.leaves["x"] = case.leaves["x"].round().clamp(-1, 1)
    if "w1" in case.leaves:  # and equal gates, so that they stay equal
        for name in ("w1", "w2"):
            case.leaves[name].fill_(0.25)
        case.leaves["b2"].fill_(0.5)
    check(case, torch.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("gate", GATES)
def test_non_finite_as_torch(variant: Variant, gate: str, value: float) -> None:
    case = make(gate, Shape(3, 9, 4, 5, 2, 3), False)
    case.leaves["x"][1, 4, 2, 3] = value
    case.leaves["x"][1, 6, 2, 3] = value
    out, grads, _ = run(case, call, torch.float32)
    want, want_grads, _ = run(case, stock, torch.float32)
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out.isinf(), want.isinf())
    for image in (0, 2):  # images do not mix
        torch.testing.assert_close(out[image], want[image])
        torch.testing.assert_close(grads["x"][image], want_grads["x"][image], rtol=1e-4, atol=1e-5)


def test_statistics_far_from_zero(variant: Variant) -> None:
    case = make("spatial_gate", Shape(4, 3, 12, 12, 1, 1), True)
    case.leaves["x"] = (case.leaves["x"] + 1000).float().double()
    got, want = run(case, call, torch.float32), run(case, stock, torch.float64)
    for a, b in zip(got[2], want[2], strict=True):
        assert_close(a, b, "chain", 500, scale=1000.0, name="running statistics")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_gradcheck(cpu_backend: Variant, gate: str, training: bool) -> None:
    if gate == "channel_gate" and training:
        pytest.skip("no norm")
    case = make(gate, Shape(2, 4, 3, 4, 2, 3), training)
    names = list(case.leaves)

    def function(*values: Tensor) -> Tensor:
        running = tuple(value.clone() for value in case.running)
        return call(case, dict(zip(names, values, strict=True)), running)

    assert torch.autograd.gradcheck(function, [value.clone().requires_grad_() for value in case.leaves.values()])


def test_layouts(variant: Variant) -> None:
    case = make("cbam", Shape(4, 5, 12, 9, 1), True)
    big = case.leaves["x"].float()
    t = {name: value.float() for name, value in make("cbam", Shape(2, 3, 6, 8, 1), True).leaves.items()}
    running = tuple(value.float() for value in case.running)

    def out(x: Tensor) -> Tensor:
        return call(case, {**t, "x": x}, tuple(value.clone() for value in running))

    for view in (big[::2, 1:4, ::2, 1:], big[:2, :1, :6, :8].expand(2, 3, 6, 8), big.transpose(2, 3)[:2, :3, :6, :8]):
        assert torch.equal(out(view), out(view.contiguous()))
        assert torch.equal(out(view), out(view.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_empty_batch(cpu_backend: Variant, gate: str, training: bool) -> None:
    case = make(gate, Shape(0, 4, 5, 5, 1), training)
    out, grads, running = run(case, call, torch.float32)
    assert out.shape == (0, 4, 5, 5)
    for name, grad in grads.items():
        assert grad.shape == case.leaves[name].shape
        assert not bool(grad.any()), name
    assert all(torch.equal(a, b.float()) for a, b in zip(running, case.running, strict=True))


def arguments(case: Case, dtype: torch.dtype, grad: bool) -> list[Any]:
    t = {name: value.to(dtype).requires_grad_(grad) for name, value in case.leaves.items()}
    t["x"] = t["x"].detach().contiguous(memory_format=torch.channels_last).requires_grad_(grad)
    mlp = [t[name] for name in MLP if name in t]
    spatial = [*(t[name] for name in SPATIAL if name in t), *(value.to(dtype) for value in case.running), EPS]
    return [t["x"], *mlp, *(spatial if "weight" in t else [])]


def backward_arguments(case: Case, args: Sequence[Any], kept: Sequence[Tensor]) -> tuple[Any, ...]:
    x, dout = args[0], torch.ones_like(args[0])
    if case.gate == "channel_gate":
        return dout, x, *kept, *args[1:4], [True, True]
    if case.gate == "spatial_gate":
        return dout, x, *kept, *args[1:4], case.training, [True, True]
    return dout, x, *kept, *args[1:4], *args[5:8], case.training, [True] * 3


@pytest.mark.parametrize("gate", GATES)
def test_opcheck(cpu_backend: Variant, gate: str) -> None:
    case = make(gate, Shape(2, 3, 5, 4, 2, 3), gate != "channel_gate")
    library, flag = torch.ops.fastfer, [] if gate == "channel_gate" else [case.training]
    plain = arguments(case, torch.float32, False)
    cpu_backend.opcheck(getattr(library, gate).default, tuple(plain))
    train = getattr(library, f"{gate}_train").default
    cpu_backend.opcheck(train, (*arguments(case, torch.float32, True), *flag))
    _, *kept = train(*plain, *flag)
    cpu_backend.opcheck(getattr(library, f"{gate}_backward").default, backward_arguments(case, plain, kept))


@pytest.mark.parametrize("training", [True, False])
def test_compile(cpu_backend: Variant, training: bool) -> None:
    case = make("cbam", SHAPES[1], training)
    results = [
        run(case, wrap(call), torch.float32)
        for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
    ]
    torch.testing.assert_close(results[0], results[1])


def test_autocast_computes_in_float32(cpu_backend: Variant) -> None:
    case = make("cbam", SHAPES[0], False)
    t = {name: value.float() for name, value in case.leaves.items()}
    running = tuple(value.float() for value in case.running)
    t["x"] = t["x"].bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(case, t, running)
    assert out.dtype == cpu_backend.lowered
    assert torch.autograd.grad(out.sum(), t["x"])[0].dtype == torch.bfloat16


@dtypes
def test_threads_give_the_same_bits(kernel_variant: Variant, dtype: torch.dtype, threads: None) -> None:
    for shape, training in ((Shape(70, 16, 24, 24), True), (Shape(9, 33, 5, 6), False)):
        case, runs = make("cbam", shape, training), []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            out, grads, running = run(case, call, dtype)
            runs.append([out, *grads.values(), *running])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@dtypes
def test_nothing_beside_the_outputs_is_written(kernel_variant: Variant, dtype: torch.dtype) -> None:
    module = Flat(backend.implementation("cbam", "cpu"))
    for channels in (1, 3, 8, 15, 17, 33):
        for gate in GATES:
            case = make(gate, Shape(2, channels, 5, 7, 3), gate != "channel_gate")
            args, flag = arguments(case, dtype, False), [] if gate == "channel_gate" else [case.training]
            with Guarded() as guarded:
                getattr(module, gate)(*args)
                _, *kept = getattr(module, f"{gate}_train")(*args, *flag)
                getattr(module, f"{gate}_backward")(*backward_arguments(case, args, kept))
            guarded.check(at_least=5)


def drawn(seed: int) -> tuple[Case, Shape, torch.dtype]:
    draw = random.Random(seed)
    shape = Shape(
        draw.randint(1, 4),
        draw.randint(1, 50),
        draw.randint(2, 12),
        draw.randint(2, 20),
        draw.randint(1, 6),
        draw.choice((1, 3, 5, 7, 9)),
    )
    gate = draw.choice(GATES)
    return make(gate, shape, gate != "channel_gate" and draw.random() < 0.5, seed), shape, draw.choice(DTYPES)


def test_drawn_cases(variant: Variant) -> None:
    for seed in range(SEED, SEED + 30):
        case, shape, dtype = drawn(seed)
        try:
            check(case, dtype)
        except Exception as error:
            error.add_note(f"drawn from seed {seed} (FASTFER_TEST_SEED={SEED}): {case.gate}, {shape}, {dtype}")
            raise


def parameters(channels: int, hidden: int) -> dict[str, Any]:
    case = make("cbam", Shape(1, channels, 1, 1, hidden), False)
    norm = Norm(case.leaves["weight"], case.leaves["bias"], *case.running)
    return {**{name: case.leaves[name] for name in (*MLP, "spatial_weight")}, "spatial_norm": norm}


def test_exported() -> None:
    assert set(GATES) <= set(ops.__all__)


X = torch.zeros(1, 8, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "cbam: x: expected 4 dimensions"),
        ({"x": X.int()}, TypeError, "cbam: x: expected dtype"),
        ({"x": X[:, :, :0]}, ValueError, "cbam: x: expected C, H and W >= 1"),
        ({"x": X[:, :4]}, ValueError, r"cbam: w1: expected shape \(2, 4\), got \(2, 8\)"),
        ({"w1": torch.zeros(2).double()}, ValueError, r"cbam: w1: expected 2 dimensions"),
        ({"b1": torch.zeros(3).double()}, ValueError, r"cbam: b1: expected shape \(2,\), got \(3,\)"),
        ({"w2": None}, TypeError, "cbam: w2: expected a torch.Tensor"),
        ({"b2": torch.zeros(8)}, TypeError, "cbam: b2: expected dtype"),
        ({"spatial_weight": 7}, TypeError, "cbam: spatial_weight: expected a torch.Tensor"),
        ({"spatial_weight": torch.zeros(1, 2, 6, 6).double()}, ValueError, "with K odd"),
        ({"spatial_weight": torch.zeros(1, 1, 7, 7).double()}, ValueError, r"expected shape \(1, 2, 7, 7\)"),
        ({"spatial_norm": None}, TypeError, "cbam: spatial_norm: expected fastfer.ops.Norm"),
        ({"x": X[:, :, :1, :1], "training": True}, ValueError, "cbam: x: expected more than one value"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cbam(**{"x": X, **parameters(8, 2), **change})
