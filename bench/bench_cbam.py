# SPDX-License-Identifier: Apache-2.0
"""The cbam family at the stages of FGW-FER: cbam, channel_gate and spatial_gate, in inference and in training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer
from bench.cases import Case, parametrize
from bench.contenders import ALL, FASTFER, Copies, Problem, compiled, layout_of, slots_for
from bench.layers import TRAIN_BATCH
from bench.measure import Runner
from fastfer import nn as fast

_NETWORK = "fgw_fer"
_BATCH = TRAIN_BATCH[_NETWORK]
_STAGES = ((8, 48), (16, 24), (32, 12), (64, 6), (128, 3))  # channels, size
_NAMES = {"cbam": "", "channel_gate": "channel.", "spatial_gate": "spatial."}


class _Stock(nn.Module):
    """CBAM, or one of its gates, in torch's layers, with the parameters of `fastfer.nn.CBAM`."""

    def __init__(self, own: fast.CBAM, gate: str) -> None:
        super().__init__()
        self.gate = gate
        self.fc1, self.fc2 = (nn.Linear(fc.in_features, fc.out_features) for fc in (own.channel.fc1, own.channel.fc2))
        self.conv, self.norm = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)
        values = own.state_dict()
        names = {"fc1": "channel.fc1", "fc2": "channel.fc2", "norm": "spatial.norm", "conv": "spatial"}
        state = {key: values[f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}"] for key in self.state_dict()}
        self.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate != "spatial_gate":
            pooled = x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)
            logits = sum(self.fc2(F.relu(self.fc1(v))) for v in pooled)
            x = x * torch.sigmoid(logits)[:, :, None, None]
        if self.gate == "channel_gate":
            return x
        planes = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)
        gated: Tensor = x * torch.sigmoid(self.norm(self.conv(planes)))
        return gated


def _module(gate: str, channels: int, dtype: torch.dtype, stock: bool) -> nn.Module:
    torch.manual_seed(channels)
    own = fast.CBAM(channels)
    own.spatial.norm.running_var.fill_(0.5)
    if stock:
        return _Stock(own, gate).to(dtype)
    part: nn.Module = own.get_submodule(_NAMES[gate].rstrip("."))
    return part.to(dtype)


def _parameters(module: nn.Module, gate: str) -> list[nn.Parameter]:
    """Those of the gate, in one order for both."""
    return [p for name, p in module.named_parameters() if gate == "cbam" or ("fc" in name) == (gate == "channel_gate")]


def _problem(gate: str, training: bool, channels: int, size: int) -> Problem:
    generator = torch.Generator().manual_seed(1)
    image, dimage = (torch.randn(2, channels, size, size, generator=generator) for _ in range(2))
    elements = _BATCH * channels * size * size
    slots = slots_for(_BATCH, 4 * elements)

    def run(
        module: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor, dout: Tensor
    ) -> tuple[Tensor, ...]:
        out = module(x)
        if not training:
            return (out,)
        dx, *grads = torch.autograd.grad(out, (x, *parameters), dout)
        return out, dx, *grads

    def oracle() -> list[Tensor]:
        module = _module(gate, channels, torch.float64, stock=False).train(training)
        x = image.double().requires_grad_(training)
        with fastfer.use("reference"), torch.set_grad_enabled(training):
            out, *grads = run(module, _parameters(module, gate), x, dimage.double())
        return [out.detach(), *grads[:1], *(_BATCH // 2 * grad for grad in grads[1:])]

    def build(name: str) -> Runner:
        xs = Copies(image, _BATCH, slots, layout_of(name), grad=training)
        douts = Copies(dimage, _BATCH, slots, layout_of(name))
        module = _module(gate, channels, torch.float32, stock=name not in FASTFER).train(training)
        call = compiled(module) if name == "torch_compile" else module
        parameters = _parameters(module, gate)
        return lambda slot: run(call, parameters, xs[slot], douts[slot])

    mode = torch.enable_grad if training else torch.no_grad
    traffic = 4 * elements * (5 if training else 2)
    return Problem(0, traffic, _BATCH * size * size, slots, mode, oracle, build, masked=training)


def _cases(training: bool) -> list[Case]:
    work = f"cbam {'training' if training else 'inference'}"
    return [
        Case(
            work,
            _NETWORK,
            f"{gate} {channels} @{size}x{size}",
            _BATCH,
            1,
            partial(_problem, gate, training, channels, size),
            ALL,
        )
        for gate in _NAMES
        for channels, size in (_STAGES if gate == "cbam" else _STAGES[1:2])
    ]


@parametrize(_cases(training=False))
def test_cbam_inference(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases(training=True))
def test_cbam_training(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
