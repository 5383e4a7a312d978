# SPDX-License-Identifier: Apache-2.0
"""Recorded training steps do what steps as ever do, to the bit, and refuse by name what they would get wrong."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer
from fastfer import backend, step
from fastfer.step.arena import ALIGNMENT, Span, layout

if not backend.list_backends()["native"].available:
    pytest.skip(backend.list_backends()["native"].reason, allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"fgw_fer": 48, "sepconv_attention": 32, "mobilenetv3_cpsca": 64, "patt_lite": 224, "vgg16_csa": 64}
Make = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-3, fused=True)


OPTIMIZERS: dict[str, Make] = {
    "adamw": adamw,
    "adam": lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True),
    "plain sgd": lambda p: torch.optim.SGD(p, 1e-2, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, 1e-3, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
}


class Pair:
    """Two equal networks with an optimiser each: one is trained as ever, the other by a recorded step."""

    def __init__(self, model: nn.Module, make: Make = adamw, loss: Any = None, **options: Any) -> None:
        self.eager, self.model = model, copy.deepcopy(model)
        self.loss = loss or fastfer.nn.CrossEntropyLoss(label_smoothing=0.1)
        self.optimizers = [make(m.parameters()) for m in (self.eager, self.model)]
        self.step = fastfer.compile_step(self.model, self.loss, self.optimizers[1], **options)
        self.options, self.seed = options, 0

    def train(self, x: Tensor, y: Tensor) -> None:
        """One step of both, with the same random numbers; they must stay equal."""
        self.seed += 1
        torch.manual_seed(self.seed)
        self.optimizers[0].zero_grad()
        loss = self.loss(self.eager(x), y)
        loss.backward()
        if "clip_norm" in self.options:
            nn.utils.clip_grad_norm_(self.eager.parameters(), self.options["clip_norm"])
        self.optimizers[0].step()
        drawn = torch.get_rng_state()
        torch.manual_seed(self.seed)
        assert torch.equal(self.step(x, y), loss.detach())
        assert torch.equal(torch.get_rng_state(), drawn)
        self.compare()

    def compare(self) -> None:
        """Weights, statistics, counters, gradients and the optimisers' state."""
        same(self.eager.state_dict(), self.model.state_dict())
        for (name, a), b in zip(self.eager.named_parameters(), self.model.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name
            assert a.grad is None or (b.grad is not None and torch.equal(a.grad, b.grad)), name
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        assert states[0].keys() == states[1].keys()
        for key, values in states[0].items():
            same(values, states[1][key])


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    wrong = [k for k, v in a.items() if not (torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k])]
    assert not wrong


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return fastfer.create_model("fgw_fer", **options).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def batch(n: int, channels: int = 1, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 7, (n,), generator=generator)


@pytest.mark.parametrize("name", SIZES)
def test_networks_train_alike(name: str) -> None:
    train_network(name, 3)


@pytest.mark.full
@pytest.mark.parametrize("name", SIZES)
def test_networks_train_alike_for_fifty_steps(name: str) -> None:
    train_network(name, 50)


def train_network(name: str, steps: int) -> None:
    torch.manual_seed(0)
    model: Any = fastfer.create_model(name).train()
    pair = Pair(model.to(memory_format=torch.channels_last))
    for seed in range(steps):
        pair.train(*batch(2, model.in_chans, SIZES[name], seed))
    (plan,) = pair.step.plans()
    kernels, native, operators = plan.counts()
    assert kernels > 40
    assert native <= operators + 1
    assert operators == (0 if name == "fgw_fer" else operators)
    assert 0 < plan.arena_bytes < 0.8 * plan.scratch_bytes


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_keep_their_state(name: str) -> None:
    pair = Pair(small(), OPTIMIZERS[name])
    for seed in range(4):
        pair.train(*batch(3, seed=seed))


def test_a_schedule_and_a_clipped_norm() -> None:
    pair = Pair(small(), clip_norm=0.5)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=8) for o in pair.optimizers]
    for seed in range(6):
        pair.train(*batch(3, seed=seed))
        for schedule in schedules:
            schedule.step()


def test_layouts_dropout_and_losses_of_torch() -> None:
    """NCHW images and weights, dropout, a loss of torch, parameters that are frozen or not used."""
    torch.manual_seed(0)
    model = fastfer.create_model("fgw_fer", dropout=0.3).train()
    model.stem.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    pair = Pair(model, loss=F.cross_entropy)
    for seed in range(3):
        x, y = batch(3, seed=seed)
        pair.train(x.contiguous(), y)


def test_each_shape_has_a_plan_and_the_oldest_goes() -> None:
    pair = Pair(small(), plans=2)
    for n in (4, 3, 4, 3, 2, 4, 4):
        pair.train(*batch(n))
    assert len(pair.step.plans()) == 2
    kept = {id(plan) for plan in pair.step.plans()}
    pair.train(*batch(2))
    assert kept == {id(plan) for plan in pair.step.plans()}


def test_what_changes_between_steps_is_seen() -> None:
    pair = Pair(small(dropout=0.2))
    x, y = batch(4)
    pair.train(x, y)
    changes: list[Callable[[Any], object]] = [
        lambda m: m.eval(),
        lambda m: m.train(),
        lambda m: setattr(m.dropout, "p", 0.5),
        lambda m: m.blocks[0].requires_grad_(False),
        lambda m: setattr(m.head.norm, "momentum", 0.5),
        lambda m: m.to(memory_format=torch.contiguous_format),
        lambda m: m.load_state_dict({k: v * 0.9 if v.is_floating_point() else v for k, v in m.state_dict().items()}),
        lambda m: setattr(m, "pool", nn.Sequential(m.pool, nn.Identity())),
    ]
    for change in changes:
        for model in (pair.eager, pair.model):
            change(model)
        pair.train(x, y)
        pair.train(x, y)


def test_a_loaded_optimizer_goes_on() -> None:
    pair = Pair(small())
    for seed in range(2):
        pair.train(*batch(3, seed=seed))
    for optimizer in pair.optimizers:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(2):
        pair.train(*batch(3, seed=seed))


def test_threads_may_change_and_bits_do_not() -> None:
    pair, before = Pair(small()), torch.get_num_threads()
    try:
        for threads in (1, 2, 2, 1):
            torch.set_num_threads(threads)
            pair.train(*batch(4))
    finally:
        torch.set_num_threads(before)


def test_gradients_that_a_user_took_away_come_back() -> None:
    pair = Pair(small())
    for seed in range(3):
        pair.train(*batch(3, seed=seed))
        for p in pair.model.parameters():
            p.grad = None


class Twice(nn.Module):
    """Not of fastfer, and with a look at values where ``looks``."""

    def __init__(self, body: nn.Module, looks: bool = False) -> None:
        super().__init__()
        self.body, self.looks = body, looks

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return 2 * y if not self.looks or float(y.detach().sum()) > -1e9 else y


def test_modules_of_others_are_refused_unless_vouched_for() -> None:
    pair = Pair(Twice(small()))
    with pytest.raises(step.StepError, match=r"Twice: expected modules of fastfer .* trusted=\(Twice,\)"):
        pair.step(*batch(3))
    pair = Pair(Twice(small()), trusted=(Twice,))
    for seed in range(3):
        pair.train(*batch(3, seed=seed))


def hooked(model: Any) -> object:
    return model.head.register_forward_hook(lambda module, inputs, output: output)


def given_forward(model: Any) -> None:
    model.pool.forward = lambda x: x.mean((2, 3))


def loose_tensor(model: Any) -> None:
    model.pool.scale = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, "Conv2d: expected no hooks, got hooked"),
        (given_forward, "GlobalAvgPool: forward"),
        (loose_tensor, "GlobalAvgPool: scale: expected a parameter or a buffer"),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_what_is_put_on_modules_is_refused(change: Callable[[Any], object], message: str, steps: int) -> None:
    """Before the first step, and when there is a recording already."""
    pair = Pair(small())
    for _ in range(steps):
        pair.train(*batch(3))
    change(pair.model)
    with pytest.raises(step.StepError, match=message):
        pair.step(*batch(3))


def test_values_read_in_python_are_refused_or_computed_as_ever() -> None:
    with pytest.raises(step.StepError, match="_local_scalar_dense: expected a step that does not look at values"):
        Pair(Twice(small(), looks=True), trusted=(Twice,)).step(*batch(3))
    pair = Pair(Twice(small(), looks=True), trusted=(Twice,), fallback=True)
    with pytest.warns(UserWarning, match="not recorded: aten::_local_scalar_dense"):
        pair.train(*batch(3))
    for seed in range(2):
        pair.train(*batch(3, seed=seed))
    assert pair.step.refused
    assert not pair.step.plans()


def test_other_ways_to_compute_are_refused() -> None:
    pair = Pair(small())
    x, y = batch(3)
    with fastfer.use("reference"), pytest.raises(step.StepError, match="backend: expected native"):
        pair.step(x, y)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(step.StepError, match="autocast"):
        pair.step(x, y)
    with torch.no_grad(), pytest.raises(step.StepError, match="gradients"):
        pair.step(x, y)
    pair.train(x, y)
    pair.train(x, y)
    with fastfer.use("reference"), pytest.raises(step.StepError, match="backend: expected native"):
        pair.step(x, y)


def test_wrong_arguments() -> None:
    model = small()
    optimizer = adamw(model.parameters())
    loss = fastfer.nn.CrossEntropyLoss()
    compiled: Any = fastfer.compile_step
    for arguments, error, message in [
        ((loss, loss, loss), TypeError, "optimizer: expected a torch.optim.Optimizer"),
        ((3, loss, optimizer), TypeError, "model: expected a torch.nn.Module, got int"),
        ((model, 3, optimizer), TypeError, "loss: expected a module or a function"),
        ((model, lambda a, b: a.sum(), optimizer), step.StepError, "loss: expected a module, or a function of torch"),
        ((model, loss, adamw(model.head.parameters())), ValueError, "optimizer: expected all trained parameters"),
    ]:
        with pytest.raises(error, match=message):
            compiled(*arguments)
    with pytest.raises(ValueError, match="clip_norm: expected a positive number, got 0"):
        compiled(model, loss, optimizer, clip_norm=0)
    with pytest.raises(ValueError, match="plans: expected 1 or more, got 0"):
        compiled(model, loss, optimizer, plans=0)
    with pytest.raises(TypeError, match="expected tensors, got list"):
        compiled(model, loss, optimizer)(batch(3)[0], [1, 2, 3])


def test_wrong_batches_are_errors_each_time() -> None:
    pair = Pair(small())
    x, y = batch(3)
    for _ in range(2):
        with pytest.raises(IndexError, match="labels: expected 0 <= label < 7, got 9"):
            pair.step(x, torch.full_like(y, 9))
        with pytest.raises((ValueError, TypeError)):
            pair.step(x[:, :, 0], y)
    fresh = Pair(small())
    fresh.train(x, y)
    with pytest.raises(IndexError, match="labels: expected 0 <= label < 7, got 9"):
        fresh.step(x, torch.full_like(y, 9))


def test_memory_is_shared_only_by_what_is_never_alive_together() -> None:
    generator = random.Random(0)
    for _ in range(20):
        spans = []
        for _ in range(60):
            first = generator.randrange(50)
            spans.append(Span(generator.randrange(0, 5000), first, first + generator.randrange(8)))
        offsets, size = layout(spans)
        assert all(offset % ALIGNMENT == 0 for offset in offsets)
        assert max(offset + span.size for offset, span in zip(offsets, spans, strict=True)) <= size
        for i, a in enumerate(spans):
            for j, b in enumerate(spans[:i]):
                together = a.first <= b.last and b.first <= a.last
                apart = offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
                assert apart or not together
        assert size < sum(span.size for span in spans)
    assert layout([]) == ([], 0)
