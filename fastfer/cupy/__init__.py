# SPDX-License-Identifier: Apache-2.0
"""Kernels on NVIDIA GPUs, compiled at first use through CuPy; the same sources as ``fastfer.cuda``.

``fastfer.cupy.arrays`` has the functions for CuPy and other DLPack arrays.
"""
