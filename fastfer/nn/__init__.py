# SPDX-License-Identifier: Apache-2.0
"""Modules over ``fastfer.ops``: torch's names and defaults where torch has the module, four-sided padding."""

from fastfer.nn.attention import AdditiveAttention, DotProductAttention
from fastfer.nn.bottleneck import InvertedBottleneck
from fastfer.nn.cbam import CBAM, ChannelGate, SpatialGate
from fastfer.nn.chain import Chain
from fastfer.nn.conv2d import Conv2d
from fastfer.nn.coordinate import CoordinateAttention
from fastfer.nn.elementwise import Activation, Hardsigmoid, Hardswish, ReLU, ReLU6, Sigmoid, SiLU
from fastfer.nn.gate import CSA, ECA, ScSE, SpatialAttention, SqueezeExcite
from fastfer.nn.loss import CenterLoss, CrossEntropyLoss, TripletLoss
from fastfer.nn.norm import BatchNorm2d
from fastfer.nn.pool import GlobalAvgPool, GlobalMaxPool, MaxPool2d
from fastfer.nn.separable_conv import DepthwiseConv2d, PointwiseConv2d, SeparableConv2d

__all__ = [
    "CBAM",
    "CSA",
    "ECA",
    "Activation",
    "AdditiveAttention",
    "BatchNorm2d",
    "CenterLoss",
    "Chain",
    "ChannelGate",
    "Conv2d",
    "CoordinateAttention",
    "CrossEntropyLoss",
    "DepthwiseConv2d",
    "DotProductAttention",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Hardsigmoid",
    "Hardswish",
    "InvertedBottleneck",
    "MaxPool2d",
    "PointwiseConv2d",
    "ReLU",
    "ReLU6",
    "ScSE",
    "SeparableConv2d",
    "SiLU",
    "Sigmoid",
    "SpatialAttention",
    "SpatialGate",
    "SqueezeExcite",
    "TripletLoss",
]
