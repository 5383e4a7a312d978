# SPDX-License-Identifier: Apache-2.0
"""ImageNet starts: weights of stock MobileNets put into the networks that are built on them.

``load_imagenet(model, source)`` takes a local file or one of `SOURCES` by name. Three layouts are known by their keys:
torchvision's mobilenet_v3_large (a state dict), timm's mobilenetv1_100, and Keras' MobileNet without its top (HDF5).
"""

from fastfer.models.pretrained.download import SOURCES, DownloadError, Source, cached_file
from fastfer.models.pretrained.load import LoadReport, load_imagenet

__all__ = ["SOURCES", "DownloadError", "LoadReport", "Source", "cached_file", "load_imagenet"]
