# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.train``: exit code 0, 2 for bad input, 1 when training fails, 130 when interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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
    from fastfer.train.config import InputError
    from fastfer.train.loop import NonFiniteError
    from fastfer.train.progress import Display
    from fastfer.train.run import train

    display = Display()
    try:
        invocation = parse_args(argv)
        report = train(invocation.config, resume=invocation.resume, overwrite=invocation.overwrite, display=display)
    except InputError as error:
        return _fail(str(error), 2)
    except (NonFiniteError, OSError) as error:
        return _fail(str(error), 1)
    best = report["best"]
    display.line(
        f"best: epoch {best['epoch']}, accuracy {best['accuracy']:.4f}, macro-F1 {best['macro_f1']:.4f}; "
        f"files in {invocation.config.out}"
    )
    return 0


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
