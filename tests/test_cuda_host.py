# SPDX-License-Identifier: Apache-2.0
"""The CUDA elementwise kernels and launches, compiled for the host by a C++ compiler: all that needs no GPU."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import cuda_cases
import pytest
import torch
from cuda_host import HostLaunch, HostLibrary
from flat import Flat

from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda import elementwise, jit, loader
from fastfer.backends.cuda.loader import Bound


@pytest.fixture(scope="module")
def launch(host_kernels: HostLibrary) -> HostLaunch:
    return HostLaunch(host_kernels)


@pytest.fixture(scope="module")
def family(launch: HostLaunch) -> Flat:
    return Flat(Bound(elementwise, launch))


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_sizes(family: Flat, dtype: torch.dtype, act: int) -> None:
    cuda_cases.check_sizes(family, dtype, act, "cpu")


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_special_values(family: Flat, dtype: torch.dtype, act: int) -> None:
    cuda_cases.check_special(family, dtype, act, "cpu")


@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_layouts(family: Flat, dtype: torch.dtype) -> None:
    cuda_cases.check_layouts(family, dtype, "cpu")


def test_writes_stay_inside(launch: HostLaunch) -> None:
    cuda_cases.check_guard(launch, "cpu")


def test_bfloat16_rounding_is_torchs(family: Flat) -> None:
    """Every bfloat16 survives loading and storing, and results round to nearest even, bit by bit."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    wide = every.float()
    hardswish = wide * ((wide + 3).clamp(0, 6) * torch.tensor(1 / 6))
    for act, want in (("none", every), ("hardswish", hardswish.bfloat16())):
        got = family.activation(every, ACTIVATIONS.index(act))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_unknown_dtype_raises(family: Flat) -> None:
    with pytest.raises(TypeError, match=r"expected dtype float32, float64, bfloat16, float16, got torch\.int32"):
        family.activation(torch.zeros(3, dtype=torch.int32), 1)


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
    """Each instance is compiled once for a device, and launched with the words given, on torch's stream.

    A device's default stream has the address of every other's, so streams are told apart by both; and none is let go
    of, since CuPy 14 would destroy the stream, which is torch's.
    """
    compiled: list[str] = []
    launched: list[tuple[Any, ...]] = []
    streams: list[tuple[int, int]] = []
    devices: list[int] = []
    destroyed: list[int] = []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            devices.append(self.index)

        def __exit__(self, *_: Any) -> None:
            devices.pop()

    class Stream:
        def __init__(self, device: int, address: int) -> None:
            self.device, self.address = device, address

        @staticmethod
        def from_external(source: Any) -> Stream:
            streams.append((devices[-1], source.__cuda_stream__()[1]))
            return Stream(*streams[-1])

        def __enter__(self) -> None:
            assert self.device == devices[-1], "a stream of another device"

        def __exit__(self, *_: Any) -> None: ...

        def __del__(self) -> None:
            destroyed.append(self.address)

    def module(code: str, options: tuple[str, ...], name_expressions: tuple[str]) -> Any:
        assert '#include "elementwise/cuda.cuh"' in code
        assert "-std=c++17" in options
        compiled.extend(name_expressions)
        return SimpleNamespace(get_function=lambda name: lambda *call: launched.append((name, *call)))

    fake = SimpleNamespace(RawModule=module, cuda=SimpleNamespace(Device=Device, Stream=Stream))
    monkeypatch.setattr(jit, "import_cupy", lambda: fake)
    current = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    cupy, name = jit.CupyLaunch(), elementwise.kernel("activation_fwd", "float", 5, 4)
    try:
        for grid in ((3, 1, 1), (80, 2, 1)):
            cupy.run(name, torch.device("cuda", 0), grid, 256, (1024, 2048, 5))
        before, device = list(launched), torch.device("cuda", 1)
        for current.cuda_stream in range(100):
            cupy.run(name, device, (1, 1, 1), 256, ())
        assert destroyed == []
    finally:
        jit._function.cache_clear()
        jit._cupy_stream.cache_clear()
    assert compiled == [name] * 2 == ["activation_fwd<float, Act::silu, 4, 256>"] * 2
    assert streams == [(0, 0), *((1, address) for address in range(100))]
    launched = before
    assert launched == [(name, (3, 1, 1), (256,), (1024, 2048, 5)), (name, (80, 2, 1), (256,), (1024, 2048, 5))]


def test_every_instance_runs(family: Flat, launch: HostLaunch, host_kernels: HostLibrary) -> None:
    """What nvcc builds is what this file has run: no instance ships untried."""
    for dtype, act in product(cuda_cases.TYPES, cuda_cases.CODES):
        for offset in (0, 1):
            x = torch.zeros(9, dtype=dtype)[offset:]
            family.activation(x, act)
            family.activation_backward(x, x, act)
    shipped = {name for name in host_kernels.names() if name.startswith("activation_")}
    assert shipped == launch.launched
