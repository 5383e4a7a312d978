# SPDX-License-Identifier: Apache-2.0
"""Initial weights that the networks share."""

from __future__ import annotations

from torch import nn

from fastfer.nn import CBAM, Conv2d, DepthwiseConv2d, PointwiseConv2d


def kaiming_convolutions(module: nn.Module) -> None:
    """For ``Module.apply``: Kaiming normal weights and zero biases for convolutions; other layers keep theirs."""
    if isinstance(module, (Conv2d, DepthwiseConv2d, PointwiseConv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, CBAM):
        nn.init.kaiming_normal_(module.spatial.weight, nonlinearity="relu")
