# SPDX-License-Identifier: Apache-2.0
"""Which parameters a stage trains, and its dropout: `freeze` for the backbone of PAtt-Lite, `StageModes` for the rest.

Layers are counted as Keras counts those of its MobileNetV1: the input and the padding before the first convolution are
one each, then convolution, norm and activation are one each, and so is the padding before a depthwise convolution of
stride 2. The default backbone has 59, which is why the paper's 59 for RAF-DB means all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastfer.models import FerModel
from fastfer.models.patt_lite import AttentionClassifier
from fastfer.nn import BatchNorm2d, Conv2d, DepthwiseConv2d, SeparableConv2d
from fastfer.step import repeatable
from fastfer.train.options import Stage

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

    def __init__(self, model: FerModel, stage: Stage) -> None:
        self._model = model
        self._norms = freeze(model, stage.unfreeze)
        if stage.dropout is not None:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = stage.dropout
        self._hooks = []
        if stage.spatial_dropout:
            patches = _part(model, "patches", nn.Module, "spatial_dropout")
            self._hooks.append(_drop(patches, F.dropout2d, stage.spatial_dropout))
        if stage.attention_dropout:
            classifier = _part(model, "classifier", AttentionClassifier, "attention_dropout")
            self._hooks.append(_drop(classifier, F.dropout, stage.attention_dropout))

    def train(self) -> None:
        """Training mode, but for the frozen norms."""
        self._model.train()
        for norm in self._norms:
            norm.eval()

    def undo(self) -> None:
        """Everything trainable, no dropout of patches or after attention; rates of dropout layers stay."""
        self._model.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()


def _part(model: FerModel, name: str, kind: type[nn.Module], option: str) -> nn.Module:
    module = getattr(model, name, None)
    if not isinstance(module, kind):
        what = "attention classifier" if name == "classifier" else name
        raise ValueError(f"{option}: expected 0 for {model.name}, which has no {what} with these options")
    return module


def _drop(module: nn.Module, drop: Callable[[Tensor, float, bool], Tensor], rate: float) -> RemovableHandle:
    """Dropout of the module's output, in training."""

    @repeatable
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return drop(output, rate, module.training)

    return module.register_forward_hook(hook)
