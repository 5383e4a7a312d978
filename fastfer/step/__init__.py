# SPDX-License-Identifier: Apache-2.0
"""Training steps that are recorded once and replayed: see `compile_step`."""

from fastfer.step.compiled import CompiledStep, compile_step
from fastfer.step.covered import repeatable
from fastfer.step.errors import StepError
from fastfer.step.gradients import Gradients
from fastfer.step.update import Update

__all__ = ["CompiledStep", "Gradients", "StepError", "Update", "compile_step", "repeatable"]
