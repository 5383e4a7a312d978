# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: what may be there, and what is removed with --overwrite."""

from __future__ import annotations

import os
from pathlib import Path

from fastfer.train import report, state
from fastfer.train.config import CONFIG_FILE

BEST_FILE = "best.safetensors"
_FILES = (CONFIG_FILE, BEST_FILE, report.METRICS_FILE, report.REPORT_FILE, report.CONFUSION_FILE)


def check_folder(out: Path, resume: bool, overwrite: bool) -> Path | None:
    """The saved state to continue from, or None to begin. ValueError where ``out`` cannot be used as asked."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"out: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"out: no permission to write to {existing}")
    saved = state.find(out)
    begun = [name for name in _FILES if (out / name).exists()]
    if resume and not saved and not begun:
        raise ValueError(f"resume: {out} holds no run")
    if (saved or begun) and not resume and not overwrite:
        raise ValueError(f"out: {out} holds a run already: continue it with --resume or discard it with --overwrite")
    return saved if resume else None


def remove_run(out: Path) -> None:
    """Delete the files of a run; others stay."""
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    state.remove(out)
