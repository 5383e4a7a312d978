# SPDX-License-Identifier: Apache-2.0
"""The steps of "Adding an op" in CONTRIBUTING.md are enough: a copy of the tree gets an op by them, and runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
pytestmark = [pytest.mark.full, pytest.mark.skipif(not GUIDE.is_file(), reason="no CONTRIBUTING.md beside the tests")]
COPIED = ["csrc/{}/op.h", "csrc/{}/cpu.cpp", "csrc/{}/bind.cpp", "fastfer/signatures/{}.py", "fastfer/ops/{}.py"] + [
    f"fastfer/backends/{backend}/{{}}.py" for backend in ("reference", "native", "numba")
]
"""Files that step 1 to 8 copy."""
ROWS = ("csrc/families.inc", "csrc/kernels.inc", "fastfer/backend.py", "fastfer/ops/__init__.py")
"""Files that get a line."""
FAMILY = "mirrored"
WORDS = {"elementwise": FAMILY, "activation_": "mirror_", "Activation": "Mirror", '"activation"': '"mirror"'}
CHECK = """
import torch, fastfer
from fastfer import _C, ops
x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
for name in ("native", "reference", "numba"):
    with fastfer.use(name):
        y = ops.mirror(x, "silu")
        assert torch.allclose(y, torch.nn.functional.silu(x)), name
        assert torch.autograd.gradcheck(lambda t: ops.mirror(t, "silu"), x), name
assert _C.kernels()["mirror_fwd_f64"] and _C.kernels()["mirror_bwd_f64"]
torch.library.opcheck(torch.ops.fastfer.mirror.default, (x, 5))
print("runs")
"""


def renamed(text: str) -> str:
    for old, new in WORDS.items():
        text = text.replace(old, new)
    return re.sub(r"\bdef activation\(", "def mirror(", text)


def add_family(tree: Path) -> None:
    """The steps, done by machine: copies under other names, and a row in each list."""
    for path in COPIED:
        target = tree / path.format(FAMILY)
        target.parent.mkdir(exist_ok=True)
        target.write_text(renamed((tree / path.format("elementwise")).read_text()))
    append(tree / "csrc/families.inc", f"FF_FAMILY({FAMILY}, host)\n")
    kernels = re.findall(r"^FF_KERNEL\(activation_.*\n", (tree / "csrc/kernels.inc").read_text(), re.MULTILINE)
    append(tree / "csrc/kernels.inc", renamed("".join(kernels)))
    insert(tree / "fastfer/backend.py", '    "loss",\n', f'    "{FAMILY}",\n')
    insert(
        tree / "fastfer/ops/__init__.py", "from fastfer.ops.loss import", f"from fastfer.ops.{FAMILY} import mirror\n"
    )


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text()
    assert before in content, f"{path}: expected {before!r}"
    path.write_text(content.replace(before, text + before, 1))


def test_the_guide_names_the_files_that_the_steps_touch() -> None:
    steps = GUIDE.read_text().partition("<!-- steps:op -->")[2].partition("<!-- /steps:op -->")[0]
    named = set(re.findall(r"`((?:csrc|fastfer)/[\w/.<>]+)`", steps))
    assert named == {path.format("<family>") for path in COPIED} | set(ROWS) | {"fastfer/_C.pyi"}


def test_an_op_added_by_the_steps_runs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("csrc", "fastfer", "cmake"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    add_family(tree)
    cmake, pybind = shutil.which("cmake"), pytest.importorskip("pybind11")
    if cmake is None:
        pytest.skip("cmake is not installed")
    build = tmp_path / "build"
    options = [
        "-DFASTFER_ISAS=baseline",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind.get_cmake_dir()}",
    ]
    run([cmake, "-S", str(tree), "-B", str(build), *options])
    run([cmake, "--build", str(build), "--target", "_C", "-j", str(os.cpu_count())])
    for module in build.rglob("_C*.so"):
        shutil.copy(module, tree / "fastfer")
    environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    assert "runs" in run([sys.executable, "-c", CHECK], env=environment, cwd=tmp_path)


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return str(done.stdout)
