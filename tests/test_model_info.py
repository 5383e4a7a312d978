# SPDX-License-Identifier: Apache-2.0
"""model_info: counts, multiply-adds, file sizes, published figures; the listing; formulas for torch's flop counter."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastfer
from fastfer import _library
from fastfer.models import create_model, flops, list_models, model_info, save_weights
from fastfer.models.__main__ import main

STOCK = {"attention": "none", "high_attention": "se", "halved": False, "act": "relu"}


@pytest.mark.parametrize(
    ("name", "options", "parameters", "running", "millions"),
    [
        ("fgw_fer", {}, 64_176, 2_216, 4.17),
        ("sepconv_attention", {}, 183_688, 896, 25.5),
        ("vgg16_csa", {}, 1_680_365, 8_448, 589.4),
        ("vgg16_csa", {"num_classes": 6}, 1_679_852, 8_448, 589.4),
        ("patt_lite", {}, 1_093_000, 9_664, 336.8),
        ("patt_lite", {"num_classes": 8}, 1_093_033, 9_664, 336.8),
        ("mobilenetv3_cpsca", {}, 1_297_092, 19_326, 183.1),
        ("mobilenetv3_cpsca", {**STOCK, "num_classes": 1000}, 5_483_032, 24_400, 216.6),
    ],
)
def test_counts(name: str, options: dict, parameters: int, running: int, millions: float) -> None:
    """Those of independent builds; stock MobileNetV3-Large has torchvision's."""
    info = model_info(name, **options)
    assert info.parameters == parameters
    assert info.running_statistics == running
    digits = len(str(millions).partition(".")[2])
    assert round(info.macs / 1e6, digits) == millions


VARIANTS = [
    *((name, {}) for name in list_models()),
    ("fgw_fer", {"separable": False}),
    ("sepconv_attention", {"attention": "dot"}),
    ("sepconv_attention", {"attention": "additive"}),
    *(("vgg16_csa", {"attention": kind}) for kind in ("none", "sa", "se", "eca", "cbam", "scse")),
    ("vgg16_csa", {"plain": True, "attention": "none"}),
    ("patt_lite", {"extraction": "OP3", "keras_padding": True}),
    ("mobilenetv3_cpsca", {"attention": "ca"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_formulas_count_what_torch_counts(name: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ops' formulas against torch's own for the convolutions and products of their plain-torch form."""
    count = model_info(name, **options).macs
    monkeypatch.setattr(_library.Op, "__call__", lambda op, fields: op.reference(fields))
    with torch.device("meta"):
        model = create_model(name, **options).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, model.in_chans, *model.input_size, device="meta"))
    # The counter hooks every module, so that parts of a block which one op would stand for run, and count, one by one.
    assert count == counter.get_total_flops() // 2


def test_every_op_has_a_formula_or_no_products() -> None:
    without = ("activation", "pool", "batch_norm", "loss", "cross_entropy", "silu", "relu", "hardswish", "sigmoid")
    forward = {name for name in _library.registered() if not name.endswith("_backward")}
    assert {name for name in forward - flops._MULTIPLY_ADDS.keys() if not any(w in name for w in without)} == set()
    assert flops._MULTIPLY_ADDS.keys() <= forward


def test_flop_counter_of_a_user() -> None:
    """The formulas are there without model_info, in training as well, on every backend."""
    model = create_model("fgw_fer")
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(3, 1, 48, 48))
    assert counter.get_total_flops() == 2 * 3 * model_info("fgw_fer").macs


def test_attention_over_the_batch_counts_half_of_two_images() -> None:
    with pytest.warns(UserWarning, match="depend on the other images"):
        info = model_info("patt_lite", attention="batch")
    assert round(info.macs / 1e6, 1) == 336.8
    assert info.published["RAF-DB"] == 95.05


@pytest.mark.parametrize("options", [{}, {"num_classes": 8}])
@pytest.mark.parametrize("name", list_models())
def test_file_size(tmp_path: Path, name: str, options: dict) -> None:
    save_weights(create_model(name, **options), tmp_path / "w")
    assert model_info(name, **options).file_size == (tmp_path / "w").stat().st_size


def test_published_figures() -> None:
    assert model_info("fgw_fer").published == {"CK+": 98.98, "FER2013": 69.38, "FERPlus": 79.36, "RAF-DB": 80.75}
    assert model_info("fgw_fer", separable=False, num_classes=8).published["FER2013"] == 68.73
    assert model_info("sepconv_attention", dropout=0.3).published["FER2013"] == 65.32
    assert model_info("sepconv_attention", attention="dot").published == {}
    assert model_info("mobilenetv3_cpsca", **STOCK).published == {"RAF-DB": 86.4}
    default = model_info("patt_lite")
    assert default.published == {}
    assert default.paper is not None
    assert "attends over the images of a batch" in default.paper.note
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in list_models():
            assert fastfer.model_info(name).paper is not None


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["*fer*"]) == 0
    out = capsys.readouterr().out
    assert "fgw_fer" in out
    assert "64,176" in out
    assert "vgg16_csa" not in out
    assert main(["--json", "--num-classes", "8"]) == 0
    infos = {info["name"]: info for info in json.loads(capsys.readouterr().out)}
    assert sorted(infos) == list_models()
    assert infos["patt_lite"]["parameters"] == 1_093_033
    assert main(["resnet*"]) == 2
    assert "pattern: expected one that matches fgw_fer" in capsys.readouterr().err
