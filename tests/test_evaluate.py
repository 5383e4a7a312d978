# SPDX-License-Identifier: Apache-2.0
"""Metrics against a plain count, duplicates, groups, class order, files, and what is refused before any is written."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the packages of evaluation are not installed")
pytest.importorskip("matplotlib", reason="the packages of evaluation are not installed")

from fastfer._lawful_use import LAWFUL_USE
from fastfer.data import BASIC_NAMES, DataError, Preprocess, Split, load_dataset
from fastfer.data.options import parse_options
from fastfer.evaluate import evaluate, measure, measure_cost, predict
from fastfer.evaluate.__main__ import main
from fastfer.evaluate.card import model_card
from fastfer.evaluate.groups import groups_of, read_groups
from fastfer.evaluate.metrics import BINS, wilson
from fastfer.models import create_model, model_info, save_weights

FEW = ["--option", "train_images=14", "--option", "validation_images=21"]
HEADER = {"classes": list(BASIC_NAMES), "mean": [0.5], "std": [0.25], "data": "drawn", "epoch": 3}


def counted(logits: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """The definitions, image by image."""
    confusion = [[0] * classes for _ in range(classes)]
    bins = [[0, 0, 0.0] for _ in range(BINS)]
    loss = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        guess = row.index(max(row))
        exps = [math.exp(value - max(row)) for value in row]
        confidence = max(exps) / sum(exps)
        loss -= math.log(exps[label] / sum(exps)) / len(labels)
        confusion[label][guess] += 1
        of_bin = bins[min(int(confidence * BINS), BINS - 1)]
        of_bin[0], of_bin[1], of_bin[2] = of_bin[0] + 1, of_bin[1] + (guess == label), of_bin[2] + confidence
    scores: dict[str, list[float]] = {"precision": [], "recall": [], "f1": []}
    counts = []
    for i in range(classes):
        hits, true = confusion[i][i], sum(confusion[i])
        guessed = sum(row[i] for row in confusion)
        scores["precision"].append(hits / guessed if guessed else 0.0)
        scores["recall"].append(hits / true if true else 0.0)
        scores["f1"].append(2 * hits / (true + guessed) if true + guessed else 0.0)
        if true + guessed:
            counts.append(scores["f1"][-1])
    return {
        "confusion": tuple(map(tuple, confusion)),
        "loss": loss,
        "accuracy": sum(confusion[i][i] for i in range(classes)) / len(labels),
        "macro_f1": sum(counts) / len(counts),
        "calibration_error": sum(abs(right - sure) for n, right, sure in bins if n) / len(labels),
        **scores,
    }


@pytest.mark.parametrize(("classes", "absent"), [(2, None), (7, None), (7, 3), (8, 0)])
def test_metrics(classes: int, absent: int | None) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (150,), generator=generator)
    logits = torch.randn(150, classes, generator=generator) + 2 * torch.nn.functional.one_hot(labels, classes)
    if absent is not None:  # neither there nor predicted
        labels[labels == absent] = (absent + 1) % classes
        logits[:, absent] = -100
    found, want = measure(logits, labels, classes), counted(logits, labels, classes)
    assert found.images == 150
    assert found.confusion == want.pop("confusion")
    for name, value in want.items():
        assert getattr(found, name) == pytest.approx(value, abs=2e-6), name
    low, high = found.accuracy_interval
    assert low < found.accuracy < high


def test_wilson_interval() -> None:
    """8 of 10: the textbook's 0.490 to 0.943; the ends stay within 0 and 1."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1


@pytest.mark.parametrize(("logits", "labels"), [((0, 3), (0,)), ((2, 4), (2,)), ((2, 3), (3,))])
def test_metrics_refuse(logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected shapes \(N, 3\) and \(N,\), N >= 1"):
        measure(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), 3)


def small(count: int = 12, seed: int = 0, names: tuple[str, ...] = BASIC_NAMES) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(names)
    return Split(rng.integers(0, 256, (count, 48, 48), np.uint8), labels, names)


def network(names: tuple[str, ...] = BASIC_NAMES) -> Any:
    torch.manual_seed(0)
    model = create_model("sepconv_attention", num_classes=len(names)).eval()
    model.class_names = names
    return model


NUMBERS = Preprocess((0.5,), (0.25,))


def test_predict() -> None:
    """Any batch size gives the same logits; flip averages with the mirror image; one left over is not alone."""
    model, split = network(), small(5)
    images = torch.from_numpy(split.images)
    want = predict(model, images, NUMBERS)
    assert want.shape == (5, 7)
    torch.testing.assert_close(predict(model, images, NUMBERS, batch_size=2), want, rtol=1e-4, atol=1e-5)
    mirrored = predict(model, images.flip(2), NUMBERS)
    torch.testing.assert_close(predict(model, images, NUMBERS, flip=True), (want + mirrored) / 2, rtol=1e-4, atol=1e-5)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    predict(model, images, NUMBERS, batch_size=2)
    assert sizes == [2, 3]


def test_duplicates_are_left_out() -> None:
    split, train = small(12), small(20, seed=1)
    train.images[3] = split.images[5]
    train.images[4] = split.images[5]
    split.images[7] = split.images[5]  # two copies of a training image, and one within the split
    train.images[9] = split.images[0]
    found = evaluate(network(), split, NUMBERS, train=train)
    kept = [i for i in range(12) if i not in (0, 5, 7)]
    assert found.duplicates == 3
    assert found.without_duplicates == measure(found.logits[kept], torch.from_numpy(split.labels[kept]), 7)
    assert evaluate(network(), split, NUMBERS).without_duplicates is None
    everything = evaluate(network(), split, NUMBERS, train=split)
    assert (everything.duplicates, everything.without_duplicates) == (12, None)


def test_groups_partition_the_split() -> None:
    split = small(9)
    members = ["a", "b", "a", "", "b", "a", "a", "b", "b"]
    found = evaluate(network(), split, NUMBERS, groups={"side": members})
    assert {name: m.images for name, m in found.groups["side"].items()} == {"a": 4, "b": 4}
    chosen = [i for i, member in enumerate(members) if member == "b"]
    assert found.groups["side"]["b"] == measure(found.logits[chosen], torch.from_numpy(split.labels[chosen]), 7)
    with pytest.raises(ValueError, match="groups: expected 9 names, got 2"):
        evaluate(network(), split, NUMBERS, groups={"side": ["a", "b"]})


def test_classes_go_by_name() -> None:
    """Weights whose classes come in another order score the same; other classes are refused."""
    split, model = small(14), network()
    want = evaluate(model, split, NUMBERS).metrics
    order = [3, 1, 6, 0, 2, 5, 4]
    twin = network()
    twin.class_names = tuple(BASIC_NAMES[i] for i in order)
    with torch.no_grad():
        twin.head.weight.copy_(model.head.weight[order])
        twin.head.bias.copy_(model.head.bias[order])
    assert evaluate(twin, split, NUMBERS).metrics.confusion == want.confusion
    eight = network((*BASIC_NAMES, "contempt"))
    with pytest.raises(
        ValueError, match=r"classes: expected those of the data \(neutral, .*got a model for .*contempt"
    ):
        evaluate(eight, split, NUMBERS)
    twin.class_names = None
    with pytest.raises(ValueError, match="expected a weight file that names its classes"):
        evaluate(twin, split, NUMBERS)


def test_images_that_do_not_fit() -> None:
    colour = Split(np.zeros((3, 3, 48, 48), np.uint8), np.zeros(3, np.int64), BASIC_NAMES)
    with pytest.raises(ValueError, match=r"the model cannot take images of \(3, 48, 48\)"):
        evaluate(network(), colour, NUMBERS)
    with pytest.raises(ValueError, match="split: expected images, got none"):
        evaluate(network(), small(12).first(0), NUMBERS)


def test_cost() -> None:
    model, info = network(), model_info("sepconv_attention")
    cost = measure_cost(model, (1, 48, 48), 123, seconds=0.01)
    assert (cost.parameters, cost.running_statistics, cost.macs) == (
        info.parameters,
        info.running_statistics,
        info.macs,
    )
    assert cost.file_size == 123
    assert sorted(cost.latency_ms) == [1, 32]
    assert all(count >= 3 for count in cost.runs.values())
    assert all(ms > 0 for ms in cost.latency_ms.values())
    assert measure_cost(model, (1, 48, 48), seconds=0).latency_ms == {}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, HEADER)
    return path


def run(weights: Path, *more: str) -> int:
    return main([str(weights), "--data", "drawn", *FEW, "--seconds", "0", *more])


def test_command_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w-drawn-validation"
    assert run(weights) == 0
    assert "all images: 21 images, accuracy" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["confusion.csv", "confusion.png", "model_card.md", "report.json"]
    report = json.loads((out / "report.json").read_text())
    splits = load_dataset("drawn", train_images=14, validation_images=21)
    want = evaluate(network(), splits["validation"], NUMBERS, train=splits["train"])
    assert report["metrics"]["accuracy"] == want.metrics.accuracy
    assert report["metrics"]["confusion"] == [list(row) for row in want.metrics.confusion]
    assert report["duplicates"] == 0
    assert report["trained"] == {"data": "drawn", "epoch": 3}
    assert report["cost"]["file_size"] == weights.stat().st_size
    rows = list(csv.reader((out / "confusion.csv").open()))
    assert rows[0][1:] == list(BASIC_NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == report["metrics"]["confusion"]
    card = (out / "model_card.md").read_text()
    for text in (
        f"**{want.metrics.accuracy:.2%}**", f"**{want.metrics.macro_f1:.4f}**", "## Protocol", "21 images",
        "the weight file does not state one", LAWFUL_USE, "![Confusion matrix](confusion.png)", "183,688 parameters",
        "published for this variant: FER2013 65.32 %", "the epoch was chosen on",
    ):  # fmt: skip
        assert text.lower() in card.lower(), text
    assert run(weights, "--split", "train", "--flip-test", "--out", str(tmp_path / "flip")) == 0
    report = json.loads((tmp_path / "flip" / "report.json").read_text())
    assert report["metrics"]["images"] == 14
    assert report["flip"]
    assert report["duplicates"] is None


def test_card_of_patt_lite_and_of_groups(weights: Path, tmp_path: Path) -> None:
    assert run(weights) == 0
    report = json.loads((tmp_path / "w-drawn-validation" / "report.json").read_text())
    assert "## Groups" not in model_card(report)
    report |= {"model": "patt_lite", "published": {}, "options": {"attention": "batch"}, "licence": "CC-BY-4.0"}
    report["groups"] = {"sex": {"female": report["metrics"]}}
    card = model_card(report)
    assert "attends over the images of a batch" in card
    assert "logits depend on the other images of a batch" in card
    assert "Weights: CC-BY-4.0." in card
    assert "| female (few) | 21 |" in card


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        ({}, ["--data", "x"], "unknown data set 'x'"),
        ({}, ["--data", "fer2013", "--root", "."], r"holds none of|no known layout|shows no"),
        ({}, ["--root", "."], "root"),
        ({}, ["--split", "test"], r"no test set|drawn"),
        ({}, ["--option", "nothing=1"], "nothing"),
        ({}, ["--option", "nothing"], "option: expected NAME=VALUE, got 'nothing'"),
        ({}, ["--batch-size", "1"], "batch-size, seconds: expected 2"),
        ({}, ["--device", "x"], "device: expected cpu, cuda or cuda:N, got 'x'"),
        ({}, ["--device", "cuda:99"], r"device: expected cpu or one of \d+ CUDA devices, got 'cuda:99'"),
        ({}, ["--threads", "0"], "threads: expected 1 or more"),
        ({}, ["--groups", "none.csv"], "groups"),
        ({"mean": None, "std": None}, [], "mean"),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, [], "the model cannot take images"),
        ({"classes": ["a", "b", "c", "d", "e", "f", "g"]}, [], "classes: expected those of the data"),
        ({"classes": None}, [], "expected a weight file that names its classes"),
    ],
)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: dict, arguments: list[str], message: str
) -> None:
    path, model = tmp_path / "w.safetensors", network()
    model.class_names = None
    save_weights(model, path, {**HEADER, **header})
    assert main([str(path), "--data", "drawn", *FEW, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_files_that_are_no_weights(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none") == 2
    assert "no weight file at" in capsys.readouterr().err
    assert run(weights, "--out", str(weights / "x")) == 2
    assert "out: expected a folder that can be written to" in capsys.readouterr().err


def test_options_of_a_data_set() -> None:
    assert parse_options(["classes=7", "split=10-fold", "by_image=true", "cameras=[45, 90]"]) == {
        "classes": 7, "split": "10-fold", "by_image": True, "cameras": (45, 90),
    }  # fmt: skip


def test_groups_of_rafd_names() -> None:
    ids = ["Rafd090_01_Caucasian_female_angry_frontal", "x_Rafd045_23_Kid_male_happy_left.jpg", "other"]
    groups = groups_of("RaFD", None, ids)
    assert groups["camera"] == ["090", "045", ""]
    assert groups["people"] == ["Caucasian", "Kid", ""]
    assert groups["sex"] == ["female", "male", ""]
    assert groups["gaze"] == ["frontal", "left", ""]
    assert groups_of("fer2013", None, ids) == {}
    assert groups_of("rafd", None, None) == {}


def test_groups_of_raf_db_annotations(tmp_path: Path) -> None:
    folder = tmp_path / "Annotation" / "manual"
    folder.mkdir(parents=True)
    landmarks = "1.5\t2.5\n" * 5
    (folder / "test_0001_manu_attri.txt").write_text(landmarks + "1\n2\n3\n")
    (folder / "test_0002_manu_attri.txt").write_text(landmarks + "2\n0\n9\n")
    groups = groups_of("raf-db", tmp_path, ["test_0001", "test_0002_aligned", "test_0003"])
    assert groups == {"sex": ["female", "", ""], "race": ["Asian", "Caucasian", ""], "age": ["40-69", "", ""]}
    (folder / "test_0003_manu_attri.txt").write_text(landmarks + "x\n")
    with pytest.raises(DataError, match=r"test_0003_manu_attri.txt is not an annotation of RAF-DB"):
        groups_of("raf-db", tmp_path, ["test_0003"])


def test_groups_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("id,light,view\na,dim,front\nc,bright,\n")
    assert read_groups(path, ["a", "b", "c"]) == {"light": ["dim", "", "bright"], "view": ["front", "", ""]}
    for ids, text, message in (
        (None, "", "goes by the names of images"),
        (["z"], "id,light\na,dim\n", "none of its 1 ids is an image of the split, such as 'z'"),
        (["a"], "name,light\na,dim\n", r"expected columns id and an attribute, got \['name', 'light'\]"),
        (["a"], "id\na\n", "expected columns id and an attribute"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_groups(path, ids)
