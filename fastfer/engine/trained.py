# SPDX-License-Identifier: Apache-2.0
"""From a file of trained weights to what `fastfer.compile` is to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfer.models import FerModel


def trained(path: str | Path) -> tuple[FerModel, dict[str, Any]]:
    """The model of a weight file, and arguments of `compile`: the size that it was trained at, its preprocessing.

    FileNotFoundError, or ValueError for a file that is no weight file or contradicts itself.
    """
    from fastfer.data import InputSpec
    from fastfer.data.input_spec import input_size
    from fastfer.models import load_weights, read_metadata

    header, model = read_metadata(path), load_weights(path)
    if not {"preprocess", "mean"} & set(header):
        return model, {"example": (model.in_chans, *(input_size(header) or model.input_size))}
    try:
        spec = InputSpec.from_metadata(header)
        shape = spec.shape(model.in_chans, model.input_size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    record: dict[str, Any] = {
        key: header[key] for key in ("stored", "input", "temperature", "licence") if key in header
    }
    record.update(preprocess=spec.preprocess.to_json(), before=list(spec.before(pixels=False)))
    known = {"example": shape, "metadata": record}
    normalisation = spec.normalisation()
    if normalisation is None:  # what comes before it is not the engine's to do: it takes float32 alone
        return model, known
    mean, std = normalisation
    return model, {**known, "mean": mean, "std": std}
