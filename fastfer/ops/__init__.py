# SPDX-License-Identifier: Apache-2.0
"""Public functions: torch ops with gradients, NHWC inside, one backend of native C++, CUDA, Numba or plain torch.

Activations are float32 or float64, parameters of the same dtype. On the CUDA backends activations may be bfloat16 or
float16, and so are their gradients: parameters, their gradients and statistics are then float32, and so are all sums.
"""

from fastfer.ops.attention import additive_attention, dot_product_attention
from fastfer.ops.bottleneck import inverted_bottleneck
from fastfer.ops.cbam import cbam, channel_gate, spatial_gate
from fastfer.ops.conv2d import conv2d
from fastfer.ops.coordinate import coordinate_attention, cpsca_pool
from fastfer.ops.elementwise import activation, hardsigmoid, hardswish, relu, relu6, sigmoid, silu
from fastfer.ops.gate import csa, eca, sa, scse, squeeze_excite
from fastfer.ops.loss import center_loss, cross_entropy, triplet_loss, update_centers_
from fastfer.ops.norm import Norm, batch_norm
from fastfer.ops.pool import Pool, global_avg_max_pool, global_avg_pool, global_max_pool, max_pool2d
from fastfer.ops.separable_conv import depthwise_conv2d, pointwise_conv2d, separable_conv2d

__all__ = [
    "Norm",
    "Pool",
    "activation",
    "additive_attention",
    "batch_norm",
    "cbam",
    "center_loss",
    "channel_gate",
    "conv2d",
    "coordinate_attention",
    "cpsca_pool",
    "cross_entropy",
    "csa",
    "depthwise_conv2d",
    "dot_product_attention",
    "eca",
    "global_avg_max_pool",
    "global_avg_pool",
    "global_max_pool",
    "hardsigmoid",
    "hardswish",
    "inverted_bottleneck",
    "max_pool2d",
    "pointwise_conv2d",
    "relu",
    "relu6",
    "sa",
    "scse",
    "separable_conv2d",
    "sigmoid",
    "silu",
    "spatial_gate",
    "squeeze_excite",
    "triplet_loss",
    "update_centers_",
]
