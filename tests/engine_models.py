# SPDX-License-Identifier: Apache-2.0
"""Networks and what engines of them must answer, for the engine's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastfer.engine.compiler import program_of
from fastfer.engine.convert import converted
from fastfer.engine.fuse import fused
from fastfer.engine.graph import Graph
from fastfer.models import create_model

SMALL = {"fgw_fer": 48, "sepconv_attention": 48, "vgg16_csa": 64, "patt_lite": 224, "mobilenetv3_cpsca": 64}


def network(name: str = "fgw_fer", **options: Any) -> tuple[nn.Module, Tensor]:
    """A network with settled running statistics, and images for it."""
    torch.manual_seed(0)
    model = create_model(name, **options)
    x = torch.randn(3, model.in_chans, SMALL[name], SMALL[name])
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def close(got: Any, want: Tensor) -> None:
    """Within 1e-4 of the largest logit, the bound that engines promise."""
    np.testing.assert_allclose(np.asarray(got), want.numpy(), rtol=0, atol=1e-4 * float(want.abs().max()))


def graph_of(model: nn.Module, size: tuple[int, ...]) -> Graph:
    """The graph of a model for images of (C, H, W) = ``size``, norms folded in float64."""
    return fused(converted(program_of(model, size)))
