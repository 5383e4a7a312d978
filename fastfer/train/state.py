# SPDX-License-Identifier: Apache-2.0
"""The folder ``last``: everything that continuing a run needs, replaced as a whole after each epoch.

weights.safetensors    the network, with its preprocessing and class names in the header
average.safetensors    the average of the weights, where the run keeps one
centers.safetensors    the centres of a centre loss
optimizer.safetensors  the optimiser's moments and step counts, "parameter name/entry"
state.json             epoch, schedule, optimiser options, history, best scores, options of the run, data fingerprints

Random numbers need no file: they follow from the seed and the epoch (see loop.py). Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastfer.models import load_weights, save_weights
from fastfer.train.loop import Trainer

FOLDER = "last"
LAYOUT = 2
RECORD_KEYS = ("config", "fingerprints", "numerics", "history", "best", "last", "start")

_NEW, _OLD = "last.new", "last.old"
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_AVERAGE, _CENTERS = "average.safetensors", "centers.safetensors"


class StateError(ValueError):
    """A saved run that cannot be continued as asked."""


def find(out: Path) -> Path | None:
    """The folder to continue from, or None. ``last.old`` is the whole one if a crash fell between the two renames."""
    return next((out / name for name in (FOLDER, _OLD) if (out / name / _STATE).is_file()), None)


def remove(out: Path) -> None:
    """Delete the saved state under ``out``."""
    for name in (FOLDER, _NEW, _OLD):
        shutil.rmtree(out / name, ignore_errors=True)


def save(out: Path, trainer: Trainer, metadata: dict[str, Any], record: dict[str, Any]) -> None:
    """Replace ``out/last``. ``metadata`` goes to the weights' header; ``record`` holds RECORD_KEYS, as JSON values."""
    new, old, last = out / _NEW, out / _OLD, out / FOLDER
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        save_weights(trainer.model, new / _WEIGHTS, metadata)
        if trainer.average:
            save_weights(trainer.average.model, new / _AVERAGE, metadata)
        if trainer.objective.centers is not None:
            save_file({"centers": trainer.objective.centers.cpu().contiguous()}, new / _CENTERS)
        optimizer = trainer.optimizer.state_dict()
        names = _trained_names(trainer)
        moments = {
            f"{names[index]}/{entry}": value.cpu().contiguous()
            for index, entries in optimizer["state"].items()
            for entry, value in entries.items()
            if value is not None
        }
        save_file(moments, new / _OPTIMIZER)
        state = {
            "layout": LAYOUT,
            "groups": optimizer["param_groups"],
            "scheduler": trainer.schedule.state_dict(),
            "scaler": trainer.placement.scaler_state(),
            "record": record,
        }
        (new / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if last.exists():
        shutil.rmtree(old, ignore_errors=True)
        last.rename(old)
    new.rename(last)
    shutil.rmtree(old, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    """The ``record`` of `save`. StateError for a damaged or foreign file."""
    record = _read_state(folder)["record"]
    missing = [key for key in RECORD_KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise StateError(f"{folder / _STATE}: expected the record of a run, got none of its {', '.join(missing)}")
    return dict(record)


def restore(folder: Path, trainer: Trainer) -> None:
    """Put the saved weights, moments and schedule into ``trainer``, bit for bit. StateError where they do not fit."""
    state = _read_state(folder)
    try:
        trainer.model.load_state_dict(load_weights(folder / _WEIGHTS).state_dict())
        if trainer.average:
            trainer.average.model.load_state_dict(load_weights(folder / _AVERAGE).state_dict())
        if trainer.objective.centers is not None:
            trainer.objective.centers.copy_(load_file(folder / _CENTERS)["centers"])
        entries = _read_entries(folder / _OPTIMIZER, trainer)
        groups = [{**g, "betas": tuple(g["betas"])} if "betas" in g else g for g in state["groups"]]
        trainer.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        trainer.schedule.load_state_dict(state["scheduler"])
        trainer.placement.load_scaler_state(state["scaler"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise StateError(f"{folder} cannot be continued from: {type(error).__name__}: {error}") from error


def _trained_names(trainer: Trainer) -> list[str]:
    """Names of the parameters in the order of the optimiser."""
    return [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]


def _read_entries(path: Path, trainer: Trainer) -> dict[int, dict[str, torch.Tensor]]:
    """The optimiser's entries by number of parameter. KeyError for those of a parameter that is not trained."""
    numbers = {name: number for number, name in enumerate(_trained_names(trainer))}
    parameters = dict(trainer.model.named_parameters())
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(numbers[name], {})[entry] = _laid_out_like(parameters[name], value)
    return entries


def _laid_out_like(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """Moments in the parameter's memory format: the fused optimiser walks both by storage order."""
    if saved.ndim == 0:
        return saved
    return torch.empty_like(parameter, requires_grad=False).copy_(saved)


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"cannot read {path}: {error}") from error
    if not isinstance(state, dict) or "record" not in state:
        raise StateError(f"{path}: expected the state of a run, got something else")
    if state.get("layout") != LAYOUT:
        raise StateError(
            f"{path}: expected layout {LAYOUT}, got {state.get('layout')}: another version of fastfer wrote it and has "
            "to finish it; its weights can be continued from in a new run, with --from"
        )
    return state
