# SPDX-License-Identifier: Apache-2.0
"""Networks as graphs of the engine: their logits in float64 against torch, golden numbers, ops that are not covered."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import engine_oracle
import numpy as np
import pytest
import torch
from engine_models import graph_of
from torch import Tensor, nn
from torch.nn import functional as F

from fastfer.engine.convert import UncoveredError
from fastfer.engine.graph import Graph
from fastfer.models import FerModel, create_model

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
SMALL = {"fgw_fer": 48, "sepconv_attention": 48, "vgg16_csa": 64, "patt_lite": 224, "mobilenetv3_cpsca": 64}


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, with running statistics of ``x``."""
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def agree(model: nn.Module, x: Tensor, rtol: float = 1e-9) -> Graph:
    """The model's graph, run in numpy, gives the model's output; returns the graph."""
    graph = graph_of(model, tuple(x.shape[1:]))
    with torch.no_grad():
        want = model(x).numpy()
    (got,) = engine_oracle.run(graph, x.numpy())
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=rtol, atol=rtol * abs(want).max())
    return graph


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


@pytest.mark.parametrize(
    ("name", "options", "special"),
    [
        ("fgw_fer", {}, {"cbam": 5, "add": 4, "max_pool": 4, "global_pool": 1}),
        ("fgw_fer", {"separable": False, "in_chans": 3}, {"cbam": 5}),
        ("sepconv_attention", {}, {"dot_attention": 1, "additive_attention": 1, "concat": 1, "add": 3, "max_pool": 3}),
        ("sepconv_attention", {"attention": "dot"}, {"dot_attention": 1, "concat": 0}),
        ("vgg16_csa", {}, {"csa": 5, "max_pool": 0, "conv": 26}),
        ("vgg16_csa", {"attention": "se", "position": "after_pool"}, {"se": 5, "max_pool": 5}),
        ("vgg16_csa", {"attention": "eca"}, {"eca": 5}),
        ("vgg16_csa", {"attention": "sa"}, {"sa": 5}),
        ("vgg16_csa", {"attention": "scse", "position": "conv"}, {"scse": 13}),
        ("patt_lite", {"depth": 6, "keras_padding": True}, {"dot_attention": 1, "affine": 1}),
        ("patt_lite", {"depth": 6, "extraction": "attention"}, {"avg_pool": 1, "mul": 1}),
        ("patt_lite", {"depth": 6, "extraction": "OP3", "attention": "none"}, {"global_pool": 1, "dot_attention": 0}),
        ("mobilenetv3_cpsca", {}, {"coordinate": 7, "se": 3, "add": 10, "act": 0, "affine": 0}),
        ("mobilenetv3_cpsca", {"attention": "maxca", "high_attention": "none", "act": "relu"}, {"coordinate": 2}),
    ],
    ids=str,
)
def test_networks(name: str, options: dict, special: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = create_model(name, **options)
    x = torch.randn(2, model.in_chans, SMALL[name], SMALL[name])
    settled(model, x).double()
    found = ops(agree(model, x.double()))
    assert {op: found[op] for op in special} == special


@pytest.mark.parametrize("name", ["patt_lite", "fgw_fer", "sepconv_attention", "mobilenetv3_cpsca", "vgg16_csa"])
def test_golden_logits(name: str) -> None:
    """The published sizes, weights and inputs of independent builds."""
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no golden numbers at {path}")
    golden = np.load(path)
    model = create_model(name)
    load_golden(model, golden)
    graph = graph_of(model, tuple(golden["x"].shape[1:]))
    images = golden["x"][:2].astype(np.float64)
    (got,) = engine_oracle.run(graph, images)
    want = golden["logits_eval"][:2]
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-9, atol=1e-9 * abs(want).max())


def load_golden(model: FerModel, golden: np.lib.npyio.NpzFile) -> None:
    """Weights by their order: the files list them as the model does, but a scale first."""
    state = model.state_dict()
    ours = [key for key in state if not key.endswith("num_batches_tracked")]
    ours.sort(key=lambda key: not key.endswith(".scale"))
    for key, name in zip((k for k in golden.files if k.startswith("w:")), ours, strict=True):
        state[name].copy_(torch.from_numpy(golden[key]).view_as(state[name]))


class Arithmetic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.same = nn.Conv2d(12, 12, (3, 2), padding="same", bias=False)
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 5, 1, 2, groups=12), nn.SiLU(), nn.Dropout(0.5))
        self.norm, self.bare = nn.BatchNorm2d(12), nn.BatchNorm2d(12, affine=False)
        self.scale = nn.Parameter(torch.rand(12, 1, 1) + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - 0.5) / 2)
        y = 2 - (x + self.same(x) * 0.5 - self.depthwise(x))
        y = self.bare(self.norm(y * self.scale + torch.ones(1)).tanh())
        return -torch.cat([y, x.clamp(min=0), F.hardtanh(y, 0, 6)], 1).contiguous()


class Pools(nn.Module):
    """Windows rounded up, counted with and without padding, adaptive ones, and reductions over every axis."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.max_pool2d(x, 3, 2, ceil_mode=True), F.avg_pool2d(x, 2, ceil_mode=True)], 1)
        y = torch.cat([y, F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 3, 2, 1)], 1)
        y = torch.cat([y, F.max_pool2d(x, (1, 3), 2, (0, 1))], 1)
        z = torch.cat([F.adaptive_avg_pool2d(y, (3, 1)), F.adaptive_max_pool2d(y, (3, 1))], 1)
        z = z * z.mean((1, 2, 3), keepdim=True) + z.amax(2, keepdim=True) - z.sum((2, 3)).unsqueeze(-1)[..., None]
        return z * z.max(1, keepdim=True)[0] + z.mean(1, keepdim=True) - F.adaptive_avg_pool2d(z, 1)


class Gates(nn.Module):
    """Squeeze-and-excitation, ECA by a 1-D convolution, a spatial gate, coordinate attention by joined lines."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Linear(6, 4), nn.ReLU6(), nn.Linear(4, 6), nn.Hardsigmoid())
        self.channel, self.spatial = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(2, 1, 7, padding=3)
        self.lines = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Hardswish())
        self.rows, self.columns = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.squeeze(x.mean((2, 3)))[:, :, None, None]
        x = x * self.channel(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2)[..., None]
        x = x * self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        lines = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = self.lines(lines).split([x.shape[2], x.shape[3]], 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()


class Heads(nn.Module):
    """Attention in its three spellings, tokens, a flattened image into linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score, self.value = nn.Linear(16, 5), nn.Linear(5, 1), nn.Linear(8, 8)
        self.flat, self.out = nn.Linear(8 * 20, 9), nn.Linear(25, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x], 1)[:, 0:]
        h = x.flatten(2).transpose(1, 2)
        t = torch.relu(self.value(h)) @ torch.eye(8, dtype=x.dtype)
        a = ((h @ t.transpose(1, 2)) / 3 * 0.5).softmax(-1) @ t
        b = F.scaled_dot_product_attention(t, a, a, scale=0.3).mean(1)
        weights = self.score(torch.tanh(self.embed(torch.cat([h, t], -1)))).softmax(1)
        c = (t * weights).sum(1)
        d = F.relu(self.flat(a.transpose(1, 2).unflatten(2, (4, 5)).reshape(len(x), -1)))
        return self.out(torch.cat([b, c, d], 1)).view(len(x), -1)


@pytest.mark.parametrize(
    ("model", "size", "special"),
    [
        (Arithmetic, (3, 11, 9), {"add": 2, "conv": 3}),
        (Pools, (5, 12, 10), {"max_pool": 3, "avg_pool": 4}),
        (Gates, (6, 9, 7), {"channel_pool": 1, "line_pool": 2, "mul": 5}),
        (Heads, (4, 4, 5), {"dot_attention": 2, "additive_attention": 1, "affine": 0}),
    ],
)
def test_plain_torch(model: type[nn.Module], size: tuple[int, int, int], special: dict[str, int]) -> None:
    torch.manual_seed(0)
    net = model().double()
    x = torch.randn(3, *size, dtype=torch.float64)
    found = ops(agree(settled(net, x), x))
    assert {op: found[op] for op in special} == special


class Calls(nn.Module):
    """A convolution and then a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.atan, r'compile: aten.atan: no such op in a plan; fallback="torch" runs it in torch'),
        (lambda x: x.mean(0, keepdim=True) + x, "something that goes over the images of a batch"),
        (lambda x: x.flatten(1) @ x.flatten(1).T, "a product over the images of a batch"),
        (lambda x: x.softmax(0), "something that goes over the images of a batch"),
        (lambda x: x[1:] + 0, "a part of the images of a batch"),
        (lambda x: x.flip(0), "a choice from dimensions"),
        (lambda x: F.batch_norm(x, None, None, training=True), "a norm with the statistics of the batch"),
        (lambda x: x.transpose(0, 2), "output: expected a tensor whose first dimension is the images"),
    ],
)
def test_uncovered(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UncoveredError, match=message):
        graph_of(Calls(function).eval(), (3, 6, 6))


def test_the_published_attention_over_the_batch_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model("patt_lite", attention="batch")
    with pytest.raises(UncoveredError, match=r"classifier\.attention: attention over the images of a batch"):
        graph_of(model, (3, 224, 224))


def _stale(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    x.relu_()
    return flat


def _fresh(x: Tensor) -> Tensor:
    y = x + 1
    y.relu_()
    return y.flatten(1)


def test_writes_in_place() -> None:
    """Also into memory that a view made before shows."""
    for function in (_fresh, _stale):
        agree(Calls(function).double().eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64))


def test_a_model_that_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match=r"compile: model: expected one that torch\.export traces, got"):
        graph_of(Calls(lambda x: x if x.sum() > 0 else -x), (3, 5, 5))


def test_the_mode_of_every_module_comes_back() -> None:
    model = create_model("fgw_fer").train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    graph_of(model, (1, 48, 48))
    assert [module.training for module in model.modules()] == modes
