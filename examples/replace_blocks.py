# SPDX-License-Identifier: Apache-2.0
"""Put fastfer's fused blocks into a torch network of your own, with its trained weights, and time both.

    python examples/replace_blocks.py [--channels 32 --size 56 --batch 8]

The block is the one of MobileNet: depthwise 3×3, norm, ReLU, pointwise, norm, ReLU; six modules become one op.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import fastfer


def torch_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def fastfer_block(block: nn.Sequential) -> fastfer.nn.SeparableConv2d:
    """The same with the same weights: only names differ."""
    depthwise, norm1, _, pointwise, norm2, _ = block
    fused = fastfer.nn.SeparableConv2d(
        depthwise.in_channels, pointwise.out_channels, 3, padding=1, norm1=True, act1="relu", norm2=True, act2="relu"
    )
    for ours, theirs in (
        (fused.depthwise, depthwise),
        (fused.norm1, norm1),
        (fused.pointwise, pointwise),
        (fused.norm2, norm2),
    ):
        ours.load_state_dict(theirs.state_dict())
    return fused.train(block.training)


def seconds(network: nn.Module, x: Tensor) -> float:
    """The least of a few calls."""
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        network(x)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("channels", 32), ("size", 56), ("batch", 8), ("blocks", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    theirs = nn.Sequential(*(torch_block(given.channels) for _ in range(given.blocks))).eval()
    ours = nn.Sequential(*map(fastfer_block, theirs)).eval()
    x = torch.randn(given.batch, given.channels, given.size, given.size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        difference = (ours(x) - theirs(x)).abs().max().item()
        times = {"torch": [], "fastfer": []}
        for _ in range(3):  # in turns, so that a disturbance meets both
            times["torch"].append(seconds(theirs, x))
            times["fastfer"].append(seconds(ours, x))
    slow, fast = min(times["torch"]), min(times["fastfer"])
    print(f"largest difference {difference:.1e}")
    print(f"torch {slow * 1e3:.2f} ms, fastfer {fast * 1e3:.2f} ms: {slow / fast:.2f} times as fast")


if __name__ == "__main__":
    main()
