# SPDX-License-Identifier: Apache-2.0
"""The CUDA families on a GPU, for each loader that is available: nvcc's kernels and CuPy's."""

from __future__ import annotations

import importlib
import subprocess
import sys

import cuda_cases
import pytest
import torch
from cuda_host import families
from cuda_types import CASES, Check
from flat import Flat
from torch import Tensor

import fastfer
from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda import loader
from fastfer.backends.cuda.loader import Bound

SILU = ACTIVATIONS.index("silu")
LOADERS = ("cuda", "cupy")

if not torch.cuda.is_available():
    pytest.skip(f"torch {torch.__version__} sees no CUDA device", allow_module_level=True)


def need(name: str) -> None:
    available, reason = loader.availability(name)
    if not available:
        pytest.skip(reason)


@pytest.fixture(params=LOADERS)
def name(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


def bound(name: str) -> Bound:
    functions = loader.implementation(name, "elementwise")
    assert functions is not None
    return functions


@pytest.fixture
def family(name: str) -> Flat:
    return Flat(bound(name))


@pytest.mark.parametrize("family_name", families())
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_family(name: str, family_name: str, dtype: torch.dtype) -> None:
    CASES[family_name](Check(bound(name)._launch, family_name, dtype, "cuda"))


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_sizes(family: Flat, dtype: torch.dtype, act: int) -> None:
    cuda_cases.check_sizes(family, dtype, act, "cuda")


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_special_values(family: Flat, dtype: torch.dtype, act: int) -> None:
    cuda_cases.check_special(family, dtype, act, "cuda")


@pytest.mark.parametrize("dtype", cuda_cases.TYPES, ids=str)
def test_layouts(family: Flat, dtype: torch.dtype) -> None:
    cuda_cases.check_layouts(family, dtype, "cuda")


def test_writes_stay_inside(family: Flat) -> None:
    cuda_cases.check_guard(family._module._launch, "cuda")


def test_more_than_one_round_of_the_grid(family: Flat) -> None:
    cuda_cases.check(family, cuda_cases.random((30_000_001,), torch.float32, "cuda"), SILU)


def test_more_than_2_to_the_31_elements(family: Flat) -> None:
    n = 2**31 + 9
    if torch.cuda.mem_get_info()[0] < 6 * n:
        pytest.skip("less than 13 GB of device memory is free")
    x = torch.ones(n, dtype=torch.bfloat16, device="cuda")
    x[-9:] = -2
    y = family.activation(x, ACTIVATIONS.index("relu"))
    assert not y[-9:].any()
    assert bool(y[:-9].all())


def test_runs_on_the_current_stream(family: Flat) -> None:
    """The op must wait for a slow fill on the same stream, and for nothing on another."""
    x = torch.zeros(1 << 16, device="cuda")
    family.activation(x, SILU)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(2.0)
        y = family.activation(x, ACTIVATIONS.index("relu"))
        assert not side.query(), "the call waited for the device"
    side.synchronize()
    assert torch.equal(y, torch.full_like(y, 2.0))


def test_captures_into_a_graph(family: Flat) -> None:
    x = torch.randn(3, 5, 7, device="cuda")
    dy = torch.randn_like(x)
    family.activation(x, SILU), family.activation_backward(dy, x, SILU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, dx = family.activation(x, SILU), family.activation_backward(dy, x, SILU)
    x.normal_()
    graph.replay()
    want_y, want_dx = cuda_cases.expected(x, dy, SILU)
    cuda_cases.close(y, want_y, scale=4.0)
    cuda_cases.close(dx, want_dx, scale=8.0)


@pytest.mark.parametrize("act", cuda_cases.CODES, ids=ACTIVATIONS)
def test_loaders_agree(act: int) -> None:
    """Within 2 eps: the same source, except that CuPy flushes float32 denormals."""
    need("cuda")
    need("cupy")
    nvcc, cupy = (Flat(bound(name)) for name in LOADERS)
    for dtype in cuda_cases.TYPES:
        x = cuda_cases.random((4099,), dtype, "cuda")
        dy = torch.randn_like(x)
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(torch.float32).tiny
        for a, b in (
            (nvcc.activation(x, act), cupy.activation(x, act)),
            (nvcc.activation_backward(dy, x, act), cupy.activation_backward(dy, x, act)),
        ):
            torch.testing.assert_close(a, b, rtol=2 * eps, atol=tiny)


def test_public_function_runs_on_the_backend_asked_for(name: str) -> None:
    with fastfer.use(name):
        assert fastfer.backend.plan("cuda")["elementwise"] == name
        x = torch.randn(2, 3, 5, 7, device="cuda", dtype=torch.float64, requires_grad=True)
        for act in ACTIVATIONS[1:]:
            assert torch.autograd.gradcheck(lambda t, act=act: fastfer.ops.activation(t, act), x)


def test_opcheck(name: str) -> None:
    with fastfer.use(name):
        for x in (torch.randn(2, 3, 4, 5, device="cuda"), torch.randn(7, device="cuda")[1:]):
            torch.library.opcheck(torch.ops.fastfer.activation.default, (x.requires_grad_(), SILU))
            torch.library.opcheck(torch.ops.fastfer.activation_backward.default, (x.detach(), x.detach(), SILU))


def test_second_device_while_the_first_is_current(family: Flat) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    cuda_cases.check(family, cuda_cases.random((1025,), torch.float32, "cuda:1"), SILU)
    assert torch.cuda.current_device() == 0


def test_a_wrong_label_ends_the_launch(name: str) -> None:
    """In a process of its own: an error on the device is the end of its CUDA context, and of every test after it."""
    lines = (
        "import torch, fastfer",
        f"fastfer.use({name!r})",
        "labels = torch.tensor([0, 7], device='cuda')",
        "fastfer.ops.cross_entropy(torch.zeros(2, 7, device='cuda'), labels)",
        "torch.cuda.synchronize()",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "CUDA error" in done.stderr


class Foreign:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: object) -> object:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> object:
        return self._tensor.__dlpack_device__()


def test_arrays() -> None:
    need("cupy")
    cupy = importlib.import_module("cupy")
    arrays = importlib.import_module("fastfer.arrays")
    x = torch.randn(4, 6, 5, device="cuda")
    dy = torch.randn_like(x)
    want_y, want_dx = cuda_cases.expected(x, dy, SILU)
    for wrap in (cupy.from_dlpack, Foreign):
        y, (dx,) = arrays.activation(wrap(x), "silu"), arrays.gradients("activation", wrap(dy), wrap(x), "silu")
        assert type(y) is type(dx) is cupy.ndarray
        cuda_cases.close(torch.from_dlpack(y), want_y, scale=4.0)
        cuda_cases.close(torch.from_dlpack(dx), want_dx, scale=8.0)
    sliced = arrays.activation(cupy.from_dlpack(x)[:, ::2].transpose(2, 0, 1), "silu")
    cuda_cases.close(torch.from_dlpack(sliced), want_y[:, ::2].permute(2, 0, 1), scale=4.0)
    assert arrays.activation(cupy.empty((0, 3), dtype="float64"), "relu").shape == (0, 3)
    with pytest.raises(TypeError, match=r"expected a torch\.Tensor, got list"):
        arrays.activation([1.0], "relu")
    with pytest.raises(ValueError, match="dout: expected"):
        arrays.gradients("activation", cupy.zeros(3, dtype="float32"), cupy.zeros(4, dtype="float32"), "relu")
