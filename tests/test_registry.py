# SPDX-License-Identifier: Apache-2.0
"""The table of contents holds: every kernel has a reference, a test and a benchmark, and each family its files."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from fastfer import _library, backend, ops

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SETTINGS = ROOT / "docs" / "guides" / "settings.md"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="no csrc beside the tests: not a checkout")
ROLES = {  # what every family has, and what one with kernels has besides
    "every": ("fastfer/ops/{}.py", "fastfer/backends/reference/{}.py", "tests/test_{}.py"),
    "native": (
        "csrc/{}/op.h",
        "csrc/{}/bind.cpp",
        "fastfer/backends/native/{}.py",
        "fastfer/backends/numba/{}.py",
        "bench/bench_{}.py",
    ),
}
SUFFIX = {"fwd": "", "train": "_train", "bwd": "_backward"}


def family_rows() -> dict[str, str]:
    """The device of each family with native kernels, in the order of the list."""
    return dict(re.findall(r"^FF_FAMILY\((\w+), (host|cuda)\)$", (CSRC / "families.inc").read_text(), re.MULTILINE))


def kernels() -> list[str]:
    return re.findall(r"^FF_(?:KERNEL|PASS)\((\w+), \w+\)", (CSRC / "kernels.inc").read_text(), re.MULTILINE)


def native_families() -> list[str]:
    """Families of ops, compiled for each ISA (cpu.cpp) or once (passes.cpp); the engine has kernels, and no ops."""
    return sorted({path.parent.name for path in (*CSRC.glob("*/cpu.cpp"), *CSRC.glob("*/passes.cpp"))} - {"engine"})


def source_of(family: str) -> str:
    """The file that defines the family's kernels."""
    paths = [path for path in (CSRC / family / "cpu.cpp", CSRC / family / "passes.cpp") if path.is_file()]
    assert len(paths) == 1, f"csrc/{family}: expected cpu.cpp or passes.cpp, got {[path.name for path in paths]}"
    return paths[0].read_text()


def family_of(kernel: str) -> str:
    found = [name for name in native_families() if f"void {kernel}(" in source_of(name)]
    assert len(found) == 1, f"{kernel}: defined in {found or 'no family'}"
    return found[0]


def parts(kernel: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(\w+)_(fwd|train|bwd)_(f32|f64|bf16)", kernel)
    assert match is not None, f"{kernel}: expected <op>_<fwd|train|bwd>_<dtype>"
    return match[1], match[2], match[3]


def missing_files(root: Path, families: Iterable[str], native: Iterable[str]) -> list[str]:
    wanted = [role.format(name) for name in families for role in ROLES["every"]]
    wanted += [role.format(name) for name in native for role in ROLES["native"]]
    return [path for path in wanted if not (root / path).is_file()]


def text_of_tests(family: str) -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "tests").glob(f"test_{family}*.py")))


def test_there_are_kernels() -> None:
    assert len(kernels()) == len(set(kernels())) >= 18


def test_the_list_is_what_is_compiled() -> None:
    if not backend.list_backends()["native"].available:
        pytest.skip(backend.list_backends()["native"].reason)
    from fastfer import _C

    assert sorted(_C.kernels()) == sorted(kernels())


def test_files_of_each_family() -> None:
    assert set(native_families()) <= set(backend.FAMILIES)
    missing = missing_files(ROOT, backend.FAMILIES, native_families())
    assert not missing, f"missing: {', '.join(missing)}"


def test_the_families_are_one_list() -> None:
    """Bindings and launchers expand csrc/families.inc; Python and the table in the docs have the same families."""
    rows = family_rows()
    assert tuple(rows) == backend.FAMILIES
    assert sorted(rows) == native_families()
    on_cuda = {name for name, device in rows.items() if device == "cuda"}
    assert on_cuda == {path.parent.name for path in CSRC.glob("*/cuda.cu")}
    table = re.findall(r"^\| `(\w+)`:", SETTINGS.read_text(), re.MULTILINE)
    assert tuple(table) == backend.FAMILIES


def test_the_instruction_sets_are_one_list() -> None:
    """CMake, dispatch and detection expand csrc/isa.inc; the docs name each, and each has its header."""
    rows = re.findall(r"^FF_ISA_ROW\((\w+), (\w+), (\w+), ([\w ]+), ", (CSRC / "isa.inc").read_text(), re.MULTILINE)
    variable = re.search(r"^\| `FASTFER_ISA` \|(.*)\|$", SETTINGS.read_text(), re.MULTILINE)
    assert variable is not None
    assert [name for name, *_ in rows] == [name for name in re.findall(r"`(\w+)`", variable[1]) if name != "auto"]
    names = [name for name, *_ in rows]
    for name, _, base, kernels in rows:
        assert base in names[: names.index(name) + 1]
        assert (CSRC / "simd" / f"{name}.h").is_file() == (name == base) == (kernels == "all"), name
    if backend.list_backends()["native"].available:
        from fastfer import _C

        assert _C.isas() == [name for name, *_ in rows if name in _C.isas()]


def test_missing_files_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "pool").mkdir(parents=True)
    (tmp_path / "csrc/pool/op.h").touch()
    missing = missing_files(tmp_path, ["pool"], ["pool"])
    assert "bench/bench_pool.py" in missing
    assert "fastfer/backends/reference/pool.py" in missing
    assert "csrc/pool/op.h" not in missing


def test_stems_are_those_of_the_families() -> None:
    """No module of a backend, no op and no benchmark under a name that is no family."""
    shared = {"__init__", "__pycache__", "memory", "norms", "statistics"}
    for folder in ("ops", "backends/reference", "backends/native", "backends/numba"):
        stems = {path.stem for path in (ROOT / "fastfer" / folder).glob("*.py") if not path.stem.startswith("_")}
        assert stems - shared <= set(backend.FAMILIES), f"fastfer/{folder}: {stems - shared - set(backend.FAMILIES)}"


@pytest.mark.parametrize("kernel", kernels() if CSRC.is_dir() else [])
def test_kernel(kernel: str) -> None:
    op, direction, _ = parts(kernel)
    family, function = family_of(kernel), op + SUFFIX[direction]
    missing = []
    for package in ("reference", "native"):
        if (
            not (ROOT / "fastfer" / "backends" / package / f"{family}.py").is_file()
            or f"def {function}(" not in (ROOT / "fastfer" / "backends" / package / f"{family}.py").read_text()
        ):
            missing.append(f"function {function} in fastfer/backends/{package}/{family}.py")
    if not re.search(rf'"{op}(_\w+)?"|ops\.{op}\(', text_of_tests(family)):
        missing.append(f"a test of {op} in tests/test_{family}*.py")
    bench = ROOT / "bench" / f"bench_{family}.py"
    if not bench.is_file() or op not in bench.read_text() + "".join(p.read_text() for p in bench.parent.glob("*.py")):
        missing.append(f"a benchmark of {op} in bench/bench_{family}.py")
    assert not missing, f"{kernel} lacks: {'; '.join(missing)}"


def test_backends_of_a_family_have_the_same_functions() -> None:
    for family in native_families():
        names = {op + SUFFIX[direction] for op, direction, _ in map(parts, kernels()) if family_of_op(op) == family}
        for package in ("reference", "native", "numba"):
            if package == "native" and not backend.list_backends()["native"].available:
                continue
            if package == "numba" and not backend.list_backends()["numba"].available:
                continue
            module = importlib.import_module(f"fastfer.backends.{package}.{family}")
            lacking = sorted(name for name in names if not callable(getattr(module, name, None)))
            assert not lacking, f"fastfer/backends/{package}/{family}.py lacks {', '.join(lacking)}"


def family_of_op(op: str) -> str:
    return family_of(next(kernel for kernel in kernels() if parts(kernel)[0] == op))


def has(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastfer::{op}", key)


def test_every_kernel_is_behind_an_op() -> None:
    wanted = {op + SUFFIX[direction]: family_of(kernel) for kernel in kernels() for op, direction, _ in [parts(kernel)]}
    registered = _library.registered()
    assert {name: registered.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("op", sorted(_library.registered()))
def test_registered_op(op: str) -> None:
    """Runs on both devices, has a fake, and a gradient unless it is a gradient itself or its training twin has one."""
    for key in ("CPU", "CUDA", "Meta"):
        assert has(op, key), f"fastfer::{op} has no implementation for {key}"
    if not op.endswith("_backward") and f"{op}_train" not in _library.registered():
        assert has(op, "Autograd"), f"fastfer::{op} has no gradient"
        assert has(op, "AutocastCPU"), f"fastfer::{op} has no autocast rule"


def test_only_one_module_registers() -> None:
    pattern = re.compile(r"torch\.library\.|from torch\.library|from torch import library")
    found = {path.name for path in (ROOT / "fastfer").rglob("*.py") if pattern.search(path.read_text())}
    assert found == {"_library.py"}


def test_public_functions_are_exported() -> None:
    assert sorted(ops.__all__) == list(ops.__all__)
    assert all(callable(getattr(ops, name)) for name in ops.__all__)
