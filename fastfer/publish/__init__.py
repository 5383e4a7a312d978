# SPDX-License-Identifier: Apache-2.0
"""From a finished training run to weights that ship: the file, its line in the table, its card."""

from __future__ import annotations

from fastfer.publish.release import release

__all__ = ["release"]
