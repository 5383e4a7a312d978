# SPDX-License-Identifier: Apache-2.0
"""From a network to the graph of its plan."""

from __future__ import annotations

from torch import nn

from fastfer.engine import lower_aten, lower_attention, lower_fastfer, lower_shape  # noqa: F401 - they register handlers
from fastfer.engine.fuse import fused
from fastfer.engine.graph import Graph
from fastfer.engine.lower import lowered
from fastfer.engine.trace import traced


def graph_of(model: nn.Module, size: tuple[int, int, int]) -> Graph:
    """The graph of a model for images of (C, H, W) = ``size``, norms folded in float64."""
    return fused(lowered(traced(model, size)))
