# SPDX-License-Identifier: Apache-2.0
"""What training minimises, against formulas written out; learning from soft labels and from a teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

import fastfer
from fastfer.data import FaceCrop, Preprocess, Split, drawn
from fastfer.models import save_weights
from fastfer.train.feed import class_counts, soft_mode
from fastfer.train.objective import Objective, Targets, WithEmbedding
from fastfer.train.options import Distill, LossOptions
from fastfer.train.teacher import Teacher

LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def split(soft: Tensor | None = None, mode: Any = "crossentropy") -> Split:
    faces = drawn.load(7, 7)["train"].images[:6]
    names = ("happiness", "sadness", "fear")
    return Split(faces, LABELS.numpy(), names, None if soft is None else soft.numpy(), soft_mode=mode)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=draws), torch.randn(6, 5, generator=draws)


def objective(data: Split, smoothing: float = 0.0, **options: Any) -> Objective:
    counts = class_counts(data)
    return Objective(LossOptions(**options), counts, 5, smoothing, soft_mode(data))


def test_balanced_weights_average_over_images() -> None:
    logits, _ = batch()
    loss = objective(split(), class_weights="balanced")(logits, None, Targets(LABELS))
    weight = torch.tensor([6 / 9, 6 / 3, 6 / 6])
    each = F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(loss, (each * weight[LABELS]).mean())


@pytest.mark.parametrize("on", ["embedding", "logits"])
def test_joint_centre_loss_and_its_centres(on: str) -> None:
    logits, embedding = batch()
    joint = objective(split(), center=0.4, center_on=on)
    features = embedding if on == "embedding" else logits
    targets = Targets(LABELS)
    entropy = F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(joint(logits, embedding, targets), entropy + 0.4 * 0.5 * features.square().sum(1).mean())
    joint.learn_centers(logits, embedding, LABELS)
    sums = torch.zeros(3, features.shape[1]).index_add(0, LABELS, features)
    centers = 0.5 * sums / (1 + torch.tensor([3.0, 1.0, 2.0]))[:, None]
    assert joint.centers is not None
    torch.testing.assert_close(joint.centers, centers)
    distance = (features - centers[LABELS]).square().sum(1)
    torch.testing.assert_close(joint(logits, embedding, targets), entropy + 0.2 * distance.mean())


def test_triplet_term() -> None:
    logits, embedding = batch()
    alone = objective(split(), softmax=0.0, triplet=1.0)(logits, embedding, Targets(LABELS))
    both = objective(split(), triplet=2.0)(logits, embedding, Targets(LABELS))
    torch.testing.assert_close(both, F.cross_entropy(logits, LABELS) + 2 * alone)


def test_soft_labels() -> None:
    logits, _ = batch()
    soft = torch.softmax(batch(1)[0], 1)
    data = split(soft)
    loss = objective(data, smoothing=0.1)(logits, None, Targets.of(data))
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft, label_smoothing=0.1))


def test_multi_target_takes_the_likeliest_of_several() -> None:
    logits, _ = batch()
    soft = torch.tensor([[0.5, 0.5, 0.0]] * 6)
    data = split(soft, "multi_target")
    loss = objective(data)(logits, None, Targets.of(data))
    torch.testing.assert_close(loss, -(soft * logits.softmax(1)).amax(1).log().mean())
    with pytest.raises(ValueError, match="multi_target"):
        objective(data, smoothing=0.1)


def test_probability_mode_draws_labels_anew() -> None:
    soft = torch.tensor([[0.2, 0.8, 0.0]] * 6)
    targets = Targets.of(split(soft, "probability"))
    draws = [targets.drawn(torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(each.soft is None for each in draws)
    share = torch.stack([each.labels for each in draws]).eq(1).double().mean()
    assert 0.75 < share < 0.85
    again = targets.drawn(torch.Generator().manual_seed(3))
    assert torch.equal(again.labels, draws[3].labels)


def test_the_last_layer_alone_can_learn_from_the_labels() -> None:
    model = fastfer.create_model("sepconv_attention", num_classes=3).eval()
    x = torch.randn(6, 1, 48, 48).contiguous(memory_format=torch.channels_last)
    logits, embedding = WithEmbedding(model, True, "head")(x)
    assert embedding is not None
    F.cross_entropy(logits, LABELS).backward()
    assert model.head.weight.grad is not None
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("head."))


@pytest.mark.parametrize("name", fastfer.list_models())
def test_logits_and_embedding_of_one_pass(name: str) -> None:
    model = fastfer.create_model(name, num_classes=3).eval()
    size = (64, 64) if name in ("vgg16_csa", "mobilenetv3_cpsca") else model.input_size
    x = torch.randn(2, model.in_chans, *size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits, embedding = model.forward_both(x)
        torch.testing.assert_close(logits, model(x))
        torch.testing.assert_close(embedding, model.forward_features(x))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no term": ({"softmax": 0.0}, "a term with a weight above 0"),
    "negative weight": ({"center": -1.0}, "loss.center: expected 0 or more"),
    "head without embedding": ({"softmax_trains": "head"}, "without a term on the embedding"),
    "unknown feature": ({"center_on": "pixels"}, "embedding, logits"),
}


@pytest.mark.parametrize(("options", "expected"), BAD.values(), ids=BAD)
def test_bad_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LossOptions(**options)


def test_a_summed_centre_loss_counts_by_the_batch() -> None:
    """Eq. 3 of the joint loss: ½ Σ |x - c|², over the images of all processes; a mean of it is N times less."""
    logits, embedding = batch()
    plain = objective(split())(logits, embedding, Targets(LABELS)).item()
    found = {}
    for reduction in ("mean", "sum"):
        joint = objective(split(), center=0.4, center_reduction=reduction)
        assert joint.centers is not None
        found[reduction] = joint(logits, embedding, Targets(LABELS)).item() - plain
        halves = joint(logits, embedding, Targets(LABELS), 2 * len(LABELS)).item() - plain
        assert halves == pytest.approx(found[reduction] * (2 if reduction == "sum" else 1), rel=1e-5)
    want = 0.4 * 0.5 * (embedding**2).sum().item()  # the centres begin at 0
    assert found["sum"] == pytest.approx(want, rel=1e-4)
    assert found["mean"] == pytest.approx(want / len(LABELS), rel=1e-4)
    assert str(LossOptions(center=0.4, center_reduction="sum")) == (
        "1 · cross-entropy (mean over the batch) + 0.4 · ½ |x - c|² on the embedding (sum over the batch)"
    )


def test_balanced_weights_need_every_class() -> None:
    data = replace(split(), labels=np.zeros(6, np.int64))
    with pytest.raises(ValueError, match="an image of every class"):
        objective(data, class_weights="balanced")


# a teacher


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    """A network of other normalisation and order of classes."""
    torch.manual_seed(0)
    model = fastfer.create_model("sepconv_attention", num_classes=3)
    preprocess = Preprocess((0.2,), (0.3,)).to_json()
    names = ["fear", "happiness", "sadness"]
    save_weights(
        model, tmp_path / "teacher.safetensors", {"classes": names, "preprocess": preprocess, "input": [48, 48]}
    )
    return tmp_path / "teacher.safetensors"


def make_teacher(path: Path, names: tuple[str, ...] = ("happiness", "sadness", "fear"), **options: Any) -> Teacher:
    return Teacher(str(path), names, Preprocess((0.5,), (0.1,)), Distill(**options), torch.device("cpu"))


def test_a_teacher_sees_its_own_normalisation_and_answers_in_the_students_order(teacher_file: Path) -> None:
    faces = torch.from_numpy(drawn.load(7, 7)["train"].images)
    model = fastfer.models.load_weights(teacher_file)
    expected = model(Preprocess((0.2,), (0.3,))(faces))[:, [1, 2, 0]]
    torch.testing.assert_close(
        make_teacher(teacher_file)(Preprocess((0.5,), (0.1,))(faces)), expected, atol=1e-4, rtol=1e-4
    )


def test_distillation_loss(teacher_file: Path) -> None:
    teacher = make_teacher(teacher_file, temperature=2.0, weight=0.25)
    x = Preprocess((0.5,), (0.1,))(torch.from_numpy(drawn.load(7, 7)["train"].images[:6]))
    logits, _ = batch()
    p = torch.softmax(teacher(x) / 2, 1)
    divergence = (p * (p.log() - torch.log_softmax(logits / 2, 1))).sum(1).mean()
    mixed = teacher.mixed(torch.tensor(3.0), logits, teacher(x))
    assert mixed.item() == pytest.approx(0.75 * 3 + 0.25 * 4 * divergence.item(), rel=1e-5)
    assert math.isfinite(mixed.item())


def test_a_teacher_that_saw_other_pixels_is_refused(teacher_file: Path) -> None:
    """Equalised, or cut out with another margin: its logits for the student's images would mean nothing."""
    model = fastfer.models.load_weights(teacher_file)
    names = ("happiness", "sadness", "fear")
    for settings, student, message in (
        ({"equalise": True}, {}, "input.equalise: expected True"),
        ({"crop": FaceCrop(0.3)}, {"crop": FaceCrop(0.1)}, "input.crop_margin: expected"),
        ({"size": (64, 64)}, {}, None),
    ):
        header = {"classes": list(model.class_names or ()), "stored": [1, 48, 48]}
        save_weights(model, teacher_file, {**header, "preprocess": Preprocess((0.2,), (0.3,), **settings).to_json()})
        own = Preprocess((0.5,), (0.1,), **student)
        if message is None:
            teacher = Teacher(str(teacher_file), names, own, Distill(), torch.device("cpu"))
            assert teacher._size == (64, 64)
            continue
        with pytest.raises(ValueError, match=message):
            Teacher(str(teacher_file), names, own, Distill(), torch.device("cpu"))


def test_a_teacher_of_other_classes_is_refused(teacher_file: Path) -> None:
    with pytest.raises(ValueError, match="teacher: expected the classes anger, sadness"):
        make_teacher(teacher_file, ("anger", "sadness"))
