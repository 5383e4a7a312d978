# SPDX-License-Identifier: Apache-2.0
"""Kernels on NVIDIA GPUs, compiled by nvcc when the package was built; the same sources as ``fastfer.cupy``."""
