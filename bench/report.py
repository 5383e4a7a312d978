# SPDX-License-Identifier: Apache-2.0
"""Tables and plots from result files: ``python -m bench.report FILE... --name NAME [--page docs/results.md]``.

Writes ``results/NAME.md``, ``results/NAME.csv`` (every number, one line a contender) and ``results/NAME-*.png``; with
``--page`` also the part of that file between ``<!-- results:begin -->`` and ``<!-- results:end -->``.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path

from bench.layers import NETWORKS
from bench.plots import plot
from bench.results import FACTS, SECOND, SUBJECT, Results, Row, geometric_mean, read

FOLDER = Path(__file__).parent / "results"
WORKS = (
    "block inference, batch 1", "block inference, batch 32", "block training", "depthwise forward",
    "depthwise backward", "pointwise forward", "pointwise backward", "elementwise forward", "elementwise backward",
    "dense inference", "dense training", "batch_norm inference", "batch_norm training", "training step",
)  # fmt: skip
TARGETS = {
    "block inference, batch 1": 2.0,
    "block inference, batch 32": 2.0,
    "block training": 2.5,
    "depthwise backward": 3.0,
}
_NOTES = """\
Speed-up: time of the fastest stock PyTorch contender (eager NCHW, eager channels_last, `torch.compile`) over fastfer's
native kernels; medians over interleaved rounds. Every contender was compared with a float64 reference before it was
timed: "error" is the largest difference over the largest value; "gradient error", for gradients that passed an
activation, is in the Euclidean norm, as the mask of a value at its kink is a matter of rounding.

GB/s count each tensor once (the least traffic), GMAC/s the convolutions' multiply-adds (three times the forward's for
training). "% of ceiling" is the time that the measured peaks allow, by arithmetic or by memory, whichever is more, over
fastfer's time; training cannot reach 100, as its statistics force more passes. The inputs of a batch are cycled through
more than the cache (64 copies at most); a single image stays hot, as between the layers of a network.

Allocator "installed": glibc as it comes, which returns blocks above 32 MiB to the kernel; "tuned": it keeps them
(`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`).

A training step is a network's forward, cross-entropy, backward and fused AdamW, against a stock build of the network
from the same weights; its error is that of the logits.
"""


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(header)
    lines = [head, ["---"] * 1 + ["---:"] * (len(head) - 1), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}×"


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def machine_line(results: Results) -> str:
    """Processor, threads, versions, date and measured ceilings; and a warning where other work ran."""
    first = results.machines[0]
    peaks = first["ceilings"]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items() if number)
    text = (
        f"{first['cpu']}, {first['cores']} cores, {first['cache_mib']} MiB last-level cache; "
        f"{first['threads']} threads; fastfer {first['version']} on {first['isa']}; {versions}; "
        f"{results.date}; commit {results.commit}. "
        f"Measured ceilings: {peaks['gmacs']:.0f} GMAC/s float32, {peaks['memory']:.0f} GB/s memory, "
        f"{peaks['cache']:.0f} GB/s cache.\n"
    )
    disturbed = sum(len(machine["disturbed"]) for machine in results.machines)
    if disturbed:
        text += f"\n**The machine was not quiet: other work ran during {disturbed} cases.**\n"
    if any(machine["smoke"] for machine in results.machines):
        text += "\n**A smoke run: the numbers mean nothing.**\n"
    return text


def summary(results: Results) -> str:
    """Geometric means of the speed-up, by network and over all distinct shapes."""
    rows = []
    for allocator in results.allocators:
        for work in WORKS:
            of_all = results.of(work, allocator)
            if of_all:
                means = [geometric_mean(r.speedup() for r in results.of(work, allocator, n)) for n in NETWORKS]
                total, second = (geometric_mean(r.speedup(name) for r in of_all) for name in (SUBJECT, SECOND))
                target = f"{TARGETS[work]:g}×" if work in TARGETS else "-"
                cells = [f"{work} ({allocator})", *map(_times, means), f"**{_times(total)}**", target, _times(second)]
                rows.append(cells)
    return _table(["work (allocator)", *NETWORKS, "all shapes", "target", "Numba, all shapes"], rows)


def _detail(rows: list[Row]) -> str:
    header = (
        "network, shape, batch", "ms", "p10", "speed-up", "best stock", "NCHW ms", "channels_last ms", "compile ms",
        "Numba ms", "GB/s", "GMAC/s", "% of ceiling", "error", "gradient error",
    )  # fmt: skip
    lines = []
    for row in rows:
        own = row.contenders.get(SUBJECT)
        if own is None:
            continue
        others = (row.median("torch_nchw"), row.median("torch_channels_last"), row.best_compiled, row.median(SECOND))
        lines.append([
            f"{row.network} {row.shape}, {row.batch}", _ms(own["median_ms"]), _ms(own["p10_ms"]), _times(row.speedup()),
            row.best_torch.removeprefix("torch_"), *map(_ms, others),
            f"{own['gb_per_s']:.1f}", f"{own['gmac_per_s']:.1f}", f"{own['ceiling_percent']:.0f} ({own['bound']})",
            f"{own['error']:.1e}", f"{own['gradient_error']:.1e}" if own["gradient_error"] else "-",
        ])  # fmt: skip
    return _table(header, lines)


def _losses(results: Results) -> str:
    slower = [row for row in results.rows if row.work in WORKS and row.speedup() < 1]
    if not slower:
        return "None.\n"
    slower.sort(key=Row.speedup)
    return _table(
        ["work, network, shape, batch, allocator", "speed-up", "best stock"],
        [
            [
                f"{r.work}, {r.network} {r.shape}, {r.batch}, {r.allocator}",
                _times(r.speedup()),
                r.best_torch.removeprefix("torch_"),
            ]
            for r in slower
        ],
    )


def _calls(results: Results) -> str:
    """Microseconds of tiny calls, and of chains that alternate between torch's and fastfer's ops."""
    text = ""
    for allocator in results.allocators:
        tiny = results.of("dispatch", allocator)
        if tiny:
            text += "### Cost of a call, µs\n\n"
            names = (SUBJECT, SECOND, "torch_channels_last")
            rows = [[row.shape, *(f"{1e3 * row.median(name):.1f}" for name in names)] for row in tiny]
            text += _table(["call", "native", "Numba", "eager PyTorch"], rows)
        chains = results.of("alternating", allocator)
        if chains:
            text += (
                "\n### Ops of torch and fastfer in turn, ms\n\nA shared pool: the chain in turn costs no more than the "
            )
            text += "mean of the two alone.\n\n"
            rows = []
            for row in chains:
                for kind in ("native", "numba"):
                    alone, mixed = row.median("torch"), row.median(f"alternating_{kind}")
                    own = row.median(f"fastfer_{kind}")
                    ratio = _times(2 * mixed / (alone + own))
                    rows.append([f"{row.shape}, {row.batch}, {kind}", _ms(alone), _ms(own), _ms(mixed), ratio])
            text += _table(["chain, batch, backend", "torch alone", "fastfer alone", "in turn", "in turn / mean"], rows)
    return text


def _memory(results: Results) -> str:
    """MiB that a training step adds at its highest, each contender in a process of its own."""
    text = ""
    for allocator in results.allocators:
        rows = [row for row in results.of("training step", allocator) if any(row.peaks.values())]
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row.peaks))
            cells = [[f"{r.network}, {r.batch}", *(f"{r.peaks.get(n, math.nan):.0f}" for n in names)] for r in rows]
            text += f"## Memory of a training step, MiB ({allocator} allocator)\n\n"
            text += (
                "Growth of the resident set at its highest, beyond parameters, gradients and the optimiser's state.\n\n"
            )
            text += _table(["network, batch", *(name.removeprefix("torch_") for name in names)], cells) + "\n"
    return text


def _csv(results: Results) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FACTS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in results.rows:
        for facts in row.contenders.values():
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in facts.items()})
    return buffer.getvalue()


def refresh(page: Path, block: str, name: str = "results") -> None:
    """Replace what stands between the markers of that name; ValueError where they are missing."""
    text = page.read_text()
    before, after = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    start, end = text.find(before), text.find(after)
    if start < 0 or end < start:
        raise ValueError(f"{page}: expected {before} and, after it, {after}")
    _write(page, text[: start + len(before)] + "\n" + block + text[end:])


def write(files: list[Path], name: str, page: Path | None = None) -> None:
    """Everything in ``results/`` under ``name``, and the block of ``page``, a file in ``docs``, where one is given."""
    results = read(files)
    FOLDER.mkdir(exist_ok=True)
    figures = plot(results, FOLDER, name, TARGETS)
    pictures = "".join(f"![{path.stem}]({{folder}}{path.name})\n" for path in figures)
    top = f"{machine_line(results)}\n{summary(results)}\n"
    details = ""
    for allocator in results.allocators:
        for work in WORKS:
            rows = results.of(work, allocator)
            if rows:
                details += f"## {work[0].upper()}{work[1:]} ({allocator} allocator)\n\n{_detail(rows)}\n"
    text = f"# Benchmarks\n\n{top}{pictures.format(folder='')}\n{_NOTES}\n"
    text += (
        f"## Where fastfer is slower\n\n{_losses(results)}\n## Calls\n\n{_calls(results)}\n{_memory(results)}{details}"
    )
    _write(FOLDER / f"{name}.md", text.rstrip() + "\n")
    _write(FOLDER / f"{name}.csv", _csv(results))
    if page is not None:
        link = f"Every shape, error and loss: [bench/results/{name}.md](../bench/results/{name}.md).\n"
        refresh(page, f"\n{top}{pictures.format(folder='../bench/results/')}\n{link}\n")
    print(f"wrote {FOLDER / name}.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON of pytest-benchmark")
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    write(options.files, options.name, options.page)


if __name__ == "__main__":
    main()
