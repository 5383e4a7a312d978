# SPDX-License-Identifier: Apache-2.0
"""The networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from fastfer.models import external
from fastfer.models.base import FerModel

_Model = TypeVar("_Model", bound=type[FerModel])
_MODELS: dict[str, type[FerModel]] = {}


def register_model(cls: _Model) -> _Model:
    """Class decorator: make the network known under its ``name``."""
    if cls.name in _MODELS:
        raise ValueError(f"register_model: name: expected a new one, got {cls.name!r}, which is {_MODELS[cls.name]}")
    _MODELS[cls.name] = cls
    return cls


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern, sorted."""
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def create_model(name: str, *, pretrained: str | Path | None = None, **options: Any) -> FerModel:
    """A network with fresh weights. ``options`` are those of its class: all have num_classes and in_chans.

    ``torchvision/NAME`` and ``timm/NAME`` are networks of these packages, where they are installed.

    ``pretrained`` is an ImageNet start, the path of a file or a published one's name: see
    `fastfer.models.load_imagenet`, whose report is then the network's ``pretrained``.
    Raises ValueError for an unknown name or option, naming the known ones.
    """
    if external.is_external(name):
        if pretrained is not None:
            raise ValueError(f"create_model: pretrained: expected none for {name}, got {str(pretrained)!r}")
        return external.build(name, options)
    if name not in _MODELS:
        raise ValueError(f"create_model: name: expected one of {', '.join(list_models())}, got {name!r}")
    build: Callable[..., FerModel] = _MODELS[name]
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"create_model: option of {name}: expected one of {', '.join(known)}, got {option!r}")
    model = build(**options)
    if pretrained is not None:
        from fastfer.models.pretrained import load_imagenet  # the layouts name the networks, which register here

        load_imagenet(model, pretrained)
    return model
