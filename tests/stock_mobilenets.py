# SPDX-License-Identifier: Apache-2.0
"""Stock MobileNets in plain torch, with the keys and shapes of the files that are published, and random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

V1_BLOCKS = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
             *((512, 512, 1),) * 5, (512, 1024, 2), (1024, 1024, 1))  # fmt: skip
"""Channels in and out and stride of MobileNetV1's blocks."""
TIMM_STAGES = (1, 2, 2, 6, 2)
V3_ROWS = (  # kernel, expanded, out, SE, h-swish, stride: Howard et al. 2019, table 1
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip


def randomised(model: nn.Module) -> nn.Module:
    """Evaluation mode; norms with statistics of which some are near eps; weights that keep signals of order one."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(10 ** (torch.rand_like(tensor) * 4 - 3))
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.uniform_(0.3, 1.0)
    return model.eval()


def conv_norm(i: int, o: int, kernel: int, stride: int, groups: int, act: type[nn.Module] | None) -> nn.Sequential:
    layers = [
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, (channels // 4 + 4) // 8 * 8)
        hidden += 8 * (hidden < 0.9 * (channels // 4))
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * gate


class InvertedResidual(nn.Module):
    def __init__(self, i: int, kernel: int, hidden: int, out: int, squeezed: int, hswish: int, stride: int) -> None:
        super().__init__()
        act = nn.Hardswish if hswish else nn.ReLU
        layers: list[nn.Module] = [] if hidden == i else [conv_norm(i, hidden, 1, 1, 1, act)]
        layers.append(conv_norm(hidden, hidden, kernel, stride, hidden, act))
        layers += [SqueezeExcitation(hidden)] if squeezed else []
        self.block = nn.Sequential(*layers, conv_norm(hidden, out, 1, 1, 1, None))
        self.residual = stride == 1 and i == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class TorchvisionV3(nn.Module):
    """mobilenet_v3_large as torchvision names it."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 16, 3, 2, 1, nn.Hardswish)]
        i = 16
        for row in V3_ROWS:
            layers.append(InvertedResidual(i, *row))
            i = row[2]
        self.features = nn.Sequential(*layers, conv_norm(160, 960, 1, 1, 1, nn.Hardswish))
        self.classifier = nn.Sequential(nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, 1000))


class TimmBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False)
        self.bn1 = nn.BatchNorm2d(i)
        self.conv_pw = nn.Conv2d(i, o, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)

    def depthwise(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn1(self.conv_dw(x)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn2(self.conv_pw(self.depthwise(x))))


class TimmV1(nn.Module):
    """mobilenetv1_100 as timm names it; eps 1e-5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        rows = iter(V1_BLOCKS)
        self.blocks = nn.Sequential(
            *(nn.Sequential(*(TimmBlock(*next(rows)) for _ in range(count))) for count in TIMM_STAGES)
        )
        self.classifier = nn.Linear(1024, 1000)

    def features(self, x: Tensor, depth: int | None = None) -> Tensor:
        """Through all blocks, or to the depthwise half of block ``depth``."""
        x = F.relu6(self.bn1(self.conv_stem(x)))
        for index, block in enumerate((block for stage in self.blocks for block in stage), start=1):
            if index == depth:
                return block.depthwise(x)
            x = block(x)
        return x


def keras_arrays(generator: np.random.Generator) -> Iterator[tuple[str, str, np.ndarray]]:
    """(layer, array's name, array) of Keras' MobileNet without its top, in the file's order and axes."""

    def norm(layer: str, channels: int) -> Iterator[tuple[str, str, np.ndarray]]:
        yield layer, "gamma", generator.uniform(0.3, 1, channels)
        yield layer, "beta", generator.normal(0, 0.3, channels)
        yield layer, "moving_mean", generator.normal(0, 0.3, channels)
        yield layer, "moving_variance", 10 ** generator.uniform(-3, 1, channels)

    yield "conv1", "kernel", generator.normal(0, (2 / 27) ** 0.5, (3, 3, 3, 32))
    yield from norm("conv1_bn", 32)
    for index, (i, o, _) in enumerate(V1_BLOCKS, start=1):
        yield f"conv_dw_{index}", "depthwise_kernel", generator.normal(0, (2 / 9) ** 0.5, (3, 3, i, 1))
        yield from norm(f"conv_dw_{index}_bn", i)
        yield f"conv_pw_{index}", "kernel", generator.normal(0, (2 / i) ** 0.5, (1, 1, i, o))
        yield from norm(f"conv_pw_{index}_bn", o)


def write_keras(path: Path, arrays: dict[tuple[str, str], np.ndarray], nested: bool = True) -> None:
    """HDF5 as Keras writes weights: a group per layer (empty for layers without any), within it the arrays."""
    import h5py

    with h5py.File(path, "w") as file:
        root = file if nested else file.create_group("model_weights")
        root.create_group("conv1_relu")
        for (layer, name), array in arrays.items():
            group = root.require_group(layer)
            place = f"{layer}/{name}:0" if nested else f"{name}:0"
            group.create_dataset(place, data=array.astype(np.float32))


def write_keras3(path: Path, arrays: dict[tuple[str, str], np.ndarray], names: bool) -> None:
    """HDF5 as Keras 3 writes weights: layers by class and number, their arrays by number, names in an attribute."""
    import h5py

    order = {
        "conv2d": ("kernel",),
        "depthwise_conv2d": ("depthwise_kernel",),
        "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    }
    places: dict[str, str] = {}
    with h5py.File(path, "w") as file:
        for (layer, name), array in arrays.items():
            kind = next(kind for kind, leaves in order.items() if name in leaves)
            if layer not in places:
                number = sum(place.rstrip("_0123456789") == kind for place in places.values())
                places[layer] = kind if number == 0 else f"{kind}_{number}"
            group = file.require_group(f"layers/{places[layer]}/vars")
            if names:
                group.attrs["name"] = layer
            group.create_dataset(str(order[kind].index(name)), data=array.astype(np.float32))


def keras_features(arrays: dict[tuple[str, str], np.ndarray], x: Tensor, depth: int | None = None) -> Tensor:
    """Keras' MobileNet: padding (0, 1) before convolutions of stride 2, "same" for the others; eps 1e-3."""

    def layer(x: Tensor, name: str, stride: int) -> Tensor:
        depthwise = ("depthwise_kernel",) if (name, "depthwise_kernel") in arrays else ()
        kernel: Any = torch.from_numpy(arrays[name, (*depthwise, "kernel")[0]]).to(x)
        kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
        if kernel.shape[2] == 3:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = F.conv2d(x, kernel, stride=stride, groups=len(kernel) if depthwise else 1)
        parts = ("moving_mean", "moving_variance", "gamma", "beta")
        mean, var, gamma, beta = (torch.from_numpy(arrays[f"{name}_bn", part]).to(x) for part in parts)
        return F.relu6(F.batch_norm(x, mean, var, gamma, beta, eps=1e-3))

    x = layer(x, "conv1", 2)
    for index, (_, _, stride) in enumerate(V1_BLOCKS, start=1):
        x = layer(x, f"conv_dw_{index}", stride)
        if index == depth:
            return x
        x = layer(x, f"conv_pw_{index}", 1)
    return x
