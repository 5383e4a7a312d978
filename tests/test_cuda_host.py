# SPDX-License-Identifier: Apache-2.0
"""The CUDA elementwise kernels and launches, compiled for the host by a C++ compiler: all that needs no GPU."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda_cases
import pytest
import torch

from fastfer import jit
from fastfer._checks import ACTIVATIONS
from fastfer.cuda import loader
from fastfer.cuda.elementwise import Elementwise
from fastfer.cupy import elementwise as cupy_elementwise

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"


class HostKernels:
    """The functions of ``_C.cuda`` over the host library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def activation_fwd(self, dtype: int, act: int, *rest: int) -> None:
        self._call(self._library.activation_fwd, dtype, act, *rest)

    def activation_bwd(self, dtype: int, act: int, *rest: int) -> None:
        self._call(self._library.activation_bwd, dtype, act, *rest)

    def _call(self, function: Any, dtype: int, act: int, *rest: int) -> None:
        if function(dtype, act, *map(ctypes.c_int64, rest)):
            raise ValueError("no kernel")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None or not CSRC.is_dir():
        pytest.skip("no C++ compiler, or no csrc beside the tests")
    library = tmp_path_factory.mktemp("shim") / "elementwise.so"
    include = [f"-I{HERE / 'cuda_shim'}", f"-I{CSRC}"]
    # A misaligned pack, an error on a GPU, stops the process here.
    trap = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas", *trap, *include]
    command = [*shlex.split(compiler), *flags, str(HERE / "cuda_shim" / "elementwise.cpp"), "-o", str(library)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode and "_Float16" in run.stderr:
        pytest.skip("the C++ compiler has no _Float16")
    assert run.returncode == 0, run.stderr
    return HostKernels(ctypes.CDLL(str(library)))


@pytest.fixture(scope="module")
def family(kernels: HostKernels) -> Elementwise:
    def launch(kernel: Callable[..., None], device: torch.device, *args: int) -> None:
        kernel(*args, 0)

    return Elementwise(lambda: kernels, launch)


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_sizes(family: Elementwise, dtype: torch.dtype, act: int) -> None:
    cuda_cases.check_sizes(family, dtype, act, "cpu")


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_special_values(family: Elementwise, dtype: torch.dtype, act: int) -> None:
    cuda_cases.check_special(family, dtype, act, "cpu")


@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_layouts(family: Elementwise, dtype: torch.dtype) -> None:
    cuda_cases.check_layouts(family, dtype, "cpu")


def test_writes_stay_inside(kernels: HostKernels) -> None:
    cuda_cases.check_guard(kernels, "cpu")


def test_bfloat16_rounding_is_torchs(family: Elementwise) -> None:
    """Every bfloat16 survives loading and storing, and results round to nearest even, bit by bit."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    wide = every.float()
    hardswish = wide * ((wide + 3).clamp(0, 6) * torch.tensor(1 / 6))
    for act, want in (("none", every), ("hardswish", hardswish.bfloat16())):
        got = family.activation(every, ACTIVATIONS.index(act))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_unknown_values_raise(family: Elementwise, kernels: HostKernels) -> None:
    with pytest.raises(TypeError, match=r"expected dtype float32, float64, bfloat16, float16, got torch\.int32"):
        family.activation(torch.zeros(3, dtype=torch.int32), 1)
    for dtype, act in ((4, 0), (-1, 0), (0, 7), (0, -1)):
        with pytest.raises(ValueError, match="no kernel"):
            kernels.activation_fwd(dtype, act, 0, 0, 1, 0)


def test_loaders_agree_on_the_codes() -> None:
    storage = cupy_elementwise._STORAGE
    assert [storage[code][1] for code in loader.DTYPES.values()] == [dtype.itemsize for dtype in loader.DTYPES]


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("80-real,90-real", (8, 6), True),
        ("80-real,90-real", (10, 0), False),
        ("80-real,90-virtual", (10, 0), True),
        ("86", (8, 0), False),
        ("80", (9, 0), True),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("120-virtual", (10, 0), False),
        ("100f", (10, 0), True),
        ("all-major", (9, 0), True),
    ],
)
def test_architectures_that_run(archs: str, capability: tuple[int, int], runs: bool) -> None:
    assert loader.runs_on(archs, *capability) is runs


@pytest.mark.parametrize("name", ["cuda", "cupy"])
def test_availability_says_why(name: str) -> None:
    available, reason = loader.availability(name)
    assert reason
    assert torch.cuda.is_available() or not available


def test_missing_cupy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    jit.import_cupy.cache_clear()
    monkeypatch.setattr(jit.importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"fastfer\[cuda1[23]\].*cupy-cuda1[23]x"):
        jit.import_cupy()


def test_cupy_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instance is compiled once for a device, and launched over a grid that covers it, on the stream given."""
    compiled: list[str] = []
    launched: list[tuple[Any, ...]] = []
    streams: list[int] = []

    class Scope:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    class Stream(Scope):
        @staticmethod
        def from_external(source: Any) -> Scope:
            streams.append(source.__cuda_stream__()[1])
            return Scope()

    def module(code: str, options: tuple[str, ...], name_expressions: tuple[str]) -> Any:
        assert '#include "elementwise/cuda.cuh"' in code
        assert "-std=c++17" in options
        compiled.extend(name_expressions)
        return SimpleNamespace(get_function=lambda name: lambda *call: launched.append((name, *call)))

    runtime = SimpleNamespace(pointerGetAttributes=lambda address: SimpleNamespace(device=0))
    fake = SimpleNamespace(RawModule=module, cuda=SimpleNamespace(Device=Scope, Stream=Stream, runtime=runtime))
    monkeypatch.setattr(jit, "import_cupy", lambda: fake)
    monkeypatch.setattr(jit, "_multiprocessors", lambda device: 10)
    kernels = cupy_elementwise.Kernels()
    try:
        for n in (5, 4096 * 1024, 0):
            kernels.activation_fwd(0, 5, 1024, 2048, n, 77)
        kernels.activation_bwd(2, 1, 1024, 2050, 4096, 300, 77)
    finally:
        jit._function.cache_clear()
        jit._cupy_stream.cache_clear()
    forward = "ff::cuda::activation_fwd<float, ff::cuda::Act::silu, 4, 256>"
    backward = "ff::cuda::activation_bwd<ff::cuda::bf16, ff::cuda::Act::relu, 1, 256>"
    assert compiled == [forward, backward]
    assert streams == [77]
    assert launched == [
        (forward, (1,), (256,), (1024, 2048, 5)),
        (forward, (80,), (256,), (1024, 2048, 4096 * 1024)),
        (backward, (2,), (256,), (1024, 2050, 4096, 300)),
    ]
