# SPDX-License-Identifier: Apache-2.0
"""Weight files of other libraries as tensors by name: safetensors, ``torch.save`` and Keras' HDF5, told by content.

Training scripts wrap what is wanted here: in {"state_dict": ...}, in names that begin with "module." (DataParallel) or
"_orig_mod." (torch.compile), Keras 3 in a zip archive. All of that is taken off, and said in notes. The files come from
elsewhere: nothing in them is executed, no other file is opened, and sizes are looked at before memory is taken.
"""

from __future__ import annotations

import argparse
import io
import mmap
import pathlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastfer.models.pretrained.keras_files import keras_tensors
from fastfer.models.pretrained.pickles import Budget

LARGEST = 1 << 30
"""Bytes of a file, and of all its tensors as float32; the networks' files have 17 to 22 million."""

_LEGACY_PICKLES = 5
"""In files of older releases of torch: a magic number, its version, the machine, the object, the storages' keys."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_KERAS_ARCHIVE = "model.weights.h5"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_SCALAR: Any = np.float64(0).__reduce__()[0]  # numpy's maker of numbers, whose module has another name in numpy 1
_INERT: list[Any] = [
    argparse.Namespace, pathlib.Path, pathlib.PurePath, pathlib.PosixPath, pathlib.PurePosixPath,
    _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType,
]  # fmt: skip
"""What timm's and torchvision's checkpoints hold beside tensors: options of the command line, scores. None has code."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor of the file, in torch's order of axes and without wrappers, and what was taken off, in words.

    FileNotFoundError, ImportError (HDF5 without h5py), or ValueError for a file that cannot be read as weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: expected at most {LARGEST:,} bytes, got {path.stat().st_size:,}")
    with path.open("rb") as file:
        start = file.read(len(_HDF5))
    if start == _HDF5:
        return _checked(path, keras_tensors(path, path, LARGEST)), ()
    if start[:2] == b"PK" and (inner := _keras_archive(path)) is not None:
        tensors = _checked(path, keras_tensors(path, io.BytesIO(inner), LARGEST))
        return tensors, (f"{_KERAS_ARCHIVE} of a Keras 3 archive",)
    # A zip archive, or the pickle that older releases of torch wrote.
    content = _torch(path) if start[:2] in (b"PK", b"\x80\x02") else _safetensors(path)
    tensors, notes = _unwrapped(path, content)
    return _checked(path, tensors), notes


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(
            f"{path}: expected safetensors, torch.save's or HDF5, got none of them ({_short(error)})"
        ) from None


def _torch(path: Path) -> Any:
    """What ``torch.save`` wrote, by torch's reader that knows tensors, containers and numbers alone."""
    try:
        _check_structure(path)
        with torch.serialization.safe_globals(_INERT):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or made-up file can raise anything inside of torch's reader, whose message then is of no more use.
    except Exception as error:
        raise ValueError(
            f"{path}: expected a state dict that torch.save wrote, got another file ({_short(error)})"
        ) from None


def _check_structure(path: Path) -> None:
    """ValueError for a file of ``torch.save`` whose reading would take more than its size lets expect."""
    budget = Budget()
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(_LEGACY_PICKLES):
                    budget.follow(content)
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # torch stores, and never compresses, each member once.
        if any(member.file_size > member.compress_size for member in members):
            raise ValueError("compressed members, which torch.save does not write")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("members that share their bytes, which torch.save does not write")
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                budget.follow(io.BytesIO(archive.read(member)))


def _keras_archive(path: Path) -> bytes | None:
    """The weights in a Keras 3 archive; None for other archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            if _KERAS_ARCHIVE not in archive.namelist():
                return None
            if archive.getinfo(_KERAS_ARCHIVE).file_size > LARGEST:
                raise ValueError(f"{_KERAS_ARCHIVE}: expected at most {LARGEST:,} bytes")
            return archive.read(_KERAS_ARCHIVE)
    except zipfile.BadZipFile:
        return None
    except Exception as error:
        raise ValueError(f"{path}: expected a Keras 3 archive, got one that cannot be read ({_short(error)})") from None


def _unwrapped(path: Path, content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in ``content``, without the prefixes of wrappers, and what was done."""
    notes: list[str] = []
    for _ in range(4):  # a checkpoint in a checkpoint has been seen; deeper ones are no accident
        if _is_state(content) or not isinstance(content, Mapping):
            break
        key = next((k for k in (*_WRAPPERS, *_AVERAGES) if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        left = [str(k) for k in content if k != key]
        notes.append(f"{key} of a checkpoint" + (f" (left out: {', '.join(left[:8])})" if left else ""))
        content = content[key]
    if not _is_state(content):
        raise ValueError(
            f"{path}: expected a state dict of tensors, or one under {', '.join(_WRAPPERS[:3])}, got "
            f"{type(content).__name__} of other things"
        )
    state = {key: value for key, value in content.items() if key != "n_averaged"}  # torch's average of weights
    for _ in range(4):
        prefix = next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        notes.append(f'names without "{prefix}"')
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, tuple(notes)


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ValueError for tensors that stand for more than they hold, or for more than a network has."""
    total = 0
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise ValueError(f"{path}: {key}: expected a plain tensor, got {value.layout} {value.dtype}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path}: {key}: expected {value.numel()} numbers, got fewer, repeated by strides")
        total += 4 * value.numel()
    if total > LARGEST:
        raise ValueError(f"{path}: expected at most {LARGEST // 4:,} numbers, got {total // 4:,}")
    return tensors


def _short(error: Exception) -> str:
    """The first line of a message."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
