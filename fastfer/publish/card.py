# SPDX-License-Identifier: Apache-2.0
"""The card of weights that ship: the evaluation's, and what a release measures besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastfer.evaluate.card import model_card

_DATA = {
    "fer2013": "FER2013 (Goodfellow et al. 2013): 28,709 training and 3,589 PublicTest faces of 48×48 grey pixels, "
    "found by web search for emotion words and labelled by people who agree on about 65 % of them",
    "ferplus": "FERPlus (Barsoum et al. 2016): the faces of FER2013 with the votes of ten people each; here the class "
    "of most votes",
}


def card(report: Mapping[str, Any]) -> str:
    """Markdown text."""
    general = model_card(report)
    title, _, rest = general.partition("\n\n")
    return "\n\n".join([title, _use(report), _release(report), rest])


def _use(report: Mapping[str, Any]) -> str:
    name = report["weights"].removesuffix(".safetensors")
    return (
        f"{_DATA[report['data']]}. The validation part chose the epoch, so the figures below are slightly "
        f"optimistic.\n\n"
        f'```python\nimport fastfer\n\nmodel = fastfer.load("{name}")  # the torch network\n'
        f'recognizer = fastfer.Recognizer("{name}")  # pictures to labels, on the engine\n```'
    )


def _release(report: Mapping[str, Any]) -> str:
    one, both = report["metrics"]["accuracy"], report["mirrored"]["accuracy"]
    fit = report["calibration"]
    best = report["training"]["config"]
    lines = [
        f"- one view an image: **{one:.2%}**; image and mirror image averaged: {both:.2%}",
        f"- temperature {fit['temperature']:g}, fitted on every second of these images: calibration error on the "
        f"others {fit['error_before']:.4f} → {fit['error_after']:.4f}, cross-entropy {fit['loss_before']:.4f} → "
        f"{fit['loss_after']:.4f}",
    ]
    for precision, share in report["agreement"].items():
        said = (
            f"agrees with the network on {share:.2%} of classes"
            if isinstance(share, float)
            else f"not measured: {share}"
        )
        lines.append(f"- engine in {precision}: {said}")
    trained = report["training"]
    recipe = [f"--recipe {best['recipe']}"] if best.get("recipe") else []
    recipe += [f"--model {report['model']}", f"--data {report['data']}", f"--epochs {trained['epochs']['planned']}"]
    if best.get("teacher"):
        distill = best["distill"]
        recipe.append(f"--teacher {best['teacher']['name']} (SHA-256 {best['teacher'].get('sha256', '')[:16]})")
        recipe.append(f"--distill.temperature {distill['temperature']:g} --distill.weight {distill['weight']:g}")
    if best.get("from_weights"):
        recipe.append(f"--from {best['from_weights']['name']}")
    lines.append(f"- training: `{' '.join(recipe)} --seed {trained['seed']}`, {trained['epochs']['done']} epochs done")
    pictures = "![Reliability diagram](reliability.png)\n\n![Curves of the training](curves.png)"
    return "## Release\n\n" + "\n".join(lines) + f"\n\n{pictures}"
