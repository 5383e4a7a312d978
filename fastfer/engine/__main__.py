# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.engine MODEL``: compile a network, profile it, compare it with other runtimes, save it.

MODEL is the name of weights that ship, a file of trained weights, an ONNX file, or a network's name (fresh weights, for
timing alone, where none ship). Exit code 0, or 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastfer import weights
from fastfer.engine.rules import RULES, USUAL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastfer.engine", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a network's name, a weight file (.safetensors) or an .onnx")
    parser.add_argument("--compare", action="store_true", help="time it beside ONNX Runtime, OpenVINO, torch.compile")
    parser.add_argument("--others", nargs="*", help="runtimes to compare with (default: those of the precision)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images a call (default: 1 32)")
    parser.add_argument("--rounds", type=int, default=8, help="interleaved rounds of a comparison (default: 8)")
    parser.add_argument("--profile", action="store_true", help="print the time of each step")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a figure of the profile")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the engine, for fastfer.runtime.load")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of images, for an ONNX file")
    parser.add_argument("--fallback", default="error", help="of an ONNX file: error, torch or onnxruntime")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--dtype", help="float32, bfloat16, int8 or auto (default: float32, a quantised file int8)")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="float32 images (N, C, H, W), .npy, for int8, auto"
    )
    parser.add_argument("--rule", default=USUAL, help=f"of int8's ranges: {', '.join(RULES)} (default: {USUAL})")
    parser.add_argument(
        "--agreement", type=float, metavar="SHARE",
        help="of the calibration images on which the class is to be float32's: int8 keeps the steps in bfloat16 that "
        "this takes, and prints what each costs; auto takes the fastest precision (default: 0.99)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _network(name: str) -> tuple[Any, dict[str, Any]]:
    """A model, and what `compile` is to know of its images."""
    import torch

    from fastfer.models import create_model, list_models

    file = weights.resolve(name)
    if file.is_file():
        from fastfer.engine.trained import trained

        return trained(file)
    if name not in list_models():
        names = dict.fromkeys([*list_models(), *weights.list()])
        raise ValueError(f"MODEL: expected a weight file or one of {', '.join(names)}, got {name!r}")
    torch.manual_seed(0)
    model = create_model(name)
    with torch.no_grad():  # running statistics of some images, so that activations stay in range
        model.train()(torch.randn(4, model.in_chans, *model.input_size))
    return model.eval(), {}


def _run(options: argparse.Namespace) -> None:
    import numpy as np

    from fastfer.engine.choose import reason
    from fastfer.engine.compiler import compile
    from fastfer.engine.sensitivity import table

    is_onnx = options.model.endswith(".onnx")
    model, known = (options.model, {"fallback": options.fallback}) if is_onnx else _network(options.model)
    if options.size is not None:
        if not is_onnx:
            raise ValueError("--size: expected it with an ONNX file, got it with another network")
        known["input_size"] = options.size
    known.update(rule=options.rule, agreement=options.agreement)
    images = None if options.calibration is None else [np.load(options.calibration, allow_pickle=False)]
    engine = compile(model, threads=options.threads, dtype=options.dtype, calibration=images, **known)
    kib = {name: f"{size / 1024:.0f} KiB" for name, size in engine.memory.items()}
    if why := reason(engine.metadata.get("choice"), engine.dtype):
        print(why)
    if costs := table(engine.metadata.get("sensitivity")):
        print(costs)
    print(f"{engine}, weights {kib['weights']}, activations of a caller {kib['activations']}")
    if options.profile or options.plot is not None:
        profile = engine.profile()
        print(f"\n{profile}")
        if options.plot is not None:
            profile.plot(options.plot)
    if options.save is not None:
        engine.save(options.save)
    if options.compare:
        compare: Any
        if is_onnx:
            from fastfer.engine.onnx_compare import compare
        else:
            from fastfer.engine.compare import compare
        for batch in options.batch:
            print(f"\n{compare(model, engine, batch, others=options.others, rounds=options.rounds)}")


if __name__ == "__main__":
    sys.exit(main())
