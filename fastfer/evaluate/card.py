# SPDX-License-Identifier: Apache-2.0
"""The model card: what was measured, how, on what, and what a user of the weights has to know."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastfer._lawful_use import LAWFUL_USE
from fastfer.data.files import printable
from fastfer.evaluate.report import CONFUSION_FILE, CONFUSION_TABLE, REPORT_FILE
from fastfer.models.published import PAPERS

_SMALL_GROUP = 50
_CLASS_SCORES = ("precision", "recall", "f1")


def model_card(report: Mapping[str, Any]) -> str:
    """Markdown text of a report of `fastfer.evaluate.files.content`; its texts come from data sets and weight files."""
    report = _escaped(report)
    sections = (_result, _protocol, _classes, _groups, _cost, _paper, _environment, _terms)
    title = f"# {report['model']} on {report['data']}, {report['split']}"
    return "\n\n".join([title, *(text for section in sections if (text := section(report)))]) + "\n"


def _result(report: Mapping[str, Any]) -> str:
    rows = [("all images", report["metrics"])]
    if report["without_duplicates"] is not None:
        rows.append((f"without {report['duplicates']} copies of training images", report["without_duplicates"]))
    table = _table(
        ("", "images", "accuracy (95 % interval)", "macro-F1", "calibration error", "cross-entropy"),
        [
            (
                name, f"{m['images']:,}",
                f"**{m['accuracy']:.2%}** ({m['accuracy_interval'][0]:.1%} to {m['accuracy_interval'][1]:.1%})",
                f"**{m['macro_f1']:.4f}**", _number(m["calibration_error"], ".4f"), _number(m["loss"], ".4f"),
            )
            for name, m in rows
        ],
    )  # fmt: skip
    lines = [table]
    if report["duplicates"] is None:
        lines.append("No training set was there to look for copies in.")
    return "\n\n".join(lines)


def _protocol(report: Mapping[str, Any]) -> str:
    trained = report["trained"]
    validation = trained.get("validation") or {}
    known = [
        f"data {trained['data']}" if trained.get("data") else "",
        trained.get("protocol") or "",
        f"epoch {trained['epoch']}" if trained.get("epoch") is not None else "",
        f"validation accuracy {validation['accuracy']:.2%} then" if "accuracy" in validation else "",
    ]
    items = [
        ("data", f"{report['data']}, {report['split']}: {report['metrics']['images']:,} images"),
        ("how the split was made", report["protocol"] or "the data set's own"),
        ("classes", ", ".join(report["classes"])),
        ("images", f"{'×'.join(map(str, report['image_shape']))}, as the training images were stored"),
        ("crop", _words(report["preprocess"].get("crop")) or "none: images are used as they are stored"),
        ("preprocessing", _words({k: v for k, v in report["preprocess"].items() if k != "crop"})),
        ("test-time flip", "logits of image and mirror image averaged" if report["flip"] else "no"),
        ("trained on", "; ".join(filter(None, known)) or "the weight file does not say"),
        ("calibration error", "expected, 15 bins of equal width"),
    ]
    if report["trained_on"]:
        items.append(("caution", f"the network was trained on {report['trained_on']:,} of these images"))
    items += [("note", note) for note in report["notes"]]
    if trained.get("data") == report["data"] and report["split"] == "validation":
        items.append(("caution", "the epoch was chosen on a validation set of this data, so the figure is optimistic"))
    if report["options"].get("attention") == "batch":
        items.append(
            ("caution", f"logits depend on the other images of a batch; here {report['batch_size']} at a time")
        )
    return "## Protocol\n\n" + "\n".join(f"- {name}: {value}" for name, value in items)


def _classes(report: Mapping[str, Any]) -> str:
    metrics = report["metrics"]
    counts = [sum(row) for row in metrics["confusion"]]
    rows = [
        (name, f"{counts[i]:,}", *(f"{metrics[score][i]:.4f}" for score in _CLASS_SCORES))
        for i, name in enumerate(report["classes"])
    ]
    table = _table(("class", "images", "precision", "recall", "F1"), rows)
    picture = f"![Confusion matrix]({CONFUSION_FILE})\n\nCounts: [{CONFUSION_TABLE}]({CONFUSION_TABLE})"
    return f"## Classes\n\n{table}\n\n{picture}"


def _groups(report: Mapping[str, Any]) -> str:
    """Accuracy alone hides classes that a group has more of, hence macro-F1 beside it."""
    if not report["groups"]:
        return ""
    parts = ["## Groups"]
    for attribute, groups in report["groups"].items():
        rows = [
            (name + (" (few)" if m["images"] < _SMALL_GROUP else ""), f"{m['images']:,}", f"{m['accuracy']:.2%}",
             f"{m['accuracy_interval'][0]:.1%} to {m['accuracy_interval'][1]:.1%}", f"{m['macro_f1']:.4f}")
            for name, m in groups.items()
        ]  # fmt: skip
        parts.append(_table((attribute, "images", "accuracy", "95 % interval", "macro-F1"), rows))
    return "\n\n".join(parts)


def _cost(report: Mapping[str, Any]) -> str:
    cost = report["cost"]
    items = [
        f"{cost['parameters']:,} parameters and {cost['running_statistics']:,} running statistics",
        f"{cost['macs'] / 1e6:.2f} M multiply-adds an image of {'×'.join(map(str, cost['input_shape']))}",
        f"{cost['file_size'] / 1e6:.2f} MB weight file",
        *(
            f"batch {batch}: {ms:.2f} ms, {ms / int(batch):.3f} ms an image (median of {cost['runs'][batch]} runs)"
            for batch, ms in cost["latency_ms"].items()
        ),
    ]
    where = f"\n\nTimes: {cost['device']}, {cost['threads']} threads, the network alone." if cost["latency_ms"] else ""
    return "## Cost\n\n" + "\n".join(f"- {item}" for item in items) + where


def _paper(report: Mapping[str, Any]) -> str:
    paper = PAPERS.get(report["model"])
    if paper is None:
        return ""
    lines = [f"## Paper\n\n{paper.title} ({paper.source}). {paper.note}".rstrip()]
    if report["published"]:
        figures = ", ".join(f"{data} {accuracy:g} %" for data, accuracy in report["published"].items())
        lines.append(f"Published for this variant: {figures}. Splits and protocols may differ from the one above.")
    return "\n\n".join(lines)


def _environment(report: Mapping[str, Any]) -> str:
    entries = {**report["environment"], "backends": ", ".join(sorted(set(report["backends"].values())))}
    text = "\n".join(f"- {key}: {value}" for key, value in entries.items())
    return f"## Environment\n\n{text}\n\nEvery number, and the options: [{REPORT_FILE}]({REPORT_FILE})"


def _terms(report: Mapping[str, Any]) -> str:
    licence = report["licence"] or (
        "the weight file does not state one. Weights trained on data for research only are for research only; check "
        f"the terms of {report['trained'].get('data') or 'the training data'}"
    )
    return f"## Licence\n\nWeights: {licence}.\n\n## Lawful use\n\n{LAWFUL_USE}"


def _escaped(value: Any) -> Any:
    """The same with texts that are neither HTML nor Markdown's tables, links or code, nor steer a terminal."""
    if isinstance(value, str):
        text = html.escape(printable(value), quote=False)
        return re.sub(r"([|`\[\]\\])", r"\\\1", text)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, (list, tuple)) else value


def _words(settings: Mapping[str, Any] | None) -> str:
    def word(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return ", ".join(f"{key} {word(value)}" for key, value in (settings or {}).items())


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
