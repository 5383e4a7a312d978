# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.export WEIGHTS MODEL.onnx``: exit code 0, 2 for bad input, 1 when the export fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastfer.weights import argument


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastfer.export",
        description="Write a network as ONNX, with standard operators, for any batch, checked against ONNX Runtime.",
    )
    parser.add_argument("weights", type=argument, help="weight file (.safetensors), or the name of weights that ship")
    parser.add_argument("out", type=Path, help="file to write (.onnx)")
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="take uint8 images as the training images were stored: the graph does the preprocessing",
    )
    args = parser.parse_args(argv)
    from fastfer.export.onnx import to_onnx
    from fastfer.models import load_weights, read_metadata

    try:
        if args.out.suffix != ".onnx":
            raise ValueError(f"out: expected a name that ends in .onnx, got {args.out}")
        if not args.out.absolute().parent.is_dir():
            raise ValueError(f"out: the folder {args.out.parent} does not exist")
        model, metadata = load_weights(args.weights), read_metadata(args.weights)
        result = to_onnx(model, args.out, metadata, pixels=args.pixels)
    except (ImportError, OSError, TypeError, ValueError) as error:
        return _fail(str(error), 2)
    except RuntimeError as error:  # ExportError among them
        return _fail(str(error), 1)
    print(
        f"wrote {args.out}: {result['bytes'] / 1e6:.2f} MB, logits within {result['largest_error']:.1e} of the "
        f"network's in ONNX Runtime\noperators: {', '.join(result['operators'])}"
    )
    if result["before"]:
        print(f"before the network an image needs: {', '.join(result['before'])}")
    return 0


def _fail(message: str, code: int) -> int:
    from fastfer.data.files import terminal

    print(terminal(f"error: {message}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
