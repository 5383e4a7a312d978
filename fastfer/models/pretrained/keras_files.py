# SPDX-License-Identifier: Apache-2.0
"""Keras' weights in HDF5, of both its layouts, as "layer.weight" and so on in torch's order of axes.

Keras 2 keeps arrays under the layer's name, by names of their own ("conv1/conv1/kernel:0"). Keras 3 keeps them under
the layer's class and number ("layers/conv2d_3/vars/0"), in the order in which layers make them, and, in later releases,
notes the layer's name beside them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

_LEAVES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""Keras' names of a layer's arrays -> torch's."""
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}
"""Keras 3: a class's arrays in the order in which it makes them."""
_DEEPEST = 16


def keras_tensors(path: Path, content: Path | IO[bytes], largest: int) -> dict[str, Tensor]:
    """The tensors in ``content``, the file at ``path`` or a member of it; at most ``largest`` bytes as float32.

    Links to other places and arrays whose data lie in other files are refused: a weight file that made its reader open
    them would turn any file of the user's into weights. ImportError without h5py, ValueError for anything unfit.
    """
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(f"{path}: Keras' weight files need h5py: pip install 'fastfer[keras]' ({error})") from error
    try:
        with h5py.File(content, "r") as file:
            found = dict(_arrays(h5py, file))
            total = sum(item.size for item in found.values())
            if 4 * total > largest:
                raise ValueError(f"expected at most {largest // 4:,} numbers, got {total:,}")
            return dict(_named(found))
    # A damaged or made-up file can raise anything inside of h5py.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"{path}: expected Keras' weights in HDF5, got a file that cannot be read ({reason})"
        ) from None


def _arrays(h5py: Any, group: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every array below ``group`` by its path."""
    if depth > _DEEPEST:
        raise ValueError(f"groups nested deeper than {_DEEPEST}")
    for name in group:
        where = f"{place}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{where} is a link to another place")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _arrays(h5py, item, where, depth + 1)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(f"{where} has its data in another file")
            if item.dtype.kind in "fiu":
                yield where, item


def _named(arrays: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """In both layouts."""
    for where, item in arrays.items():
        variable = re.fullmatch(r"/(?:layers|_layer_checkpoint_dependencies)/([a-z0-9_]+)/vars/([0-9]+)", where)
        if variable is not None:
            kind, number = re.fullmatch(r"([a-z0-9_]+?)(?:_([0-9]+))?", variable[1]).groups()  # type: ignore[union-attr]
            leaves = _VARIABLES.get(kind, ())
            if int(variable[2]) < len(leaves):
                noted = item.parent.attrs.get("name")
                layer = noted if isinstance(noted, str) else _mobilenet_layer(kind, int(number or 0))
                yield _tensor(layer, leaves[int(variable[2])], item)
            continue
        parts = where.removeprefix("/model_weights").strip("/").split("/")
        leaf = parts[-1].split(":")[0]
        if len(parts) > 1 and leaf in _LEAVES:
            yield _tensor(parts[0], leaf, item)


def _mobilenet_layer(kind: str, number: int) -> str:
    """The layer's name in MobileNet, whose layers of each class come in a known order."""
    if kind == "conv2d":
        return f"conv_pw_{number}" if number else "conv1"
    if kind == "depthwise_conv2d":
        return f"conv_dw_{number + 1}"
    if kind == "batch_normalization":
        return f"conv_{'dw' if number % 2 else 'pw'}_{(number + 1) // 2}_bn" if number else "conv1_bn"
    return f"{kind}_{number}" if number else kind


def _tensor(layer: str, leaf: str, item: Any) -> tuple[str, Tensor]:
    """Kernels (h, w, in, out), and depthwise ones (h, w, channels, 1), with the last axes first."""
    array = np.asarray(item, np.float32)
    if array.ndim == 4:
        array = array.transpose((2, 3, 0, 1) if leaf == "depthwise_kernel" else (3, 2, 0, 1))
    elif array.ndim == 2:
        array = array.T
    return f"{layer}.{_LEAVES[leaf]}", torch.from_numpy(np.ascontiguousarray(array))
