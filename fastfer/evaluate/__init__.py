# SPDX-License-Identifier: Apache-2.0
"""Evaluation: ``python -m fastfer.evaluate``, or ``evaluate(model, split, preprocess)`` from Python."""

from fastfer.evaluate.cost import Cost, measure_cost
from fastfer.evaluate.metrics import Metrics, measure
from fastfer.evaluate.predict import predict
from fastfer.evaluate.run import Evaluation, evaluate

__all__ = ["Cost", "Evaluation", "Metrics", "evaluate", "measure", "measure_cost", "predict"]
