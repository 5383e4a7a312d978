# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the host: csrc/*/cuda.cu and tests/cuda_shim as one library, and the launcher that runs them."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastfer import backend
from fastfer.cuda.loader import Bound, Launch

HERE = Path(__file__).resolve().parent
SHIM = HERE / "cuda_shim"
CSRC = HERE.parent / "csrc"
FAMILIES = CSRC / "cuda" / "families.inc"
# A misaligned pack, an error on a GPU, stops the process here.
_FLAGS = (
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-Wno-unknown-pragmas", "-Wno-unused-function"),
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", f"-I{SHIM}", f"-I{CSRC}"),
)


class HostLibrary:
    """The kernels of ``sources`` (.cu files that list families of ``families``), built into ``folder``."""

    def __init__(self, folder: Path, sources: Sequence[Path], families: Path) -> None:
        compiler = os.environ.get("CXX") or shutil.which("c++")
        if compiler is None or not CSRC.is_dir():
            pytest.skip("no C++ compiler, or no csrc beside the tests")
        objects = []
        for source in (*sources, SHIM / "machine.cpp", SHIM / "library.cpp"):
            target = folder / f"{source.parent.name}-{source.stem}.o"
            define = f'-DFF_FAMILIES="{families}"'
            self._compile(compiler, *_FLAGS, define, "-x", "c++", "-c", str(source), "-o", str(target))
            objects.append(str(target))
        self._compile(compiler, "-shared", *objects, "-o", str(folder / "kernels.so"))
        self._library = ctypes.CDLL(str(folder / "kernels.so"))
        self._one_at_a_time = threading.Lock()
        self._library.launch.restype = self._library.kernel_name.restype = ctypes.c_char_p

    def _compile(self, compiler: str, *arguments: str) -> None:
        run = subprocess.run([*shlex.split(compiler), *arguments], capture_output=True, text=True)
        if run.returncode and "_Float16" in run.stderr:
            pytest.skip("the C++ compiler has no _Float16")
        assert run.returncode == 0, run.stderr

    def names(self) -> list[str]:
        """Every kernel instance."""
        names: list[str] = []
        while name := self._library.kernel_name(len(names)):
            names.append(name.decode())
        return names

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, words: Sequence[int | float]) -> None:
        """Run to the end; RuntimeError with what the machine found wrong."""
        values = [struct.unpack("<q", struct.pack("<d", w))[0] if isinstance(w, float) else w for w in words]
        array, sides = (ctypes.c_int64 * len(values))(*values), (ctypes.c_int64 * 3)(*grid)
        with self._one_at_a_time:
            error = self._library.launch(kernel.encode(), sides, threads, array, len(values))
        if error:
            raise RuntimeError(f"{kernel}: {error.decode()}")


class HostLaunch(Launch):
    """Runs kernels of a `HostLibrary` on CPU tensors, over few blocks, so that grid-stride loops go round."""

    def __init__(self, library: HostLibrary) -> None:
        self.library = library
        self.launched: set[str] = set()

    def run(
        self, kernel: str, device: torch.device, grid: tuple[int, int, int], threads: int, words: tuple[Any, ...]
    ) -> None:
        self.launched.add(kernel)
        self.library.launch(kernel, grid, threads, words)

    def strided(self, kernel: str, like: torch.Tensor, items: int, threads: int, *args: Any) -> None:
        self(kernel, like, (min(-(-items // threads), 3), 1, 1), threads, *args)


def families() -> list[str]:
    """The families with CUDA kernels."""
    return re.findall(r"^FF_CUDA_FAMILY\((\w+)\)", FAMILIES.read_text(), re.MULTILINE) if FAMILIES.is_file() else []


@contextmanager
def active(library: HostLibrary, names: Sequence[str]) -> Iterator[None]:
    """CPU tensors go through the CUDA families' functions to kernels on the host machine, the rest through torch."""
    with backend.use("reference"):
        for family in names:
            module = importlib.import_module(f"fastfer.cuda.{family}")
            backend._resolved[family, "cpu"] = Bound(module, HostLaunch(library))
        yield
