# SPDX-License-Identifier: Apache-2.0
"""Problems of attention modules: a forward without gradients, or forward and backward to input and parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastfer
from bench.contenders import FASTFER, Copies, Problem, Weights, compiled, layout_of, slots_for
from bench.measure import Runner

Function = Callable[[Tensor, Weights], Tensor]


def draw_image(batch: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """Two distinct images, or one for batch 1."""
    return torch.randn(min(batch, 2), channels, height, width, generator=torch.Generator().manual_seed(seed))


def inference(own: Function, stock: Function, weights: Weights, image: Tensor, batch: int, out_bytes: int) -> Problem:
    """Evaluation without gradients; ``own`` calls fastfer, ``stock`` torch, both on (x, weights)."""
    in_bytes = 4 * batch * image[0].numel()
    slots = slots_for(batch, in_bytes)

    def oracle() -> list[Tensor]:
        wide = {name: value.double() for name, value in weights.items()}
        with fastfer.use("reference"), torch.no_grad():
            return [own(image.double(), wide)]

    def build(name: str) -> Runner:
        xs = Copies(image, batch, slots, layout_of(name))
        function = own if name in FASTFER else compiled(stock) if name == "torch_compile" else stock
        return lambda slot: (function(xs[slot], weights),)

    terms = image.shape[1] + image[0, 0].numel()
    return Problem(0, in_bytes + out_bytes, terms, slots, torch.no_grad, oracle, build)


def training(
    own: Function,
    stock: Function,
    weights: Weights,
    image: Tensor,
    dimage: Tensor,
    batch: int,
    constant: tuple[str, ...] = (),
) -> Problem:
    """Forward and backward to x and all weights but the ``constant`` ones."""
    names = [name for name in weights if name not in constant]
    in_bytes = 4 * batch * image[0].numel()
    slots = slots_for(batch, in_bytes)

    def step(function: Function, x: Tensor, t: Weights, dout: Tensor) -> tuple[Tensor, ...]:
        out = function(x, t)
        return out, *torch.autograd.grad(out, (x, *(t[name] for name in names)), dout)

    def leaves(dtype: torch.dtype) -> Weights:
        return {k: v.to(dtype, copy=True).requires_grad_(k in names) for k, v in weights.items()}

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"):
            out, dx, *grads = step(own, image.double().requires_grad_(), leaves(torch.float64), dimage.double())
        scale = batch // image.shape[0]
        return [out.detach(), dx, *(scale * grad for grad in grads)]

    def build(name: str) -> Runner:
        xs, douts = Copies(image, batch, slots, layout_of(name), True), Copies(dimage, batch, slots, layout_of(name))
        function, t = (
            own if name in FASTFER else compiled(stock) if name == "torch_compile" else stock,
            leaves(image.dtype),
        )
        return lambda slot: step(function, xs[slot], t, douts[slot])

    out_bytes = 4 * batch * dimage[0].numel()
    terms = image.shape[1] + batch * image[0, 0].numel()
    return Problem(0, 2 * (in_bytes + out_bytes), terms, slots, torch.enable_grad, oracle, build, masked=True)
