# SPDX-License-Identifier: Apache-2.0
"""Zeros around an image are the convolution's that reads them: no pass of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastfer


class _Read(nn.Module):
    """A padded image that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pad(x)
        z: Tensor = self.conv(y) + y.mean((2, 3), keepdim=True)[:, :1]
        return z


FOLDED = [
    nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, 2)),
    nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.ReLU()),
    nn.Sequential(nn.ConstantPad2d((2, 0, 0, 0), 0.0), nn.Conv2d(4, 6, (1, 3), bias=False), nn.BatchNorm2d(6)),
]
KEPT = [
    nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 6, 3)),
    nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 6, 3)),
    nn.Sequential(nn.ZeroPad2d((-1, 1, 0, 0)), nn.Conv2d(4, 6, 3)),
    nn.Sequential(nn.ZeroPad2d((1, 2, 1, 1)), nn.MaxPool2d(3)),
    _Read(),
]


@pytest.mark.parametrize(("number", "folded"), [(i, True) for i in range(3)] + [(i, False) for i in range(len(KEPT))])
def test_padding_is_right_and_folded_where_it_can_be(number: int, folded: bool) -> None:
    torch.manual_seed(number)
    network = (FOLDED if folded else KEPT)[number].eval()
    x = torch.randn(3, 4, 11, 9)
    engine = fastfer.compile(network, x, fallback="torch")
    with torch.no_grad():
        torch.testing.assert_close(engine(x), network(x), atol=1e-5, rtol=1e-5)
    steps = [step.name for step in engine.profile().steps]
    assert ("gather" not in steps) == folded, steps
