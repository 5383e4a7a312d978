# SPDX-License-Identifier: Apache-2.0
"""Modules against torch's own in float64: values, gradients, running statistics, names and errors."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastfer
import fastfer.nn as ffn
from fastfer.nn._residual import residual

DTYPE = torch.float64
FACTORY: Any = {"dtype": DTYPE}


def image(*shape: int) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape, dtype=DTYPE, requires_grad=True)


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, pairs: dict[str, str]) -> None:
    """Outputs, input gradient and the tensors named in ``pairs`` (ours: theirs) with their gradients agree."""
    states = ours.state_dict(), theirs.state_dict()
    with torch.no_grad():
        for mine, other in pairs.items():
            states[0][mine].copy_(states[1][other])
    grads = []
    for module in (ours, theirs):
        x.grad = None
        y = module(x)
        y.mul(torch.linspace(-1, 1, y.numel(), dtype=DTYPE).view_as(y)).sum().backward()
        assert x.grad is not None
        grads.append((y.detach(), x.grad))
    torch.testing.assert_close(grads[0], grads[1])
    mine_parameters, other_parameters = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert set(states[0]) == set(pairs)
    for mine, other in pairs.items():
        torch.testing.assert_close(states[0][mine], states[1][other])
        if mine in mine_parameters:
            torch.testing.assert_close(mine_parameters[mine].grad, other_parameters[other].grad)


def norm_pairs(mine: str, other: str) -> dict[str, str]:
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{mine}{field}": f"{other}{field}" for field in fields}


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_batch_norm_is_torchs(momentum: float | None) -> None:
    ours, theirs = (module(5, 1e-3, momentum, dtype=DTYPE) for module in (ffn.BatchNorm2d, nn.BatchNorm2d))
    nn.init.normal_(theirs.weight)
    for _ in range(3):
        assert_same(ours, theirs, image(4, 5, 3, 3), norm_pairs("", ""))
    assert ours.num_batches_tracked == 3
    assert_same(ours.eval(), theirs.eval(), image(2, 5, 3, 3), norm_pairs("", ""))
    assert ours.num_batches_tracked == 3
    for name in ("affine", "track_running_stats"):
        with pytest.raises(ValueError, match=f"BatchNorm2d: {name}: expected True"):
            ffn.BatchNorm2d(3, **{name: False})


@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "Hardswish", "Hardsigmoid", "SiLU", "Sigmoid"])
def test_activations(name: str) -> None:
    x = image(2, 3, 4) * 4
    torch.testing.assert_close(getattr(ffn, name)()(x), getattr(nn, name)()(x))
    torch.testing.assert_close(ffn.Activation(name.lower())(x), getattr(nn, name)()(x))
    assert ffn.Activation(None)(x) is x
    with pytest.raises(ValueError, match="Activation: act: expected one of"):
        ffn.Activation("gelu")


@pytest.mark.parametrize("training", [False, True])
def test_conv2d_block(training: bool) -> None:
    ours = ffn.Conv2d(3, 6, (3, 5), 2, (1, 2), norm=True, act="relu6", **FACTORY)
    theirs = nn.Sequential(nn.Conv2d(3, 6, (3, 5), 2, (1, 2), **FACTORY), nn.BatchNorm2d(6, **FACTORY), nn.ReLU6())
    pairs = {"weight": "0.weight", "bias": "0.bias"} | norm_pairs("norm.", "1.")
    assert_same(ours.train(training), theirs.train(training), image(2, 3, 9, 8), pairs)


def test_four_sided_padding() -> None:
    conv = ffn.Conv2d(2, 4, 3, 2, (0, 0, 1, 1), bias=False, **FACTORY)
    depthwise = ffn.DepthwiseConv2d(2, 3, 2, (0, 0, 1, 1), bias=False, **FACTORY)
    x = image(1, 2, 8, 8)
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(conv(x), nn.functional.conv2d(padded, conv.weight, stride=2))
    torch.testing.assert_close(depthwise(x), nn.functional.conv2d(padded, depthwise.weight, stride=2, groups=2))
    want = nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=-1e9), 3, 2)
    torch.testing.assert_close(ffn.MaxPool2d(3, 2, (0, 0, 1, 1))(x), want)


def test_depthwise_and_pointwise() -> None:
    theirs = nn.Conv2d(4, 4, 3, padding=1, groups=4, **FACTORY)
    names = {"weight": "weight", "bias": "bias"}
    assert_same(ffn.DepthwiseConv2d(4, 3, 1, 1, **FACTORY), theirs, image(2, 4, 5, 6), names)
    assert_same(ffn.PointwiseConv2d(4, 7, **FACTORY), nn.Conv2d(4, 7, 1, **FACTORY), image(2, 4, 5, 6), names)


def stock_separable(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False, **FACTORY),
        nn.BatchNorm2d(4, **FACTORY),
        act,
        nn.Conv2d(4, 6, 1, bias=False, **FACTORY),
        nn.BatchNorm2d(6, **FACTORY),
        act,
    )


SEPARABLE_PAIRS = {"depthwise.weight": "0.weight", "pointwise.weight": "3.weight"}
SEPARABLE_PAIRS |= norm_pairs("norm1.", "1.") | norm_pairs("norm2.", "4.")


@pytest.mark.parametrize("modes", [(True, True), (False, False), (True, False), (False, True)])
def test_separable_block_with_each_norm_training_or_frozen(modes: tuple[bool, bool]) -> None:
    names = {"norm1": True, "act1": "hardswish", "norm2": True, "act2": "hardswish"}
    ours, theirs = ffn.SeparableConv2d(4, 6, 3, 2, 1, **names, **FACTORY), stock_separable(nn.Hardswish())
    for mine, other, mode in zip((ours.norm1, ours.norm2), (theirs[1], theirs[4]), modes, strict=True):
        assert mine is not None
        mine.train(mode)
        other.train(mode)
        nn.init.normal_(other.running_mean)
    assert_same(ours, theirs, image(2, 4, 7, 6), SEPARABLE_PAIRS)


def test_separable_block_with_biases_only() -> None:
    ours = ffn.SeparableConv2d(3, 5, 4, 4, 1, dw_bias=True, pw_bias=True, act2="relu", **FACTORY)
    theirs = nn.Sequential(nn.Conv2d(3, 3, 4, 4, 1, groups=3, **FACTORY), nn.Conv2d(3, 5, 1, **FACTORY), nn.ReLU())
    pairs = {
        f"{mine}.{field}": f"{i}.{field}"
        for i, mine in enumerate(("depthwise", "pointwise"))
        for field in ("weight", "bias")
    }
    assert_same(ours, theirs, image(2, 3, 14, 14), pairs)


def test_a_given_norm_is_used() -> None:
    norm = ffn.BatchNorm2d(6, eps=1e-3, momentum=0.01)
    block = ffn.Conv2d(3, 6, 3, norm=norm)
    assert block.norm is norm
    block(torch.ones(2, 3, 5, 5))
    assert norm.num_batches_tracked == 1
    assert bool((norm.running_var - 0.99).abs().max() < 1e-6)
    with pytest.raises(ValueError, match="Conv2d: norm: expected a BatchNorm2d of 5 features, got 6"):
        ffn.Conv2d(3, 5, 3, norm=norm)
    with pytest.raises(
        TypeError, match=r"SeparableConv2d: norm2: expected a bool or a fastfer.nn.BatchNorm2d, got str"
    ):
        ffn.SeparableConv2d(3, 5, 3, norm2="batch")  # type: ignore[arg-type]


class StockCbam(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 8)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, **FACTORY), nn.ReLU(), nn.Linear(hidden, channels, **FACTORY)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False, **FACTORY)
        self.bn = nn.BatchNorm2d(1, **FACTORY)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))[:, :, None, None]
        return x * torch.sigmoid(self.bn(self.conv(torch.cat([x.amax(1, True), x.mean(1, True)], 1))))


@pytest.mark.parametrize("channels", [4, 24])
@pytest.mark.parametrize("training", [False, True])
def test_cbam(channels: int, training: bool) -> None:
    pairs = {f"channel.fc{i}.{field}": f"mlp.{2 * i - 2}.{field}" for i in (1, 2) for field in ("weight", "bias")}
    pairs |= {"spatial.weight": "conv.weight"} | norm_pairs("spatial.norm.", "bn.")
    ours, theirs = ffn.CBAM(channels, **FACTORY).train(training), StockCbam(channels).train(training)
    assert_same(ours, theirs, image(2, channels, 5, 6), pairs)
    x = image(2, channels, 5, 6)
    ours.eval()
    torch.testing.assert_close(ours.spatial(ours.channel(x)), ours(x))


def test_pools() -> None:
    x = image(2, 3, 6, 7)
    torch.testing.assert_close(ffn.MaxPool2d(3, 2, 1)(x), nn.MaxPool2d(3, 2, 1)(x))
    torch.testing.assert_close(ffn.GlobalAvgPool()(x), x.mean((2, 3)))
    torch.testing.assert_close(ffn.GlobalMaxPool()(x), x.amax((2, 3)))


MODULES = [
    lambda: ffn.Conv2d(8, 8, 3, 1, 1, norm=True, act="relu"),
    lambda: ffn.DepthwiseConv2d(8, 3, 1, 1),
    lambda: ffn.PointwiseConv2d(8, 4),
    lambda: ffn.SeparableConv2d(8, 4, 3, 1, 1, norm1=True, act1="silu", norm2=True, act2="relu"),
    lambda: ffn.BatchNorm2d(8),
    lambda: ffn.CBAM(8),
    lambda: ffn.MaxPool2d(3, 2, 1),
    lambda: ffn.Hardswish(),
]


@pytest.mark.parametrize("build", MODULES)
def test_compiles_without_graph_breaks(build) -> None:
    torch._dynamo.reset()
    module = build()
    twin = copy.deepcopy(module)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    (got,) = torch.autograd.grad(y.square().sum(), x)
    want_y = twin(x)
    (want,) = torch.autograd.grad(want_y.square().sum(), x)
    torch.testing.assert_close((y, got), (want_y, want))
    torch.testing.assert_close(dict(module.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("build", MODULES)
def test_runs_under_autocast(build) -> None:
    module, x = build(), torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        z = module(x.bfloat16())
    torch.testing.assert_close(y.float(), z.float(), rtol=0.1, atol=0.1)
    if y.requires_grad:
        y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_repr_says_what_the_module_does() -> None:
    text = repr(ffn.Conv2d(1, 8, 3, 2, (0, 0, 1, 1), act="relu"))
    assert text == ("Conv2d(1, 8, kernel_size=(3, 3), stride=(2, 2), padding=(0, 0, 1, 1), bias=True, act='relu')")
    assert "act1='relu6', act2=None" in repr(ffn.SeparableConv2d(2, 3, 3, act1="relu6"))
    assert repr(ffn.MaxPool2d(3, 2, 1)) == "MaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))"
    assert repr(ffn.SiLU()) == "SiLU()"
    assert repr(ffn.Activation("silu")) == "Activation('silu')"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ffn.Conv2d(0, 8, 3), ValueError, "Conv2d: in_channels: expected an int >= 1, got 0"),
        (lambda: ffn.Conv2d(1.0, 8, 3), TypeError, "Conv2d: in_channels: expected an int, got float"),
        (lambda: ffn.Conv2d(1, 8, (3, 3, 3)), ValueError, "Conv2d: kernel_size: expected"),
        (lambda: ffn.Conv2d(1, 8, 3, padding=-1), ValueError, "Conv2d: padding: expected"),
        (lambda: ffn.SeparableConv2d(1, 8, 3, act2="elu"), ValueError, "SeparableConv2d: act2: expected one of"),
        (lambda: ffn.CBAM(8, reduction=0), ValueError, "ChannelGate: reduction: expected an int >= 1"),
        (lambda: ffn.CBAM(8, kernel_size=6), ValueError, "SpatialGate: kernel_size: expected an odd int, got 6"),
        (lambda: ffn.SpatialGate(norm=False), ValueError, "SpatialGate: norm: expected True"),
        (lambda: ffn.MaxPool2d(0), ValueError, "MaxPool2d: kernel_size: expected"),
    ],
)
def test_errors(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


class TestResidual:
    def pair(self) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        return torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5, requires_grad=True) * 2

    @staticmethod
    def body(training: bool = True) -> nn.Module:
        return ffn.PointwiseConv2d(3, 3).train(training)

    def test_in_the_memory_of_the_output_in_training_alone(self) -> None:
        x, y = self.pair()
        want, place = (x + y).detach(), y.data_ptr()
        assert residual(x, y, self.body(False)).data_ptr() != place
        got = residual(x, y, self.body())
        assert got.data_ptr() == place
        assert torch.equal(got, want)

    def test_gradients_and_what_is_nobodys_own(self) -> None:
        leaf = torch.randn(2, 3, 4, 5, requires_grad=True)
        x = torch.randn(2, 3, 4, 5, requires_grad=True)
        residual(x, leaf * 3, self.body()).sum().backward()
        assert torch.equal(leaf.grad, torch.full_like(leaf, 3))
        assert torch.equal(x.grad, torch.ones_like(x))
        before = leaf.detach().clone()
        residual(x, leaf, self.body())  # a parameter
        with torch.no_grad():
            residual(x, leaf * 1, self.body())
        assert torch.equal(leaf, before)

    @pytest.mark.parametrize("name", ["fgw_fer", "sepconv_attention", "mobilenetv3_cpsca"])
    def test_networks_train_to_the_same_gradients(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def gradients() -> list[Tensor]:
            torch.manual_seed(0)
            model = fastfer.create_model(name, **({} if name == "fgw_fer" else {"dropout": 0.0}))
            model(torch.randn(2, model.in_chans, 64, 64)).square().sum().backward()
            return [p.grad for p in model.parameters()]

        got = gradients()
        for module in ("fastfer.nn.bottleneck", "fastfer.models.fgw_fer", "fastfer.models.sepconv_attention"):
            monkeypatch.setattr(sys.modules[module], "residual", lambda x, y, body: x + y)
        for a, b in zip(got, gradients(), strict=True):
            assert torch.equal(a, b)
