# SPDX-License-Identifier: Apache-2.0
"""Networks for other runtimes: ``to_onnx(model, path)``, ``to_program(model)``, ``python -m fastfer.export``."""

from fastfer.export.onnx import ExportError, to_onnx
from fastfer.export.program import to_program

__all__ = ["ExportError", "to_onnx", "to_program"]
