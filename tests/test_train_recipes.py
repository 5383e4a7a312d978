# SPDX-License-Identifier: Apache-2.0
"""Recipes: each file is sound, values come from the right place, and unknown names are told the known ones."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import arguments

import fastfer
from fastfer.data import Augment
from fastfer.recipes import list_recipes, load_recipe
from fastfer.train import InputError, TrainConfig, configure
from fastfer.train.__main__ import main
from fastfer.train.cli import parse_args


@pytest.mark.parametrize("key", list_recipes())
def test_every_recipe_makes_a_run_and_a_network(key: str) -> None:
    recipe, model, data = key.split("/")
    config = configure(recipe, model=model, data="fer2013" if data == "any" else data)
    assert config.recipe == recipe
    assert config.stages()
    channels = {"grey": 1, "rgb": 3}[config.input.colour]
    fastfer.create_model(model, num_classes=7, in_chans=channels, **config.model_options)


def test_a_recipe_per_network_and_published_data_set() -> None:
    published = {
        "fgw_fer": {"fer2013", "ferplus", "ck_plus", "raf_db"},
        "patt_lite": {"fer2013", "ferplus", "ck_plus", "raf_db"},
        "mobilenetv3_cpsca": {"ferplus", "raf_db"},
        "vgg16_csa": {"ck_plus", "rafd"},
        "sepconv_attention": {"fer2013", "ck_plus", "jaffe"},
    }
    assert set(published) == set(fastfer.list_models())
    for model, sets in published.items():
        assert {key.split("/")[2] for key in list_recipes() if key.startswith(f"paper/{model}/")} == sets
        assert f"best/{model}/any" in list_recipes()


PUBLISHED: dict[str, dict[str, Any]] = {
    "fgw_fer/fer2013": {"epochs": 300, "batch_size": 64, "optimizer": "adamw", "lr": 1e-3, "schedule": "plateau"},
    "patt_lite/fer2013": {"batch_size": 8, "optimizer": "adam", "lr": 1e-3, "clip_norm": 3.0, "unfreeze": 0},
    "mobilenetv3_cpsca/raf_db": {"epochs": 100, "batch_size": 64, "optimizer": "adam", "lr": 0.01},
    "vgg16_csa/ck_plus": {"optimizer": "adam", "lr": 5e-4},
    "sepconv_attention/jaffe": {"epochs": 20, "batch_size": 16, "optimizer": "adam", "lr": 1e-3},
}


@pytest.mark.parametrize(("key", "expected"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_values(key: str, expected: dict[str, Any]) -> None:
    model, data = key.split("/")
    config = configure("paper", model=model, data=data)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(("data", "layers"), [("ck_plus", 40), ("raf_db", 59), ("fer2013", 46), ("ferplus", 49)])
def test_patt_lite_unfreezes_as_many_layers_as_published(data: str, layers: int) -> None:
    stage = configure("paper", model="patt_lite", data=data).stages()[1]
    assert (stage.unfreeze, stage.lr, stage.schedule, stage.dropout) == (layers, 1e-5, "inverse_time", 0.2)


@pytest.mark.parametrize(("data", "weight"), [("ferplus", 0.4), ("raf_db", 0.1)])
def test_centre_loss_weighs_as_published(data: str, weight: float) -> None:
    assert configure("paper", model="mobilenetv3_cpsca", data=data).loss.center == weight


def test_the_command_line_comes_before_the_file_and_the_file_before_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.5\nepochs: 3\naugment: {flip: 0.25}\nmodel_options: {attention: dot}\n")
    argv = ["--recipe", "best", "--model", "sepconv_attention", "--data", "FER-2013", "--config", str(file)]
    recipe = configure("best", model="sepconv_attention", data="fer2013")
    config = parse_args([*argv, "--epochs", "4", "--augment.degrees", "1"]).config
    assert (config.lr, config.epochs, config.batch_size) == (0.5, 4, recipe.batch_size)
    assert config.augment == Augment(**{**vars(recipe.augment), "flip": 0.25, "degrees": 1.0})
    assert config.model_options["attention"] == "dot"
    assert config.ema == recipe.ema > 0


def test_options_of_the_network_join_those_of_the_recipe() -> None:
    config = configure("best", model="sepconv_attention", data="fer2013", model_options={"attention": "dot"})
    assert config.model_options == {"dropout": 0.2, "attention": "dot"}
    argv = ["--recipe", "best", "--model", "sepconv_attention", "--model-options.attention", "dot"]
    assert parse_args(argv).config.model_options == {"dropout": 0.2, "attention": "dot"}


def test_a_base_is_changed_group_by_group() -> None:
    raf, fer = (load_recipe("paper", "patt_lite", data) for data in ("raf_db", "fer2013"))
    assert fer["fine_tune"] == {**raf["fine_tune"], "unfreeze": 46}
    del raf["data_options"]
    assert load_recipe("paper/raf_db", "patt_lite", "fer2013") == raf


def test_a_recipe_trains(tmp_path: Path) -> None:
    argv = arguments(tmp_path / "run", "--recipe", "best", "--epochs", "1")
    assert main(argv) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["recipe"] == "best"
    assert saved["ema"] == configure("best").ema


UNKNOWN: dict[str, tuple[list[str], str]] = {
    "recipe": (["--recipe", "magic"], "recipe: expected one of best, paper, got 'magic'"),
    "recipe of data": (["--recipe", "paper"], "expected one of paper/ck_plus, paper/fer2013"),
    "model": (["--recipe", "paper", "--model", "resnet"], "fgw_fer, mobilenetv3_cpsca"),
    "option": (["--learning-rate", "1"], "option learning_rate: expected one of augment, "),
    "nested option": (["--augment.flop", "1"], "expected one of augment.contrast"),
    "misspelt option": (["--epoch", "1"], "did you mean epochs?"),
    "option of the network": (["--model-options.magic", "1"], "option of fgw_fer: expected one of num_classes"),
}


@pytest.mark.parametrize(("more", "expected"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names_are_told_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert main(arguments(tmp_path / "run", *more)) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_printed_configuration_reads_as_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--recipe", "best", "--model", "vgg16_csa", "--epochs", "3"]
    assert main([*given, "--print_config"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse_args(["--config", str(file)]).config == parse_args(given).config


def test_an_unknown_key_in_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stop: {patiense: 3}\n")
    with pytest.raises(
        InputError, match=r"stop\.patiense: expected one of stop\.min_delta, stop\.monitor, stop\.patience"
    ):
        parse_args(["--config", str(file)])


def test_every_option_has_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    described = TrainConfig.__doc__ or ""
    missing = [field.name for field in fields(TrainConfig) if f"        {field.name}: " not in described]
    assert missing == []
    assert "one cycle" not in capsys.readouterr().err
