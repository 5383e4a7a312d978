# SPDX-License-Identifier: Apache-2.0
"""Every script and notebook of examples/ runs as it stands, and says what it is there to show."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import fastfer
from fastfer.data.drawn import draw_faces
from fastfer.engine.trained import trained

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no examples beside the tests: not a checkout")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, one_thread: None):
    """Runs a script in this process, in an empty folder; gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def elsewhere(folder: Path, *words: str) -> str:
    """Runs Python in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'"(\w+\.(?:py|ipynb))"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == tested


def test_fine_tune(example, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
    printed = example("fine_tune.py", "--epochs", "1", "--out", "run")
    assert re.search(r"^validation accuracy [\d.]+% after epoch 1$", printed, re.MULTILINE)
    assert fastfer.runtime.load(tmp_path / "run" / "model.ffe").class_names


def test_replace_blocks(example) -> None:
    printed = example("replace_blocks.py", "--channels", "8", "--size", "12", "--batch", "2", "--blocks", "2")
    assert float(re.search(r"largest difference (\S+)", printed)[1]) < 1e-5
    assert "times as fast" in printed


def test_deploy_imports_no_torch(tmp_path: Path) -> None:
    model, known = trained(fastfer.weights.path("fgw_fer"))
    fastfer.compile(model, **known).save(tmp_path / "model.ffe")
    Image.fromarray(draw_faces([1], seed=1)[0]).save(tmp_path / "face.png")
    printed = elsewhere(tmp_path, str(EXAMPLES / "deploy.py"), "model.ffe", "face.png")
    assert re.match(r"face\.png: happiness [\d.]+%, [\d.]+ ms\n", printed)
    assert printed.endswith("torch was not imported\n")


def test_explain_wrong(example, tmp_path: Path) -> None:
    pytest.importorskip("captum", reason="extra explain is not installed")
    printed = example("explain_wrong.py", "wrong.png")
    assert re.search(r"drawn as (\w+): [\d.]+%\ntaken for (?!\1)\w+: [\d.]+%", printed)
    width, height = Image.open(tmp_path / "wrong.png").size
    assert width == 2 * height > 0


@pytest.mark.full  # six starts of torch
def test_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
    printed = elsewhere(tmp_path, str(EXAMPLES / "two_processes.py"))
    one, two = map(float, re.search(r"loss ([\d.]+) in one process, ([\d.]+) in two", printed).groups())
    assert one == pytest.approx(two, abs=2e-3)


def test_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
    assert (notebook["nbformat"], {cell["cell_type"] for cell in notebook["cells"]}) == (4, {"markdown", "code"})
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "committed without outputs"
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    assert names["label"] == "happiness"
