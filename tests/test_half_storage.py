# SPDX-License-Identifier: Apache-2.0
"""bfloat16 and float16 activations through the public ops, on the CUDA kernels of the host machine and on plain torch.

Activations and their gradients stay as they are, parameters, their gradients and statistics are float32: each op with
random arguments against float64 on the same values, by itself and under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from cuda_host import HostLibrary, active, families
from half_cases import assert_fakes_agree, compare, drawn, output_dtype
from properties import Row
from property_rows import ROWS
from torch import Tensor, nn

from fastfer import backend, ops
from fastfer._checks import ACTIVATIONS, HALF_DTYPES
from fastfer.backends.cuda.loader import DTYPES
from fastfer.models import create_model

BY_ROW = pytest.mark.parametrize("row", [r for r in ROWS if r.name not in ACTIVATIONS], ids=lambda row: row.name)
STORED = pytest.mark.parametrize("stored", HALF_DTYPES, ids=str)
SUMS = {"column_sums", "moments_finish", "sum_blocks"}
"""Kernels over partial sums, which are float32."""
LAYERS = {
    *("activation_fwd", "cbam_conv", "cbam_conv_weight", "moments", "norm_act", "norm_grad", "norm_sums"),
    *("gate_layers_weights", "pointwise_bwd_input", "pointwise_bwd_weight", "pointwise_fwd"),
}
"""Kernels of the layers between means and gates, which are float32, too."""
GATES = {"cbam", "channel_gate", "coordinate_attention", "scse", "spatial_gate", "squeeze_excite"}


Kernels = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def kernels(host_kernels: HostLibrary, one_thread: None) -> Kernels:
    """CPU tensors run on the CUDA kernels inside."""
    return lambda: active(host_kernels, families())


@pytest.fixture(params=["cuda-host", "reference"])
def stores(request: pytest.FixtureRequest, one_thread: None) -> Kernels:
    """CPU tensors run inside on a backend that takes activations in 16 bits."""
    if request.param == "reference":
        return lambda: backend.use("reference")
    kernels: Kernels = request.getfixturevalue("kernels")
    return kernels


def launched() -> set[str]:
    return set().union(*(backend.implementation(family, "cpu")._launch.launched for family in families()))


@BY_ROW
@STORED
def test_against_float64(stores: Kernels, row: Row, stored: torch.dtype) -> None:
    for seed in range(6):
        case, want = drawn(row, seed, stored)
        with stores():
            got = case.run(torch.float32, stored)
        compare(case, got, want, output_dtype(row, stored), stored)
        for name, grad in got.grads.items():
            assert grad.dtype == (stored if name in case.draw.stored else torch.float32), name


@BY_ROW
@STORED
def test_nothing_is_lifted(kernels: Kernels, row: Row, stored: torch.dtype) -> None:
    """Kernels over activations are those of the storage type, none runs in float32, too."""
    if row.name == "update_centers_":
        pytest.skip("in place on float32 centres")
    case, _ = drawn(row, 1, stored)
    with kernels():
        case.run(torch.float32, stored)
        names = launched()
    narrow, wide = (
        {name.partition("<")[0] for name in names if f"<{word}" in name} for word in (DTYPES[stored], "float")
    )
    assert narrow - LAYERS if row.name in GATES else narrow
    assert not narrow & wide - SUMS
    assert wide <= (SUMS | LAYERS if row.name in GATES else SUMS)


@BY_ROW
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(stores: Kernels, row: Row, source: torch.dtype) -> None:
    case, want = drawn(row, 2, torch.bfloat16)
    if row.name == "update_centers_":
        pytest.skip("takes no gradient and is no part of a network")
    with stores(), torch.autocast("cpu", torch.bfloat16):
        got = case.run(torch.float32, source)
    compare(case, got, want, output_dtype(row, source, torch.bfloat16), torch.bfloat16)
    for name, grad in got.grads.items():
        assert grad.dtype == (source if name in case.draw.stored else torch.float32), name


@BY_ROW
def test_fakes_have_the_same_types(stores: Kernels, row: Row) -> None:
    """Every op and gradient that runs gives, on fake tensors, results of the same shapes, strides and dtypes."""
    case, _ = drawn(row, 3, torch.bfloat16)
    with stores():
        assert_fakes_agree(lambda: case.run(torch.float32, torch.bfloat16))


def test_compile_under_autocast(stores: Kernels) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dw, pw = (torch.randn(s, generator=generator) for s in ((2, 3, 6, 5), (3, 1, 3, 3), (4, 3, 1, 1)))
    leaves = [x, dw.requires_grad_(), pw.requires_grad_()]

    def run(x: Tensor, dw: Tensor, pw: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = ops.separable_conv2d(x, dw, pw, act1="silu", padding=1)
            return ops.global_avg_pool(ops.max_pool2d(y, 2))

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        with stores():
            out = function(*leaves)
            assert out.dtype == torch.bfloat16
            results.append([out.detach(), *torch.autograd.grad(out.sum(), leaves[1:])])
    assert all(map(torch.equal, *results))


def test_a_network_under_autocast(kernels: Kernels) -> None:
    """Logits as in float32 but for rounding, gradients in float32, and no activation stored in it."""
    torch.manual_seed(0)
    model, x = create_model("fgw_fer").eval(), torch.randn(2, 1, 48, 48)
    want = model(x).detach()
    with kernels(), torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        wide = {name.partition("<")[0] for name in launched() if "<float" in name}
    assert logits.dtype == torch.bfloat16
    assert float((logits.detach() - want).norm()) < 0.05 * float(want.norm())
    assert wide <= SUMS | LAYERS
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32, name
        assert bool(p.grad.isfinite().all()), name


def test_every_family_takes_them(kernels: Kernels) -> None:
    with kernels():
        assert all(backend.implementation(family, "cpu").half_storage for family in backend.FAMILIES)
        assert backend.half_storage("cpu")
    assert not backend.half_storage("meta")
    for name, stored in (("reference", True), ("numba", False), ("native", False)):
        if backend.list_backends()[name].available:
            with backend.use(name):
                assert backend.half_storage("cpu") == stored


def test_parameters_are_float32(stores: Kernels) -> None:
    x, weight = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), torch.zeros(3, 2, 1, 1)
    norm = ops.Norm(*(torch.ones(2, dtype=torch.bfloat16) for _ in range(4)))
    q = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    with stores():
        assert ops.pointwise_conv2d(x, weight).dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"weight: expected dtype torch\.float32, in which x is computed, got"):
            ops.pointwise_conv2d(x, weight.bfloat16())
        with pytest.raises(TypeError, match=r"norm\.weight: expected dtype torch\.float32"):
            ops.batch_norm(x, norm)
        with pytest.raises(TypeError, match=r"k: expected dtype torch\.bfloat16 as q, got torch\.float32"):
            ops.dot_product_attention(q, q.float(), q)


def test_a_network_on_plain_torch_keeps_its_activations_in_16_bits(one_thread: None) -> None:
    """What backward keeps of a step is half of float32's but for parameters and statistics; gradients are near."""
    torch.manual_seed(0)
    model, x = create_model("fgw_fer").train(), torch.randn(8, 1, 48, 48)
    kept, gradients = [], []
    for half in (False, True):
        activations: dict[int, int] = {}

        def pack(t: Tensor, activations: dict[int, int] = activations) -> Tensor:
            if t.dim() == 4 and t.shape[0] == len(x):
                activations[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with backend.use("reference"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(x)
            gradients.append(torch.autograd.grad(logits.float().square().mean(), list(model.parameters())))
        kept.append(sum(activations.values()))
    assert 0.45 < kept[1] / kept[0] < 0.6
    assert all(g.dtype == torch.float32 for g in gradients[1])
    exact, rounded = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert float(torch.cosine_similarity(exact, rounded, 0)) > 0.98


def test_plain_torch_rounds_once_and_to_even() -> None:
    """A call is float32's on the same activations, its stored results rounded: no sum is of rounded terms."""
    case, _ = drawn(next(row for row in ROWS if row.name == "separable_conv2d"), 5, torch.bfloat16)
    with backend.use("reference"):
        got = case.run(torch.float32, torch.bfloat16)
        inference = case.run(torch.float32)
    assert torch.equal(got.outputs[0], inference.outputs[0].bfloat16())


def test_rounding_has_no_bias() -> None:
    """Signed errors of a block's output and of its gradients, over many values, are 0 within four standard errors."""
    torch.manual_seed(0)
    x, dw, pw = torch.randn(4, 16, 24, 24).bfloat16(), torch.randn(16, 1, 3, 3), torch.randn(32, 16, 1, 1)
    upstream = torch.randn(4, 32, 24, 24).bfloat16()
    results = []
    for dtype, stored in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        a, b, c = x.to(stored).requires_grad_(), dw.to(dtype).requires_grad_(), pw.to(dtype).requires_grad_()
        with backend.use("reference"):
            y = ops.separable_conv2d(a, b, c, padding=1, act1="silu")
            results.append([y.detach(), *torch.autograd.grad(y, (a, b, c), upstream.to(stored))])
    for want, got in zip(*results, strict=True):
        error = (got.double() - want).flatten() * want.flatten().sign() / want.norm() * want.numel() ** 0.5
        assert float(error.abs().mean()) > 0
        assert float(error.mean()) < 4 * float(error.std()) / error.numel() ** 0.5 + 1e-6
        assert float(error.mean()) > -4 * float(error.std()) / error.numel() ** 0.5 - 1e-6


def test_other_backends_refuse_them() -> None:
    other = next(name for name in ("native", "numba") if backend.list_backends()[name].available)
    with backend.use(other), pytest.raises(TypeError, match="expected dtype float32 or float64, got bfloat16"):
        ops.relu(torch.zeros(3, dtype=torch.bfloat16))
