# SPDX-License-Identifier: Apache-2.0
"""Every variant's number of parameters, the project's own golden numbers, and export."""

from __future__ import annotations

import warnings

import golden_files
import numpy as np
import pytest
import torch
from variants import VARIANTS

import fastfer
from fastfer.models import create_model, list_models

RUNNING = {
    "fgw_fer": 2_216,
    "sepconv_attention": 896,
    "vgg16_csa": 8_448,
    "patt_lite": 9_664,
    "mobilenetv3_cpsca": 19_326,
}


@pytest.fixture(params=["native", "numba"])
def cpu_backend(request: pytest.FixtureRequest):
    entry = fastfer.list_backends()[request.param]
    if not entry.available:
        pytest.skip(f"backend {entry.name}: {entry.reason}")
    with fastfer.use(entry.name):
        yield entry.name


@pytest.mark.parametrize(("name", "options", "parameters"), VARIANTS)
def test_parameters(name: str, options: dict, parameters: int) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # patt_lite's published attention
        model = create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.head.weight.shape[0] == options.get("num_classes", 7)
    assert {key: model.options[key] for key in options} == options


@pytest.mark.parametrize("name", list_models())
def test_running_statistics(name: str) -> None:
    buffers = create_model(name).named_buffers()
    assert sum(b.numel() for key, b in buffers if not key.endswith("num_batches_tracked")) == RUNNING[name]


def same(got: np.ndarray, want: np.ndarray, error: float, message: str) -> None:
    np.testing.assert_allclose(got, want, rtol=error, atol=error * np.abs(want).max(), err_msg=message)


@pytest.mark.parametrize("name", list_models())
def test_own_golden_numbers(name: str, cpu_backend: str) -> None:
    golden = np.load(golden_files.NETWORKS)
    got = golden_files.network_arrays(name)
    assert {key for key in golden.files if key.startswith(f"{name}/")} == got.keys()
    for key, value in got.items():
        # torch's gradient of hard-sigmoid, in the reference that made the file, has 1/6 in float32.
        same(value, golden[key], 1e-7 if key.endswith("gradients") else 1e-9, key)
    assert golden_files.NETWORKS.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("name", "options"), golden_files.PINNED, ids=[golden_files.label(*row) for row in golden_files.PINNED]
)
def test_own_golden_variants(name: str, options: dict) -> None:
    want = np.load(golden_files.NETWORKS)[golden_files.label(name, options)]
    assert np.abs(want[0] - want[1]).max() > 1e-6 * np.abs(want).max()
    together, alone = golden_files.variant_logits(name, options)
    same(together, want, 1e-9, name)
    same(alone, want[:1], 1e-9, "an image without the other")


@pytest.mark.parametrize("name", list_models())
def test_export(name: str) -> None:
    """One graph for every batch size, in evaluation, whose logits are the network's."""
    torch.manual_seed(0)
    model = golden_files.numbered(name)
    x = golden_files.pictures(model, 3)
    with torch.no_grad():
        program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
        for batch in (x, x[:1]):
            same(program.module()(batch).numpy(), model(batch).numpy(), 1e-9, name)
