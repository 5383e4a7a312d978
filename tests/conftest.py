# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several files use: every CPU backend and ISA, and the real faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_host
import grid
import pytest
import torch
from pretrained_starts import keras, starts_folder, timm, torchvision  # noqa: F401 - fixtures

from fastfer import backend

REPOSITORY = Path(__file__).resolve().parents[1]
CPU_BACKENDS = ("native", "numba", "reference")
OPS_OF = {
    **{"avxvnni": "avx2", "amxemulated": "baseline"},
    **dict.fromkeys(("neondot", "neoni8mm", "neonbf16"), "neon"),
    **dict.fromkeys(("avx512vnni", "avx512bf16", "amxemulated512", "amx"), "avx512"),
}
"""ISAs that have kernels of their own in the engine alone, and whose ops they run."""
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    grid.thin(items)


def _extension() -> Any:
    from fastfer import _C

    return _C


@dataclass(frozen=True)
class Variant:
    """A CPU backend, and for the native one the ISA."""

    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend

    @property
    def lowered(self) -> torch.dtype:
        """What bfloat16 activations are kept in under autocast: float32 where the backend has no 16 bits."""
        return torch.bfloat16 if self.stores_half else torch.float32

    @property
    def stores_half(self) -> bool:
        """Whether activations in 16 bits stay so."""
        return self.backend in ("cuda-host", "reference")

    @contextmanager
    def active(self) -> Iterator[None]:
        with backend.use(self.backend):
            if self.isa is None:
                yield
                return
            extension = _extension()
            before = extension.isa()
            extension.set_isa(self.isa)
            try:
                yield
            finally:
                extension.set_isa(before)

    def opcheck(self, op: Any, arguments: tuple[Any, ...], test_utils: Sequence[str] = OPCHECKS) -> None:
        """`torch.library.opcheck`. Tracing and the autograd formula are the same on every backend, and nine tenths of
        its time: they are checked on one, schema and fake tensors on all."""
        first = forced_backend() or next(name for name in CPU_BACKENDS if backend.list_backends()[name].available)
        chosen = [name for name in test_utils if self.backend == first or name in ("test_schema", "test_faketensor")]
        torch.library.opcheck(op, arguments, test_utils=chosen)

    @contextmanager
    def runs(self, *kernels: str) -> Iterator[None]:
        """Asserts that inside exactly these native kernels run, all on this ISA; none for another backend."""
        before = native_calls()
        yield
        called = {key for key, count in native_calls().items() if count > before.get(key, 0)}
        expected = {(kernel, self.isa) for kernel in kernels} if self.backend == "native" else set()
        assert called == expected, f"kernels that ran: {sorted(called)}, expected: {sorted(expected)}"


def native_calls() -> dict[tuple[str, str], int]:
    """Calls by (kernel, ISA) so far; empty without the extension."""
    if not backend.list_backends()["native"].available:
        return {}
    return {(name, isa): n for name, calls in _extension().kernels().items() for isa, n in calls.items()}


def forced_backend() -> str | None:
    """The CPU backend that FASTFER_BACKEND forces; FASTFER_ISA alone forces the native one."""
    names = [name.strip() for name in os.environ.get("FASTFER_BACKEND", "auto").split(",")]
    forced = [name for name in names if name in CPU_BACKENDS]
    return forced[0] if forced else "native" if os.environ.get("FASTFER_ISA", "auto") != "auto" else None


def variants(every_isa: bool = True) -> list[Any]:
    """Parameters: each CPU backend, or the forced one; native for each ISA of this CPU, or the best or forced one."""
    forced, parameters = forced_backend(), []
    for name in CPU_BACKENDS if forced is None else (forced,):
        entry = backend.list_backends()[name]
        if not entry.available:
            skip = pytest.mark.skip(reason=f"backend {name}: {entry.reason}")
            parameters.append(pytest.param(Variant(name), id=name, marks=skip))
        elif name == "native":
            isa = os.environ.get("FASTFER_ISA", "auto")
            every = _extension().isas(True) if every_isa and isa == "auto" else [_extension().isa()]
            best = {OPS_OF.get(each, each): each for each in every}  # the same op kernels, see csrc/isa.inc
            every = [each for each in every if each in best.values()]
            parameters += [pytest.param(Variant(name, each), id=f"native-{each}") for each in every]
        else:
            parameters.append(pytest.param(Variant(name), id=name))
    return parameters


_HOST = [] if forced_backend() else [pytest.param(Variant("cuda-host"), id="cuda-host")]


@contextmanager
def _active(request: pytest.FixtureRequest) -> Iterator[Variant]:
    if request.param.backend != "cuda-host":
        with request.param.active():
            yield request.param
        return
    families = cuda_host.families()
    if not any(request.path.stem.startswith(f"test_{family}") for family in families):
        pytest.skip("no CUDA kernels for this family")
    with cuda_host.active(request.getfixturevalue("host_kernels"), families):
        yield request.param


@pytest.fixture(params=[*variants(), *_HOST])
def variant(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Every CPU backend, native on every ISA, and the CUDA kernels on the host machine, active during the test."""
    with _active(request) as active:
        yield active


@pytest.fixture(params=[*variants(every_isa=False), *_HOST])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Every CPU backend, native on its best ISA, and the CUDA kernels on the host machine, active during the test."""
    with _active(request) as active:
        yield active


@pytest.fixture(params=[p for p in variants() if p.values[0].backend != "reference"])
def kernel_variant(request: pytest.FixtureRequest) -> Iterator[Variant]:
    """Every CPU backend with kernels of its own, native on every ISA: those whose bits no number of threads changes."""
    with request.param.active():
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled during the tests is kept apart from what the user has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real faces: FASTFER_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("FASTFER_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"no real faces in {folder}: set FASTFER_TEST_DATA")
    return folder


@pytest.fixture
def one_thread(threads: None) -> None:
    """Small runs are fastest on one thread, and other tests keep theirs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training run of three epochs, not to be changed."""
    from train_runs import tiny

    from fastfer.train import train

    out = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(out))
    return out


@pytest.fixture(scope="session")
def host_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> cuda_host.HostLibrary:
    """Every CUDA kernel instance that ships, built for the host; kept in pytest's cache, where there is one."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("cuda_host") if cache else tmp_path_factory.mktemp("cuda")
    return cuda_host.HostLibrary(folder, sorted(cuda_host.CSRC.glob("*/cuda.cu")), cuda_host.FAMILIES)


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes folders of a name unreadable; root, who runs tests in containers, may read all that chmod forbids."""
    scandir = os.scandir

    def forbid(name: str) -> None:
        def refuse(path: object) -> object:
            if Path(str(path)).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)  # type: ignore[call-overload]

        monkeypatch.setattr("os.scandir", refuse)

    return forbid
