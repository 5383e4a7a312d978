# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.predict INPUT...``: the arguments, the outputs, the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastfer import __version__, _cache, _environment
from fastfer._files import write_bytes
from fastfer.data.files import printable
from fastfer.predict import inputs, records, summary
from fastfer.predict.recognizer import Recognizer
from fastfer.predict.run import Messages, Plan, Run, Stopped

_EPILOG = """\
INPUT: pictures, videos, folders (with all folders below), patterns, addresses of streams, camera or camera:N, and - for
a list on standard input. Results are lines of JSON (or --csv) on standard output, or in --out.
Exit code: 0, 1 where an input could not be looked at, 2 for wrong arguments, 130 when interrupted.
Inferring emotions of persons is restricted by law in places, such as at work and in schools in the European Union.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastfer.predict",
        description="Expressions of the faces in pictures, videos and cameras.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="see below")
    parser.add_argument("--weights", default="fgw_fer", help="engine file (.ffe), weight file, or a shipped network")
    parser.add_argument("--faces", choices=("detect", "whole"), default="detect", help="whole: pictures are faces")
    parser.add_argument("--detector", metavar="FILE", help="YuNet's file (default: where it is found)")
    parser.add_argument("--min-score", type=float, default=0.7, help="of a detection (default: 0.7)")
    parser.add_argument(
        "--longest", type=int, default=640, metavar="N",
        help="side that larger pictures are shrunk to for the detector (default: 640; 320 is quicker)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results and a summary")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="lines of JSON (the default)")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="a table, one line a face")
    parser.add_argument("--resume", action="store_true", help="go on with the results in --out")
    parser.add_argument("--annotate", action="store_true", help="pictures and videos with boxes, in --out")
    parser.add_argument("--track", action="store_true", help="number the persons of a video")
    parser.add_argument(
        "--smooth",
        type=float,
        nargs="?",
        const=0.7,
        default=0.0,
        metavar="SHARE",
        help="average a person's probabilities over time: the share of the past that stays (default: 0.7)",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="look at each N-th frame")
    parser.add_argument("--show", action="store_true", help="in a window; q or Escape ends")
    parser.add_argument("--null", "-0", action="store_true", help="names on standard input end with a zero byte")
    parser.add_argument("--threads", type=int, help="threads of the network")
    parser.add_argument("--precision", help="float32, bfloat16 (default: as compiled)")
    parser.add_argument("--workers", type=int, help="threads that decode pictures (default: by CPUs)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes")
    parser.set_defaults(form="json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        _check(args)
        return _run(args)
    except BrokenPipeError:  # whoever read the results has enough
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> None:
    """ValueError for arguments that contradict each other."""
    for name in ("annotate", "resume"):
        if getattr(args, name) and args.out is None:
            raise ValueError(f"--{name}: expected --out with it, the folder for it")
    if args.every < 1 or not 0 <= args.smooth < 1:
        raise ValueError(f"--every, --smooth: expected 1 or more, 0 to below 1, got {args.every}, {args.smooth}")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers: expected 0 or more, got {args.workers}")


def _run(args: argparse.Namespace) -> int:
    recognizer = Recognizer(
        args.weights,
        faces=args.faces,
        detector=args.detector,
        threads=args.threads,
        precision=args.precision,
        min_score=args.min_score,
        longest=args.longest,
    )
    items, problems = inputs.expanded(args.inputs, sys.stdin.buffer, args.null)
    with ExitStack() as stack:
        file, done, header = _opened(args, stack)
        left = [item for item in items if printable(item.name) not in done and inputs.shown(item.name) not in done]
        pictures_alone = all(item.kind == "picture" for item in left)
        messages = Messages(len(left) if pictures_alone else None, args.quiet)
        if done:
            messages.note(str(args.out), f"{len(items) - len(left)} of {len(items)} inputs are done already")
        plan = Plan(
            args.out / "annotated" if args.annotate else None,
            args.track,
            args.smooth,
            args.every,
            args.show,
            min(4, _environment.cpus()) if args.workers is None else args.workers,
        )
        sheets = None if args.out is None else summary.Sheets()
        run = Run(recognizer, plan, records.Writer(file, args.form, recognizer.classes, header), messages, sheets)
        for problem in problems:
            run.fail(problem.name, problem.message)
        code = 0
        try:
            run(left)
        except Stopped:
            pass
        except KeyboardInterrupt:
            code = 130
        finally:
            messages.clear()
    if sheets is not None:
        about = {"fastfer": __version__, "run": _identity(args)}
        summary.write(args.out, _results(args), args.form, recognizer.classes, sheets, about)
    messages.note(
        "done" if args.out is None else str(args.out),
        f"{run.pictures} pictures, {run.faces} faces, {run.failed} failed",
    )
    return code or (1 if run.failed else 0)


def _results(args: argparse.Namespace) -> Path:
    path: Path = args.out / ("results.csv" if args.form == "csv" else "results.jsonl")
    return path


def _identity(args: argparse.Namespace) -> dict[str, Any]:
    """What results that stand in one file have to have in common."""
    weights = Path(args.weights)
    return {
        "weights": weights.name,
        "sha256": _cache.digest(weights) if weights.is_file() else None,
        "faces": args.faces,
        "every": args.every,
        "min_score": args.min_score,
        "longest": args.longest,
    }


def _opened(args: argparse.Namespace, stack: ExitStack) -> tuple[BinaryIO, set[str], bool]:
    """The file for results, the sources that are done, and whether the file is new. OSError, ValueError."""
    if args.out is None:
        return sys.stdout.buffer, set(), True
    args.out.mkdir(parents=True, exist_ok=True)
    path, about, done = _results(args), args.out / "run.json", set[str]()
    if path.exists() and path.stat().st_size:
        if not args.resume:
            raise ValueError(f"--out: {path} is there already: give --resume to go on with it, or another folder")
        earlier = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else None
        if earlier != _identity(args):
            raise ValueError(f"--resume: expected the arguments of the earlier run, {earlier}, got {_identity(args)}")
        done = records.resumable(path, args.form)
    else:
        write_bytes(about, f"{json.dumps(_identity(args), indent=2)}\n".encode())
    file = stack.enter_context(path.open("ab"))
    return file, done, file.tell() == 0
