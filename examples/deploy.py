# SPDX-License-Identifier: Apache-2.0
"""Run an engine file where torch is not installed: numpy and Pillow are enough.

    python -m fastfer.engine fgw_fer --save fgw_fer.ffe    # where torch is
    python examples/deploy.py fgw_fer.ffe face.png ...     # anywhere

Pictures are faces, cropped; `fastfer.Recognizer` without ``faces="whole"`` finds them itself.
"""

from __future__ import annotations

import sys
import time

import fastfer


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: deploy.py MODEL.ffe PICTURE ...")
    recognizer = fastfer.Recognizer(sys.argv[1], faces="whole")
    for path in sys.argv[2:]:
        start = time.perf_counter()
        (face,) = recognizer(path).faces
        print(f"{path}: {face.label} {face.score:.1%}, {1e3 * (time.perf_counter() - start):.1f} ms")
    print("torch was imported" if "torch" in sys.modules else "torch was not imported")


if __name__ == "__main__":
    main()
