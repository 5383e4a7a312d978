# SPDX-License-Identifier: Apache-2.0
"""The networks: ``create_model``, ``list_models``, ``model_info``, and their weight files."""

from fastfer.models.base import FerModel
from fastfer.models.fgw_fer import FgwFer
from fastfer.models.info import ModelInfo, model_info
from fastfer.models.mobilenetv3_cpsca import MobileNetV3Cpsca
from fastfer.models.patt_lite import PattLite
from fastfer.models.pretrained import DownloadError, LoadReport, load_imagenet
from fastfer.models.registry import create_model, list_models, register_model
from fastfer.models.sepconv_attention import SepConvAttention
from fastfer.models.vgg16_csa import Vgg16Csa
from fastfer.models.weights import load, load_weights, read_metadata, save_weights

__all__ = [
    "DownloadError",
    "FerModel",
    "FgwFer",
    "LoadReport",
    "MobileNetV3Cpsca",
    "ModelInfo",
    "PattLite",
    "SepConvAttention",
    "Vgg16Csa",
    "create_model",
    "list_models",
    "load",
    "load_imagenet",
    "load_weights",
    "model_info",
    "read_metadata",
    "register_model",
    "save_weights",
]
