# SPDX-License-Identifier: Apache-2.0
"""The weights that a run starts from: fresh, another run's (classes mapped by name), or ImageNet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastfer._files import file_digest
from fastfer.data import Preprocess
from fastfer.models import FerModel, load_imagenet, load_weights, read_metadata
from fastfer.weights import resolve

_HEAD = "head."


@dataclass(frozen=True)
class Start:
    """Where the first weights came from: for the report, and in lines for the reader."""

    source: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def start_from(model: FerModel, names: tuple[str, ...], path: str, head: Literal["keep", "fresh"]) -> Start:
    """Give ``model`` the weights of the file; the rows of its last layer are mapped by class name.

    Rows of classes that the file does not know stay fresh, and with ``head`` "fresh" the whole layer. ValueError for a
    file of another network or other options, or one that shares no class.
    """
    file = resolve(path)
    header = read_metadata(file)
    if header["model"] != model.name:
        raise ValueError(f"from: expected weights of {model.name}, got {header['model']} in {path}")
    source = load_weights(file)
    known = source.class_names
    if known is None and head == "keep":
        raise ValueError(f"from: expected class names in {path}, got none; --head fresh starts a new last layer")
    kept = tuple(name for name in names if head == "keep" and known and name in known)
    if head == "keep" and not kept:
        raise ValueError(
            f"from: expected some of the classes {', '.join(names)}, got {', '.join(known or ())} in {path}"
        )
    _copy(model.state_dict(), source.state_dict(), path, {names.index(k): (known or ()).index(k) for k in kept})
    fresh = tuple(name for name in names if name not in kept)
    digest = file_digest(file)
    found: dict[str, Any] = {"file": file.name, "sha256": digest, "classes": list(known or ())}
    found |= {"kept": list(kept), "fresh": list(fresh), "validation": header.get("validation")}
    line = (
        f"weights from {path}; last layer: {', '.join(kept) or 'nothing'} kept, {', '.join(fresh) or 'nothing'} fresh"
    )
    return Start(found, (line,))


def start_imagenet(model: FerModel, source: str, preprocess: Preprocess) -> Start:
    """Fill ``model`` from a stock MobileNet's file; says so where the input is normalised in another way than there."""
    found = load_imagenet(model, source)
    lines = [str(found)]
    if len(preprocess.mean) == 3 and (preprocess.mean, preprocess.std) != (found.mean, found.std):
        lines.append(
            f"note: {found.layout} was trained with mean {found.mean} and std {found.std}, see input.normalise"
        )
    record = {key: value for key, value in asdict(found).items() if key not in ("mean", "std")}
    return Start({**record, "source": Path(source).name}, tuple(lines))


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], path: str, rows: Mapping[int, int]) -> None:
    """Everything but the head as it is, and the head's ``rows`` (to: from)."""
    unlike = sorted(own.keys() ^ theirs.keys())
    unlike += [k for k in own if k in theirs and not _is_head(k) and own[k].shape != theirs[k].shape]
    unlike += [k for k in own if k in theirs and _is_head(k) and own[k].shape[1:] != theirs[k].shape[1:]]
    if unlike:
        raise ValueError(
            f"from: expected weights of the same options, got others for {', '.join(unlike[:5])} in {path}"
        )
    to, origin = list(rows), list(rows.values())
    for key, value in own.items():
        if not _is_head(key):
            value.copy_(theirs[key])
        elif value.ndim:
            value[to] = theirs[key][origin]


def _is_head(key: str) -> bool:
    return key.startswith(_HEAD)
