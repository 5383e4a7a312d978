# SPDX-License-Identifier: Apache-2.0
"""Files of stock networks with random weights, one of each layout, and what the tests of ImageNet starts share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stock_mobilenets import TimmV1, TorchvisionV3, keras_arrays, randomised, write_keras

from fastfer.models import FerModel, create_model, load_imagenet

PLAIN = {"attention": "none", "act": "relu"}
STOCK = {**PLAIN, "high_attention": "se", "halved": False}
KERAS = "keras_padding"


@pytest.fixture(scope="module")
def starts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def torchvision(starts_folder: Path) -> tuple[TorchvisionV3, Path]:
    torch.manual_seed(0)
    model, path = randomised(TorchvisionV3()), starts_folder / "v3.pth"
    torch.save(model.state_dict(), path)
    return model.double(), path


@pytest.fixture(scope="module")
def timm(starts_folder: Path) -> tuple[TimmV1, Path]:
    torch.manual_seed(1)
    model, path = randomised(TimmV1()), starts_folder / "timm.safetensors"
    save_file(model.state_dict(), path)
    return model.double(), path


@pytest.fixture(scope="module")
def keras(starts_folder: Path) -> tuple[dict[tuple[str, str], np.ndarray], Path]:
    pytest.importorskip("h5py")
    arrays = {(layer, name): array for layer, name, array in keras_arrays(np.random.default_rng(2))}
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    path = starts_folder / "mobilenet_1_0_224_tf_no_top.h5"
    write_keras(path, arrays)
    return arrays, path


def picture(channels: int = 3) -> torch.Tensor:
    return torch.randn(1, channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert float(want.abs().mean()) > 1e-3  # a comparison of zeros proves nothing
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


def started(name: str, path: Path, **options: object) -> FerModel:
    """In float64, so that only the file's own rounding is left."""
    model = create_model(name, **options).double().eval()
    load_imagenet(model, path)
    return model
