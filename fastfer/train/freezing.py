# SPDX-License-Identifier: Apache-2.0
"""Which parameters a stage trains, and its dropout: `freeze` for the backbone of PAtt-Lite, `StageModes` for the rest.

Layers are counted as Keras counts those of its MobileNetV1: the input and the padding before the first convolution are
one each, then convolution, norm and activation are one each, and so is the padding before a depthwise convolution of
stride 2. The default backbone has 59, which is why the paper's 59 for RAF-DB means all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastfer.models import FerModel
from fastfer.nn import BatchNorm2d, Conv2d, DepthwiseConv2d, SeparableConv2d

_Layer = tuple[nn.Parameter, ...]


def keras_layers(backbone: nn.Sequential) -> list[_Layer]:
    """The convolution weights of each layer, in order; no weights for input, paddings, norms and activations."""
    return [(), (), *(layer for module in backbone for layer in _layers_of(module))]


def _layers_of(module: nn.Module) -> Iterator[_Layer]:
    def block(weight: nn.Parameter) -> Iterator[_Layer]:
        yield from ((weight,), (), ())

    if isinstance(module, Conv2d):
        yield from block(module.weight)
        return
    depthwise = module.depthwise if isinstance(module, SeparableConv2d) else module
    if not isinstance(depthwise, DepthwiseConv2d):
        raise TypeError(f"backbone: expected convolutions, got {type(module).__name__}")
    if max(depthwise.stride) > 1:
        yield ()
    yield from block(depthwise.weight)
    if isinstance(module, SeparableConv2d):
        yield from block(module.pointwise.weight)


def freeze(model: FerModel, unfreeze: int | None) -> list[nn.Module]:
    """Let only the last ``unfreeze`` layers of the backbone train, and all that is no backbone; None trains everything.

    Returns the norms whose running statistics a training step must use and leave alone. ValueError for a network
    without a backbone of its own.
    """
    model.requires_grad_(True)
    if unfreeze is None:
        return []
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Sequential):
        raise ValueError(f"unfreeze: expected nothing for {model.name}, which has no pretrained backbone")
    layers = keras_layers(backbone)
    backbone.requires_grad_(False)
    for layer in layers[max(len(layers) - unfreeze, 0) :]:
        for weight in layer:
            weight.requires_grad_(True)
    return [module for module in backbone.modules() if isinstance(module, BatchNorm2d)]


class StageModes:
    """A stage's way of running the network: frozen layers and rates of dropout. `undo` gives everything back."""

    def __init__(self, model: FerModel, unfreeze: int | None, dropout: float | None, spatial_dropout: float) -> None:
        self._model = model
        self._norms = freeze(model, unfreeze)
        if dropout is not None:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = dropout
        self._hook = self._drop_patches(spatial_dropout) if spatial_dropout else None

    def train(self) -> None:
        """Training mode, but for the frozen norms."""
        self._model.train()
        for norm in self._norms:
            norm.eval()

    def undo(self) -> None:
        """Everything trainable, no dropout of patches; rates of dropout stay."""
        self._model.requires_grad_(True)
        if self._hook is not None:
            self._hook.remove()

    def _drop_patches(self, rate: float) -> Any:
        patches = getattr(self._model, "patches", None)
        if not isinstance(patches, nn.Module):
            raise ValueError(f"spatial_dropout: expected 0 for {self._model.name}, which has no patches")

        def drop(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            return F.dropout2d(output, rate, module.training)

        return patches.register_forward_hook(drop)
