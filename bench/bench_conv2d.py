# SPDX-License-Identifier: Apache-2.0
"""The conv2d family at the dense layers of the networks: convolution, norm and activation as one op and as three.

Evaluation at batch 32; training is conv2d with batch statistics, forward and backward, at the network's batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import fastfer
from bench.cases import Case, parametrize
from bench.contenders import FASTFER, Copies, Problem, Weights, compiled, layout_of, seeded, slots_for
from bench.layers import TRAIN_BATCH
from bench.measure import Runner
from fastfer import ops


@dataclass(frozen=True)
class Dense:
    """A square layer with norm and relu; ``padding`` (top, left, bottom, right)."""

    network: str
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    inputs: int
    outputs: int
    size: int
    bias: bool = False
    first: bool = False  # no gradient of the image is wanted

    @property
    def out_size(self) -> int:
        return (self.size + self.padding[0] + self.padding[2] - self.kernel) // self.stride + 1

    @property
    def label(self) -> str:
        return f"{self.kernel}x{self.kernel}s{self.stride} {self.inputs}-{self.outputs} @{self.size}x{self.size}"

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return (self.kernel * self.out_size) ** 2 * self.inputs * self.outputs


_ONE, _EDGE, _NONE = (1, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 0)
_LAYERS = (
    Dense("fgw_fer", 3, 1, _ONE, 1, 8, 48, bias=True, first=True),
    Dense("fgw_fer", 3, 1, _ONE, 8, 8, 48, bias=True),
    Dense("fgw_fer", 1, 1, _NONE, 8, 16, 48, bias=True),
    Dense("fgw_fer", 1, 1, _NONE, 64, 128, 6, bias=True),
    Dense("fgw_fer", 7, 1, (3, 3, 3, 3), 2, 1, 48),
    Dense("fgw_fer", 3, 2, _ONE, 8, 16, 48, bias=True),
    Dense("sepconv_attention", 3, 1, _ONE, 1, 32, 48, first=True),
    Dense("sepconv_attention", 3, 1, _ONE, 32, 64, 24),
    Dense("sepconv_attention", 3, 1, _ONE, 64, 128, 12),
    Dense("vgg16_csa", 3, 1, _ONE, 1, 64, 128, first=True),
    Dense("patt_lite", 3, 2, _EDGE, 3, 32, 224, first=True),
    Dense("mobilenetv3_cpsca", 3, 2, _EDGE, 3, 16, 224, first=True),
)


def _weights(layer: Dense) -> Weights:
    generator, o = seeded(), layer.outputs

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {"0.weight": draw(o, layer.inputs, layer.kernel, layer.kernel) / (layer.kernel * layer.inputs**0.5)}
    if layer.bias:
        weights["0.bias"] = 0.1 * draw(o)
    return weights | {
        "1.weight": 1 + 0.1 * draw(o),
        "1.bias": 0.1 * draw(o),
        "1.running_mean": 0.1 * draw(o),
        "1.running_var": 0.75 + 0.5 * draw(o).sigmoid(),
    }


def _fastfer(layer: Dense, w: Weights, training: bool) -> Callable[[Tensor], Tensor]:
    norm = ops.Norm(w["1.weight"], w["1.bias"], w["1.running_mean"], w["1.running_var"])
    return partial(
        ops.conv2d,
        weight=w["0.weight"],
        bias=w.get("0.bias"),
        norm=norm,
        act="relu",
        stride=layer.stride,
        padding=layer.padding,
        training=training,
    )


def _torch(layer: Dense, weights: Weights, layout: torch.memory_format) -> nn.Module:
    top, left, bottom, right = layer.padding
    even = top == bottom and left == right
    conv = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, layer.stride, top if even else 0, bias=layer.bias)
    module = nn.Sequential(conv, nn.BatchNorm2d(layer.outputs), nn.ReLU())
    module.load_state_dict(weights, strict=False)
    if not even:
        module.insert(0, nn.ZeroPad2d((left, right, top, bottom)))
    return module.to(memory_format=layout)  # type: ignore[no-any-return, call-overload]


def _images(layer: Dense, batch: int, out: bool = False) -> Tensor:
    channels, size = (layer.outputs, layer.out_size) if out else (layer.inputs, layer.size)
    return torch.randn(min(batch, 2), channels, size, size, generator=torch.Generator().manual_seed(1 + out))


def _double(weights: Weights, grad: bool = False) -> Weights:
    return {key: value.double().requires_grad_(grad and "running" not in key) for key, value in weights.items()}


def _traffic(layer: Dense, batch: int, times: int) -> int:
    inputs, outputs = layer.inputs * layer.size**2, layer.outputs * layer.out_size**2
    return 4 * times * batch * (inputs + outputs)


def _inference(layer: Dense, batch: int) -> Problem:
    weights, image = _weights(layer), _images(layer, batch)
    slots = slots_for(batch, 4 * batch * layer.inputs * layer.size**2)

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"), torch.no_grad():
            return [_fastfer(layer, _double(weights), False)(image.double())]

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name))
        if name in FASTFER:
            call = _fastfer(layer, weights, False)
        else:
            module = _torch(layer, weights, layout_of(name)).eval()
            call = compiled(module, freezing=True) if name == "torch_compile" else module
        return lambda slot: (call(xs[slot]),)

    terms = layer.kernel**2 * layer.inputs
    return Problem(batch * layer.macs, _traffic(layer, batch, 1), terms, slots, torch.no_grad, oracle, build)


def _training(layer: Dense, batch: int) -> Problem:
    weights, image, dimage = _weights(layer), _images(layer, batch), _images(layer, batch, out=True)
    # A bias in front of batch statistics has a gradient of zero, of which rounding leaves nothing to compare.
    names = [name for name in weights if "running" not in name and name != "0.bias"]
    slots, image_grad = slots_for(batch, 4 * batch * layer.inputs * layer.size**2), not layer.first

    def oracle() -> list[Tensor]:
        wide, x = _double(weights, True), image.double().requires_grad_(image_grad)
        with fastfer.use("reference"):
            out = _fastfer(layer, wide, True)(x)
            params = [wide[name] for name in names]
            grads = torch.autograd.grad(out, [x, *params] if image_grad else params, dimage.double())
        scale = batch // image.shape[0]
        return [out.detach(), *(grad if grad.shape == x.shape else scale * grad for grad in grads)]

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name), grad=image_grad)
        douts = Copies(dimage, batch, slots, layout_of(name))
        if name in FASTFER:
            own = {key: value.clone().requires_grad_("running" not in key) for key, value in weights.items()}
            call, params = _fastfer(layer, own, True), [own[key] for key in names]
        else:
            module = _torch(layer, weights, layout_of(name)).train()
            call = compiled(module) if name == "torch_compile" else module
            params = [value for key, value in module.named_parameters() if key != "0.bias"]

        def run(slot: int) -> tuple[Tensor, ...]:
            x = xs[slot]
            out = call(x)
            return out, *torch.autograd.grad(out, [x, *params] if image_grad else params, douts[slot])

        return run

    return Problem(
        macs=(2 + image_grad) * batch * layer.macs,
        traffic=_traffic(layer, batch, 2),
        terms=batch * layer.out_size**2 + layer.inputs,
        slots=slots,
        mode=torch.enable_grad,
        oracle=oracle,
        build=build,
        masked=True,
    )


def _cases(work: str, problem: Callable[[Dense, int], Problem], batch: Callable[[str], int]) -> list[Case]:
    return [
        Case(work, layer.network, layer.label, size, 1, partial(problem, layer, size))
        for layer in _LAYERS
        for size in (batch(layer.network),)
    ]


@parametrize(_cases("dense inference", _inference, lambda _: 32))
def test_dense_inference(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)


@parametrize(_cases("dense training", _training, TRAIN_BATCH.__getitem__))
def test_dense_training(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
