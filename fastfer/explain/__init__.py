# SPDX-License-Identifier: Apache-2.0
"""What a network looks at: attention maps and Grad-CAM, ``python -m fastfer.explain``."""

from fastfer.explain.attention import attention_maps
from fastfer.explain.grad_cam import grad_cam

__all__ = ["attention_maps", "grad_cam"]
