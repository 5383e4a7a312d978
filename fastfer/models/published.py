# SPDX-License-Identifier: Apache-2.0
"""What the papers publish about each network and the variants that are options of its constructor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """Where a network comes from, and what a reader of its figures has to know."""

    title: str
    source: str
    note: str = ""


PAPERS: dict[str, Paper] = {
    "fgw_fer": Paper(
        "FGW-FER: Lightweight Facial Expression Recognition with Attention",
        "Dinh et al. 2023",
        "A file of 0.32 MB and 64,176 parameters; 0.004 s an image.",
    ),
    "patt_lite": Paper(
        "PAtt-Lite: Lightweight Patch and Attention MobileNet for Challenging Facial Expression Recognition",
        "Ngwe et al. 2024, arXiv:2306.09626",
        "The published code attends over the images of a batch, so a prediction depends on the faces beside it, and "
        "its accuracies (CK+ 100, RAF-DB 95.05, FER2013 92.50, FERPlus 95.55) are not those of single images. Here "
        'attention runs over the patches of each image; attention="batch" rebuilds what was published.',
    ),
    "mobilenetv3_cpsca": Paper(
        "A lightweight method for face expression recognition based on improved MobileNetV3",
        "Liang et al. 2023",
        "1.3 M parameters and 0.19 GMAC published.",
    ),
    "vgg16_csa": Paper(
        "Light VGGNet with channel and spatial attention in parallel (CSA)",
        "International Core Journal of Engineering 8(5), 2022",
        "CK+ with 6 classes, RaFD with 8; random 90/10 split. 10-fold cross-validation: 98.76 and 97.41.",
    ),
    "sepconv_attention": Paper(
        "Facial Expression Recognition Based on Separable Convolution Network and Attention Mechanism",
        "Yengikand et al. 2023",
        "Trained on FER2013 and fine-tuned on CK+ and on JAFFE.",
    ),
}

_NO_SE = {"attention": "none", "high_attention": "se"}
_VGG16 = {  # attention: CK+, RaFD; the paper's Tables 3 and 4
    "none": (96.81, 95.62),
    "ca": (98.35, 97.26),
    "sa": (98.57, 96.89),
    "se": (98.46, 97.01),
    "eca": (98.35, 97.26),
    "cbam": (98.35, 97.43),
    "scse": (98.34, 97.13),
}

_ACCURACIES: dict[str, list[tuple[Mapping[str, Any], Mapping[str, float]]]] = {
    "fgw_fer": [
        ({}, {"CK+": 98.98, "FER2013": 69.38, "FERPlus": 79.36, "RAF-DB": 80.75}),
        ({"separable": False}, {"CK+": 97.6, "FER2013": 68.73, "FERPlus": 79.24, "RAF-DB": 79.55}),
    ],
    "patt_lite": [
        ({"attention": "batch"}, {"CK+": 100.0, "RAF-DB": 95.05, "FER2013": 92.50, "FERPlus": 95.55}),
        (
            {"attention": "none", "extraction": "none"},
            {"CK+": 99.90, "RAF-DB": 85.17, "FER2013": 68.54, "FERPlus": 82.88},
        ),
        ({"attention": "none"}, {"CK+": 100.0, "RAF-DB": 81.10, "FER2013": 61.52, "FERPlus": 77.72}),
        (
            {"attention": "batch", "extraction": "none"},
            {"CK+": 100.0, "RAF-DB": 91.00, "FER2013": 83.00, "FERPlus": 90.71},
        ),
        (
            {"attention": "batch", "extraction": "attention"},
            {"RAF-DB": 94.17, "FER2013": 89.86, "FERPlus": 92.72},
        ),
    ],
    "mobilenetv3_cpsca": [
        ({}, {"FERPlus": 87.5, "RAF-DB": 86.6}),
        ({"attention": "none"}, {"FERPlus": 86.6, "RAF-DB": 85.4}),
        ({"attention": "ca"}, {"FERPlus": 87.2, "RAF-DB": 86.0}),
        ({"attention": "maxca"}, {"FERPlus": 87.1, "RAF-DB": 86.5}),
        ({**_NO_SE, "halved": False, "act": "relu"}, {"RAF-DB": 86.4}),
        ({**_NO_SE, "act": "relu"}, {"RAF-DB": 85.9}),
        (_NO_SE, {"RAF-DB": 86.4}),
    ],
    "vgg16_csa": [
        ({}, {"CK+": 98.86, "RaFD": 97.48}),
        ({"position": "conv"}, {"CK+": 98.46, "RaFD": 96.89}),
        ({"position": "after_pool"}, {"CK+": 97.73, "RaFD": 97.13}),
        *(({"attention": kind}, dict(zip(("CK+", "RaFD"), pair, strict=True))) for kind, pair in _VGG16.items()),
    ],
    "sepconv_attention": [({}, {"FER2013": 65.32, "CK+": 97.01, "JAFFE": 79.19})],
}


def accuracies(name: str, changes: Mapping[str, Any]) -> dict[str, float]:
    """Published accuracy in percent by data set; ``changes`` are the options that differ from their defaults.

    Empty where the paper has no such row.
    """
    return next((dict(row) for options, row in _ACCURACIES.get(name, []) if dict(options) == dict(changes)), {})
