# SPDX-License-Identifier: Apache-2.0
"""``fastfer.cupy.arrays``: the ops on CuPy and other DLPack arrays."""
