# SPDX-License-Identifier: Apache-2.0
"""What somebody puts on a module counts, whatever op runs in its place: hooks, forwards of their own, other classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import fastfer
from fastfer import backend
from fastfer import nn as ffn

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def bottleneck(attention: nn.Module | None = None) -> nn.Module:
    return ffn.InvertedBottleneck(8, 32, 8, 3, 1, 1, act="relu", attention=attention)


FUSED: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: ffn.Conv2d(8, 12, 3, 1, 1, norm=True, act="relu", pool=ffn.MaxPool2d(2)),
    "depthwise": lambda: ffn.DepthwiseConv2d(8, 3, 1, 1, norm=True, act="silu"),
    "separable": lambda: ffn.SeparableConv2d(8, 12, 3, 1, 1, norm1=True, act1="relu", norm2=True, act2="silu"),
    "bottleneck": bottleneck,
    "bottleneck-attention": lambda: bottleneck(ffn.SqueezeExcite(32)),
    "channel-gate": lambda: ffn.ChannelGate(8, 2),
    "spatial-gate": ffn.SpatialGate,
    "cbam": lambda: ffn.CBAM(8, 2),
    "squeeze-excite": lambda: ffn.SqueezeExcite(8),
    "csa": lambda: ffn.CSA(8),
    "csa-pool": lambda: ffn.CSA(8, pool=True),
    "scse": lambda: ffn.ScSE(8),
    "ca": lambda: ffn.CoordinateAttention(8, kind="ca"),
    "maxca": lambda: ffn.CoordinateAttention(8, kind="maxca"),
    "cpsca": lambda: ffn.CoordinateAttention(8, kind="cpsca"),
    "additive": lambda: ffn.AdditiveAttention(6, 4),
    "chain": lambda: chain(ffn.SeparableConv2d),
}
"""Modules that run as one op, and that call their parts where something was put on one of them."""


def chain(kind: Callable[..., nn.Module]) -> nn.Module:
    return ffn.Chain(
        ffn.Conv2d(8, 12, 3, 1, 1, bias=False, norm=True, act="relu"),
        kind(12, 10, 3, 1, 1, norm2=True, act2="relu"),
        ffn.SeparableConv2d(10, 6, 3, 1, 1, norm2=True, act2="silu"),
        ffn.CSA(6, pool=True),
    )


def build(name: str, training: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = FUSED[name]().double().train(training)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return module, torch.randn(*((2, 5, 6) if name == "additive" else (2, 8, 6, 8)), dtype=torch.float64)


def run(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients of the input and of the parameters, and buffers."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    grads = {f"d {name}": p.grad for name, p in module.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **grads} | {name: b.clone() for name, b in module.named_buffers()}


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(FUSED))
def test_hooks_on_every_part_are_called_and_change_nothing(name: str, training: bool) -> None:
    module, x = build(name, training)
    want = run(copy.deepcopy(module), x)
    for place, _ in list(module.named_modules())[1:]:
        twin, seen = copy.deepcopy(module), []
        twin.get_submodule(place).register_forward_hook(lambda module, args, y, seen=seen: seen.append(y))
        same(run(twin, x), want)
        assert len(seen) == (2 if (name, place) in TWICE else 1), place


TWICE = {
    *((kind, part) for kind in ("channel-gate",) for part in ("fc1", "fc2")),
    *(("cbam", f"channel.{part}") for part in ("fc1", "fc2")),
    ("cpsca", "conv"),
}
"""Parts that the module's formula applies two times."""


@pytest.mark.parametrize("name", list(FUSED))
def test_a_hook_may_replace_what_a_part_returns(name: str) -> None:
    module, x = build(name)
    want = module(x)
    for place, part in list(module.named_modules())[1:]:
        handle = part.register_forward_hook(lambda module, args, y: y.sin() + 0.5)
        assert not torch.allclose(module(x), want), place
        handle.remove()
    pre = next(module.children()).register_forward_pre_hook(lambda module, args: (args[0].sin() + 0.5,))
    assert not torch.allclose(module(x), want)
    pre.remove()
    torch.testing.assert_close(module(x), want)


@pytest.mark.parametrize("name", list(FUSED))
def test_full_backward_hooks_see_gradients(name: str) -> None:
    module, x = build(name)
    want = run(copy.deepcopy(module), x)
    for place, _ in list(module.named_modules())[1:]:
        twin, seen = copy.deepcopy(module), []
        part = twin.get_submodule(place)
        part.register_full_backward_hook(lambda module, inputs, outputs, seen=seen: seen.append(outputs[0]))
        same(run(twin, x), want)
        assert seen, place


@pytest.mark.parametrize("name", list(FUSED))
def test_a_forward_of_its_own_runs(name: str) -> None:
    """As accelerate puts one on a module's instance."""
    module, x = build(name)
    want = module(x)
    for place, part in list(module.named_modules())[1:]:
        usual = part.forward
        part.forward = lambda *args, usual=usual: usual(*args).sin() + 0.5
        assert not torch.allclose(module(x), want), place
        del part.forward
    torch.testing.assert_close(module(x), want)


@contextmanager
def every_module(hook: Callable[..., Any]) -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", list(FUSED))
def test_global_hooks_see_every_module(name: str) -> None:
    module, x = build(name)
    want, called = run(copy.deepcopy(module), x), set()
    with every_module(lambda module, args, y: called.add(module)):
        same(run(module, x), want)
    assert called >= set(module.modules())


def test_accelerates_hooks_run() -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Double(hooks.ModelHook):  # type: ignore[misc, name-defined]
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return output * 2

    module, x = build("chain")
    want = nn.Sequential(*copy.deepcopy(module))
    want[1].register_forward_hook(lambda module, args, y: y * 2)
    hooks.add_hook_to_module(module[1], Double())
    torch.testing.assert_close(module(x), want(x))


class Doubled(ffn.SeparableConv2d):
    """Somebody's block."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.skipif(not backend.links("cpu"), reason="no backend here links ops")
def test_a_chain_runs_the_forward_of_a_derived_class() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 8, dtype=torch.float64)
    module = chain(Doubled).double()
    twin = nn.Sequential(*copy.deepcopy(module))
    same(run(module, x), run(twin, x))


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("wrap", ["prune", "weight_norm", "spectral_norm", "new_weight_norm", "new_spectral_norm"])
def test_weights_that_a_hook_computes(wrap: str, norms: bool) -> None:
    """Two steps and an evaluation after ``load_state_dict``, against torch's own layers with the same hooks."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"norm1": True, "norm2": True} if norms else {}
    block = ffn.SeparableConv2d(8, 12, 3, 1, 1, act1="relu", act2="silu", **options).double()
    stock = stock_block(block)
    for conv in (block.depthwise, block.pointwise, stock[0], stock[3]):
        torch.manual_seed(1)  # of the power iteration's vectors
        wrapped(wrap, conv)
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in (block, stock)]
    for _ in range(2):
        results = []
        for module, optimizer in zip((block, stock), optimizers, strict=True):
            optimizer.zero_grad()
            y = module(x)
            y.square().mean().backward()
            optimizer.step()
            results.append(y.detach())
        torch.testing.assert_close(results[0], results[1])
    for module in (block.eval(), stock.eval()):
        module(x)
        state = module.state_dict()
        loaded = {
            name: t * 2 if name.endswith(("weight_orig", "weight_v", "weight_g", "original", "original1")) else t
            for name, t in state.items()
        }
        assert any(not torch.equal(loaded[name], t) for name, t in state.items())
        module.load_state_dict(loaded)
    torch.testing.assert_close(block(x), stock(x))


def wrapped(how: str, conv: nn.Module) -> None:
    if how == "prune":
        prune.l1_unstructured(conv, "weight", 0.5)
    else:
        {
            "weight_norm": weight_norm,
            "spectral_norm": spectral_norm,
            "new_weight_norm": parametrizations.weight_norm,
            "new_spectral_norm": parametrizations.spectral_norm,
        }[how](conv)
        assert how[:3] != "new" or parametrize.is_parametrized(conv)


def stock_block(block: Any) -> nn.Sequential:
    """torch's layers with the block's weights."""
    norms = [
        nn.Identity() if norm is None else nn.BatchNorm2d(norm.num_features) for norm in (block.norm1, block.norm2)
    ]
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    pointwise = nn.Conv2d(8, 12, 1, bias=False)
    layers = nn.Sequential(depthwise, norms[0], nn.ReLU(), pointwise, norms[1], nn.SiLU()).double()
    layers[0].weight.data.copy_(block.depthwise.weight)
    layers[3].weight.data.copy_(block.pointwise.weight)
    return layers


def test_a_part_may_be_replaced_by_another_class() -> None:
    block = ffn.SeparableConv2d(8, 8, 3, 1, 1, norm1=True, act1="relu", norm2=True, act2="relu").double()
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    block.norm1, block.norm2 = nn.Identity(), nn.GroupNorm(2, 8).double()
    want = block.norm2(block.pointwise(block.depthwise(x).relu())).relu()
    torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize("name", ["fgw_fer", "mobilenetv3_cpsca", "patt_lite", "vgg16_csa", "sepconv_attention"])
def test_networks_train_after_conversion_to_synchronised_norms(name: str) -> None:
    torch.manual_seed(0)
    model = fastfer.create_model(name).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in twin.modules())
    size = 128 if name == "patt_lite" else 64
    x = torch.randn(2, model.in_chans, size, size, dtype=torch.float64)
    got, want = run(twin, x), run(model, x)
    for key in ("y", "dx"):
        torch.testing.assert_close(got[key], want[key], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["fgw_fer", "mobilenetv3_cpsca", "sepconv_attention"])
def test_a_kept_output_stays_as_it_was(name: str) -> None:
    """A residual sum may go into its body's output only where no hook has seen that."""
    torch.manual_seed(0)
    model = fastfer.create_model(name).double()
    x = torch.randn(2, model.in_chans, 64, 64, dtype=torch.float64)
    kept: list[tuple[str, Tensor, Tensor]] = []
    for place, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, y, place=place: (
                kept.append((place, y, y.detach().clone())) or None if isinstance(y, Tensor) else None
            )
        )
    model(x).sum().backward()
    assert len(kept) > 20
    for place, y, before in kept:
        assert torch.equal(y, before), place


@pytest.mark.parametrize("place", ["blocks.0.body", "blocks.0.body.2", "blocks.0.body.2.spatial.norm"])
def test_a_feature_loss_on_a_residual_body(place: str) -> None:
    def step(keep: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        model = fastfer.create_model("fgw_fer").double()
        kept: list[Tensor] = []
        model.get_submodule(place).register_forward_hook(lambda module, args, y: kept.append(keep(y)))
        logits = model(torch.randn(2, 1, 32, 32, dtype=torch.float64))
        loss = logits.square().mean() + kept[0].square().mean()
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters()]

    (loss, grads), (want, want_grads) = step(lambda y: y), step(lambda y: y.clone())
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(grads, want_grads)


def test_a_full_backward_hook_on_a_residual_body() -> None:
    model, seen = fastfer.create_model("fgw_fer"), []
    model.blocks[0].body.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    model(torch.randn(2, 1, 32, 32)).sum().backward()
    assert seen == [(2, 16, 16, 16)]
