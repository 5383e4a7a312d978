# SPDX-License-Identifier: Apache-2.0
"""Why was this prediction wrong? Grad-CAM for the true class and for the one that was taken instead.

    python examples/explain_wrong.py wrong.png

Looks at drawn faces for the wrong prediction that the network was surest of. Needs the extra `explain`.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image

import fastfer
from fastfer.data.drawn import BASIC_NAMES, draw_faces
from fastfer.engine.trained import trained
from fastfer.explain import grad_cam
from fastfer.explain.sheet import overlay, stretched


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "wrong.png"
    model, known = trained(fastfer.weights.path("fgw_fer"))
    labels = np.arange(70) % 7
    faces = draw_faces(labels, seed=3)
    mean, std = known["mean"][0], known["std"][0]
    x = (torch.from_numpy(faces)[:, None] / 255 - mean) / std
    with torch.no_grad():
        shares = model.eval()(x).softmax(1).numpy()
    wrong = np.flatnonzero(shares.argmax(1) != labels)
    i = int(wrong[shares[wrong].max(1).argmax()])
    true, taken = int(labels[i]), int(shares[i].argmax())
    maps = grad_cam(model, x[[i, i]], torch.tensor([true, taken]))
    pictures = [overlay(faces[i], heat) for heat in stretched(maps).numpy()]
    sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k * picture.width, 0))
    sheet.save(path)
    print(f"{len(wrong)} of {len(labels)} drawn faces are taken wrong; of face {i} the network is surest")
    for name, k in (("drawn as", true), ("taken for", taken)):
        print(f"{name} {BASIC_NAMES[k]}: {shares[i, k]:.1%}")
    print(f"{path}: on the left what speaks for {BASIC_NAMES[true]}, on the right for {BASIC_NAMES[taken]}")


if __name__ == "__main__":
    main()
