# SPDX-License-Identifier: Apache-2.0
"""The two ways of calling an op: straight to the backend, and through torch's dispatcher when something listens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastfer
from fastfer import _library, ops


class Seen(TorchDispatchMode):
    """Names of the fastfer ops that a dispatch mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastfer":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def block(x: Tensor, dw: Tensor, pw: Tensor) -> Tensor:
    return ops.separable_conv2d(x, dw, pw, act1="relu", act2="silu", padding=1)


@pytest.fixture
def leaves() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g).requires_grad_() for s in ((2, 3, 5, 6), (3, 1, 3, 3), (4, 3, 1, 1))]


def test_both_ways_give_the_same_bits(leaves: list[Tensor]) -> None:
    assert _library._is_plain()
    direct = block(*leaves)
    with Seen() as seen:
        assert not _library._is_plain()
        dispatched = block(*leaves)
        dispatched_grads = torch.autograd.grad(dispatched.sum(), leaves)
    assert seen.names == ["fastfer::separable_conv2d_train", "fastfer::separable_conv2d_backward"]
    assert torch.equal(direct, dispatched)
    assert all(map(torch.equal, torch.autograd.grad(direct.sum(), leaves), dispatched_grads))


def test_plain_calls_skip_the_dispatcher(leaves: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("went through the dispatcher")

    for op in (ops.separable_conv._separable, ops.separable_conv._separable_train):
        monkeypatch.setattr(op, "registered", refuse)
    block(*leaves).sum().backward()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            block(*leaves)


def test_dispatched_calls_are_this_threads_alone(leaves: list[Tensor]) -> None:
    """Blocks that overlap in two threads, each leaving while the other is inside."""
    barrier, plain, seen = threading.Barrier(2, timeout=30), [], []

    def other() -> None:
        barrier.wait()  # the first is inside
        plain.append(_library._is_plain())
        with _library.dispatched():
            barrier.wait()
            barrier.wait()  # the first has left
            with Seen() as names:
                block(*leaves)
            seen.append(names.names)
        plain.append(_library._is_plain())

    thread = threading.Thread(target=other)
    thread.start()
    with _library.dispatched():
        assert not _library._is_plain()
        barrier.wait()
        barrier.wait()
    assert _library._is_plain()
    barrier.wait()
    thread.join()
    assert plain == [True, True]
    assert seen == [["fastfer::separable_conv2d_train"]]


def test_engines_compiled_in_several_threads_leave_the_ops_and_the_model_as_they_were() -> None:
    model = fastfer.create_model("fgw_fer").train()
    own = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout(0.5)).train()

    def work(_: int) -> None:
        for _ in range(3):
            fastfer.compile(model, threads=1)
            fastfer.compile(own, (1, 8, 8), threads=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert all(module.training for net in (model, own) for module in net.modules())
    exported = torch.export.export(model.eval(), (torch.zeros(2, 1, 48, 48),), strict=False)
    assert not [node.name for node in exported.graph.nodes if "fastfer" in str(node.target)]


@pytest.mark.parametrize(
    "name",
    ["fgw_fer", *(pytest.param(name, marks=pytest.mark.full) for name in fastfer.list_models() if name != "fgw_fer")],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_networks_are_traced_by_torch_jit_with_gradients_on(name: str) -> None:
    """Its check traces a second time, without gradients; the traced network has the gradients of the first."""
    size = {"patt_lite": 224, "vgg16_csa": 64, "mobilenetv3_cpsca": 64}.get(name, 48)
    torch.manual_seed(0)
    model = fastfer.create_model(name).eval()
    x, other = torch.randn(2, model.in_chans, size, size), torch.randn(3, model.in_chans, size, size)
    traced = torch.jit.trace(model, x)
    for images in (x, other):
        assert torch.equal(traced(images), model(images))
    weight = next(model.parameters())
    want = torch.autograd.grad(model(other).sum(), weight)
    torch.testing.assert_close(torch.autograd.grad(traced(other).sum(), weight), want)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(other), model(other))


@pytest.mark.parametrize("name", fastfer.list_models())
def test_symbolic_traces_of_networks_are_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=r"got Proxy of torch\.fx\.symbolic_trace, .*: torch\.export traces"):
        torch.fx.symbolic_trace(fastfer.create_model(name).eval())


def test_vmap_autocast_and_the_profiler_see_the_op(leaves: list[Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert not _library._is_plain()
        assert block(leaves[0].bfloat16(), *leaves[1:]).dtype == torch.float32
    with torch.profiler.profile() as profile:
        block(*leaves)
    assert any("separable_conv2d_train" in event.key for event in profile.key_averages())
    seen: list[bool] = []
    torch.vmap(lambda x: seen.append(_library._is_plain()) or x)(leaves[0])
    assert seen == [False]


def test_subclasses_and_meta_tensors_go_through_the_dispatcher(leaves: list[Tensor]) -> None:
    meta = [leaf.detach().to("meta") for leaf in leaves]
    assert block(*meta).shape == (2, 4, 5, 6)
    assert block(*(leaf.clone().requires_grad_() for leaf in meta)).requires_grad
    mode = torch._subclasses.FakeTensorMode()
    fakes = [mode.from_tensor(leaf.detach()) for leaf in leaves]
    fake = block(*fakes)  # outside of the mode: the tensors' type decides
    assert type(fake) is torch._subclasses.FakeTensor
    assert fake.shape == (2, 4, 5, 6)


def test_the_gradient_of_a_gradient_is_an_error(leaves: list[Tensor]) -> None:
    (dx,) = torch.autograd.grad(block(*leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()


def test_running_statistics_are_marked_as_changed() -> None:
    """Their version counts, as after torch's in-place update: a graph that saved them notices."""
    x, mean, var = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    norm = ops.Norm(torch.ones(3), torch.zeros(3), mean, var)
    before = mean._version, var._version
    ops.batch_norm(x, norm, training=True)
    assert (mean._version, var._version) > before
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2, 3)))
