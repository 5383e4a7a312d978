# SPDX-License-Identifier: Apache-2.0
"""A training run from its options to its files.

Everything that can be wrong with the input is found before the output folder is touched. After each epoch the files
are replaced in this order: last/, best.safetensors (when the epoch is the best), metrics.csv, report.json,
confusion.png; so what an interruption leaves is whole, and ``resume`` makes up what was missing. Of several processes
the first evaluates and writes. A lock keeps a second run out of the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

import fastfer
from fastfer._files import file_digest
from fastfer._processes import synchronised
from fastfer.data import DataError, DataOptions, FaceCrop, Shards, Split, YuNet, load_dataset
from fastfer.data.files import write_text
from fastfer.data.split_record import dataset_name
from fastfer.faces.face import Picture
from fastfer.models import FerModel, load_weights, read_metadata, save_weights
from fastfer.models.external import is_external
from fastfer.train import outputs, state
from fastfer.train.config import CONFIG_FILE, InputError, TrainConfig, to_yaml
from fastfer.train.evaluate import Evaluator, Scores
from fastfer.train.feed import Source, derived_seed
from fastfer.train.folder import BEST_FILE, FolderLock, check_folder, remove_run
from fastfer.train.freezing import StageModes
from fastfer.train.loop import EpochResult, Trainer
from fastfer.train.placement import Placement
from fastfer.train.progress import Display, Silent
from fastfer.train.public import public_config
from fastfer.train.resolution import at_epoch
from fastfer.train.start import Start, start_from, start_imagenet
from fastfer.train.stopping import position
from fastfer.train.teacher import Teacher


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
        with _backend(config.backend):
            try:
                placement = Placement(config.device, config.precision)
                if config.threads is not None:
                    torch.set_num_threads(config.threads)
                run = _Run(config, placement, resume, overwrite, display or Silent())
            except (ValueError, RuntimeError, FileNotFoundError) as error:
                raise InputError(str(error)) from error
            with synchronised(placement.total) if config.sync_norms else nullcontext():
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

    def __init__(
        self, config: TrainConfig, placement: Placement, resume: bool, overwrite: bool, display: Display
    ) -> None:
        if config.model not in fastfer.list_models() and not is_external(config.model):
            raise ValueError(f"model: expected one of {', '.join(fastfer.list_models())}, got {config.model!r}")
        self.config, self.placement, self.resume, self.overwrite = config, placement, resume, overwrite
        self.public = public_config(config)
        self.display = display if placement.is_main else Silent()
        self.out = Path(str(config.out))
        saved = check_folder(self.out, resume, overwrite)
        record = state.read_record(saved) if saved else {}
        _check_same_run(config, record)

        self.source, self.validation_split = _load(config)
        self.data = dataset_name(config.data, config.root, config.data_options)
        self.fingerprints = {"train": self.source.fingerprint(), "validation": self.validation_split.fingerprint()}
        if record and record["fingerprints"] != self.fingerprints:
            raise state.StateError(f"{config.data} at {config.root} is not the data that {self.out} was trained on")
        self.names = self.validation_split.names
        self.preprocess = config.input.preprocess(self.source)
        self.evaluate = Evaluator(self.validation_split, self.preprocess, config.flip_test)
        self.numerics = {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "processes": placement.processes,
            "device": placement.device.type,
            **fastfer.backend.plan(),
        }
        self.history: list[dict[str, Any]] = record.get("history", [])
        self.best: dict[str, Any] = record.get("best", {})
        self.last: dict[str, Any] = record.get("last", {})
        self.best_file: str = record.get("best_file", "")
        self.saved = saved
        _check_best(self.out, record)
        self.stages = config.stages()
        self.model = self._create_model()
        self.evaluate.probe(self.model)
        for stage in self.stages:  # of all stages now, before the first has taken its time
            StageModes(self.model, replace(stage, dropout=None)).undo()
            for phase in stage.phases:
                self.evaluate.probe(self.model, phase.size)
        self.start = Start(source=record.get("start", {})) if saved else self._start()
        self.teacher = self._load_teacher()
        self.trainer = self._make_trainer(self.history[-1]["stage"] - 1 if self.history else 0)
        if saved:
            state.restore(saved, self.trainer)
            self._tell_resumed(record)

    def _create_model(self) -> FerModel:
        torch.manual_seed(derived_seed(self.config.seed, "weights"))
        options = {"num_classes": len(self.names), "in_chans": len(self.preprocess.mean), **self.config.model_options}
        try:
            model = fastfer.create_model(self.config.model, **options)
        except (TypeError, ArithmeticError) as error:  # of values that are no sizes, from inside of torch
            raise ValueError(f"model_options: {str(error).partition(chr(10))[0][:300]}") from error
        model.class_names = self.names
        return model

    def _start(self) -> Start:
        config = self.config
        if config.from_weights is not None:
            return start_from(self.model, self.names, config.from_weights, config.head)
        if config.pretrained is not None:
            return start_imagenet(self.model, config.pretrained, self.preprocess)
        return Start()

    def _load_teacher(self) -> Teacher | None:
        if self.config.teacher is None:
            return None
        names, device = self.names, self.placement.device
        return Teacher(self.config.teacher, names, self.preprocess, self.config.distill, device)

    def _make_trainer(self, number: int) -> Trainer:
        """That of stage ``number``, from 0."""
        begins = sum(row["stage"] <= number for row in self.history)
        return Trainer(
            self.model,
            self.source,
            self.preprocess,
            self.config,
            self.stages[number],
            begins,
            placement=self.placement,
            teacher=self.teacher,
        )

    def _tell_resumed(self, record: dict[str, Any]) -> None:
        self.display.line(f"continuing {self.out} after epoch {len(self.history)}")
        changed = [k for k, v in self.numerics.items() if record["numerics"].get(k) != v]
        if changed:
            self.display.line(f"note: {', '.join(changed)} differ from the first part, so the last bits may as well")

    def finish(self) -> dict[str, Any]:
        """The remaining epochs and the files."""
        with ExitStack() as stack:
            self.placement.wait()  # until every process has found the input sound
            refused = self.placement.agreed(self._claim(stack) if self.placement.is_main else None)
            if refused is not None:
                raise InputError(refused)
            return self._finish()

    def _claim(self, stack: ExitStack) -> str | None:
        """Make the output folder this run's alone until ``stack`` ends; or say why that cannot be."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FolderLock(self.out))
            # Another run may have been here between our first look and the lock.
            saved = check_folder(self.out, self.resume, self.overwrite)
            if (saved is None) != (self.saved is None) or (saved and state.read_record(saved)["last"] != self.last):
                raise ValueError(f"out: another run has changed {self.out} since this one began: begin again")
        except ValueError as error:
            return str(error)
        if self.overwrite:
            remove_run(self.out)
        if self.saved is not None:
            self._restore_best(self.saved)
        write_text(self.out / CONFIG_FILE, to_yaml(self.config))
        return None

    def _restore_best(self, saved: Path) -> None:
        """Write best.safetensors again from last/ where it is of the saved epoch and a crash or a user removed it."""
        path, source = self.out / BEST_FILE, state.evaluated_file(saved)
        if self.best["epoch"] == self.last["epoch"]:
            if not _same_weights(path, source):
                save_weights(load_weights(source), path, read_metadata(source))
                self.display.line(f"{path} is written again from {saved}")
            self.best_file = file_digest(path)

    def _finish(self) -> dict[str, Any]:
        config = self.config
        self.display.line(
            f"{config.model} on {config.data}: {len(self.source)} training and {len(self.validation_split)} "
            f"validation images, {outputs.resources(self.placement)}"
        )
        for line in self.start.lines:
            self.display.line(line)
        while (at := position(self.stages, self.history)) is not None:
            self._enter(*at)
            self._epoch(len(self.history) + 1, *at)
        if self.placement.is_main:
            self._write_reports()
        return outputs.content(self)

    def _enter(self, number: int, done: int) -> None:
        """Begin stage ``number`` where its first epoch is next: from the best weights, with a fresh optimiser."""
        if number == 0 or done:
            return
        self.placement.wait()
        self.trainer.modes.undo()
        self.model.load_state_dict(load_weights(self.out / BEST_FILE).state_dict())
        self.trainer = self._make_trainer(number)
        self.display.line(f"stage {number + 1} from the weights of epoch {self.best['epoch']}")

    def _epoch(self, epoch: int, number: int, done: int) -> None:
        stage = self.stages[number]
        title = f"epoch {done + 1}/{stage.epochs}" + (f" of stage {number + 1}" if len(self.stages) > 1 else "")
        if stage.phases and (size := at_epoch(self.preprocess, stage.phases, done).size):
            title += f" at {size[0]}×{size[1]}"
        with self.display.epoch(title, self.trainer.steps_per_epoch) as on_step:
            result = self.trainer.train_epoch(epoch, on_step)
            scores = self.placement.agreed(self._scores())
        self.trainer.schedule.end_epoch(scores.loss, scores.accuracy)
        self._keep(epoch, number, result, scores)
        self.display.line(
            f"{title}  loss {result.loss:.4f}  validation loss {scores.loss:.4f}  accuracy "
            f"{scores.accuracy:.4f}  macro-F1 {scores.macro_f1:.4f}  {result.images_per_second:.0f} images/s"
            + (f"  {result.skipped} steps skipped" if result.skipped else "")
        )

    def _scores(self) -> Scores | None:
        return self.evaluate(self.trainer.evaluated, self.trainer.features) if self.placement.is_main else None

    def _keep(self, epoch: int, number: int, result: EpochResult, scores: Scores) -> None:
        """Record the epoch and write its files."""
        self.last = {"epoch": epoch, **asdict(scores)}
        self.history.append(outputs.row(epoch, number + 1, result, scores, self.names))
        better = not self.best or scores.accuracy > self.best["accuracy"]
        if better:
            self.best = self.last
        if not self.placement.is_main:
            return
        metadata = outputs.metadata(self)
        record = {
            "config": asdict(self.config),
            "fingerprints": self.fingerprints,
            "numerics": self.numerics,
            "history": self.history,
            "best": self.best,
            "last": self.last,
            "start": self.start.source,
            "best_file": "" if better else self.best_file,  # "": of this epoch, so that it follows from last/
        }
        state.save(self.out, self.trainer, metadata, record)
        if better:
            save_weights(self.trainer.evaluated, self.out / BEST_FILE, metadata)
            self.best_file = file_digest(self.out / BEST_FILE)
        self._write_reports()

    def _write_reports(self) -> None:
        outputs.write(self.out, outputs.content(self), self.history, self.best is self.last)


def _load(config: TrainConfig) -> tuple[Source, Split]:
    """Training images, from ``config.shards`` where it is given, and validation split."""
    parts = ("train", "validation") if config.shards is None else ("validation",)
    try:
        splits = load_dataset(
            config.data,
            config.root,
            train_images=config.train_images,
            validation_images=config.validation_images,
            parts=parts,
            options=config.data_options,
            transform=_face_crop(config),
            mixed_size=config.input.size,
        )
    except DataError as error:
        raise DataError(_with_group(str(error))) from error
    split = splits["validation"]
    if config.shards is None:
        return splits["train"], split
    shards = Shards(config.shards)
    if shards.names != split.names:
        raise ValueError(f"shards: expected the classes {', '.join(split.names)}, got {', '.join(shards.names)}")
    return shards, split


def _with_group(message: str) -> str:
    """The message with the trainer's name of the option that it begins with: "data_options.split: ..."."""
    name = message.partition(":")[0]
    return f"data_options.{message}" if name in {option.name for option in fields(DataOptions)} else message


def _face_crop(config: TrainConfig) -> Callable[[Picture], Picture] | None:
    """What cuts whole pictures to their faces, where that is asked for."""
    if config.face_model is None or config.input.crop_margin is None:
        return None
    crop, detector = FaceCrop(config.input.crop_margin), YuNet(config.face_model)
    return lambda picture: crop(picture, detector)


def _check_best(out: Path, record: dict[str, Any]) -> None:
    """StateError where the best weights are of an earlier epoch than the saved one, and lost or others."""
    if not record or record["best"]["epoch"] == record["last"]["epoch"]:
        return
    path, epoch = out / BEST_FILE, record["best"]["epoch"]
    if not path.is_file() or file_digest(path) != record["best_file"]:
        lost = "is missing" if not path.is_file() else "is not the file that the run wrote"
        raise state.StateError(
            f"resume: {path}, the weights of epoch {epoch}, {lost}: put it back, or begin a new run in another folder "
            f"with those of epoch {record['last']['epoch']}: --from {state.evaluated_file(out / state.FOLDER)}"
        )


def _same_weights(path: Path, other: Path) -> bool:
    """Whether two weight files say the same; the order within a file is not fixed, so bytes may differ."""
    try:
        mine, theirs = load_weights(path).state_dict(), load_weights(other).state_dict()
        same = read_metadata(path) == read_metadata(other) and mine.keys() == theirs.keys()
    except (OSError, ValueError):
        return False
    return same and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def _check_same_run(config: TrainConfig, record: dict[str, Any]) -> None:
    if not record:
        return
    differences = config.differences(record["config"])
    if differences:
        raise state.StateError(f"resume: {config.out} was begun with other options: {'; '.join(differences)}")
