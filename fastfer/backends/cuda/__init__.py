# SPDX-License-Identifier: Apache-2.0
"""Ops on NVIDIA GPUs: one module per family, for kernels built by nvcc and for those that CuPy compiles."""
