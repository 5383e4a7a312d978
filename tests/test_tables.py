# SPDX-License-Identifier: Apache-2.0
"""The papers' tables: every row can be built, published counts are met, rows are kept and continued."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from data_trees import ck_official, ck_sequences, fer2013_csv, ferplus_folders, jaffe, raf_official, rafd

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

import fastfer
from fastfer.recipes import load_recipe
from fastfer.tables import list_tables, load_table, papers, run_table
from fastfer.tables.__main__ import main
from fastfer.tables.run import _config
from fastfer.train import InputError, configure
from fastfer.train.folder import FolderLock

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--train-images", "20", "--validation-images", "14", "--batch-size", "8", "--epochs", "1", "--threads", "1"]


PAPERS = {
    "fgw": (1, 2, 3, 4, 5),
    "patt-lite": (4, 5, 6, 7, 8, 9, 10, 11),
    "mobilenetv3": (2, 3, 4, 5, 6),
    "vgg": (1, 2, 3, 4),
    "sepconv": (2,),
}


def test_all_result_tables_of_the_five_papers() -> None:
    wanted = {f"{paper}-{number}" for paper, numbers in PAPERS.items() for number in numbers}
    assert len(wanted) == 23
    ours = {"best-fgw", "best-sepconv", "mobilenetv3-lambda", "sepconv-dropout", "vgg-1-folds"}
    assert set(list_tables()) == wanted | ours
    assert len(load_table("patt-lite-5").rows) == 30


@pytest.mark.parametrize("name", list_tables())
def test_a_row_is_run_or_says_why_not(name: str) -> None:
    table = load_table(name)
    for row in table.rows:
        assert (row.options is None) == bool(row.why), row.label
        assert set(row.facts) <= set(table.facts), row.label
        assert {data for data, _ in row.published} <= set(table.data)


def test_the_page_of_the_papers_is_made_from_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--papers"]) == 0
    page = Path(__file__).parents[1] / "docs" / "papers.md"
    assert capsys.readouterr().out == page.read_text(), "run: python -m fastfer.tables --papers > docs/papers.md"
    assert sorted(papers.tables()) == sorted(set(list_tables()) - {"best-fgw", "best-sepconv"})


@pytest.mark.filterwarnings("ignore:patt_lite. attention")
@pytest.mark.parametrize("name", list_tables())
def test_every_row_is_a_network_of_the_published_size(name: str) -> None:
    table = load_table(name)
    recipe = load_recipe(table.recipe(table.data[0]), table.model, table.data[0])
    for row in table.chosen(()):
        options, published = row.options or {}, row.facts.get("parameters")
        model, own = options.get("model", table.model), options.get("model_options", {})
        inherited = recipe.get("model_options", {}) if model == table.model else {}
        channels = {"grey": 1, "rgb": 3}[recipe["input"]["colour"]]
        with torch.device("meta"):
            network = fastfer.create_model(model, num_classes=7, in_chans=channels, **{**inherited, **own})
        if published is not None and model == table.model:
            count = sum(parameter.numel() for parameter in network.parameters())
            exact = model == "fgw_fer"
            assert count == published if exact else abs(count / published - 1) < 0.04, row.label


@pytest.mark.parametrize(
    ("name", "row"), [("fgw-4", 0), ("patt-lite-4", -1), ("mobilenetv3-6", 1), ("vgg-3", -1), ("vgg-1-folds", -1)]
)
def test_every_kind_of_row_is_a_run(name: str, row: int, tmp_path: Path) -> None:
    table = load_table(name)
    config = _config(table, table.rows[row], table.data[-1], tmp_path, ("--epochs", "7"))
    options = dict(table.rows[row].options or {})
    assert config.epochs == 7
    assert config.model == options.get("model", table.model)
    assert config.model_options.items() >= options.get("model_options", {}).items()
    recipe = configure("paper", model=table.model, data=table.data[-1])
    assert (config.optimizer, config.schedule, config.batch_size) == (
        recipe.optimizer,
        recipe.schedule,
        recipe.batch_size,
    )


PUBLISHED: dict[tuple[str, ...], float] = {
    ("fgw-1", "FGW-FER", "fer2013"): 69.38,
    ("patt-lite-4", "both", "raf_db"): 95.05,
    ("patt-lite-5", "layer 29, NP7", "raf_db"): 94.78,
    ("patt-lite-6", "patch attention", "ferplus"): 92.72,
    ("mobilenetv3-5", "CPSCA", "ferplus"): 87.5,
    ("mobilenetv3-6", "softmax + centre", "raf_db"): 86.6,
    ("vgg-4", "scSE", "rafd"): 97.13,
    ("sepconv-2", "both attentions", "jaffe"): 79.19,
    ("fgw-2", "FGW-FER", "ck_plus"): 98.98,
    ("patt-lite-9", "PAtt-Lite", "raf_db", "fear"): 72.97,
    ("patt-lite-9", "PAtt-Lite", "raf_db", "mean_recall"): 90.38,
    ("patt-lite-11", "PAtt-Lite", "ferplus", "pose45"): 92.58,
    ("vgg-1-folds", "light VGG16 with CSA", "rafd"): 97.41,
}


@pytest.mark.parametrize(("key", "figure"), PUBLISHED.items(), ids=map(str, PUBLISHED))
def test_published_figures(key: tuple[str, ...], figure: float) -> None:
    name, label, data, column = (*key, "accuracy")[:4]
    assert load_table(name).chosen([label])[0].published[data, column] == figure


def test_other_data_take_the_recipe_of_the_first_column(tmp_path: Path) -> None:
    table = load_table("mobilenetv3-5")
    own, other = (_config(table, table.rows[1], data, tmp_path, ()) for data in ("FERPlus", "fer2013"))
    assert own.data_options.label_mode == "majority"
    assert other.data_options.label_mode is None
    assert own.loss == other.loss
    assert own.model_options == other.model_options == {"dropout": 0.4, "attention": "ca"}


def test_rows_by_number_or_label() -> None:
    table = load_table("sepconv-2")
    assert [row.label for row in table.chosen(["7", "Both Attentions"])] == ["both attentions", "dot-product attention"]
    with pytest.raises(
        ValueError, match=r"rows: expected some of 6 'both attentions', 7 .*, got 'Liu et al\.', which cannot be run"
    ):
        table.chosen(["Liu et al."])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables") / "fgw"
    assert main(["fgw-1", "--data", "drawn", "--rows", "2", "--out", str(out), *SMALL]) == 0
    return out


def test_results_stand_beside_the_published_ones(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((ran / "table.json").read_text())
    cell = content["cells"][0]
    report = json.loads((ran / "fgw-fer-drawn" / "report.json").read_text())
    assert (cell["row"], cell["data"], cell["parameters"]) == ("FGW-FER", "drawn", 64_176)
    assert (cell["best"], cell["epochs"], cell["seed"]) == (report["best"]["accuracy"], 1, 0)
    assert report["config"]["optimizer"] == "adamw"
    assert report["config"]["schedule"] == "plateau"  # of the paper's recipe
    text = (ran / "table.md").read_text()
    assert "| FGW-FER | 64,176 | 64,176 | 0.32 |" in text
    assert "| 98.98 | - | - | 69.38 | - | - |" in text
    assert cell["tested"]["why"].startswith("no test part: ")
    assert f"| - | - | {100 * cell['best']:.2f} ({100 * cell['last']:.2f}) |" in text
    assert main(["fgw-1", "--out", str(ran)]) == 0
    assert f"{100 * cell['best']:.2f}" in capsys.readouterr().out


def test_the_published_part_is_measured_apart_from_the_one_that_chose_the_epoch(tmp_path: Path) -> None:
    """Ours beside the published figure is that of the test part, by `fastfer.evaluate` of the best weights."""
    from fastfer.evaluate import evaluate
    from fastfer.evaluate.source import load, load_parts

    fer2013_csv(tmp_path / "data")
    out, root = tmp_path / "out", tmp_path / "data"
    argv = ["--epochs", "1", "--batch-size", "8", "--root", str(root), "--threads", "1"]
    assert main(["fgw-3", "--data", "fer2013", "--rows", "fgw-fer", "--out", str(out), *argv]) == 0
    cell = json.loads((out / "table.json").read_text())["cells"][0]
    weights = load(out / "fgw-fer-fer2013" / "best.safetensors")
    split = load_parts(weights, "fer2013", root, "test", {}, with_train=False).split
    assert cell["tested"]["part"] == "the test part"
    assert cell["tested"]["images"] == len(split)
    accuracy = evaluate(weights.model, split, weights.preprocess).metrics.accuracy
    assert cell["tested"]["scores"] == {"accuracy": accuracy}
    text = (out / "table.md").read_text()
    assert f"| 69.38 | {100 * accuracy:.2f} | {100 * cell['best']:.2f} ({100 * cell['last']:.2f}) |" in text


def test_a_finished_row_is_kept_and_another_added(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (ran / "fgw-fer-drawn" / "report.json").stat().st_mtime_ns
    cells = run_table(load_table("fgw-1"), "drawn", ran, argv=SMALL)
    assert [cell.row for cell in cells] == ["FGW-FER", "plain convolutions"]
    assert [cell.parameters for cell in cells] == [64_176, 321_816]
    assert (ran / "fgw-fer-drawn" / "report.json").stat().st_mtime_ns == before

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr("fastfer.tables.run.train", fail)
    assert run_table(load_table("fgw-1"), "drawn", ran, argv=SMALL) == cells
    with pytest.raises(InputError, match="epochs: 2 instead of 1"):
        run_table(load_table("fgw-1"), "drawn", ran, argv=[*SMALL, "--epochs", "2"])


BAD: dict[str, tuple[list[str], str]] = {
    "unknown table": (["magic"], "table: expected one of best-fgw, best-sepconv, fgw-1, "),
    "unknown row": (["vgg-2", "--data", "drawn", "--rows", "9"], "rows: expected some of 1 'after convolution'"),
    "unknown option": (["vgg-2", "--data", "drawn", "--speed", "9"], "option speed: expected one of"),
    "options without data": (["vgg-2", "--epochs", "1"], "data: expected a data set to run on, such as ck_plus, rafd"),
    "no root": (["vgg-2", "--data", "fer2013"], "root"),
    "roots of other data": (
        ["sepconv-2", "--data", "all", "--root", "raf_db=x"],
        "root: expected some of fer2013=PATH, ck_plus=PATH, jaffe=PATH, got raf_db=",
    ),
    "no start": (
        ["sepconv-2", "--data", "jaffe", "--root", "x"],
        "starts from its weights on fer2013, which are not in",
    ),
    "a start for every row": (
        ["sepconv-2", "--data", "fer2013", "--from", "x"],
        "--from: expected none, as each row of sepconv-2 starts",
    ),
    "subsets of another table": (
        ["fgw-1", "--data", "drawn", "--subset", "pose30=x"],
        "subset: expected none, as fgw-1 has no subsets; got pose30",
    ),
    "a list that is not there": (
        ["patt-lite-11", "--data", "drawn", "--subset", "occlusion=a", "--subset", "pose30=b", "--subset", "pose45=c"],
        "subset: expected a file of image names, got a",
    ),
}


@pytest.mark.parametrize(("argv", "expected"), BAD.values(), ids=BAD)
def test_bad_input_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_commands_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = ["fgw-1", "--data", "drawn", "--rows", "2", "--out", str(out), *SMALL]
    with FolderLock(out, "running a table"):
        held = sorted(path.name for path in out.iterdir())
        assert main(command) == 2
        assert sorted(path.name for path in out.iterdir()) == held
    assert (
        f"out: process {os.getpid()} on {socket.gethostname()} is running a table in {out}" in capsys.readouterr().err
    )


def test_a_row_that_another_command_ran_in_between(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was empty at the first look and holds the row when the lock is had."""
    out, enter = tmp_path / "fgw", FolderLock.__enter__

    def late(self: FolderLock) -> FolderLock:
        shutil.copytree(ran, out, dirs_exist_ok=True)
        return enter(self)

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(FolderLock, "__enter__", late)
    monkeypatch.setattr("fastfer.tables.run.train", fail)
    cells = run_table(load_table("fgw-1"), "drawn", out, rows=["2"], argv=SMALL)
    assert "FGW-FER" in [cell.row for cell in cells]


def test_foreign_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"layout": 7}')
    with pytest.raises(InputError, match="expected layout 2, got 7"):
        run_table(load_table("fgw-1"), "drawn", tmp_path, argv=SMALL)


@pytest.mark.full
def test_one_command_runs_each_row_from_its_own_start(tmp_path: Path) -> None:
    """FER2013, then CK+ and JAFFE from each row's own weights there; trees of a few drawn faces in these layouts."""
    roots = {name: tmp_path / name for name in ("fer2013", "ck_plus", "jaffe")}
    fer2013_csv(roots["fer2013"])
    ck_official(roots["ck_plus"], ck_sequences())
    jaffe(roots["jaffe"], ("KA", "KL", "KM", "KR", "MK"))
    options = [f"--root={name}={path}" for name, path in roots.items()]
    out = tmp_path / "out"
    assert main(["sepconv-2", "--data", "all", "--rows", "6,7", "--out", str(out), *options, "--epochs", "1"]) == 0
    cells = json.loads((out / "table.json").read_text())["cells"]
    assert {(cell["row"], cell["data"]) for cell in cells} == {
        (row, data) for row in ("both attentions", "dot-product attention") for data in roots
    }
    for cell in cells:
        start = cell["config"]["from_weights"]
        row = cell["row"].replace(" ", "-")
        assert start == (None if cell["data"] == "fer2013" else f"{row}-fer2013/best.safetensors")


def _tree(data: str, folder: Path) -> Path:
    """A small data set in its official layout, with every class."""
    if data == "fer2013":
        return fer2013_csv(folder / "fer2013.csv", per_usage=14)
    if data == "ferplus":
        return ferplus_folders(folder)
    if data == "ck_plus":
        return ck_official(folder, ck_sequences())
    return raf_official(folder, train=70) if data == "raf_db" else {"rafd": rafd, "jaffe": jaffe}[data](folder)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in list_tables() if name != "sepconv-2"])
def test_every_table_runs_on_an_official_layout(name: str, tmp_path: Path) -> None:
    """Its last own row, one epoch on few images; sepconv-2 has a test of its own."""
    table = load_table(name)
    data = "raf_db" if "raf_db" in table.data else table.data[0]
    own = [
        n for n, row in enumerate(table.rows) if not row.obstacle and "/" not in str((row.options or {}).get("model"))
    ]
    row, number = table.rows[own[-1]], str(own[-1] + 1)
    argv = ["--epochs", "1", "--batch-size", "4", "--threads", "1", "--pretrained", "null", "--train-images", "8"]
    if table.model == "patt_lite":  # no ImageNet weights here, and so nothing to freeze
        argv += ["--fine-tune.epochs", "1", "--unfreeze", "null", "--fine-tune.unfreeze", "null"]
    argv += ["--data-options.label-source", "label.csv"] if data == "ferplus" else []
    argv += ["--folds", "2"] if data == "ck_plus" and (table.model == "patt_lite" or "folds" in table.options) else []
    out = tmp_path / "out"
    root = _tree(data, tmp_path / "data")
    assert main([name, "--data", data, "--rows", number, "--root", str(root), "--out", str(out), *argv]) == 0
    cell = json.loads((out / "table.json").read_text())["cells"][0]
    assert cell["row"] == row.label
    assert cell["tested"]["scores"] or cell["tested"]["why"]


def test_folds_decide_the_split_of_a_row(tmp_path: Path) -> None:
    table = load_table("vgg-2")
    config = _config(table, table.chosen(())[0], "ck_plus", tmp_path, ("--folds", "10"))
    assert (config.folds, config.data_options.split, config.data_options.by_image) == (10, None, True)
    other = next(row for row in load_table("vgg-4").chosen(()))
    config = _config(load_table("vgg-4"), other, "rafd", tmp_path, ("--folds", "10"))
    assert (config.folds, config.data_options.split) == (10, None)


def test_a_data_set_that_is_not_there_is_said_before_the_first_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, first = tmp_path / "out", fer2013_csv(tmp_path / "fer2013.csv")
    jaffe(tmp_path / "faces")
    for root in (tmp_path / "nowhere", tmp_path):  # not there, and the folder of others
        roots = ["--root", f"fer2013={first}", "--root", f"ck_plus={root}"]
        assert main(["sepconv-2", "--data", "fer2013,ck_plus", *roots, "--out", str(out)]) == 2
        assert f"root: {root} " in " ".join(capsys.readouterr().err.split())
        assert not out.exists()
