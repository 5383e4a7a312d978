# SPDX-License-Identifier: Apache-2.0
"""The separable_conv family at every layer of the five networks: fused blocks, and the two convolutions alone.

Blocks: inference at batch 1 and 32, training (forward and backward) at the network's batch. Convolutions alone:
forward and backward op at the training batch.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import layers
from bench.cases import Case, of_layers, parametrize
from bench.contenders import block_inference, block_training
from bench.convolutions import conv_backward, conv_forward

Compare = Callable[[Case, str], None]
_TRAIN = layers.TRAIN_BATCH.__getitem__
_INFERENCE = [
    case
    for batch in layers.INFERENCE_BATCHES
    for case in of_layers(f"block inference, batch {batch}", block_inference, layers.separable(), lambda _, b=batch: b)  # type: ignore[misc]
]


@parametrize(_INFERENCE, keep=2)
def test_block_inference(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("block training", block_training, layers.separable(), _TRAIN))
def test_block_training(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("depthwise forward", conv_forward, layers.depthwise(), _TRAIN))
def test_depthwise_forward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("depthwise backward", conv_backward, layers.depthwise(), _TRAIN))
def test_depthwise_backward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("pointwise forward", conv_forward, layers.pointwise(), _TRAIN))
def test_pointwise_forward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)


@parametrize(of_layers("pointwise backward", conv_backward, layers.pointwise(), _TRAIN))
def test_pointwise_backward(case: Case, contender: str, compare: Compare) -> None:
    compare(case, contender)
