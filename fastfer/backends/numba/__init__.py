# SPDX-License-Identifier: Apache-2.0
"""Numba kernels: one module per op family, with the functions of ``backends.reference``; compiled at first use."""

try:
    import numba as numba
except ImportError as error:
    raise ImportError(
        "fastfer.backends.numba: expected the package numba, got none; pip install 'fastfer[numba]'"
    ) from error
