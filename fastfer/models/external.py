# SPDX-License-Identifier: Apache-2.0
"""Well-known networks of torchvision and timm, by the names ``torchvision/NAME`` and ``timm/NAME``, to compare with.

They run on plain torch, start fresh, and are trained, saved and evaluated like the package's own. Neither package is
needed for anything else, so neither is among fastfer's dependencies.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

from torch import Tensor, nn

from fastfer.models.base import FerModel

PACKAGES = ("torchvision", "timm")


def is_external(name: str) -> bool:
    """Whether ``name`` is that of another package's network."""
    return name.partition("/")[0] in PACKAGES and "/" in name


def unavailable(name: str) -> str:
    """Why the network cannot be built here; empty where it can, and for the package's own networks."""
    if not is_external(name):
        return ""
    package = name.partition("/")[0]
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{name} needs the package {package}, which cannot be imported: {error}"
    return ""


class ExternalModel(FerModel):
    """A network of torchvision or timm with ``num_classes`` logits and ``in_chans`` input channels."""

    input_size = (224, 224)
    name = "external"

    def __init__(self, network: str, num_classes: int = 7, in_chans: int = 3) -> None:
        super().__init__(num_classes, in_chans)
        self.name = network  # type: ignore[misc]  # one class serves all their names
        package, _, kind = network.partition("/")
        self.network = (
            _timm(kind, num_classes, in_chans) if package == "timm" else _torchvision(kind, num_classes, in_chans)
        )
        self.embedding_dim = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.network(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The logits: where the embedding is differs from network to network."""
        return self.forward(x)

    def forward_head(self, features: Tensor) -> Tensor:
        return features


def build(name: str, options: dict[str, Any]) -> FerModel:
    """ValueError for a package that is not there, or a network or option that it does not have."""
    if reason := unavailable(name):
        raise ValueError(f"create_model: name: {reason}")
    if unknown := sorted(set(options) - {"num_classes", "in_chans"}):
        raise ValueError(f"create_model: option of {name}: expected num_classes or in_chans, got {unknown[0]!r}")
    try:
        return ExternalModel(name, **options)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"create_model: name: {name} could not be built: {error}") from error


def _timm(kind: str, num_classes: int, in_chans: int) -> nn.Module:
    timm: Any = importlib.import_module("timm")
    return cast(nn.Module, timm.create_model(kind, pretrained=False, num_classes=num_classes, in_chans=in_chans))


def _torchvision(kind: str, num_classes: int, in_chans: int) -> nn.Module:
    models: Any = importlib.import_module("torchvision.models")
    network = cast(nn.Module, models.get_model(kind, weights=None, num_classes=num_classes))
    if in_chans != 3:
        _replace_stem(network, in_chans)
    return network


def _replace_stem(network: nn.Module, in_chans: int) -> None:
    """The first convolution of three channels, for another number of them."""
    for name, stem in network.named_modules():
        if isinstance(stem, nn.Conv2d) and stem.in_channels == 3:
            parent, _, child = name.rpartition(".")
            other = nn.Conv2d(
                in_chans,
                stem.out_channels,
                cast(Any, stem.kernel_size),
                cast(Any, stem.stride),
                cast(Any, stem.padding),
                bias=stem.bias is not None,
            )
            setattr(network.get_submodule(parent), child, other)
            return
    raise ValueError("no convolution of three channels to replace")
