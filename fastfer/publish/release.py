# SPDX-License-Identifier: Apache-2.0
"""One release: half-precision weights, measured again from the file that ships, and everything that its card says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fastfer import weights as shipped
from fastfer._files import file_digest
from fastfer.data import load_dataset
from fastfer.data.files import replace_atomically, write_text
from fastfer.evaluate import files
from fastfer.evaluate.cost import measure_cost
from fastfer.evaluate.predict import predict
from fastfer.evaluate.run import Evaluation, class_order, evaluate
from fastfer.evaluate.source import Loaded, Weights, load, load_parts
from fastfer.figures.scores import curves
from fastfer.models import read_metadata, save_weights
from fastfer.publish.agreement import agreement
from fastfer.publish.calibration import Calibration, calibrate, reliability
from fastfer.publish.card import card
from fastfer.publish.overview import write_overview

BEST_FILE = "best.safetensors"
DRAWN = 10
LICENCE = {
    "fer2013": "code Apache-2.0; trained on FER2013, whose images were collected from the web for research: check "
    "that your use is research, or train on data of your own",
    "ferplus": "code Apache-2.0; trained on the images of FER2013, collected from the web for research, with the "
    "labels of FERPlus (MIT): check that your use is research, or train on data of your own",
}


def release(run: Path, root: Path, folder: Path, cards: Path, notes: Sequence[str] = ()) -> shipped.Shipped:
    """Write the file into ``folder``, its line into the table there, its card into ``cards``.

    The accuracy is of the file as it ships, in float16, on the validation part of the run's data set, one view.
    ValueError or OSError for a run that has no weights, or data that are not there.
    """
    data = read_metadata(run / BEST_FILE).get("data")
    if data not in LICENCE:
        raise ValueError(f"run: expected one on {' or '.join(LICENCE)}, got {data}")
    trained = load(run / BEST_FILE)
    name = trained.model.name if data == shipped.DEFAULT_DATA else f"{trained.model.name}-{data}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.safetensors"
    loaded = load_parts(trained, data, root, "validation", {}, with_train=True)
    labels = torch.from_numpy(loaded.split.labels)
    _write_half(trained, target, {"licence": LICENCE[data]})
    weights = load(target)
    single, mirrored = (
        evaluate(weights.model, loaded.split, weights.preprocess, train=loaded.train, flip=flip)
        for flip in (False, True)
    )
    fit = calibrate(single.logits, labels)
    _write_half(trained, target, {"licence": LICENCE[data], "temperature": fit.temperature})
    report = _report(weights, loaded, data, (single, mirrored), fit, run, notes)
    _write_card(cards / name, report, run, single.logits, labels, fit)
    row = _row(weights, data, target, single, fit)
    write_overview(cards)
    _update_table(folder, row)
    return row


def _write_half(trained: Weights, target: Path, more: dict[str, Any]) -> None:
    """The weights in float16, which halves the file: 11 bits of every number, where training's noise is far above."""
    kept = {key: value for key, value in trained.metadata.items() if key not in ("fastfer", "model", "options")}
    for key, tensor in trained.model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.half().isfinite().all()):
            raise ValueError(
                f"{trained.path}: {key}: expected numbers that float16 holds, got up to {float(tensor.abs().max())}"
            )
    save_weights(trained.model.half(), target, kept | more)


def _report(
    weights: Weights,
    loaded: Loaded,
    data: str,
    evaluations: tuple[Evaluation, Evaluation],
    fit: Calibration,
    run: Path,
    notes: Sequence[str],
) -> dict[str, Any]:
    single, mirrored = evaluations
    shape = tuple(weights.preprocess(torch.from_numpy(loaded.split.images[:1])).shape[1:])
    cost = measure_cost(weights.model, shape, weights.path.stat().st_size)  # type: ignore[arg-type]
    protocol = {
        "data": data,
        "split": "validation",
        "protocol": loaded.split.protocol,
        "notes": [*loaded.notes, *notes],
        "image_shape": list(loaded.split.images.shape[1:]),
        "flip": False,
        "batch_size": 256,
    }
    images = weights.preprocess(torch.from_numpy(loaded.split.images))
    training = loaded.split if loaded.train is None else loaded.train
    ranges = weights.preprocess(torch.from_numpy(training.images[:512]))
    order = class_order(weights.model, loaded.split.names)
    duplicates = mirrored.without_duplicates
    return files.content(weights, single, cost, protocol) | {
        "mirrored": {
            "accuracy": mirrored.metrics.accuracy,
            "macro_f1": mirrored.metrics.macro_f1,
            "without_duplicates": None if duplicates is None else duplicates.accuracy,
        },
        "calibration": fit.record(),
        "agreement": agreement(weights.model, images, ranges, single.logits, order),
        "training": json.loads((run / "report.json").read_text()),
    }


def _write_card(out: Path, report: dict[str, Any], run: Path, logits: Tensor, labels: Tensor, fit: Calibration) -> None:
    files.write(out, report)
    write_text(out / files.CARD_FILE, card(report))
    title = f"{report['model']} on {report['data']}"
    _save(out / "reliability.png", reliability(logits, labels, fit.temperature, title))
    _save(out / "curves.png", curves([run]))


def _save(path: Path, figure: Figure) -> None:
    FigureCanvasAgg(figure)
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png")


def _row(weights: Weights, data: str, target: Path, single: Evaluation, fit: Calibration) -> shipped.Shipped:
    return shipped.Shipped(
        model=weights.model.name,
        data=data,
        file=target.name,
        sha256=file_digest(target),
        parameters=sum(p.numel() for p in weights.model.parameters()),
        classes=weights.model.class_names or (),
        images=single.metrics.images,
        accuracy=round(single.metrics.accuracy, 6),
        macro_f1=single.metrics.macro_f1,
        temperature=fit.temperature,
        drawn=drawn_answers(weights),
    )


def drawn_answers(weights: Weights) -> tuple[str, ...]:
    """The classes that the network gives the first drawn validation faces: what a machine without real faces checks."""
    drawn = load_dataset("drawn", None, parts=("validation",))["validation"]
    images = weights.spec.split(drawn).images[:DRAWN]
    logits = predict(weights.model, torch.from_numpy(images), weights.preprocess)
    return tuple((weights.model.class_names or ())[index] for index in logits.argmax(1).tolist())


def _update_table(folder: Path, row: shipped.Shipped) -> None:
    path = folder / shipped.TABLE_FILE
    rows = [] if not path.is_file() else json.loads(path.read_text())
    kept = [each for each in rows if each["file"] != row.file]
    ordered = sorted([*kept, asdict(row)], key=lambda each: (each["data"], each["model"]))
    write_text(path, json.dumps(ordered, indent=2) + "\n")
