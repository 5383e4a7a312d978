# SPDX-License-Identifier: Apache-2.0
"""The README and the docs hold: every command and every example runs, every link leads somewhere, the site builds.

``python`` blocks of a page run one after the other in one process, ``bash`` lines in a folder of small trees with the
names that the pages use. ``console`` blocks show what takes a camera, a window or hours: their options are looked up.
``<!-- needs: THING -->`` before a block says what this machine has to have.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from data_trees import ck_official, ck_sequences, fer2013_csv
from PIL import Image
from predict_cases import drawn_faces, scene

ROOT = Path(__file__).resolve().parents[1]
_FOUND = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
PAGES = [page for page in _FOUND if page.is_file()]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
pytestmark = pytest.mark.skipif(
    not (ROOT / "docs" / "weights").is_dir(), reason="no docs beside the tests: no checkout"
)
DETECTOR = ROOT.parent / "shared" / "models" / "face_detection_yunet_2023mar.onnx"
FEW = ["--epochs", "1", "--train-images", "14", "--validation-images", "14", "--batch-size", "7", "--threads", "1"]
ELSEWHERE = re.compile(
    r"(\. |git |pip |cmake |ctest|pytest|pre-commit|ruff|mkdocs|docker|auditwheel|cibuildwheel|\.ci/run|FASTFER_\w+=)"
    r"|.*-m (venv|bench|build|pip|fastfer\.train$)"
)
"""Commands that CI runs as steps of their own: installation, tests, checks, benchmarks, the first training."""
LANGUAGES = {"python", "bash", "console", "text", "c", "cmake", "json", "yaml", "toml"}
BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


def has(need: str) -> bool:
    """Whether this machine has what a block needs; what is fetched is tested with files of its own."""
    return not need


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks in a language, without those that need what is not here."""
    return [code for need, tongue, code in BLOCK.findall(page.read_text()) if tongue == language and has(need)]


def lines(page: Path, language: str) -> Iterator[str]:
    """Commands, without comments and prompts; those that go on over lines in one."""
    for block in blocks(page, language):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)# .*|^\$ ", "", line).strip()
            if command:
                yield command


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) for those that run here."""
    seen = set()
    for page, name in zip(PAGES, IDS, strict=True):
        for command in lines(page, "bash"):
            if not ELSEWHERE.match(command) and command not in seen:
                seen.add(command)
                yield name, command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where examples run: data/NAME in official layouts, a finished run, pictures, a video, an ONNX file."""
    for package in ("torchmetrics", "cv2", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("docs")
    fer2013_csv(folder / "data" / "fer2013" / "fer2013.csv", per_usage=21)
    ck_official(folder / "data" / "ck_plus", ck_sequences())
    train = "python -m fastfer.train --model fgw_fer --data fer2013 --root data/fer2013 --out runs/fer2013"
    run(folder, f"{train} {shlex.join(FEW)}")
    run(folder, "python -m fastfer.export runs/fer2013/best.safetensors model.onnx")
    _pictures(folder)
    return folder


def _pictures(folder: Path) -> None:
    """photo.jpg, photos/, faces/ and clip.mp4."""
    import cv2

    faces = drawn_faces(4)
    picture = scene(faces[:2], [(40, 60), (180, 90)])
    (folder / "photos").mkdir()
    (folder / "faces").mkdir()
    for path in ("photo.jpg", "photos/one.jpg", "photos/two.jpg"):
        Image.fromarray(picture).save(folder / path)
    for index, face in enumerate(faces):
        Image.fromarray(face).save(folder / "faces" / f"{index}.png")
    size = (picture.shape[1], picture.shape[0])
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, size)
    for _ in range(3):
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()


def environment() -> dict[str, str]:
    given = {"FASTFER_DETECTOR": str(DETECTOR)} if DETECTOR.is_file() else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "FASTFER_OFFLINE": "1", **given}


def run(folder: Path, command: str) -> str:
    command = re.sub(r"(?:\.venv/bin/)?python3? (?=-m )", f"{shlex.quote(sys.executable)} ", command)
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def shortened(command: str) -> str:
    """The command on the small trees: few images, two folds for ten, a folder of its own."""
    data = re.search(r"--data (\w+)", command)
    command = re.sub(r"\bPATH\b", f"data/{data[1] if data else 'fer2013'}", command)
    if "fastfer.train" in command:
        command = f"{command.replace('--folds 10', '--folds 2')} {shlex.join(FEW)} --out runs/again --overwrite"
    return command


def lacks_detector(text: str) -> bool:
    """Whether the example finds faces, and no detector's file is here."""
    finds = "photo" in text or re.search(r"Recognizer\((?![^)\n]*(faces|detector)=)", text) is not None
    return finds and not DETECTOR.is_file() and "FASTFER_DETECTOR" not in os.environ


@pytest.mark.full
@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_command(page: str, command: str, place: Path) -> None:
    if lacks_detector(command):
        pytest.skip("no file of a face detector")
    run(place, shortened(command))


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda p: p.name)
def test_python_examples(page: Path, place: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    if lacks_detector(code):
        pytest.skip("no file of a face detector")
    file = place / f"{page.stem}_example.py"
    file.write_text(code)
    run(place, f"python3 {file}".replace("python3", shlex.quote(sys.executable)))


def console_commands() -> Iterator[str]:
    for page in PAGES:
        for command in lines(page, "console"):
            if "python -m" in command:
                yield command


@pytest.mark.full
@pytest.mark.parametrize("command", list(dict.fromkeys(console_commands())))
def test_options_of_what_is_only_shown(command: str) -> None:
    module, *words = command.partition("python -m ")[2].split()
    if module.startswith("bench") and not (ROOT / "bench").is_dir():
        pytest.skip("bench is not beside the tests")
    known = run(ROOT, f"python -m {module} --help")
    for word in words:
        assert not word.startswith("-") or word == "-" or f"{word.partition('=')[0]}" in known, f"{command}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_page(page: Path) -> None:
    """Links within the repository lead to files, blocks are in a language that is checked, and commands are known."""
    text = page.read_text()
    for _, language, _ in BLOCK.findall(text):
        assert language in LANGUAGES, f"{page}: a block in {language!r}"
    for target in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        file = target.partition("#")[0]
        if "://" not in target and not target.startswith("mailto:") and file:
            assert (page.parent / file).exists(), f"{page}: {target}"
    for file in re.findall(r"`((?:csrc|fastfer|bench|tests|docs)/[\w./*-]+)`", text):
        assert list(ROOT.glob(file)), f"{page}: {file}"
    for command in lines(page, "bash"):
        assert ELSEWHERE.match(command) or "python -m fastfer" in command, f"{page}: nothing runs {command!r}"


def test_pictures_are_drawings() -> None:
    """Each picture of the docs is well-formed, and has a description for those who do not see it."""
    pictures = list((ROOT / "docs" / "pictures").glob("*.svg"))
    assert pictures
    for path in pictures:
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        assert any(child.tag.endswith("title") and child.text for child in root), path.name


@pytest.mark.parametrize(("page", "name"), [("README.md", "engine"), ("docs/results.md", "results")])
def test_places_of_results(page: str, name: str) -> None:
    """What ``bench.engine --readme`` and ``bench.run --page`` refresh."""
    text = (ROOT / page).read_text()
    assert 0 < text.find(f"<!-- {name}:begin -->") < text.find(f"<!-- {name}:end -->")


def test_there_are_commands() -> None:
    assert len(list(commands())) >= 8
    assert sum(bool(blocks(page, "python")) for page in PAGES) >= 6


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; strict: a link, an anchor or a name of the reference that leads nowhere is an error."""
    if not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))):
        pytest.skip("extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    run(ROOT, f"python3 -m mkdocs build --quiet --strict --site-dir {folder}")
    return folder


@pytest.mark.full
def test_site(site: Path) -> None:
    page = (site / "reference" / "fastfer.html").read_text()
    assert "Raises TypeError or ValueError naming the argument" in page
    assert "def compile(" in re.sub("<[^>]+>", "", page)
    outside = set()
    for file in site.rglob("*.html"):
        outside |= set(re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", file.read_text()))
    assert not outside, f"pages that need the network: {outside}"


@pytest.mark.full
def test_search_works_on_pages_from_the_disk(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from chromium import browser, opened

    if browser() is None:
        pytest.skip("no Chromium")

    async def look() -> str:
        async with opened(f"file://{site}/guides/precision.html", tmp_path) as tab:
            await tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
            await tab.wait("document.querySelector('[data-md-toggle=search]') !== null")
            await tab.run("document.querySelector('[data-md-toggle=search]').click()")
            typed = "q.focus(); q.value = 'Strassen'; q.dispatchEvent(new Event('keyup', {bubbles: true}))"
            await tab.run(f"(() => {{ const q = document.querySelector('.md-search__input'); {typed} }})()")
            await tab.wait("document.querySelectorAll('.md-search-result__link').length > 1")
            assert not tab.problems
            return str(await tab.run("document.querySelector('.md-search-result').innerText"))

    found = asyncio.run(look())
    assert "How the kernels work" in found
    assert "def __init__" not in found
