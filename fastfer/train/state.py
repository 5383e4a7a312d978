# SPDX-License-Identifier: Apache-2.0
"""The folder ``last``: everything that continuing a run needs, replaced as a whole after each epoch.

weights.safetensors    the network, with its preprocessing and class names in the header
average.safetensors    the average of the weights, where the run keeps one
centers.safetensors    the centres of a centre loss
optimizer.safetensors  the optimiser's moments and step counts, "parameter name/entry"
state.json             epoch, schedule, optimiser options, history, best scores, options of the run, data fingerprints,
                       and the digests of the other files and of itself

Random numbers need no file: they follow from the seed and the epoch (see loop.py). Nothing is pickled. A flipped bit
anywhere, or a file of another run, is an error, because moments of wrong numbers would train on without a word.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised

from fastfer._files import file_digest, sync, write_bytes
from fastfer.models import load_weights, save_weights
from fastfer.train.loop import Trainer

FOLDER = "last"
LAYOUT = 3
_KINDS: dict[str, type] = {
    "config": dict,
    "fingerprints": dict,
    "numerics": dict,
    "history": list,
    "best": dict,
    "last": dict,
    "start": dict,
    "best_file": str,
}
RECORD_KEYS = tuple(_KINDS)

_NEW, _OLD = "last.new", "last.old"
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_AVERAGE, _CENTERS = "average.safetensors", "centers.safetensors"
_TENSORS = (_WEIGHTS, _AVERAGE, _CENTERS, _OPTIMIZER)
_DAMAGE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, SafetensorError)
"""Whatever reading values of a wrong kind can raise; RuntimeError has RecursionError, of JSON nested too deeply."""


class StateError(ValueError):
    """A saved run that cannot be continued as asked."""


def find(out: Path) -> Path | None:
    """The folder to continue from, or None. ``last.old`` is the whole one if a crash fell between the two renames."""
    return next((out / name for name in (FOLDER, _OLD) if (out / name / _STATE).is_file()), None)


def remove(out: Path) -> None:
    """Delete the saved state under ``out``."""
    for name in (FOLDER, _NEW, _OLD):
        shutil.rmtree(out / name, ignore_errors=True)


def remove_unfinished(out: Path) -> None:
    """Delete what a killed run has left of a state that never became ``last``."""
    shutil.rmtree(out / _NEW, ignore_errors=True)


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
            centers = {"centers": trainer.objective.centers.cpu().contiguous()}
            write_bytes(new / _CENTERS, serialised(centers))
        optimizer = trainer.optimizer.state_dict()
        names = _trained_names(trainer)
        moments = {
            f"{names[index]}/{entry}": value.cpu().contiguous()
            for index, entries in optimizer["state"].items()
            for entry, value in entries.items()
            if value is not None
        }
        write_bytes(new / _OPTIMIZER, serialised(moments))
        state = {
            "layout": LAYOUT,
            "files": {name: file_digest(new / name) for name in _TENSORS if (new / name).exists()},
            "groups": optimizer["param_groups"],
            "scheduler": trainer.schedule.state_dict(),
            "scaler": trainer.placement.scaler_state(),
            "record": record,
        }
        text = json.dumps({**state, "digest": _digest(state)}, indent=1)
        write_bytes(new / _STATE, text.encode())
        sync(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if last.exists():
        shutil.rmtree(old, ignore_errors=True)
        last.rename(old)
    new.rename(last)
    sync(out)
    shutil.rmtree(old, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    """The ``record`` of `save`, after every file was compared with its digest. StateError for a damaged or foreign one.

    The numbers in it are those of `save`: no one changes a byte without the digests' noticing.
    """
    state = _read_state(folder)
    record = state["record"]
    wrong = [key for key, kind in _KINDS.items() if not isinstance(record, dict) or type(record.get(key)) is not kind]
    if not wrong:
        wrong = [key for key, right in _whole(record).items() if not right]
    if wrong:
        raise StateError(f"{folder / _STATE}: expected the record of a run, got none of its {', '.join(wrong)}")
    for name, digest in state["files"].items():
        if not (folder / name).is_file():
            raise StateError(f"{folder / name} is missing")
        if file_digest(folder / name) != digest:
            raise StateError(f"{folder / name} is not the file that the run wrote: it was damaged or replaced")
    return dict(record)


def _whole(record: dict[str, Any]) -> dict[str, bool]:
    """Whether the entries that a run is continued by hold what it reads of them."""

    def has(entry: object, whole: tuple[str, ...], numbers: tuple[str, ...]) -> bool:
        return isinstance(entry, dict) and (
            all(type(entry.get(key)) is int for key in whole)
            and all(isinstance(entry.get(key), int | float) for key in numbers)
        )

    rows = record["history"]
    scores = {key: has(record[key], ("epoch",), ("accuracy", "macro_f1", "loss")) for key in ("best", "last")}
    right = all(has(row, ("epoch", "stage"), ("accuracy", "validation_loss")) for row in rows)
    return {"history": bool(rows) and right, **scores}


def restore(folder: Path, trainer: Trainer) -> None:
    """Put the saved weights, moments and schedule into ``trainer``, bit for bit. StateError where they do not fit."""
    state = _read_state(folder)
    try:
        trainer.model.load_state_dict(load_weights(folder / _WEIGHTS).state_dict())
        if trainer.average:
            trainer.average.model.load_state_dict(load_weights(folder / _AVERAGE).state_dict())
        if trainer.objective.centers is not None:
            saved = load_file(folder / _CENTERS)["centers"]
            trainer.objective.centers.copy_(_checked("centers", saved, trainer.objective.centers))
        entries = _read_entries(folder / _OPTIMIZER, trainer)
        groups = [{**g, "betas": tuple(g["betas"])} if "betas" in g else g for g in state["groups"]]
        trainer.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        trainer.schedule.load_state_dict(state["scheduler"])
        trainer.placement.load_scaler_state(state["scaler"])
    except _DAMAGE as error:
        raise StateError(f"{folder} cannot be continued from: {type(error).__name__}: {error}") from error


def evaluated_file(folder: Path) -> Path:
    """The weights that the saved epoch was evaluated with: the average of the weights where the run keeps one."""
    return folder / (_AVERAGE if (folder / _AVERAGE).exists() else _WEIGHTS)


def _trained_names(trainer: Trainer) -> list[str]:
    """Names of the parameters in the order of the optimiser."""
    return [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]


def _read_entries(path: Path, trainer: Trainer) -> dict[int, dict[str, torch.Tensor]]:
    """The optimiser's entries by number of parameter. ValueError for those of a parameter that is not trained."""
    numbers = {name: number for number, name in enumerate(_trained_names(trainer))}
    parameters = dict(trainer.model.named_parameters())
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, entry = key.rpartition("/")
        if name not in numbers:
            raise ValueError(f"{path.name}: {key}: expected an entry of a trained parameter")
        entries.setdefault(numbers[name], {})[entry] = _laid_out_like(key, parameters[name], value)
    kinds = {frozenset(each) for each in entries.values()}
    if len(kinds) > 1:
        raise ValueError(f"{path.name}: expected the same entries for each parameter, got {sorted(map(sorted, kinds))}")
    return entries


def _laid_out_like(key: str, parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """Moments in the parameter's memory format: the fused optimiser walks both by storage order."""
    if key.endswith("/step"):
        return _checked(key, saved, torch.zeros(()))
    return torch.empty_like(parameter, requires_grad=False).copy_(_checked(key, saved, parameter))


def _checked(key: str, saved: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``saved``, of the shape and the dtype of ``like`` and finite."""
    if saved.shape != like.shape or saved.dtype != like.dtype:
        raise ValueError(f"{key}: expected {like.dtype} {tuple(like.shape)}, got {saved.dtype} {tuple(saved.shape)}")
    if not bool(saved.isfinite().all()):
        raise ValueError(f"{key}: expected finite numbers, got NaN or infinity")
    return saved


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except _DAMAGE as error:
        raise StateError(f"cannot read {path}: {error}") from error
    if not isinstance(state, dict) or "record" not in state:
        raise StateError(f"{path}: expected the state of a run, got something else")
    if state.get("layout") != LAYOUT:
        raise StateError(
            f"{path}: expected layout {LAYOUT}, got {state.get('layout')}: another version of fastfer wrote it and has "
            "to finish it; its weights can be continued from in a new run, with --from"
        )
    files, said = state.get("files"), state.pop("digest", None)
    if said != _digest(state) or not isinstance(files, dict) or not set(files) <= set(_TENSORS):
        raise StateError(f"{path} is not the file that the run wrote: it was damaged or changed")
    return state


def _digest(state: Mapping[str, Any]) -> str:
    """Of the values, as JSON gives them back: lists for tuples, texts for all keys."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(state)), sort_keys=True).encode()).hexdigest()
