# SPDX-License-Identifier: Apache-2.0
"""Hand-optimised kernels and five lightweight facial-expression-recognition networks that run on them."""

from importlib.metadata import PackageNotFoundError, version

from fastfer import backend, nn, ops
from fastfer.backend import backends, use
from fastfer.models import create_model, list_models, model_info

try:
    __version__ = version("fastfer")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = ["backend", "backends", "create_model", "list_models", "model_info", "nn", "ops", "use"]
