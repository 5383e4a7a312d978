# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.claims``: the engine's claims on this machine, into ``results/<machine>.json``.

Three parts: ``ratios`` (the engine beside its peers, interleaved, outputs verified first), ``steps`` (each step of each
plan beside ceilings measured in the same run) and ``growth`` (`bench.growth`). A case during which other work ran, or
the host took time away, is measured again, and says so where that did not help. ``--short`` is a few minutes on two
cores. `bench.compare` compares two such files, `bench.charts` draws them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import fastfer
from bench import growth, machine_file, stock
from bench.engine import _stock, network, precision
from bench.layers import NETWORKS
from bench.machine_file import Row, is_disturbed, quietly
from bench.measure import Ceilings, ceilings
from fastfer.engine.compare import compare
from fastfer.engine.peers import PEERS, USUAL

SHORT_NETWORKS = ("fgw_fer", "sepconv_attention")


class Store:
    """The file that rows go to, each as soon as it is measured."""

    def __init__(self, path: Path, measured: dict[str, Ceilings], *, missing: bool) -> None:
        self.path, self.machine = path, machine_file.describe()
        self._ceilings = {count: asdict(peak) for count, peak in measured.items()}
        self._there = machine_file.read(path) if missing and path.is_file() else {}
        self.rows: list[Row] = []

    def has(self, part: str, row: Row) -> bool:
        """Whether the file held such a row at the start, measured on a quiet machine."""
        keys = machine_file.KEYS[part]
        same = (old for old in self._there.get(part, []) if all(old[key] == row[key] for key in keys))
        return any(not is_disturbed(old) for old in same)

    def add(self, part: str, row: Row) -> None:
        self.rows.append(row)
        machine_file.update(self.path, self.machine, self._ceilings, {part: [row]})


def ratios(options: argparse.Namespace, store: Store) -> None:
    """The engine beside its peers."""
    others = USUAL[options.dtype] if options.others is None else options.others
    cases = itertools.product(options.networks, options.threads, options.batches)
    for name, threads, batch in cases:
        if store.has("ratios", {"network": name, "batch": batch, "threads": threads, "dtype": options.dtype}):
            continue
        model = network(name)
        engine = fastfer.compile(model, threads=threads, **precision(model, options.dtype))
        call = partial(compare, twin=_stock(name), others=others, rounds=options.rounds, seconds=options.seconds)
        result, quiet = quietly(partial(call, model, engine, batch), options.attempts)
        print(f"{result}\n", flush=True)
        store.add("ratios", {**asdict(result), **quiet})


def peaks(threads: list[int]) -> dict[str, Ceilings]:
    """The ceilings of each number of threads."""
    found, before = {}, torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        found[str(count)] = ceilings(0.2)
    torch.set_num_threads(before)
    return found


def steps(options: argparse.Namespace, store: Store, measured: dict[str, Ceilings]) -> None:
    """Each step of a plan on one image: microseconds, work, and the share of the ceiling of its threads.

    The least time of a step is that of its arithmetic at the peak, or of its bytes at the bandwidth of the caches,
    whichever is more: one image stays in them from step to step.
    """
    for name, threads in itertools.product(options.networks, options.threads):
        row: Row = {"network": name, "threads": threads, "dtype": options.dtype}
        if store.has("steps", row):
            continue
        model = network(name)
        engine = fastfer.compile(model, threads=threads, **precision(model, options.dtype)).warmup()
        profile, quiet = quietly(partial(engine.profile, repeats=200), options.attempts)
        peak = measured[str(profile.threads)]
        found = []
        for step in profile.steps:
            least = peak.seconds(int(step.macs), int(step.bytes), cached=True)
            share = 100 * least / step.seconds if step.seconds > 0 else 0.0
            found.append([step.name, 1e6 * step.seconds, step.macs, step.bytes, share])
        store.add("steps", {**row, "team": profile.threads, "steps": found, **quiet})


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.claims", description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(machine_file.KEYS), choices=list(machine_file.KEYS))
    parser.add_argument("--networks", nargs="+", choices=list(stock.BUILDERS))
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--others", nargs="*", choices=list(PEERS), help="default: those of the precision")
    parser.add_argument("--axes", nargs="+", default=list(growth.AXES), choices=list(growth.AXES), help="of growth")
    parser.add_argument("--dtype", default="float32", choices=list(USUAL))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.2, help="of calls, a round and contender (default: 0.2)")
    parser.add_argument("--attempts", type=int, default=2, help="at a row, until the machine is quiet (default: 2)")
    parser.add_argument("--short", action="store_true", help="two networks, one peer, few points, short rounds")
    parser.add_argument("--missing", action="store_true", help="only rows that the file lacks, or has as disturbed")
    parser.add_argument("--out", type=Path, help="default: results/<machine>.json, whose other rows stay")
    options = parser.parse_args(argv)
    if options.short:
        options.networks = options.networks or list(SHORT_NETWORKS)
        options.others = ["onnxruntime"] if options.others is None else options.others
        options.rounds, options.seconds = min(options.rounds, 5), min(options.seconds, 0.05)
    options.networks = options.networks or list(NETWORKS)
    options.threads = options.threads or list(range(1, torch.get_num_threads() + 1))
    return options


def main(argv: list[str] | None = None) -> int:
    options = parsed(argv)
    start, measured = time.perf_counter(), peaks(options.threads)
    out = options.out or machine_file.FOLDER / f"{machine_file.name(machine_file.describe())}.json"
    store = Store(out, measured, missing=options.missing)
    if "ratios" in options.parts:
        ratios(options, store)
    if "steps" in options.parts:
        steps(options, store, measured)
    if "growth" in options.parts:
        found = growth.points(options.axes, options.networks, short=options.short)
        wanted = [point for point in found if not store.has("growth", vars(point))]
        for row in growth.measure(wanted, options.seconds, options.attempts):
            store.add("growth", row)
    disturbed = sum(map(is_disturbed, store.rows))
    print(f"{out}: {len(store.rows)} rows in {time.perf_counter() - start:.0f} s", end="")
    print(f", {disturbed} of them disturbed by other work" if disturbed else ", the machine was quiet")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
