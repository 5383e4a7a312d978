# SPDX-License-Identifier: Apache-2.0
"""metrics.csv, report.json and confusion.png of a run, each written whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastfer.data.files import write_text
from fastfer.evaluate.report import CONFUSION_FILE, REPORT_FILE, csv_text, environment, write_confusion, write_report

__all__ = [
    "CONFUSION_FILE",
    "METRICS_FILE",
    "REPORT_FILE",
    "environment",
    "write_confusion",
    "write_metrics",
    "write_report",
]

METRICS_FILE = "metrics.csv"


def write_metrics(out: Path, history: Sequence[dict[str, Any]]) -> None:
    """One row per epoch, one column per number; recall as a column per class."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writerow({name: csv_text(name) for name in history[0]})
    writer.writerows(history)
    write_text(out / METRICS_FILE, text.getvalue())
