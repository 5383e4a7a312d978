# SPDX-License-Identifier: Apache-2.0
"""A training run from its options to its files.

Everything that can be wrong with the input is found before the output folder is touched. After each epoch the files
are replaced in this order: best.safetensors (when the epoch is the best), last/, metrics.csv, report.json,
confusion.png; so what an interruption leaves is whole, and ``resume`` makes up what was missing.
"""

from __future__ import annotations

import os
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fastfer
from fastfer.data import Preprocess, load_dataset
from fastfer.data.files import write_text
from fastfer.models import FerModel, save_weights
from fastfer.train import report, state
from fastfer.train.config import CONFIG_FILE, InputError, TrainConfig, to_yaml
from fastfer.train.evaluate import Evaluator, Scores
from fastfer.train.loop import EpochResult, Trainer, derived_seed
from fastfer.train.progress import Display, Silent

BEST_FILE = "best.safetensors"
_PRIVATE = ("out", "root")  # paths of one machine have no place in a file that is passed on
_FILES = (CONFIG_FILE, BEST_FILE, report.METRICS_FILE, report.REPORT_FILE, report.CONFUSION_FILE)


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Run ``config`` to its last epoch and return the content of report.json.

    The output folder must hold no run, unless ``resume`` continues it or ``overwrite`` discards it. An epoch that was
    interrupted is done again from its start. Raises InputError, before anything is written, for whatever training
    cannot start from, a backend that cannot run here included; NonFiniteError when training diverges.
    """
    config = config.resolved()
    before = torch.get_num_threads()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with _backend(config.backend):
            try:
                run = _Run(config, resume, overwrite, display or Silent())
            except (ValueError, RuntimeError) as error:
                raise InputError(str(error)) from error
            return run.finish()
    finally:
        torch.set_num_threads(before)


def _backend(name: str | None) -> AbstractContextManager[object]:
    try:
        return nullcontext() if name is None else fastfer.use(name)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from error


class _Run:
    """The state of a run between epochs."""

    def __init__(self, config: TrainConfig, resume: bool, overwrite: bool, display: Display) -> None:
        if config.model not in fastfer.list_models():
            raise ValueError(f"model: expected one of {', '.join(fastfer.list_models())}, got {config.model!r}")
        self.config, self.display, self.overwrite = config, display, overwrite
        self.out = Path(str(config.out))
        saved = _check_folder(self.out, resume, overwrite)
        record = state.read_record(saved) if saved else {}
        _check_same_run(config, record)

        splits = load_dataset(
            config.data, config.root, train_images=config.train_images, validation_images=config.validation_images
        )
        self.train_split, self.validation_split = splits["train"], splits["validation"]
        self.fingerprints = {name: split.fingerprint() for name, split in splits.items()}
        if record and record["fingerprints"] != self.fingerprints:
            raise state.StateError(f"{config.data} at {config.root} is not the data that {self.out} was trained on")
        self.preprocess = Preprocess.of(self.train_split)
        self.evaluate = Evaluator(self.validation_split, self.preprocess, config.flip_test)
        self.trainer = Trainer(self._create_model(), self.train_split, self.preprocess, config)
        self.evaluate.probe(self.trainer.model)
        self.numerics = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), **fastfer.backend.plan()}
        self.history: list[dict[str, Any]] = record.get("history", [])
        self.best: dict[str, Any] = record.get("best", {})
        self.last: dict[str, Any] = record.get("last", {})
        if saved:
            state.restore(saved, self.trainer)
            self._tell_resumed(record)

    def _create_model(self) -> FerModel:
        split = self.train_split
        torch.manual_seed(derived_seed(self.config.seed, "weights"))
        options = {"num_classes": len(split.names), "in_chans": split.channels, **self.config.model_options}
        model = fastfer.create_model(self.config.model, **options)
        model.class_names = split.names
        return model

    def _tell_resumed(self, record: dict[str, Any]) -> None:
        self.display.line(f"continuing {self.out} after epoch {len(self.history)}")
        changed = [k for k, v in self.numerics.items() if record["numerics"].get(k) != v]
        if changed:
            self.display.line(f"note: {', '.join(changed)} differ from the first part, so the last bits may as well")

    def finish(self) -> dict[str, Any]:
        """The remaining epochs and the files."""
        config, epochs = self.config, int(self.config.epochs or 0)
        self.out.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            _remove_run(self.out)
        write_text(self.out / CONFIG_FILE, to_yaml(config))
        self.display.line(
            f"{config.model} on {config.data}: {len(self.train_split)} training and {len(self.validation_split)} "
            f"validation images, {torch.get_num_threads()} threads, {_backends_used()}"
        )
        for epoch in range(len(self.history) + 1, epochs + 1):
            with self.display.epoch(f"epoch {epoch}/{epochs}", self.trainer.steps_per_epoch) as on_step:
                result = self.trainer.train_epoch(epoch, on_step)
                scores = self.evaluate(self.trainer.evaluated)
            self.trainer.schedule.end_epoch(scores.loss, scores.accuracy)
            self._keep(epoch, result, scores)
            self.display.line(
                f"epoch {epoch}/{epochs}  loss {result.loss:.4f}  validation loss {scores.loss:.4f}  accuracy "
                f"{scores.accuracy:.4f}  macro-F1 {scores.macro_f1:.4f}  {result.images_per_second:.0f} images/s"
                + (f"  {result.skipped} steps skipped" if result.skipped else "")
            )
        return self._write_reports()

    def _keep(self, epoch: int, result: EpochResult, scores: Scores) -> None:
        """Record the epoch and write its files."""
        self.last = {"epoch": epoch, **asdict(scores)}
        self.history.append(_row(epoch, result, scores, self.train_split.names))
        if not self.best or scores.accuracy > self.best["accuracy"]:
            self.best = self.last
            save_weights(self.trainer.evaluated, self.out / BEST_FILE, self._metadata())
        record = {
            "config": asdict(self.config), "fingerprints": self.fingerprints, "numerics": self.numerics,
            "history": self.history, "best": self.best, "last": self.last,
        }  # fmt: skip
        state.save(self.out, self.trainer, self._metadata(), record)
        self._write_reports()

    def _metadata(self) -> dict[str, Any]:
        """Header of the weight files: what a user of the weights has to know."""
        return {
            "classes": list(self.train_split.names),
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "input": list(self.train_split.images.shape[-2:]),
            "data": self.config.data,
            "epoch": self.last["epoch"],
            "validation": {key: self.last[key] for key in ("accuracy", "macro_f1")},
            "config": {key: value for key, value in asdict(self.config).items() if key not in _PRIVATE},
        }

    def _write_reports(self) -> dict[str, Any]:
        names = self.train_split.names
        speeds = {
            "training": statistics.median([row["images_per_second"] for row in self.history]),
            "evaluation": statistics.median([row["evaluation_images_per_second"] for row in self.history]),
        }
        content = {
            "model": self.config.model,
            "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
            "data": self.config.data,
            "classes": list(names),
            "images": {"train": self.train_split.counts(), "validation": self.validation_split.counts()},
            "epochs": {"done": len(self.history), "planned": self.config.epochs},
            "best": _named(self.best, names),
            "last": _named(self.last, names),
            "images_per_second": speeds,
            "backends": fastfer.backend.plan(),
            "seed": self.config.seed,
            "preprocess": asdict(self.preprocess),
            "fingerprints": self.fingerprints,
            "config": asdict(self.config),
            "environment": report.environment(),
        }
        report.write_metrics(self.out, self.history)
        report.write_report(self.out, content)
        if self.best is not self.last and (self.out / report.CONFUSION_FILE).exists():
            return content
        title = f"{self.config.model} on {self.config.data}, epoch {self.best['epoch']}: {self.best['accuracy']:.1%}"
        report.write_confusion(self.out, self.best["confusion"], names, title)
        return content


def _row(epoch: int, result: EpochResult, scores: Scores, names: tuple[str, ...]) -> dict[str, Any]:
    """The epoch's line of metrics.csv."""
    return {
        "epoch": epoch,
        "lr": result.lr,
        "loss": result.loss,
        "validation_loss": scores.loss,
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        **{f"recall_{name}": value for name, value in zip(names, scores.recall, strict=True)},
        "skipped_steps": result.skipped,
        "images_per_second": round(result.images_per_second, 1),
        "evaluation_images_per_second": round(scores.images_per_second, 1),
    }


def _named(scores: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**scores, "recall": dict(zip(names, scores["recall"], strict=True))}


def _backends_used() -> str:
    """ "native" or, where families differ, "native (elementwise, pool), reference (norm)"."""
    families: dict[str, list[str]] = {}
    for family, name in fastfer.backend.plan().items():
        families.setdefault(name, []).append(family)
    if len(families) == 1:
        return f"backend {next(iter(families))}"
    return "backends " + ", ".join(f"{name} ({', '.join(members)})" for name, members in families.items())


def _check_folder(out: Path, resume: bool, overwrite: bool) -> Path | None:
    """The saved state to continue from, or None to begin. ValueError where ``out`` cannot be used as asked."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"out: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"out: no permission to write to {existing}")
    saved = state.find(out)
    begun = [name for name in _FILES if (out / name).exists()]
    if resume and not saved and not begun:
        raise ValueError(f"resume: {out} holds no run")
    if (saved or begun) and not resume and not overwrite:
        raise ValueError(f"out: {out} holds a run already: continue it with --resume or discard it with --overwrite")
    return saved if resume else None


def _check_same_run(config: TrainConfig, record: dict[str, Any]) -> None:
    if not record:
        return
    differences = config.differences(record["config"])
    if differences:
        raise state.StateError(f"resume: {config.out} was begun with other options: {'; '.join(differences)}")


def _remove_run(out: Path) -> None:
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    state.remove(out)
