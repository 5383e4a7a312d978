# SPDX-License-Identifier: Apache-2.0
"""Recipes: the options of `fastfer.train.TrainConfig` that a paper, or our own search, gives a network and a data set.

``RECIPE/MODEL/DATA.yaml`` beside this file; DATA ``any`` serves every data set that has no file of its own. A file may
begin with ``base: OTHER`` and then holds only what differs from that file: ``DATA`` of its folder, or
``RECIPE/MODEL/DATA``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fastfer.data.registry import canonical_dataset

_ROOT = Path(__file__).parent
_ANY = "any"
_OF_THE_DATA = ("data_options", "folds")


def list_recipes() -> list[str]:
    """Every recipe as RECIPE/MODEL/DATA, sorted."""
    return sorted(path.relative_to(_ROOT).with_suffix("").as_posix() for path in _ROOT.glob("*/*/*.yaml"))


def load_recipe(recipe: str, model: str, data: str) -> dict[str, Any]:
    """Options of ``recipe`` for the network on the data set: nested, by the names of TrainConfig, ``base`` applied.

    ``recipe`` is a name, or NAME/DATA for the recipe of another data set, which then comes without its options of the
    data (data_options, folds). ValueError for an unknown one, naming the known ones.
    """
    name, _, other = recipe.partition("/")
    names = sorted({known.split("/")[0] for known in list_recipes()})
    if name not in names:
        raise ValueError(f"recipe: expected one of {', '.join(names)}, got {recipe!r}")
    models = sorted({known.split("/")[1] for known in list_recipes() if known.startswith(f"{name}/")})
    if model not in models:
        raise ValueError(f"recipe: {name} has one for {', '.join(models)}, got model {model!r}")
    sets = sorted(path.stem for path in (_ROOT / name / model).glob("*.yaml"))
    wanted = canonical_dataset(other or data)
    chosen = wanted if wanted in sets else _ANY
    if chosen not in sets:
        listed = ", ".join(f"{name}/{known}" for known in sets)
        raise ValueError(f"recipe: {name} of {model} has none for data set {wanted!r}: expected one of {listed}")
    options = _read(f"{name}/{model}/{chosen}")
    foreign = _OF_THE_DATA if wanted != canonical_dataset(data) else ()
    return {key: value for key, value in options.items() if key not in foreign}


def _read(key: str) -> dict[str, Any]:
    options = yaml.safe_load((_ROOT / f"{key}.yaml").read_text(encoding="utf-8")) or {}
    base = options.pop("base", None)
    if base is None:
        return dict(options)
    return _merged(_read(base if "/" in base else f"{key.rpartition('/')[0]}/{base}"), options)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, group by group."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
