# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.evaluate WEIGHTS --data NAME --root PATH``: exit code 0, 2 for bad input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastfer.data import list_datasets
from fastfer.data.files import terminal
from fastfer.data.options import parse_options
from fastfer.evaluate.cost import measure_cost
from fastfer.evaluate.groups import groups_of, read_groups
from fastfer.evaluate.run import class_order, evaluate
from fastfer.evaluate.source import PARTS, Loaded, Weights, face_crop, load, load_parts, uncropped
from fastfer.weights import argument, beside


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Options that say what is evaluated: weights, data, split, output folder, threads."""
    options = argparse.ArgumentParser(prog=prog, description=description)
    options.add_argument("weights", type=argument, help="weight file (.safetensors), or the name of weights that ship")
    options.add_argument("--data", required=True, help=f"data set: {', '.join(list_datasets())}")
    options.add_argument("--root", type=Path, help="where the data set lies; the drawn faces need none")
    options.add_argument("--split", choices=PARTS, default="validation", help="part of it (default: validation)")
    options.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the data set, as load_dataset takes it, e.g. classes=7; may be repeated",
    )
    options.add_argument(
        "--face-model",
        type=Path,
        metavar="FILE",
        help="file of YuNet (.onnx or .ffe), for networks that were trained on faces cut out of whole pictures",
    )
    options.add_argument("--uncropped", action="store_true", help="the images are such faces already")
    options.add_argument("--out", type=Path, help="output folder (default: WEIGHTS-DATA-SPLIT... beside the weights)")
    options.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    options.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return options


def prepare(args: argparse.Namespace, with_train: bool, purpose: str | None = None) -> tuple[Weights, Loaded, Path]:
    """Weights, images, and the output folder, checked and not yet made. ValueError, OSError."""
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"threads: expected 1 or more, got {args.threads}")
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    weights = uncropped(load(args.weights)) if args.uncropped else load(args.weights)
    crop = face_crop(weights, args.face_model)
    weights.model.to(device)
    name = "-".join(filter(None, (args.weights.stem, args.data, args.split, purpose)))
    out = args.out or beside(args.weights) / name
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"out: expected a folder that can be written to, got {existing}")
    asked = parse_options(args.option)
    loaded = load_parts(weights, args.data, args.root, args.split, asked, with_train, crop)
    class_order(weights.model, loaded.split.names)
    return weights, loaded, out


def _device(name: str) -> torch.device:
    """ValueError for a device that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
        return device
    raise ValueError(f"device: expected cpu or one of {torch.cuda.device_count()} CUDA devices, got {name!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser("python -m fastfer.evaluate", "Score a network on a data set; write a report and a model card.")
    options.add_argument("--flip-test", action="store_true", help="average the logits of image and mirror image")
    options.add_argument("--batch-size", type=int, default=256, help="images at a time (default: 256)")
    options.add_argument("--groups", type=Path, help="csv of id and attributes: scores for each group")
    options.add_argument("--seconds", type=float, default=1.0, help="timing a batch size; 0 for none (default: 1)")
    args = options.parse_args(argv)
    try:
        return _run(args)
    except ImportError as error:
        return _fail(f"{error}; evaluation needs more packages: pip install 'fastfer[train]'")
    except (OSError, RuntimeError, ValueError) as error:
        return _fail(str(error))


def _run(args: argparse.Namespace) -> int:
    from fastfer.evaluate import files  # matplotlib

    if args.batch_size < 2 or args.seconds < 0:
        raise ValueError(f"batch-size, seconds: expected 2, 0 or more, got {args.batch_size}, {args.seconds}")
    weights, loaded, out = prepare(args, with_train=True)
    split = loaded.split
    groups = groups_of(args.data, args.root, split.ids)
    if args.groups is not None:
        groups |= read_groups(args.groups, split.ids)
    found = evaluate(
        weights.model,
        split,
        weights.preprocess,
        train=loaded.train,
        groups=groups,
        flip=args.flip_test,
        batch_size=args.batch_size,
    )
    shape = tuple(weights.preprocess(torch.from_numpy(split.images[:1])).shape[1:])
    cost = measure_cost(weights.model, shape, args.weights.stat().st_size, args.seconds)  # type: ignore[arg-type]
    protocol = {
        "data": args.data,
        "split": args.split,
        "protocol": split.protocol,
        "notes": list(loaded.notes),
        "image_shape": list(split.images.shape[1:]),
        "flip": args.flip_test,
        "batch_size": args.batch_size,
    }
    paths = files.write(out, files.content(weights, found, cost, protocol))
    lines = [("all images", found.metrics)]
    if found.without_duplicates is not None:
        lines.append((f"without {found.duplicates} copies of training images", found.without_duplicates))
    for name, scores in lines:
        print(
            f"{name}: {scores.images} images, accuracy {scores.accuracy:.4f}, macro-F1 {scores.macro_f1:.4f}, "
            f"calibration error {scores.calibration_error:.4f}"
        )
    if found.trained_on:
        print(f"caution: the network was trained on {found.trained_on} of these {len(split)} images")
    for note in loaded.notes:
        print(terminal(f"note: {note}"))
    print(f"wrote {', '.join(path.name for path in paths)} to {out}")
    return 0


def _fail(message: str) -> int:
    print(terminal(f"error: {message}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
