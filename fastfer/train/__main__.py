# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.train``: exit code 0, 2 for bad input, 1 when training fails, 130 when interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except ImportError as error:
        return _fail(f"{error}; the trainer needs more packages: pip install 'fastfer[train]'", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; --resume continues after the last whole epoch", _INTERRUPTED)


def _run(argv: Sequence[str]) -> int:
    from fastfer.train.cli import parse_args
    from fastfer.train.config import InputError, to_yaml
    from fastfer.train.folds import train_folds
    from fastfer.train.loop import NonFiniteError
    from fastfer.train.placement import is_main_process, leave_processes
    from fastfer.train.progress import Display
    from fastfer.train.run import train

    display = Display()
    try:
        invocation = parse_args(argv)
        if invocation.print_config:
            print(to_yaml(invocation.config), end="")
            return 0
        run = train_folds if invocation.config.folds else train
        report = run(invocation.config, resume=invocation.resume, overwrite=invocation.overwrite, display=display)
    except InputError as error:
        return _fail(str(error), 2)
    except (NonFiniteError, OSError) as error:
        return _fail(str(error), 1)
    if is_main_process():
        display.line(f"{_summary(report['best'])}; files in {invocation.config.out}")
    leave_processes()
    return 0


def _summary(best: dict[str, Any]) -> str:
    """One line on the best epoch, or over folds on the mean of the best epochs."""
    accuracy, macro_f1 = best["accuracy"], best["macro_f1"]
    if isinstance(accuracy, dict):
        return (
            f"mean of the folds' best epochs: accuracy {accuracy['mean']:.4f} (sd {accuracy['sd']:.4f}), "
            f"macro-F1 {macro_f1['mean']:.4f} (sd {macro_f1['sd']:.4f})"
        )
    return f"best: epoch {best['epoch']}, accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}"


def _fail(message: str, code: int) -> int:
    from fastfer.data.files import terminal

    print(terminal(f"error: {message}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
