# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.page FILE``: a machine's file as a page and drawings beside it, FILE.md and FILE-*.svg."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import charts
from bench.compare import Ratio
from bench.growth import AXES, bend
from bench.machine_file import FOLDER, Row, is_disturbed, read

_TITLES = {
    "pixels": "Larger images",
    "batch": "More images a call",
    "threads": "More threads, 32 images",
    "classes": "More classes",
}
_FEW = 6  # steps of a network that are shown
_ABOUT_RATIOS = """\
Time of the peer over that of the engine, the median over interleaved rounds; ms of the engine as median (tenth
percentile)."""
_ABOUT_STEPS = """\
One image, one thread. The share of the ceiling is the least time, by arithmetic or by bytes through the cache,
whichever is more, over the time taken; more than 100 % are algorithms with fewer multiply-adds than are counted."""
_ABOUT_GROWTH = """\
The engine alone in a process without torch, on one thread where no other number is given. Memory is what the process
grew by until the first call was through, weights included."""


def _mark(row: Row) -> str:
    """What stands behind a number that other work disturbed."""
    worst = max(row["others"], row["stolen"])
    return f" ({worst:.0%} disturbed)" if is_disturbed(row) else ""


def _table(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ratios(content: dict[str, Any]) -> Iterator[list[str]]:
    for row in sorted(content["ratios"], key=lambda row: (row["dtype"], row["network"], row["batch"], row["threads"])):
        own, *peers = row["timings"]
        ratios = ", ".join(f"{peer['name']} {Ratio.of(row, peer).value:.2f}×" for peer in peers)
        yield [
            f"{row['network']}, {row['batch']}", str(row["threads"]), row["dtype"],
            f"{1e3 * own['median']:.3f} ({1e3 * own['p10']:.3f})", ratios + _mark(row),
        ]  # fmt: skip


def _steps(content: dict[str, Any]) -> Iterator[list[str]]:
    """The longest steps of each network on one thread."""
    for row in content["steps"]:
        if row["threads"] != 1:
            continue
        whole = sum(step[1] for step in row["steps"])
        for name, micros, macs, size, share in sorted(row["steps"], key=lambda step: -step[1])[:_FEW]:
            yield [
                f"{row['network']}: {name}", f"{micros:.1f}{_mark(row)}", f"{micros / whole:.0%}", f"{macs / 1e6:.2f}",
                f"{size / 1024:.0f}", f"{share:.0f} %",
            ]  # fmt: skip


def _ceilings(content: dict[str, Any]) -> str:
    return "; ".join(
        f"{count} thread{'s' * (count != '1')}: {peak['gmacs']:.0f} GMAC/s in float32, {peak['memory']:.0f} GB/s from "
        f"memory, {peak['cache']:.0f} GB/s from the cache"
        for count, peak in content["ceilings"].items()
    )


def page(content: dict[str, Any], pictures: dict[str, str]) -> str:
    """The page; ``pictures`` are the files that were drawn."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    rows = [row for part in ("ratios", "steps", "growth") for row in content.get(part, [])]
    dates = sorted({row["date"] for row in rows})
    disturbed = sum(map(is_disturbed, rows))
    text = f"# {machine['cpu']}, {machine['model']}, {machine['cores']} cores\n\n"
    text += f"{machine['isa']}, {machine['cache_mib']} MiB last-level cache; {versions}; {dates[0]} to {dates[-1]}. "
    text += f"Ceilings: {_ceilings(content)}.\n\n"
    text += f"{len(rows)} rows, {disturbed} of them measured while others had more than a tenth of a core, or the host "
    text += "took more than a tenth of the time; those are marked, and no comparison judges them.\n\n"
    if content.get("ratios"):
        text += f"## Beside other runtimes\n\n{_ABOUT_RATIOS}\n\n"
        text += _picture("Ratios with their spread over rounds", pictures.get("speedup"))
        text += _table(["network, images", "threads", "dtype", "engine ms", "ratios"], _ratios(content)) + "\n"
        text += _picture("Accuracy on FER2013 against the time of a face", pictures.get("accuracy"))
    if content.get("steps"):
        text += f"## The {_FEW} longest steps of each network\n\n{_ABOUT_STEPS}\n\n"
        text += _picture("Roofline of all steps", pictures.get("roofline"))
        text += _table(["step", "µs", "of the time", "MMAC", "KiB", "of the ceiling"], _steps(content)) + "\n"
    if content.get("growth"):
        text += f"## Cost as work grows\n\n{_ABOUT_GROWTH}\n\n"
        text += _picture("Time and memory as work grows", pictures.get("growth"))
        text += _bends(content["growth"])
    return text.rstrip() + "\n"


def _picture(words: str, file: str | None) -> str:
    return f"![{words}]({file})\n\n" if file else ""


def _bends(rows: list[Row]) -> str:
    text = ""
    for axis, title in _TITLES.items():
        curves = [[row for row in rows if (row["axis"], row["network"]) == (axis, name)] for name in _networks(rows)]
        sentences = [f"- {bend(curve)}\n" for curve in curves if len(curve) > 1]
        text += f"**{title}**\n\n{''.join(sentences)}\n" if sentences else ""
    return text


def _networks(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["network"] for row in rows))


def write(path: Path) -> None:
    """The page and the drawings beside the file."""
    content, stem = read(path), path.with_suffix("")
    files = {kind: stem.with_name(f"{stem.name}-{kind}.svg") for kind in ("speedup", "accuracy", "roofline", "growth")}
    drawn = set()
    if content.get("ratios"):
        charts.speedups(content, files["speedup"])
        drawn.add("speedup")
        if charts.accuracy(content, FOLDER / "engine-faces.md", files["accuracy"]):
            drawn.add("accuracy")
    if content.get("steps"):
        charts.roofline(content, files["roofline"])
        drawn.add("roofline")
    if content.get("growth"):
        axes = [axis for axis in AXES if any(row["axis"] == axis for row in content["growth"])]
        charts.growth(content["growth"], axes, files["growth"])
        drawn.add("growth")
    text = page(content, {kind: files[kind].name for kind in drawn})
    path.with_suffix(".md").write_text(text)
    print(f"wrote {path.with_suffix('.md')}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="of bench.claims")
    write(parser.parse_args(argv).file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
