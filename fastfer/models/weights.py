# SPDX-License-Identifier: Apache-2.0
"""Weight files: a state dict in safetensors whose header says which network it belongs to.

Header entries are JSON texts under these keys: "fastfer" (version of this layout, 1), "model" (name), "options" (the
constructor's arguments), "classes" (names in the order of the logits, or null), and whatever else the writer adds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastfer import weights as shipped
from fastfer._files import write_bytes
from fastfer.models.base import FerModel
from fastfer.models.registry import create_model

LAYOUT = 1


def save_weights(model: FerModel, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write the model's parameters and running statistics; the file appears whole or not at all.

    ``metadata`` are JSON values by name; "classes" names the logits (default: ``model.class_names``), "model" and
    "options" are filled in from the model. Raises ValueError for a contradiction, TypeError for what JSON cannot hold.
    """
    if not isinstance(model, FerModel):
        raise TypeError(f"save_weights: model: expected a fastfer model, got {type(model).__name__}")
    own = {"fastfer": LAYOUT, "model": model.name, "options": model.options}
    entries = {"classes": model.class_names, **(metadata or {})}
    if model.int8_ranges is not None:
        entries["int8_ranges"] = model.int8_ranges
    for key, value in own.items():
        if entries.setdefault(key, value) != value:
            raise ValueError(f"save_weights: metadata[{key!r}]: expected {value!r} or nothing, got {entries[key]!r}")
    _check_classes("save_weights", entries["classes"], model.num_classes)
    try:
        header = {key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()}
    except TypeError as error:
        raise TypeError(f"save_weights: metadata: expected JSON values, got {dict(entries)!r} ({error})") from None
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_bytes(path, save(state, header))


def load_weights(path: str | Path) -> FerModel:
    """The network that `save_weights` wrote, on the CPU, in evaluation mode, with ``class_names`` set where known.

    ``path`` may be the name of weights that ship. Parameters that are stored in 16 bits become float32. Nothing in the
    file is executed, and nothing of a size that its tensors do not have is allocated. Raises FileNotFoundError, or
    ValueError for a file that is no weight file of this package or does not fit its network.
    """
    path = shipped.resolve(path)
    metadata = read_metadata(path)
    if "pretrained" in metadata["options"]:  # a file does not make its reader open other files or fetch any
        raise _invalid(path, "expected the network's own options, got pretrained")
    try:
        with torch.device("meta"):
            model = create_model(metadata["model"], **metadata["options"])
        _check_classes("file", metadata["classes"], model.num_classes)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise _invalid(path, str(error)[:500]) from None
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - the file is no mapping
    except SafetensorError as error:
        raise _invalid(path, f"not a safetensors file: {error}") from None
    _check_state(path, model.state_dict(), state)
    model.load_state_dict({key: _widened(tensor) for key, tensor in state.items()}, assign=True)
    if metadata["classes"] is not None:
        model.class_names = tuple(metadata["classes"])
    model.int8_ranges = _ranges(path, metadata.get("int8_ranges"))
    return model.eval()


def load(name: str | Path, data: str | None = None) -> FerModel:
    """A trained network: of the weights that ship, or of a weight file; in evaluation mode, on the CPU.

    Args:
        name: a network's ("fgw_fer"), the name of weights (`fastfer.weights.list`), or a file
        data: data set that a network was trained on; by default fer2013

    FileNotFoundError or ValueError, naming what there is.
    """
    return load_weights(name if data is None else shipped.path(str(name), data))


def _ranges(path: str | Path, found: Any) -> list[list[float]] | None:
    """The ranges that fine-tuning for int8 left, lists of six finite numbers."""
    if found is None:
        return None
    for row in found if isinstance(found, list) else [None]:
        if not (isinstance(row, list) and len(row) == 6 and all(_is_number(v) for v in row) and row[4] <= row[5]):
            raise _invalid(path, f"int8_ranges: expected lists of six numbers, a range at the end, got {str(row)[:80]}")
    ranges: list[list[float]] = found
    return ranges


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The header of a weight file, decoded: "model", "options", "classes" and whatever its writer added."""
    path = shipped.resolve(path)
    if not Path(path).is_file():
        names = ", ".join(shipped.list())
        raise FileNotFoundError(f"no weight file at {path}" + (f", nor weights that ship: {names}" if names else ""))
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise _invalid(path, f"not a safetensors file: {error}") from None
    if "fastfer" not in header:
        raise _invalid(path, "expected a header entry 'fastfer', got " + (", ".join(sorted(header)) or "none"))
    try:
        metadata = {key: json.loads(value) for key, value in header.items()}
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"expected JSON in the header, got {error}") from None
    if metadata["fastfer"] != LAYOUT:
        raise _invalid(path, f"expected layout {LAYOUT}, got {str(metadata['fastfer'])[:80]!r}")
    if not isinstance(metadata.get("model"), str) or not isinstance(metadata.get("options"), dict):
        raise _invalid(path, f"expected a model's name and options, got {str(metadata)[:200]}")
    metadata.setdefault("classes", None)
    return metadata


def _invalid(path: str | Path, reason: str) -> ValueError:
    return ValueError(f"{path}: {reason}")


def _check_classes(op: str, classes: object, count: int) -> None:
    if classes is None:
        return
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"{op}: classes: expected a list of names, got {classes!r}")
    if len(classes) != count or len(set(classes)) != count:
        raise ValueError(f"{op}: classes: expected {count} distinct names, got {list(classes)!r}")


def _check_state(path: str | Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise _invalid(path, f"expected the model's tensors, got missing {missing[:5]}, unknown {unknown[:5]}")
    for key, want in expected.items():
        got = state[key]
        if got.shape != want.shape:
            raise _invalid(path, f"{key}: expected shape {tuple(want.shape)}, got {tuple(got.shape)}")
        if got.is_floating_point() != want.is_floating_point():
            raise _invalid(path, f"{key}: expected a dtype like {want.dtype}, got {got.dtype}")
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) != 1:
        raise _invalid(path, f"expected one floating dtype, got {sorted(map(str, dtypes))}")
