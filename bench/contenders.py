# SPDX-License-Identifier: Apache-2.0
"""A separable block's work at one shape, as fastfer and stock PyTorch do it from the same weights and inputs.

A `Problem` knows how to build each contender, what a float64 oracle (`backends.reference`) says the result is, and how
much arithmetic and memory traffic the work needs at least. Contenders:

- fastfer_native, fastfer_numba: the public functions, or the backward op, on that backend; channels_last.
- torch_nchw, torch_channels_last: the layers in eager PyTorch. torch_compile: the same, channels_last, through
  ``torch.compile``; for inference with ``freezing``, which folds norms and packs weights.

A batch is two distinct images repeated, so the oracle runs on two: batch statistics and gradients of images are those
of the two, and gradients of parameters are multiples.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastfer
from bench.layers import Layer
from bench.measure import Runner, cache_bytes
from fastfer import ops
from fastfer._checks import ACTIVATIONS

FASTFER = ("fastfer_native", "fastfer_numba")
TORCH = ("torch_nchw", "torch_channels_last", "torch_compile")
ALL = (*FASTFER, *TORCH)

_CL = torch.channels_last
_ACT_MODULES = (nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid)
_MAX_SLOTS = 64


@dataclass(frozen=True)
class Problem:
    """``macs`` multiply-adds and ``traffic`` bytes are the least for the work: each tensor moved once.

    ``oracle`` gives the results in float64, those of images for one period of the batch; ``terms`` is the longest sum
    behind one. ``masked``: all results but the first passed an activation's gradient, and that of relu or relu6 is 0 or
    1 by rounding at a kink. ``slots`` input copies are cycled, so that a batch does not sit in the cache between calls;
    ``mode`` is the gradient mode of every call.
    """

    macs: int
    traffic: int
    terms: int
    slots: int
    mode: Callable[[], AbstractContextManager[object]]
    oracle: Callable[[], list[Tensor]]
    build: Callable[[str], Runner]
    masked: bool = False

    @property
    def cached(self) -> bool:
        """Whether everything that is touched before an input comes round again fits in the last-level cache."""
        return self.slots * self.traffic < cache_bytes()


def slots_for(batch: int, input_bytes: int) -> int:
    """Input copies to cycle: one image stays in the cache, as between layers; a batch is to fall out of it."""
    return 1 if batch == 1 else min(_MAX_SLOTS, 1 + cache_bytes() // max(input_bytes, 1))


COMPILE_OPTIONS: dict[str, Any] = {}
"""Options of every ``torch.compile``, such as ``max_autotune``."""


def compiled(function: Callable[..., Any], *, freezing: bool = False) -> Callable[..., Any]:
    """``torch.compile`` for fixed shapes; graph breaks are errors."""
    options = {**COMPILE_OPTIONS, **({"freezing": True} if freezing else {})}
    result: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    return result


def backend_of(name: str) -> str | None:
    """fastfer's backend that a contender runs on: the end of its name; None for stock PyTorch."""
    end = name.rpartition("_")[2]
    return end if end in ("native", "numba") else None


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tiled(image: Tensor, batch: int) -> Tensor:
    """``image`` (B, ...) repeated to ``batch``."""
    return image.repeat(batch // image.shape[0], *(1,) * (image.dim() - 1))


class Copies:
    """``slots`` copies of a batch in one memory format, indexed by a running slot."""

    def __init__(self, image: Tensor, batch: int, slots: int, layout: torch.memory_format, grad: bool = False) -> None:
        full = tiled(image, batch).contiguous(memory_format=layout)
        self._copies = [full.clone().requires_grad_(grad) for _ in range(slots)]

    def __getitem__(self, slot: int) -> Tensor:
        return self._copies[slot % len(self._copies)]


def layout_of(name: str) -> torch.memory_format:
    return torch.contiguous_format if name == "torch_nchw" else _CL


Weights = dict[str, Tensor]


def _norm_weights(prefix: str, channels: int, draw: Callable[..., Tensor]) -> Weights:
    return {
        f"{prefix}.weight": 1 + 0.1 * draw(channels),
        f"{prefix}.bias": 0.1 * draw(channels),
        f"{prefix}.running_mean": 0.1 * draw(channels),
        f"{prefix}.running_var": 0.75 + 0.5 * draw(channels).sigmoid(),
    }


def block_weights(layer: Layer) -> Weights:
    """Parameters and running statistics of a block, seeded, float32, scaled to keep activations near 1."""
    generator = seeded()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {"dw": draw(layer.inputs, 1, layer.kernel, layer.kernel) / layer.kernel}
    if layer.norm1:
        weights |= _norm_weights("norm1", layer.inputs, draw)
    weights["pw"] = draw(layer.outputs, layer.inputs, 1, 1) / layer.inputs**0.5
    if layer.bias:
        weights["pw_bias"] = 0.1 * draw(layer.outputs)
    if layer.norm2:
        weights |= _norm_weights("norm2", layer.outputs, draw)
    return weights


def trained(weights: Weights) -> list[str]:
    """Names of the learnable ones, in the order that gradients are returned."""
    return [name for name in weights if "running" not in name]


def fastfer_block(layer: Layer, weights: Weights, training: bool) -> Callable[[Tensor], Tensor]:
    """`separable_conv2d` on these tensors."""

    def norm(prefix: str) -> ops.Norm | None:
        if f"{prefix}.weight" not in weights:
            return None
        weight, bias, mean, var = (
            weights[f"{prefix}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return ops.Norm(weight, bias, mean, var)

    norm1, norm2 = norm("norm1"), norm("norm2")
    act1, act2 = ACTIVATIONS[layer.act1], ACTIVATIONS[layer.act2]
    dw, pw, pw_bias = weights["dw"], weights["pw"], weights.get("pw_bias")

    def run(x: Tensor) -> Tensor:
        return ops.separable_conv2d(
            x, dw, pw, norm1=norm1, act1=act1, pw_bias=pw_bias, norm2=norm2, act2=act2,
            stride=layer.stride, padding=layer.padding, training=training,
        )  # fmt: skip

    return run


def torch_block(layer: Layer, weights: Weights, layout: torch.memory_format) -> nn.Module:
    """Stock layers with these weights; sides that differ are padded by ``ZeroPad2d``, as PyTorch has no other way."""
    top, left, bottom, right = layer.padding
    even = top == bottom and left == right
    parts: dict[str, nn.Module] = {} if even else {"pad": nn.ZeroPad2d((left, right, top, bottom))}
    c, o = layer.inputs, layer.outputs
    parts["dw"] = nn.Conv2d(c, c, layer.kernel, layer.stride, (top, left) if even else 0, groups=c, bias=False)
    if layer.norm1:
        parts["norm1"] = nn.BatchNorm2d(c)
    if layer.act1:
        parts["act1"] = _ACT_MODULES[layer.act1]()
    parts["pw"] = nn.Conv2d(c, o, 1, bias=bool(layer.bias))
    if layer.norm2:
        parts["norm2"] = nn.BatchNorm2d(o)
    if layer.act2:
        parts["act2"] = _ACT_MODULES[layer.act2]()
    module = nn.Sequential()
    for name, part in parts.items():
        module.add_module(name, part)
    names = {"dw": "dw.weight", "pw": "pw.weight", "pw_bias": "pw.bias"}
    module.load_state_dict({names.get(name, name): value for name, value in weights.items()}, strict=False)
    stock: Any = module  # torch's annotations leave out memory_format
    laid_out: nn.Module = stock.to(memory_format=layout)
    return laid_out


def elements(layer: Layer, batch: int) -> tuple[int, int]:
    """Elements of input and output."""
    height, width = layer.out_size
    return (
        batch * layer.inputs * layer.height * layer.width,
        batch * (layer.outputs or layer.inputs) * height * width,
    )


def images(layer: Layer, batch: int, out: bool = False) -> Tensor:
    """Two distinct images (one for batch 1), of the input or of the output's gradient."""
    size = layer.out_size if out else (layer.height, layer.width)
    channels = (layer.outputs or layer.inputs) if out else layer.inputs
    return torch.randn(min(batch, 2), channels, *size, generator=torch.Generator().manual_seed(1 + out))


def _double(weights: Weights, grad: bool) -> Weights:
    return {k: v.double().requires_grad_(grad and "running" not in k) for k, v in weights.items()}


def block_inference(layer: Layer, batch: int) -> Problem:
    """Evaluation without gradients: running statistics."""
    weights, image = block_weights(layer), images(layer, batch)
    inputs, outputs = elements(layer, batch)
    slots = slots_for(batch, 4 * inputs)

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"), torch.no_grad():
            return [fastfer_block(layer, _double(weights, False), False)(image.double())]

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name))
        if name in FASTFER:
            call = fastfer_block(layer, weights, False)
        else:
            module = torch_block(layer, weights, layout_of(name)).eval()
            call = compiled(module, freezing=True) if name == "torch_compile" else module
        return lambda slot: (call(xs[slot]),)

    return Problem(
        macs=batch * layer.macs,
        traffic=4 * (inputs + outputs + sum(w.numel() for w in weights.values())),
        terms=layer.kernel**2 + layer.inputs,
        slots=slots,
        mode=torch.no_grad,
        oracle=oracle,
        build=build,
    )


def block_training(layer: Layer, batch: int) -> Problem:
    """Forward with batch statistics and backward to the input and every parameter."""
    weights, image, dimage = block_weights(layer), images(layer, batch), images(layer, batch, out=True)
    inputs, outputs = elements(layer, batch)
    names, slots = trained(weights), slots_for(batch, 4 * inputs)

    def oracle() -> list[Tensor]:
        wide = _double(weights, True)
        x = image.double().requires_grad_()
        with fastfer.use("reference"):
            out = fastfer_block(layer, wide, True)(x)
            dx, *grads = torch.autograd.grad(out, (x, *(wide[name] for name in names)), dimage.double())
        scale = batch // image.shape[0]
        return [out.detach(), dx, *(scale * grad for grad in grads)]

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name), grad=True)
        douts = Copies(dimage, batch, slots, layout_of(name))
        if name in FASTFER:
            own = {key: value.clone().requires_grad_("running" not in key) for key, value in weights.items()}
            call, params = fastfer_block(layer, own, True), [own[key] for key in names]
        else:
            module = torch_block(layer, weights, layout_of(name)).train()
            call, params = (compiled(module) if name == "torch_compile" else module), list(module.parameters())

        def run(slot: int) -> tuple[Tensor, ...]:
            x = xs[slot]
            out = call(x)
            return out, *torch.autograd.grad(out, (x, *params), douts[slot])

        return run

    return Problem(
        macs=3 * batch * layer.macs,
        traffic=4 * (2 * inputs + 2 * outputs + 2 * sum(w.numel() for w in weights.values())),
        terms=batch * layer.out_size[0] * layer.out_size[1] + layer.inputs,
        slots=slots,
        mode=torch.enable_grad,
        oracle=oracle,
        build=build,
        masked=bool(layer.act1 or layer.act2),
    )
