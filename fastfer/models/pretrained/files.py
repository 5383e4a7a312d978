# SPDX-License-Identifier: Apache-2.0
"""Weight files of other libraries as tensors by name: safetensors, ``torch.save`` and Keras' HDF5, told by content."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_HDF5 = b"\x89HDF\r\n\x1a\n"
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, in torch's order of axes. Nothing in the file is executed.

    FileNotFoundError, ImportError (HDF5 without h5py), or ValueError for a file that cannot be read as weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    with path.open("rb") as file:
        start = file.read(len(_HDF5))
    if start == _HDF5:
        return dict(_keras(path))
    # A zip archive, or the pickle that older releases of torch wrote.
    return _torch(path) if start[:2] in (b"PK", b"\x80\x02") else _safetensors(path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected safetensors, torch.save's or HDF5, got none of them ({error})") from None


def _torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, zipfile.BadZipFile, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: expected a state dict that torch.save wrote, got another file ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict of tensors, got {type(state).__name__} of other things")
    return state


def _keras(path: Path) -> Iterator[tuple[str, Tensor]]:
    """ "layer.weight" and so on; kernels (h, w, in, out), depthwise (h, w, channels, 1) with the last axes first."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(f"{path}: Keras' weight files need h5py: pip install 'fastfer[keras]' ({error})") from error
    try:
        with h5py.File(path, "r") as file:
            for layer, group in file.get("model_weights", file).items():
                arrays: dict[str, Any] = {}
                if isinstance(group, h5py.Group):
                    # Below the layer lie its arrays, in some files under further groups of any name.
                    group.visititems(lambda name, item, into=arrays: into.update({name: item}))
                for name, item in arrays.items():
                    leaf = name.rsplit("/", 1)[-1].split(":")[0]
                    if isinstance(item, h5py.Dataset) and leaf in _LEAVES:
                        yield f"{layer}.{_LEAVES[leaf]}", _axes(leaf, np.asarray(item, np.float32))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected Keras' weights in HDF5, got a file that cannot be read ({error})") from None


def _axes(leaf: str, array: np.ndarray[Any, Any]) -> Tensor:
    if array.ndim == 4:
        array = array.transpose((2, 3, 0, 1) if leaf == "depthwise_kernel" else (3, 2, 0, 1))
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(np.ascontiguousarray(array))
