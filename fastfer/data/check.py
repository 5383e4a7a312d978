# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder, and what is wrong with it: the report of ``python -m fastfer.data check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from fastfer.data.audit import Audit
from fastfer.data.files import printable
from fastfer.data.images import decode
from fastfer.data.inventory import Inventory
from fastfer.data.labels import CLASS_NAMES
from fastfer.data.loading import find_dataset, read_manifest
from fastfer.data.manifest import PARTS, Manifest, Sample
from fastfer.data.options import DataOptions
from fastfer.data.published import Published, published_for
from fastfer.data.split import DataError
from fastfer.data.votes import judge

_SHOWN = 5
_ALL = "all"


@dataclass
class Report:
    """Findings on one folder.

    counts      images per part and class; the part is "all" where the layout has no split
    copies      "validation in train": images of the one part that are in the other as well
    unusable    missing and corrupt images, rows that cannot be read
    problems    what is wrong; a sound data set has none
    remarks     what is worth knowing: the published flaws of a set, an excerpt
    inventory   the files below the root, and what became of each
    """

    dataset: str
    layout: str
    root: str
    notes: list[str] = field(default_factory=list)
    images: int = 0
    subjects: int | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    duplicate_groups: int = 0
    redundant: int = 0
    largest_group: int = 0
    copies: dict[str, int] = field(default_factory=dict)
    conflicts: list[list[str]] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    inventory: Inventory | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with ``ok``."""
        files = None if self.inventory is None else self.inventory.as_dict()
        return {**asdict(replace(self, inventory=None)), "inventory": files, "ok": not self.problems}


def check(root: str | Path, name: str = "auto", options: DataOptions | None = None) -> Report:
    """Read everything below ``root`` and look at every image. DataError where it is no known data set."""
    options = options or DataOptions(skip_corrupt=True)
    found = find_dataset(name, root, options)
    manifest = read_manifest(found, options)
    report = Report(found.dataset.name, manifest.layout, str(manifest.root), [*manifest.notes])
    report.unusable += manifest.unusable
    audit = Audit()
    counts: dict[str, Counter[str]] = {}
    for sample in manifest.samples:
        part, label = sample.split or _ALL, _label(sample)
        try:
            audit.add(decode(sample), sample.id, part, label)
        except DataError as error:
            report.unusable.append(str(error))
            continue
        counts.setdefault(part, Counter())[label or "no majority"] += 1
    _count(report, manifest, counts)
    known = published_for(manifest.dataset, manifest.layout)
    _compare_counts(report, known)
    _compare_copies(report, audit, known)
    _tell(report, manifest)
    if manifest.inventory is not None:
        report.inventory = manifest.inventory
        report.problems += [*manifest.inventory.refusals(), *manifest.inventory.doubts()]
        report.remarks += manifest.inventory.remarks()
    return report


def _label(sample: Sample) -> str | None:
    if sample.votes is None:
        return sample.label
    verdict = judge(sample.votes, "majority")
    return None if verdict is None else CLASS_NAMES[verdict.label]


def _count(report: Report, manifest: Manifest, counts: dict[str, Counter[str]]) -> None:
    columns = [*manifest.names, "no majority"]
    for part in (*PARTS, _ALL):
        if part in counts:
            present = [name for name in columns if name in manifest.names or counts[part][name]]
            report.counts[part] = {name: counts[part][name] for name in present}
    report.images = sum(sum(each.values()) for each in report.counts.values())
    subjects = {sample.subject for sample in manifest.samples}
    report.subjects = None if None in subjects else len(subjects)


def _compare_counts(report: Report, known: Published | None) -> None:
    """Half of a set or less is taken for an excerpt, one image in a thousand may be missing; all else is a problem."""
    if known is None:
        return
    for part, expected in known.images.items():
        found = report.images if part == _ALL else sum(report.counts.get(part, {}).values())
        if found == expected:
            _compare_classes(report, part, known.classes.get(part, {}))
        elif not found:
            report.remarks.append(f"{part}: none of the {expected} published images")
        elif 2 * found <= expected or 0 < 1000 * (expected - found) <= expected:
            report.remarks.append(f"{part}: {found} of {expected} published images")
        else:
            report.problems.append(f"{part}: {found} images, published are {expected}")


def _compare_classes(report: Report, part: str, expected: Mapping[str, int]) -> None:
    """Equal totals with other numbers per class mean labels read in the wrong order."""
    counts = report.counts.get(part, {})
    wrong = [f"{name} {counts.get(name, 0)} for {n}" for name, n in expected.items() if counts.get(name, 0) != n]
    if wrong:
        report.problems.append(f"{part}: images per class differ from the published: {', '.join(wrong)}")
    else:
        report.remarks.append(f"{part}: as many images as published")


def _compare_copies(report: Report, audit: Audit, known: Published | None) -> None:
    """Copies, conflicts and blanks; up to the published number they are the set's own, and only a remark."""
    groups = audit.groups()
    report.duplicate_groups, report.redundant = len(groups), sum(len(group) - 1 for group in groups)
    report.largest_group = len(groups[0]) if groups else 0
    report.conflicts, report.blank = audit.conflicts(), audit.blank
    whole = known is not None and sum(report.counts.get("train", {}).values()) == known.images.get("train")
    allowed = known if whole and known else Published({})
    for first, second in combinations([part for part in PARTS if part in report.counts], 2):
        across = audit.across(first, second)
        report.copies[f"{second} in {first}"] = sum(across)
        text = f"{sum(across)} {second} images are {first} images too"
        found = sum(across) if first == "train" else len(across)
        _judge(report, text, found, allowed.copies.get((first, second), 0))
    conflicts = f"{len(report.conflicts)} groups of equal images have different labels"
    _judge(report, conflicts, len(report.conflicts), allowed.conflicts, report.conflicts)
    _judge(report, f"{len(audit.blank)} images are blank", len(audit.blank), allowed.blank, audit.blank)


def _judge(report: Report, text: str, found: int, allowed: int, examples: Any = ()) -> None:
    if not found:
        return
    if found <= allowed:
        report.remarks.append(f"{text} (known of this set: up to {allowed})")
        return
    shown = [" = ".join(each) if isinstance(each, list) else str(each) for each in examples[:_SHOWN]]
    report.problems.append(f"{text}{': ' + '; '.join(shown) if shown else ''}")


def _tell(report: Report, manifest: Manifest) -> None:
    if report.unusable:
        shown = "; ".join(report.unusable[:_SHOWN])
        report.problems.append(f"{len(report.unusable)} images or rows cannot be used: {shown}")
    trained = report.counts.get("train") or report.counts.get(_ALL) or {}
    empty = [name for name in manifest.names if not trained.get(name)]
    if trained and empty:
        report.problems.append(f"no training image of {', '.join(empty)}")
    if not report.images:
        report.problems.append("no image that can be used")


def to_text(report: Report) -> str:
    """The report for people."""
    lines = [f"{report.dataset}, layout {report.layout}, at {report.root}"]
    lines += [f"  {note}" for note in report.notes]
    if report.subjects is not None:
        lines.append(f"  {report.subjects} subjects")
    names = list(dict.fromkeys(name for each in report.counts.values() for name in each))
    rows = [["", *names, "total"]]
    for part, counts in report.counts.items():
        rows.append([part, *(str(counts.get(name, 0)) for name in names), str(sum(counts.values()))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["", *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows), ""]
    lines.append(
        f"duplicates: {report.redundant} redundant images in {report.duplicate_groups} groups, the largest of "
        f"{report.largest_group}"
    )
    lines += [f"  {pair}: {n}" for pair, n in report.copies.items()]
    lines.append(f"conflicting labels: {len(report.conflicts)} groups; blank images: {len(report.blank)}")
    if report.inventory is not None:
        lines += ["", *report.inventory.lines(), ""]
    lines += [f"remark: {text}" for text in report.remarks] + [f"PROBLEM: {text}" for text in report.problems]
    lines.append("sound" if not report.problems else f"{len(report.problems)} problems")
    return "\n".join(map(printable, lines))
