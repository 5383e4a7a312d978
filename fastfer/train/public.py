# SPDX-License-Identifier: Apache-2.0
"""The options of a run as weight files, reports and tables hold them: without the paths of the machine it ran on.

A file that an option names is recorded by its bare name and its SHA-256, which says more than where it lay: whoever has
the file can tell that it is the one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastfer.data.files import reference
from fastfer.models.pretrained import SOURCES
from fastfer.train.config import TrainConfig
from fastfer.weights import resolve

_PLACES = ("out", "root", "feature_folder")  # what lay there is told by the data set's name and the fingerprints
_FILES = ("shards", "face_model", "from_weights", "pretrained", "teacher")


def public_config(config: TrainConfig) -> dict[str, Any]:
    """JSON values of every option but the places; {"name", "sha256"} for a file, without digest where it is gone."""
    values = {key: value for key, value in asdict(config).items() if key not in _PLACES}
    for key in _FILES:
        values[key] = _described(values[key])
    values["data_options"] = {**values["data_options"], "subset": _described(config.data_options.subset)}
    return values


def _described(path: str | None) -> Any:
    if path is None or path in SOURCES:
        return path
    try:
        return reference(str(resolve(path)))
    except OSError:
        return {"name": Path(path).name}
