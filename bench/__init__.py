# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: `pytest bench --benchmark-only`, or `python -m bench.run` for both allocator settings and the report."""
