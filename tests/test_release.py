# SPDX-License-Identifier: Apache-2.0
"""The release checklist notices what is missing; the versions agree; what is built runs on old Linux."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

import fastfer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "release"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="no .ci beside the tests: not a checkout")


@pytest.fixture(scope="module")
def release() -> ModuleType:
    loader = SourceFileLoader("release", str(SCRIPT))

    module = module_from_spec(spec_from_loader("release", loader))  # type: ignore[arg-type]
    exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), module.__dict__)  # leaves no compiled file in .ci
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that is ready."""
    (tmp_path / "fastfer").mkdir()
    (tmp_path / "fastfer" / "_version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# C\n\n## 1.2.3 (2030-01-31)\n\n### Added\n- this\n\n## 1.2.2\n")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        name = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def files(tree: Path) -> None:
    (tree / "dist").mkdir()
    for name in ("-cp311-cp311-manylinux_2_28_x86_64.whl", "-cp311-cp311-manylinux_2_28_aarch64.whl", ".tar.gz"):
        (tree / "dist" / f"fastfer-1.2.3{name}").touch()


def test_a_tree_that_is_ready_passes(release: ModuleType, tree: Path) -> None:
    for check in release.CHECKS:
        if check is release.has_files:
            files(tree)
        check(tree)


def rewrite(name: str, before: str, after: str) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_text((tree / name).read_text().replace(before, after))


def tag(tree: Path) -> object:
    return subprocess.run(["git", "tag", "v1.2.3"], cwd=tree, check=True)


@pytest.mark.parametrize(
    ("check", "change", "message"),
    [
        ("says_version", rewrite("CITATION.cff", "1.2.3", "1.2.2"), "expected 1.2.3, got 1.2.2"),
        ("says_version", rewrite("fastfer/_version.py", "1.2.3", "1.2"), "expected three numbers"),
        ("has_changes", rewrite("CHANGELOG.md", "2030-01-31", "not released yet"), "got ## 1.2.3 (not released yet)"),
        ("has_changes", rewrite("CHANGELOG.md", "- this\n", ""), "expected what changed"),
        ("is_clean", rewrite("CHANGELOG.md", "this", "that"), "nothing uncommitted"),
        ("is_new", tag, "raise the version"),
        ("has_files", lambda tree: None, "expected fastfer-1.2.3*manylinux*_x86_64.whl"),
    ],
)
def test_what_is_missing_is_said(
    release: ModuleType, tree: Path, check: str, change: Callable[[Path], object], message: str
) -> None:
    change(tree)
    with pytest.raises(release.MissingError, match=re.escape(message)):
        getattr(release, check)(tree)


def test_this_tree_names_one_version(release: ModuleType) -> None:
    release.says_version(ROOT)
    assert re.match(rf"{re.escape(fastfer.__version__)} \(", release.found(r"^## (.*)$", "CHANGELOG.md", ROOT))


def test_the_extension_asks_for_no_newer_linux_than_wheels_promise() -> None:
    extension = pytest.importorskip("fastfer._C").__file__
    if shutil.which("objdump") is None:
        pytest.skip("no objdump on this machine")
    listing = subprocess.run(["objdump", "-T", extension], check=True, capture_output=True, text=True).stdout
    undefined = [line for line in listing.splitlines() if "*UND*" in line]
    glibc = {tuple(map(int, v.split("."))) for line in undefined for v in re.findall(r"\(GLIBC_([\d.]+)\)", line)}
    assert glibc
    assert max(glibc) <= (2, 28)
    assert [line for line in undefined if "GLIBCXX" in line or "CXXABI" in line] == []
