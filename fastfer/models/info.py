# SPDX-License-Identifier: Apache-2.0
"""What a network costs and what its paper publishes, without building its weights."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastfer.models import flops as flops  # registers the ops' formulas
from fastfer.models.base import FerModel
from fastfer.models.published import PAPERS, Paper, accuracies
from fastfer.models.registry import create_model
from fastfer.models.weights import LAYOUT

_NO_VARIANT = ("num_classes", "in_chans", "dropout", "keras_padding")
"""Options that make no variant of their own in a paper's table."""


@dataclass(frozen=True)
class ModelInfo:
    """A network's size and cost, and the paper's figures for this variant.

    ``parameters`` are the learnable ones, ``running_statistics`` those of the norms besides; ``macs`` are the
    multiply-adds of convolutions and matrix products for one image of ``input_shape`` (C, H, W); ``file_size`` is that
    of a float32 weight file without further metadata, in bytes; ``published`` is accuracy in percent by data set, empty
    for a variant that the paper has not.
    """

    name: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int]
    parameters: int
    running_statistics: int
    macs: int
    file_size: int
    paper: Paper | None
    published: dict[str, float]


def model_info(name: str, **options: Any) -> ModelInfo:
    """`ModelInfo` of ``create_model(name, **options)``. Nothing is allocated. Raises as `create_model`."""
    with torch.device("meta"):
        model = create_model(name, **options)
    shape = (model.in_chans, *model.input_size)
    return ModelInfo(
        name=name,
        options=dict(model.options),
        input_shape=shape,
        parameters=sum(p.numel() for p in model.parameters()),
        running_statistics=sum(b.numel() for b in model.buffers() if b.is_floating_point()),
        macs=count_macs(model, shape),
        file_size=_file_size(model),
        paper=PAPERS.get(name),
        published=published_accuracies(model),
    )


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image (C, H, W), in evaluation; on any device.

    PAtt-Lite's ``attention="batch"`` refuses one image, so two are counted and halved; its attention over them makes
    the count that of a batch of two.
    """
    batch = 2 if isinstance(model, FerModel) and model.options.get("attention") == "batch" else 1
    like = next(model.parameters())
    x = torch.zeros(batch, *input_shape, device=like.device, dtype=like.dtype)
    training = model.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(x)
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // (2 * batch)


def published_accuracies(model: FerModel) -> dict[str, float]:
    """Accuracy in percent by data set of the paper's row with this network's options; empty where it has none."""
    defaults = {key: p.default for key, p in inspect.signature(type(model)).parameters.items()}
    changes = {k: v for k, v in model.options.items() if k not in _NO_VARIANT and v != defaults.get(k)}
    return accuracies(model.name, changes)


def _file_size(model: FerModel) -> int:
    """Bytes of what `save_weights` writes: safetensors' length field, header padded to 8 bytes, tensors."""
    state = model.state_dict()
    entries: dict[str, Any] = {"__metadata__": _header(model)}
    position = 0
    for key, tensor in sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0])):
        end = position + tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": _dtype(tensor), "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + math.ceil(header / 8) * 8 + position


def _header(model: FerModel) -> dict[str, str]:
    values = {"classes": model.class_names, "fastfer": LAYOUT, "model": model.name, "options": model.options}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def _dtype(tensor: Tensor) -> str:
    return {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}[tensor.dtype]
