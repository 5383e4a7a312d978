# SPDX-License-Identifier: Apache-2.0
"""Every command and every Python example that the README and the docs show runs, on small trees and few images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_trees import ck_official, ck_sequences, fer2013_csv

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]
pytestmark = [pytest.mark.skipif(not PAGES, reason="no README beside the tests"), pytest.mark.full]
FEW = ["--epochs", "1", "--train-images", "14", "--validation-images", "14", "--batch-size", "7", "--threads", "1"]
ELSEWHERE = ("-m venv", "-m bench", "-m fastfer.train\n")
"""Commands that CI runs as steps of their own: installation, tests, benchmarks, the first training."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """(page, command), without comments, those of `ELSEWHERE` left out."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                command = line.partition("  #")[0].strip()
                if "python -m fastfer" in command and not any(mark in command + "\n" for mark in ELSEWHERE):
                    yield page.name, command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: data/NAME in official layouts, and the run that the README makes first."""
    folder = tmp_path_factory.mktemp("readme")
    fer2013_csv(folder / "data" / "fer2013" / "fer2013.csv", per_usage=21)
    ck_official(folder / "data" / "ck_plus", ck_sequences())
    words = [
        "fastfer.train",
        "--model",
        "fgw_fer",
        "--data",
        "fer2013",
        "--root",
        "data/fer2013",
        "--out",
        "runs/fer2013",
    ]
    run(folder, [*words, *FEW])
    return folder


def run(folder: Path, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def shortened(command: str) -> list[str]:
    """The words of a command, on the small trees."""
    words = command.partition("python -m ")[2].split()
    data = words[words.index("--data") + 1] if "--data" in words else "fer2013"
    words = [word.replace("PATH", f"data/{data}") for word in words]
    if words[0] == "fastfer.train":
        words = [word if word != "10" else "2" for word in words] + FEW  # two folds show what ten do
        words += ["--out", "runs/again", "--overwrite"]  # the last --out counts; runs/fer2013 is there already
    return words


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_command(page: str, command: str, place: Path) -> None:
    assert run(place, shortened(command)).strip()


def test_python_examples(place: Path) -> None:
    """In one process, one after the other, as the README has them; what fetches weights is left out."""
    code = "\n".join(block for page in PAGES[:1] for block in blocks(page, "python"))
    code = re.sub(r"^model = fastfer\.create_model\(.*pretrained=.*\n.*\n", "", code, flags=re.MULTILINE)
    start = "import numpy as np\nimages = np.zeros((2, 1, 48, 48), np.float32)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (place / "model.ffe").is_file()


def test_there_are_commands() -> None:
    assert len(list(commands())) >= 8
