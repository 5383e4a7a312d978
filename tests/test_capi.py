# SPDX-License-Identifier: Apache-2.0
"""The engine for C: its symbols, its results beside Python's, and the example in C over an installation."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import fastfer
from fastfer import runtime
from fastfer.data.drawn import draw_faces

ROOT = Path(__file__).resolve().parents[1]
HEADER, EXAMPLE = ROOT / "csrc" / "capi" / "fastfer.h", ROOT / "examples" / "c"
pytestmark = pytest.mark.skipif(not HEADER.is_file(), reason="no csrc beside the tests: not a checkout")
MAY_NEED = re.compile(r"lib(stdc\+\+|gcc_s|m|c|pthread|dl)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+")


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"no {name} on this machine")


def run(words: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def build() -> Path:
    """A build of this tree that has the library: FASTFER_BUILD_DIR, or that of the editable install."""
    asked = os.environ.get("FASTFER_BUILD_DIR")
    for folder in [Path(asked)] if asked else sorted(ROOT.glob("build/*")):
        if (folder / "libfastfer_engine.so").exists():
            return folder
    pytest.skip("no libfastfer_engine: set FASTFER_BUILD_DIR, or cmake --build build/* --target fastfer_engine")


@pytest.fixture(scope="module")
def library(build: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build / "libfastfer_engine.so"))
    for name in ("fastfer_version", "fastfer_error", "fastfer_class_name", "fastfer_metadata"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastfer.engine.trained import trained
    from fastfer.weights import path

    model, known = trained(path("fgw_fer"))
    target = tmp_path_factory.mktemp("engine") / "fgw_fer.ffe"
    fastfer.compile(model, **known).save(target)
    return target


def faces(count: int) -> np.ndarray:
    """Pixels (N, 1, 48, 48)."""
    return draw_faces(np.arange(count) % 7, seed=1)[:, None]


def declared() -> set[str]:
    return set(re.findall(r"^FASTFER_API .*?(\w+)\(", HEADER.read_text(), re.MULTILINE))


def test_the_library_exports_what_the_header_declares_and_needs_no_python_and_no_openmp(build: Path) -> None:
    library = build / "libfastfer_engine.so"
    (abi,) = re.findall(r"^#define FASTFER_ABI (\d+)$", HEADER.read_text(), re.MULTILINE)
    listing = run([tool("nm"), "-D", "--defined-only", library]).stdout
    exported = {tuple(line.split()[1:]) for line in listing.splitlines()}
    assert exported == {("A", f"FASTFER_{abi}"), *(("T", f"{name}@@FASTFER_{abi}") for name in declared())}
    dynamic = run([tool("objdump"), "-p", library]).stdout
    assert re.findall(r"SONAME\s+(\S+)", dynamic) == [f"libfastfer_engine.so.{abi}"]
    needed = re.findall(r"NEEDED\s+(\S+)", dynamic)
    assert needed
    assert [name for name in needed if not MAY_NEED.fullmatch(name)] == []


def test_the_version_is_the_packages(library: ctypes.CDLL) -> None:
    assert library.fastfer_version().decode() == fastfer.__version__


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_results_have_the_bits_of_the_runtime(library: ctypes.CDLL, engine: Path, dtype: str) -> None:
    images = faces(5) if dtype == "uint8" else faces(5).astype(np.float32) / 127 - 1
    want = runtime.load(engine, threads=1)(images)
    handle, logits = ctypes.c_void_p(), np.empty((5, 7), np.float32)
    assert library.fastfer_load(os.fsencode(engine), None, ctypes.byref(handle)) == 0, library.fastfer_error()
    try:
        names = [library.fastfer_class_name(handle, ctypes.c_size_t(i)).decode() for i in range(7)]
        assert tuple(names) == runtime.load(engine).class_names
        outputs = (ctypes.c_void_p * 1)(logits.ctypes.data)
        status = library.fastfer_run(
            handle, ctypes.c_void_p(images.ctypes.data), int(dtype == "uint8"), ctypes.c_size_t(5), outputs,
            ctypes.c_size_t(1),
        )  # fmt: skip
        assert status == 0, library.fastfer_error()
    finally:
        library.fastfer_free(handle)
    np.testing.assert_array_equal(logits, want)


def test_a_damaged_file_is_refused_by_name(library: ctypes.CDLL, engine: Path, tmp_path: Path) -> None:
    damaged, handle = tmp_path / "damaged.ffe", ctypes.c_void_p()
    damaged.write_bytes(engine.read_bytes()[:-4])
    assert library.fastfer_load(os.fsencode(damaged), None, ctypes.byref(handle)) == 3
    assert not handle
    assert library.fastfer_error().decode().startswith(f"{damaged}: engine file: expected ")


@pytest.fixture(scope="module")
def installed(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (build / "generated" / "fastfer.pc").is_file():
        pytest.skip("a build of the Python module installs no C library: FASTFER_SELFTEST or FASTFER_CAPI does")
    prefix = tmp_path_factory.mktemp("installed")
    done = run([tool("cmake"), "--install", build, "--prefix", prefix, "--component", "engine"])
    assert done.returncode == 0, done.stderr
    return prefix


def by_cmake(prefix: Path, folder: Path) -> Path:
    for words in (["-S", EXAMPLE, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}"], ["--build", folder]):
        done = run([tool("cmake"), *words])
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "predict"


def by_pkg_config(prefix: Path, folder: Path) -> Path:
    (pc,) = prefix.glob("lib*/**/fastfer.pc")
    flags = run([tool("pkg-config"), "--cflags", "--libs", "fastfer"], PKG_CONFIG_PATH=str(pc.parent)).stdout.split()
    words = [tool("cc"), "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", EXAMPLE / "predict.c", *flags]
    done = run([*words, "-lm", f"-Wl,-rpath,{pc.parents[1]}", "-o", folder / "predict"])
    assert done.returncode == 0, done.stderr
    return folder / "predict"


@pytest.mark.parametrize("made", [by_cmake, by_pkg_config])
def test_the_example_prints_the_labels_of_faces(installed: Path, engine: Path, tmp_path: Path, made: object) -> None:
    program = made(installed, tmp_path)  # type: ignore[operator]
    loaded, pixels = runtime.load(engine), faces(3)
    names, lines = loaded.class_names or (), []
    for i, (face, logits) in enumerate(zip(pixels, loaded(pixels).astype(np.float64), strict=True)):
        # Twice the size comes back exactly, as each pixel then lies between four equal ones.
        larger = face[0].repeat(2, 0).repeat(2, 1)
        (tmp_path / f"{i}.pgm").write_bytes(b"P5 # a face\n96 96\n255\n" + larger.tobytes())
        shares = np.exp(logits) / np.exp(logits).sum()
        best = ", ".join(f"{names[k]} {100 * shares[k]:.1f} %" for k in np.argsort(-shares)[:3])
        lines.append(f"{tmp_path / f'{i}.pgm'}: {best}")
    done = run([program, engine, *(tmp_path / f"{i}.pgm" for i in range(3))])
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (lines, "", 0)
    (tmp_path / "short.pgm").write_bytes(b"P5 48 48 255\n" + b"x" * 9)
    done = run([program, engine, tmp_path / "short.pgm"])
    assert (done.returncode, done.stderr) == (1, f"{tmp_path / 'short.pgm'}: not a binary PGM of 8 bits\n")
    assert run([program, EXAMPLE / "predict.c", tmp_path / "0.pgm"]).returncode == 1


def test_the_page_s_program_compiles(tmp_path: Path) -> None:
    page = ROOT / "docs" / "c-api.md"
    if not page.is_file():
        pytest.skip("no docs beside the tests")
    (block,) = re.findall(r"^```c\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    source = tmp_path / "page.c"
    source.write_text(
        f"#include <fastfer.h>\n#include <stdio.h>\nint page(const void* pixels) {{\n{block}return 0;\n}}\n"
    )
    words = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}", "-fsyntax-only", source]
    done = run([tool("cc"), *words])
    assert done.returncode == 0, done.stderr
