# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.predict INPUT...``: the arguments, the outputs, the exit code."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastfer import __version__, _environment
from fastfer._files import file_digest, remove_temporaries, write_bytes
from fastfer.data.files import printable
from fastfer.predict import inputs, records, summary
from fastfer.predict.recognizer import Recognizer
from fastfer.predict.run import Messages, Plan, Run, Stopped

_ALONE = ("annotate", "track", "smooth", "show")
"""Arguments that are of no use with --ray."""
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
    parser.add_argument(
        "--decode", choices=("needed", "all"), default="needed",
        help="of large JPEG files no more pixels than detector and network need, or all (default: needed)",
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
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="on the machines of a Ray cluster (default: the one at hand, else this machine); pictures, Parquet and "
        "tar files of pictures become Parquet files in --out, a folder that all machines share",
    )  # fmt: skip
    parser.add_argument(
        "--part", type=int, default=1000, metavar="N", help="pictures in a file of results of --ray (default: 1000)"
    )  # fmt: skip
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
    if args.part < 1:
        raise ValueError(f"--part: expected 1 or more, got {args.part}")
    if args.ray is not None:
        if args.out is None:
            raise ValueError("--ray: expected --out with it, the folder for its files")
        if beside := [name for name in _ALONE if getattr(args, name)] + ["csv"] * (args.form == "csv"):
            raise ValueError(f"--ray: expected none of --{', --'.join(beside)} with it, as it writes Parquet alone")


def _run(args: argparse.Namespace) -> int:
    recognizer = Recognizer(
        args.weights,
        faces=args.faces,
        detector=args.detector,
        threads=1 if args.ray is not None and args.threads is None else args.threads,
        precision=args.precision,
        min_score=args.min_score,
        longest=args.longest,
        decode=args.decode,
    )
    items, problems = inputs.expanded(args.inputs, sys.stdin.buffer, args.null, tables=args.ray is not None)
    if args.ray is not None:
        return _on_ray(args, recognizer, items, problems)
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


def _on_ray(
    args: argparse.Namespace, recognizer: Recognizer, items: Sequence[inputs.Item], problems: Sequence[inputs.Problem]
) -> int:
    """As `_run`, in parts on the machines of a cluster."""
    from fastfer.predict import cluster, parts

    problems = [
        *problems,
        *(inputs.Problem(item.name, "no picture: --ray takes no videos") for item in items if item.kind == "stream"),
    ]
    division = parts.divided([item for item in items if item.kind != "stream"], args.part)
    names = "\0".join(name for part in division for name in part.names)
    about = {**_identity(args), "part": args.part, "inputs": hashlib.sha256(os.fsencode(names)).hexdigest()}
    args.out.mkdir(parents=True, exist_ok=True)
    _begin(args, about, any(args.out.glob("part-*.parquet")))
    remove_temporaries(args.out, ("part-*",))
    todo = [part for part in division if not parts.done(part.file(args.out))]
    messages = Messages(len(todo), args.quiet)
    for problem in problems:
        messages.line(f"error: {inputs.shown(problem.name)}: {problem.message}")
    if len(todo) < len(division):
        messages.note(str(args.out), f"{len(division) - len(todo)} of {len(division)} parts are done already")
    try:
        if todo:
            cluster.run(todo, recognizer, args.out, address=args.ray or None, step=messages.step)
    except KeyboardInterrupt:
        return 130
    finally:
        messages.clear()
    totals = parts.summed((part.file(args.out) for part in division), recognizer.classes)
    text = json.dumps({"fastfer": __version__, "run": about, **totals}, indent=2, ensure_ascii=False)
    write_bytes(args.out / "summary.json", f"{text}\n".encode())
    messages.note(str(args.out), f"{totals['pictures']} pictures, {totals['faces']} faces, {totals['failed']} failed")
    return 1 if problems or totals["failed"] else 0


def _begin(args: argparse.Namespace, identity: dict[str, Any], results: bool) -> None:
    """Go on with the ``results`` in --out, or begin. ValueError where that was not asked for, or is of other things."""
    about = args.out / "run.json"
    if not results:
        write_bytes(about, f"{json.dumps(identity, indent=2)}\n".encode())
        return
    if not args.resume:
        raise ValueError(f"--out: {args.out} has results: give --resume to go on with them, or another folder")
    earlier = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else None
    if earlier != identity:
        raise ValueError(f"--resume: expected the arguments of the earlier run, {earlier}, got {identity}")


def _results(args: argparse.Namespace) -> Path:
    path: Path = args.out / ("results.csv" if args.form == "csv" else "results.jsonl")
    return path


def _identity(args: argparse.Namespace) -> dict[str, Any]:
    """What results that stand in one file have to have in common."""
    weights = Path(args.weights)
    return {
        "weights": weights.name,
        "sha256": file_digest(weights) if weights.is_file() else None,
        "faces": args.faces,
        "every": args.every,
        "min_score": args.min_score,
        "longest": args.longest,
        "decode": args.decode,
    }


def _opened(args: argparse.Namespace, stack: ExitStack) -> tuple[BinaryIO, set[str], bool]:
    """The file for results, the sources that are done, and whether the file is new. OSError, ValueError."""
    if args.out is None:
        return sys.stdout.buffer, set(), True
    args.out.mkdir(parents=True, exist_ok=True)
    path, done = _results(args), set[str]()
    earlier = path.exists() and path.stat().st_size > 0
    _begin(args, _identity(args), earlier)
    if earlier:
        done = records.resumable(path, args.form)
    file = stack.enter_context(path.open("ab"))
    return file, done, file.tell() == 0
