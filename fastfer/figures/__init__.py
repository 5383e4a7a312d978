# SPDX-License-Identifier: Apache-2.0
"""The papers' figures from run folders and tables: ``python -m fastfer.figures NAME``; `FIGURES` lists them."""

from fastfer.figures.figure import FIGURES, FigureError, draw

__all__ = ["FIGURES", "FigureError", "draw"]
