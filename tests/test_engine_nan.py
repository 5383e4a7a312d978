# SPDX-License-Identifier: Apache-2.0
"""NaN goes through an engine's maxima as it goes through torch's, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


class Maxima(nn.Module):
    """A maximum of a convolution with one tap, so that only a NaN itself is a NaN after it."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, groups=channels)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


MAXIMA: dict[str, Callable[[Tensor], Tensor]] = {
    "2x2": lambda x: F.max_pool2d(x, 2),
    "3x3": lambda x: F.max_pool2d(x, 3, 1, 1),
    "5x3": lambda x: F.max_pool2d(x, (5, 3), (2, 1), (1, 0)),
    "2x2 after relu": lambda x: F.max_pool2d(F.relu(x), 2),
    "image": lambda x: x.amax((2, 3)),
    "image both": lambda x: x.amax((2, 3)) + x.mean((2, 3)),
    "rows": lambda x: x.amax(3),
    "columns": lambda x: x.amax(2),
    "rows and columns": lambda x: x * x.amax(3, keepdim=True) + x.amax(2, keepdim=True),
    "channels": lambda x: x.amax(1),
    "channels both": lambda x: torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1),
    "all": lambda x: x.amax((1, 2, 3)),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(min=0),
}


@pytest.mark.parametrize("name", MAXIMA)
@pytest.mark.parametrize("channels", [1, 20])
def test_nan_goes_through(name: str, channels: int) -> None:
    model = Maxima(MAXIMA[name], channels).eval()
    x = torch.randn(6, channels, 10, 9, generator=torch.Generator().manual_seed(0))
    places = [(0, 0, 0), (0, 9, 8), (channels - 1, 4, 5), (channels // 2, 5, 0), (channels - 1, 9, 0)]
    for image, (c, h, w) in enumerate(places):
        x[image, c, h, w] = float("nan")
    with torch.no_grad():
        want = model(x)
    engine = fastfer.compile(model, x.shape, threads=1)
    got = engine(x)
    assert not torch.isnan(got[5]).any()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["fgw_fer", "sepconv_attention", "vgg16_csa", "mobilenetv3_cpsca"])
def test_networks_answer_nan_to_nan(name: str) -> None:
    """A pixel that is NaN is seen in the logits of its image, and of no other."""
    torch.manual_seed(0)
    model = fastfer.create_model(name).eval()
    x = torch.randn(3, model.in_chans, 64, 64)
    x[1, 0, 20, 31] = float("nan")
    got = fastfer.compile(model, x.shape, threads=2)(x)
    assert torch.isnan(got).any(1).tolist() == [False, True, False]
