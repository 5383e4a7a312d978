# SPDX-License-Identifier: Apache-2.0
"""Networks as people write them: engines of them answer as the network does, at any batch, or are refused by name."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from user_networks import NETWORKS, Heads, Net

import fastfer
from fastfer import runtime
from fastfer.engine.islands import Islands

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


ISLANDS: dict[str, str] = {
    "gather": "aten.gather", "embedding of the input": "aten.remainder", "float64 result": "",
    "unpool": "aten.max_pool2d", "pool with indices": "aten.max_pool2d", "batch of a half": "",
    "a constant": "", "half way": "aten.to", "write by mask": "aten.index_put", "write a corner": "aten.slice_scatter",
    "write a channel": "aten.select_scatter", "mean by number of images": "aten.div", "batch statistics": "aten.sum",
    "made for the batch": "aten.arange", "times len": "aten.mul", "conjugates": "aten.fft_rfft",
    "by loop": "aten.cat",
}  # fmt: skip
"""Networks of which a plan does not run everything, and the op that it does not."""


def same(got: Any, want: Any, exact: bool = False) -> None:
    """Alike in kind and value, nested."""
    if isinstance(want, Tensor):
        got = torch.from_numpy(got) if isinstance(got, np.ndarray) else got
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        floats = want.is_floating_point()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()) + 1e-6 if floats else 0)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            same(got[key], want[key])
    elif isinstance(want, (tuple, list)):
        kind = type(want) if type(want) in (tuple, list, Heads) else tuple
        assert isinstance(got, kind)
        assert len(got) == len(want)
        for ours, theirs in zip(got, want, strict=True):
            same(ours, theirs)
    else:
        assert type(got) is type(want)
        assert got == want


def settled(function: Callable[[Any, Tensor], Any]) -> tuple[Net, Tensor]:
    net, x = Net(function), torch.randn(5, 2, 8, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.train().bn(net.conv(x))
    return net.eval(), x


def answers(net: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return copy.deepcopy(net)(x.clone())


QUICK = (
    "index", "where", "float64 buffer", "maxima and indices", "none and numbers", "number of images", "dict",
    "named tuple", "a list", "float over 255", "write a channel", "autocast off", "gradients", "a counter",
    "mean by number of images", "flattened over the batch", "times len", "len", "chunks", "the same twice",
)  # fmt: skip
"""Networks of the default run: one a mechanism."""


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in NETWORKS])
def test_networks_of_users(name: str) -> None:
    net, x = settled(NETWORKS[name])
    engine = fastfer.compile(net, x.shape, fallback="torch", threads=1)
    assert isinstance(engine, Islands) == (name in ISLANDS), getattr(engine, "islands", "no islands")
    if isinstance(engine, Islands):
        assert any(island.startswith(ISLANDS[name]) for island in engine.islands) or not ISLANDS[name]
    for images in (x, x[:1], x[:2], x[:3]):
        before = images.clone()
        same(engine(images), answers(net, images))
        same(engine(images.numpy()), answers(net, images))
        assert torch.equal(images, before)
    assert int(net.calls) == 0


@pytest.mark.parametrize("name", ["dict", "named tuple", "number of images", "none and numbers", "the same twice"])
def test_structures_in_copies_and_files(name: str, tmp_path: Path) -> None:
    net, x = settled(NETWORKS[name])
    engine, want = fastfer.compile(net, x.shape, fallback="torch"), answers(net, x)
    same(copy.deepcopy(engine)(x), want)
    same(pickle.loads(pickle.dumps(engine))(x), want)
    if isinstance(engine, Islands):
        return
    engine.save(tmp_path / "m.ffe")
    again = runtime.load(tmp_path / "m.ffe")(x)
    if name == "named tuple":
        assert (type(again).__name__, again._fields) == ("Heads", Heads._fields)
        want = tuple(want)
    same(again, want)


@pytest.mark.parametrize("name", ["gather", "batch of a half", "conjugates", "write by mask"])
def test_islands_in_copies(name: str) -> None:
    net, x = settled(NETWORKS[name])
    engine = fastfer.compile(net, x.shape, fallback="torch", threads=1)
    assert isinstance(engine, Islands)
    for again in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert (again.islands, again.threads) == (engine.islands, 1)
        same(again(x), answers(net, x))


def test_a_local_named_tuple_is_kept_where_it_can_be() -> None:
    local = namedtuple("local", "a b")
    net, x = settled(lambda net, x: local(x, x.mean((2, 3))))
    engine = fastfer.compile(net, x.shape)
    assert type(engine(x)) is local
    again = pickle.loads(pickle.dumps(engine))(x)
    assert (type(again).__name__, again._fields) == ("local", ("a", "b"))


def test_an_autocast_region_computes_as_torch_does() -> None:
    def region(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = net.head(x.mean((2, 3)))
        return y.float()

    net, x = settled(region)
    engine = fastfer.compile(net, x.shape, fallback="torch")
    for images in (x, x[:1]):
        torch.testing.assert_close(engine(images), answers(net, images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_another_precision(dtype: torch.dtype) -> None:
    net, x = settled(lambda net, x: net.head(F.gelu(x).mean((2, 3))))
    engine = fastfer.compile(copy.deepcopy(net).to(dtype), x.shape, fallback="torch")
    torch.testing.assert_close(engine(x), answers(net, x), rtol=0, atol=0.03 if dtype == torch.bfloat16 else 1e-4)


class Named(nn.Module):
    """Attributes that a fastfer model has with another meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.options, self.class_names = object(), {"of": {1, 2}}, {0: "a", 1: "b"}
        self.in_chans, self.input_size = "many", None
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def test_attributes_with_names_of_ours() -> None:
    model, x = Named().eval(), torch.randn(2, 1, 6, 6)
    engine = fastfer.compile(model, x)
    assert (engine.metadata["model"], engine.metadata["options"], engine.class_names) == ("Named", None, None)
    same(engine(x), answers(model, x))
    assert fastfer.compile(model, x, class_names=["a", "b"]).class_names == ("a", "b")


def fixed(net: Any, x: Tensor) -> Tensor:
    return x.view(2, -1) if x.shape[0] == 2 else x.flatten(1) * 3


def stateful(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return x * net.calls


def dataclass_output(net: Any, x: Tensor) -> Any:
    return {"a": {x.shape[1]: object()}}


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a list of calls": (lambda net, x: sum(x[i : i + 1] for i in range(len(x))), "number of images, got the list"),
    "a constant of the batch": (lambda net, x: x + torch.tensor(float(len(x))), "any number of images, got a constant"),
    "its own batch": (fixed, "model: expected"),
    "state": (stateful, "outputs do not depend on what it writes to its buffers, got buffer calls"),
    "an object": (dataclass_output, "model: expected"),
    "a value": (lambda net, x: x * net.fine[0].item(), "model: expected no number that is read out of a tensor"),
    "control flow": (lambda net, x: x if x.mean() > 0 else -x, "expected one that torch.export traces, got"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("fallback", ["error", pytest.param("torch", marks=pytest.mark.full)])
def test_what_is_not_the_same_at_any_batch_or_call_is_refused(name: str, fallback: str) -> None:
    function, message = REFUSED[name]
    net, x = settled(function)
    with pytest.raises(ValueError, match=message):
        fastfer.compile(net, x.shape, fallback=fallback)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean by number of images", r"aten\.div: a calculation with the number of images"),
        ("made for the batch", r"aten\.arange: a calculation with the number of images"),
        ("gather", r"aten\.gather: no such op"),
        ("half way", r"aten\.to: a conversion to torch\.bfloat16"),
        ("a constant", r"output: expected a tensor of each image, got a constant of shape \(6,\)"),
        ("write a corner", r"compile: aten\.slice_scatter: no such op"),
        ("times len", r"aten\.mul: a calculation with the number of images"),
        ("float64 result", r"output: expected dtype float32, got torch\.float64"),
    ],
)
def test_without_a_fallback_they_are_refused_by_name(name: str, message: str) -> None:
    net, x = settled(NETWORKS[name])
    with pytest.raises(fastfer.engine.UncoveredError, match=message):
        fastfer.compile(net, x.shape)


def test_random_numbers_are_drawn_anew() -> None:
    net, x = settled(lambda net, x: x.mean((2, 3)) + torch.rand(6))
    with pytest.raises(fastfer.engine.UncoveredError, match=r"aten\.rand: a tensor of random numbers"):
        fastfer.compile(net, x.shape)
    engine = fastfer.compile(net, x.shape, fallback="torch")
    torch.manual_seed(3)
    first, second = engine(x), engine(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    torch.testing.assert_close(engine(x), first)


@pytest.mark.parametrize(
    "structure",
    [
        3, [], ["tensor"], ["tensor", 1], ["tensor", -1], ["tensor", True], ["tuple", 3], ["images", 1.5], ["code", 0],
        ["dict", [[[], 0]]], ["named", "class", ["a"], [["tensor", 0]]], ["value", [1]],
        ["named", "a", ["a", "a"], [["tensor", 0]] * 2], ["named", "a", ["__import__('os')"], [["tensor", 0]]],
        ["named", "a", ["_b"], [["tensor", 0]]],
    ],
)  # fmt: skip
def test_hostile_structures(structure: Any) -> None:
    from fastfer.engine.outputs import checked

    deep: Any = ["tensor", 0]
    for _ in range(5000):
        deep = ["tuple", [deep]]
    for bad in (structure, deep):
        with pytest.raises(ValueError, match="structure: expected one of 1 tensors, got"):
            checked(bad, 1)
