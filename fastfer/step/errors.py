# SPDX-License-Identifier: Apache-2.0
"""Why a step is not recorded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class StepError(RuntimeError):
    """A step has something that a recorded one would leave out or get wrong; the message names it.

    ``results`` are those of the step where it was met on the way: it was done to its end, gradients included.
    """

    results: Sequence[Tensor | None] | None = None
