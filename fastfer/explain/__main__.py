# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.explain WEIGHTS --data NAME --root PATH``: exit code 0, 2 for bad input."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastfer.data.files import terminal
from fastfer.evaluate.__main__ import parser, prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser(
        "python -m fastfer.explain",
        "Show where a network looks: attention maps and Grad-CAM over right and wrong predictions of every class.",
    )
    options.add_argument("--right", type=int, default=5, help="recognised images a class (default: 5)")
    options.add_argument("--seed", type=int, default=0, help="draws them (default: 0)")
    options.add_argument("--layer", help="module whose output Grad-CAM reads (default: the network's own)")
    args = options.parse_args(argv)
    try:
        from fastfer.explain.run import explain, write  # matplotlib

        if args.right < 1 or args.seed < 0:
            raise ValueError(f"right, seed: expected 1, 0 or more, got {args.right}, {args.seed}")
        weights, loaded, out = prepare(args, with_train=False, purpose="explained")
        split = loaded.split
        found = explain(weights.model, split, weights.preprocess, right=args.right, seed=args.seed, layer=args.layer)
        about = {
            "model": weights.model.name,
            "weights": args.weights.name,
            "data": args.data,
            "split": args.split,
            "right": args.right,
            "seed": args.seed,
        }
        paths = write(out, found, split, about, split.ids)
    except ImportError as error:
        text = str(error)
        hint = "" if "pip install" in text else "; explanations need more packages: pip install 'fastfer[explain]'"
        return _fail(text + hint)
    except (OSError, RuntimeError, ValueError) as error:
        return _fail(str(error))
    print(f"wrote {', '.join(path.name for path in paths)} to {out}")
    return 0


def _fail(message: str) -> int:
    print(terminal(f"error: {message}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
