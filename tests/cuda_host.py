# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the host: csrc/*/cuda.cu and tests/cuda_shim as one library, and the launcher that runs them."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastfer import backend
from fastfer.backends.cuda.loader import Bound, Launch

HERE = Path(__file__).resolve().parent
SHIM = HERE / "cuda_shim"
CSRC = HERE.parent / "csrc"
FAMILIES = CSRC / "families.inc"
# A misaligned pack, an error on a GPU, stops the process here.
_FLAGS = (
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-Wno-unknown-pragmas", "-Wno-unused-function"),
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", f"-I{SHIM}", f"-I{CSRC}"),
)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time compiles into ``folder``: the others then find the objects there."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class HostLibrary:
    """The kernels of ``sources`` (.cu files that list families of ``families``), built into ``folder``.

    Objects there that were built from the same text by the same command are used again; others of their source go.
    """

    def __init__(self, folder: Path, sources: Sequence[Path], families: Path) -> None:
        compiler = os.environ.get("CXX") or shutil.which("c++")
        if compiler is None or not CSRC.is_dir():
            pytest.skip("no C++ compiler, or no csrc beside the tests")
        command = (*shlex.split(compiler), *_FLAGS, f'-DFF_FAMILIES="{families}"')
        headers = sorted((*CSRC.glob("*/*.cuh"), *SHIM.rglob("*.h"), *SHIM.rglob("*.cuh"), families))
        common = hashlib.sha256("\0".join((*command, *(path.read_text() for path in headers))).encode())

        def build(source: Path) -> str:
            digest, name = common.copy(), f"{source.parent.name}-{source.stem}"
            digest.update(source.read_bytes())
            target = folder / f"{name}-{digest.hexdigest()[:16]}.o"
            if not target.is_file():
                for old in folder.glob(f"{name}-*.o"):
                    old.unlink(missing_ok=True)
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    made = Path(scratch) / target.name
                    self._compile(*command, "-x", "c++", "-c", str(source), "-o", str(made))
                    made.rename(target)
            return str(target)

        with _alone(folder), ThreadPoolExecutor(os.cpu_count()) as threads:
            objects = list(threads.map(build, (*sources, SHIM / "machine.cpp", SHIM / "library.cpp")))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            self._compile(*shlex.split(compiler), "-shared", *objects, "-o", f"{scratch}/kernels.so")
            self._library = ctypes.CDLL(f"{scratch}/kernels.so")
        self._one_at_a_time = threading.Lock()
        self._library.launch.restype = self._library.kernel_name.restype = ctypes.c_char_p
        self.launched: set[str] = set()

    def _compile(self, *command: str) -> None:
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode and "_Float16" in run.stderr:
            pytest.skip("the C++ compiler has no _Float16")
        assert run.returncode == 0, run.stderr

    @contextmanager
    def sampled(self, blocks: int) -> Iterator[None]:
        """Launches inside run about so many of their blocks."""
        self._library.sample(ctypes.c_int64(blocks))
        try:
            yield
        finally:
            self._library.sample(ctypes.c_int64(0))

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
        self.launched.add(kernel)
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

    def strided(self, kernel: str, like: torch.Tensor, items: int, threads: int, *args: Any, multiple: int = 1) -> None:
        self(kernel, like, (min(-(-items // threads), 3), 1, 1), threads, *args)


def families() -> list[str]:
    """The families with CUDA functions."""
    names = backend.FAMILIES if FAMILIES.is_file() else ()
    return [name for name in names if importlib.util.find_spec(f"fastfer.backends.cuda.{name}") is not None]


@contextmanager
def active(library: HostLibrary, names: Sequence[str]) -> Iterator[None]:
    """CPU tensors go through the CUDA families' functions to kernels on the host machine, the rest through torch."""
    with backend.use("reference"):
        for family in names:
            module = importlib.import_module(f"fastfer.backends.cuda.{family}")
            backend._resolved[family, "cpu"] = Bound(module, HostLaunch(library))
        yield
