# SPDX-License-Identifier: Apache-2.0
"""Files whose reshapes hold the number of images, as shapes of the input or as numbers, serve any number of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastfer
from fastfer.engine import UncoveredError
from fastfer.engine.onnx_shape import of_images
from tests import onnx_files
from tests.onnx_files import model, node, written

pytest.importorskip("onnxruntime")


class _Stem(nn.Module):
    """Patches of an image as maps of 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)


class _Attention(_Stem):
    """Tokens first, then images, as torch's own attention has them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).permute(2, 0, 1)
        y: Tensor = self.attention(tokens, tokens, tokens)[0].mean(0)
        return y


class _Encoder(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.stem(x).flatten(2).transpose(1, 2)).mean(1)
        return y


class _ClassToken(_Stem):
    """A ViT: a token beside those of the image, and q, k, v of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        n, count, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(n, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return (tokens + y.transpose(1, 2).reshape(n, count, width))[:, 0]


class _Windows(_Stem):
    """A Swin block: attention in windows, which are images of their own, of an image that is rolled."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        n, h, w, c = y.shape
        windows = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
        count = windows.shape[0]
        q, k, v = self.qkv(windows).reshape(count, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = (torch.softmax(q @ k.transpose(-2, -1), -1) @ v).transpose(1, 2).reshape(count, 4, c)
        y = y.view(-1, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h, w, c)
        return torch.roll(y, (1, 1), (1, 2)).mean((1, 2))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "attention": _Attention,
    "encoder": _Encoder,
    "class token": _ClassToken,
    "windows": _Windows,
}


def _check(name: str, images: int | None, dynamo: bool, path: Path) -> None:
    """Export for a number of images, or any, and compare for others."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    sample = torch.zeros(images or 2, 3, 16, 16)
    free = {} if images else {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
    if dynamo:
        free = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if not images else {}  # type: ignore[dict-item]
        free |= {"external_data": False, "verbose": False}  # type: ignore[dict-item]
    else:
        free |= {"opset_version": 17}  # type: ignore[dict-item]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (sample,),
            str(path),
            dynamo=dynamo,
            input_names=["x"],
            output_names=["y"],
            **free,  # type: ignore[arg-type]
        )
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(fastfer.compile(path)(x), network(x).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("images", [None, 1, 2, 3])
@pytest.mark.parametrize("name", ["attention", "class token", "windows"])
def test_any_number_of_images(name: str, images: int | None, tmp_path: Path) -> None:
    _check(name, images, False, tmp_path / "net.onnx")


@pytest.mark.full
@pytest.mark.parametrize("images", [None, 1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_images_from_the_newer_exporter(name: str, images: int | None, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    _check(name, images, True, tmp_path / "net.onnx")


@pytest.mark.parametrize("images", [1, 2])
def test_what_runs_in_torch_goes_over_no_more_images_than_the_file_has(images: int, tmp_path: Path) -> None:
    """A softmax over channels in a file whose reshape has no place for the images: no plan has it."""
    nodes = [node("Reshape", "x", "s", out="a"), node("Softmax", "a", out="b", axis=0), node("Reshape", "b", "t")]
    constants = {"s": np.array([4 * images, 64]), "t": np.array([images, 4, 8, 8])}
    path = written(model(nodes, (images, 4, 8, 8), constants), tmp_path)
    with pytest.raises(UncoveredError, match="goes over the images"):
        fastfer.compile(path)
    x = onnx_files.images(4, 4, 8, 8)
    want = np.concatenate([onnx_files.run(path, x[at : at + images])["y"] for at in range(0, 4, images)])
    np.testing.assert_allclose(fastfer.compile(path, fallback="torch")(x), want, atol=1e-6)


# The shape for one image (or two) and for seven, the sizes in the file, elements before the images in theirs; the
# sizes for seven, and elements before the images now.
CASES = [
    ((1, 64, 32), (7, 64, 32), [1, 64, 4, 8], 1, 1, [7, 64, 4, 8], 1),
    ((64, 1, 96), (64, 7, 96), [64, 1, 3, 32], 1, 1, [64, 7, 3, 32], 1),
    ((64, 1, 32), (64, 7, 32), [64, 4, 8], 1, 1, [64, 28, 8], 1),
    ((64, 1, 32), (64, 7, 32), [64, 32], 1, 1, [448, 32], 64),
    ((64, 4, 8), (64, 28, 8), [64, 32], 1, 1, [448, 32], 64),
    ((64, 32), (448, 32), [64, 1, 32], 64, 1, [64, 7, 32], 1),
    ((4, 16, 32), (28, 16, 32), [1, 2, 2, 4, 4, 32], 1, 1, [7, 2, 2, 4, 4, 32], 1),
    ((1, 2, 2, 4, 4, 32), (7, 2, 2, 4, 4, 32), [4, 16, 32], 1, 1, [28, 16, 32], 1),
    ((128, 32), (448, 32), [64, 2, 32], 64, 2, [64, 7, 32], 1),
    ((64, 8, 8), (64, 28, 8), [128, 32], 1, 2, [448, 32], 64),
    ((2, 6, 5), (7, 6, 5), [3, 20], 1, 2, [3, 20], 1),  # no size is a multiple of whole images: left, and refused
]


@pytest.mark.parametrize(("own", "shape", "sizes", "lead", "declared", "want", "lead_after"), CASES)
def test_where_the_images_go(
    own: tuple[int, ...],
    shape: tuple[int, ...],
    sizes: list[int],
    lead: int,
    declared: int,
    want: list[int],
    lead_after: int,
) -> None:
    assert of_images(own, shape, sizes, lead, declared) == (want, lead_after)
