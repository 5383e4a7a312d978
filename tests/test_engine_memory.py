# SPDX-License-Identifier: Apache-2.0
"""What engines read and write is real memory of the right kind, whatever torch's globals and a tensor's state are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import close, logits, network
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import fastfer
from fastfer import _environment, runtime

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


class Mixed(nn.Module):
    """A GELU that no plan has, and a tensor made in forward, which torch would give its default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, stride=4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv(x))
        return self.head((y + torch.full((1, 1, 1, 1), 0.5)).mean((2, 3)))


@pytest.fixture(scope="module", params=["plan", "islands"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, runtime.Engine]:
    if request.param == "plan":
        model, x = network()
    else:
        torch.manual_seed(0)
        model, x = Mixed().eval(), torch.randn(3, 1, 48, 48)
    return model, x, fastfer.compile(model, x, mean=[0.5], std=[0.25], threads=1, fallback="torch")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


GLOBALS: list[Callable[[], Any]] = [
    lambda: default_dtype(torch.float64),
    lambda: default_dtype(torch.float16),
    lambda: default_dtype(torch.bfloat16),
    lambda: default_device("meta"),
    lambda: torch.device("meta"),
    lambda: torch.autocast("cpu", torch.bfloat16),
    torch.inference_mode,
    torch.enable_grad,
]


@pytest.mark.parametrize("around", GLOBALS)
def test_torchs_globals_change_nothing(around: Callable[[], Any], case: Any) -> None:
    _, x, engine = case
    pixels = (x * 40 + 128).clamp(0, 255).byte()
    want, from_pixels = engine(x), engine(pixels)
    with around():
        got, got_from_pixels = engine(x), engine(pixels)
    assert (got.dtype, got.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(got_from_pixels, from_pixels, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_default_dtype_around_compile(dtype: torch.dtype) -> None:
    model, x = network()
    want = fastfer.compile(model, x, threads=1)(x)
    with default_dtype(dtype):
        torch.testing.assert_close(fastfer.compile(model, x, threads=1)(x), want, rtol=0, atol=0)


class Kept(Tensor):
    """A subclass whose tensors have memory."""


def lazily_negated(x: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(x), -x).conj().imag


SAME: dict[str, Callable[[Tensor], Any]] = {
    "negative bit": lazily_negated,
    "subclass": lambda x: x.as_subclass(Kept),
    "parameter": nn.Parameter,
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "reversed strides": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "offset": lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape),
    "big endian": lambda x: x.numpy().astype(">f4"),
    "little endian": lambda x: x.numpy().astype("<f4"),
    "reversed array": lambda x: x.numpy()[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1],
    "unaligned": lambda x: np.frombuffer(b"." + x.numpy().tobytes(), np.float32, offset=1).reshape(x.shape),
    "read only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "array subclass": lambda x: x.numpy().view(np.memmap),
}


@pytest.mark.parametrize("form", SAME)
def test_the_same_numbers_in_other_forms(form: str, case: Any) -> None:
    _, x, engine = case
    x = x[:1].expand(x.shape).clone() if form == "expanded" else x
    got = engine(SAME[form](x))
    np.testing.assert_array_equal(np.asarray(got), engine(x).numpy())
    assert type(got) in (Tensor, np.ndarray)


def freed(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def shortened(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.channels_last)
    x.untyped_storage().resize_(x.untyped_storage().nbytes() - 4)
    return x


def masked(x: Tensor) -> Any:
    return np.ma.masked_array(x.numpy(), x.numpy() > 0)


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "freed": (freed, "expected a tensor whose storage holds its elements, got 0 bytes for Tensor of shape"),
    "shortened": (shortened, r"expected a tensor whose storage holds its elements, got \d+ bytes"),
    "fake": (lambda x: FakeTensorMode().from_tensor(x), "expected a dense tensor with memory, got FakeTensor of shape"),
    "meta": (lambda x: x.to("meta"), "expected a tensor on the CPU, got one on meta"),
    "sparse": (lambda x: x.to_sparse(), "expected a dense tensor with memory, got Tensor of shape .* sparse_coo"),
    "zero": (lambda x: torch._efficientzerotensor(tuple(x.shape)), "expected a dense tensor with memory"),
    "nested": (
        lambda x: torch.nested.nested_tensor(list(x)),
        "expected a dense tensor with memory, got Tensor without one shape",
    ),
    "functional": (torch._to_functional_tensor, "expected a dense tensor with memory"),
    "masked array": (masked, r"expected a numpy\.ndarray or a torch\.Tensor, got MaskedArray"),
    "complex": (lambda x: torch.complex(x, x), "expected dtype float32 or uint8, got complex64"),
    "objects": (lambda x: x.numpy().astype(object), "expected dtype float32 or uint8, got object"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_tensors_without_memory_are_refused(form: str, case: Any) -> None:
    _, x, engine = case
    make, message = REFUSED[form]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = make(x)
    with pytest.raises((TypeError, ValueError), match=message):
        engine(bad)


def test_calls_under_torch_func_are_refused(case: Any) -> None:
    _, x, engine = case
    for call in (lambda: torch.vmap(engine)(x[None]), lambda: torch.func.grad(lambda t: engine(t).sum())(x)):
        with pytest.raises(TypeError, match="engine: x: expected a dense tensor with memory"):
            call()


def test_a_mode_whose_tensors_have_no_memory(case: Any) -> None:
    _, x, engine = case
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="modes whose tensors have no"):
        engine(x)


def test_the_engine_keeps_its_own_bytes(tmp_path: Path) -> None:
    model, x = network()
    engine = fastfer.compile(model, x, threads=1)
    engine.save(tmp_path / "one.ffe")
    for form in (bytearray, lambda data: memoryview(bytearray(data))):
        data = form((tmp_path / "one.ffe").read_bytes())
        again = runtime.Engine(data, threads=1)
        data[:] = bytes(len(data))
        again.save(tmp_path / "two.ffe")
        close(runtime.load(tmp_path / "two.ffe")(x), logits(model, x))


def test_a_profile_is_of_one_image(case: Any) -> None:
    _, x, engine = case
    if hasattr(engine, "islands"):
        return
    assert engine.profile(x[:1], repeats=1).steps
    assert engine.profile(x[:1].numpy().astype(">f4"), repeats=1).steps
    for bad, message in (
        (x[:0], r"profile: x: expected one image \(1, C, H, W\), got shape \(0, 1, 48, 48\)"),
        (x, "profile: x: expected one image"),
        (freed(x[:1]), "profile: x: expected a tensor whose storage"),
        (x[:1].bfloat16(), "profile: x: expected dtype float32 or uint8, got bfloat16"),
        (x[:1].double(), "expected dtype float32 or uint8, got float64"),
        ("face", "profile: x: expected a numpy"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            engine.profile(bad, repeats=1)
    for repeats in (0, 1.5):
        with pytest.raises(ValueError, match="repeats: expected an int >= 1"):
            engine.profile(x[:1], repeats=repeats)


@pytest.mark.parametrize("threads", [2000, 1 << 40, -1, True, 1.0])
def test_threads_that_are_refused(threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = network()
    with pytest.raises(ValueError, match=rf"engine: threads: expected an int of 1 to \d+, got {threads}"):
        fastfer.compile(model, threads=threads)
    monkeypatch.setenv("FASTFER_NUM_THREADS", str(threads))
    with pytest.raises(ValueError, match=r"FASTFER_NUM_THREADS: expected an integer of 1 to \d+, got"):
        runtime.default_threads()


def test_as_many_threads_as_are_allowed_answer() -> None:
    model, x = network()
    engine = fastfer.compile(model, x, threads=_environment.most_threads())
    close(engine(x), logits(model, x))
    close(engine(x[:1]), logits(model, x)[:1])


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFER_NUM_THREADS", "")
    assert runtime.default_threads() == torch.get_num_threads()


@pytest.mark.parametrize("form", ["meta", "freed", "fake"])
def test_models_without_memory_are_refused(form: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    make = {"meta": lambda t: t.to("meta"), "freed": freed, "fake": FakeTensorMode().from_tensor}[form]
    model[0].weight = nn.Parameter(make(model[0].weight.detach()))
    with pytest.raises((TypeError, ValueError), match=r"compile: 0\.weight: expected"):
        fastfer.compile(model, (1, 8, 8))
    lazy = nn.Sequential(nn.LazyConv2d(3, 3))
    with pytest.raises(TypeError, match=r"compile: 0\.weight: expected a dense tensor with memory, got Uninit"):
        fastfer.compile(lazy, (1, 8, 8))
