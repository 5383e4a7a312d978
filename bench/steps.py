# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.steps NETWORK ...``: a training step beside its peers, and what the trainer does around it.

Steps are those of `bench.networks`; beside them stand what a batch costs before its step (``feed`` gathers its images,
``prepare`` converts and augments them) and ``validation``, the trainer's predictions of as many images. All take turns,
round after round in another order, and the table says the median. Readings are kept in ``results/steps.json``: a run
that adds a contender or more rounds leaves the others, so that a long benchmark can be made of short quiet runs, each
with fastfer's step in it. Ratios are medians of runs: in each, the peer's median over fastfer's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench import machine_file, networks
from bench.contenders import tiled
from bench.layers import TRAIN_BATCH
from bench.measure import QuietCheck
from fastfer.data import Augment, drawn
from fastfer.evaluate.predict import predict
from fastfer.models import create_model
from fastfer.train.options import Input

OWN = "fastfer_step_native"
AROUND = ("feed", "prepare", "validation")
PATH = Path(__file__).parent / "results" / "steps.json"
_Call = Callable[[], object]


def step_calls(network: str, contenders: list[str]) -> dict[str, _Call]:
    """A training step of each contender."""
    batch = TRAIN_BATCH[network]
    images, y = networks._images(network, batch), networks._labels(batch)
    calls: dict[str, _Call] = {}
    for name in contenders:
        step = networks.stepper(network, name)
        x = tiled(images, batch).contiguous(memory_format=networks._layout(name))
        calls[name] = lambda step=step, x=x: step(x, y)  # type: ignore[misc]
    return calls


def around_calls(network: str) -> dict[str, _Call]:
    """What the trainer does with a batch of stored faces, 48×48 and grey, outside of its step."""
    model: Any = create_model(network)
    split, batch = drawn.load(4 * TRAIN_BATCH[network], 7)["train"], TRAIN_BATCH[network]
    colour: Any = "rgb" if model.in_chans == 3 else "grey"
    size = None if model.input_size == (48, 48) else model.input_size[0]
    preprocess = Input("symmetric", size=size, colour=colour).preprocess(split)
    images, augment, draws = torch.from_numpy(split.images), Augment(), torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(images), generator=draws)[:batch]
    stored = images[chosen]
    return {
        "feed": lambda: images[chosen],
        "prepare": lambda: augment(preprocess(stored), draws),
        "validation": lambda: predict(model, stored, preprocess, batch_size=batch),
    }


def measure(calls: dict[str, _Call], seconds: float) -> dict[str, list[float]]:
    """Seconds of each reading; before each the call is made once more, which brings its memory into the caches."""
    names, readings = list(calls), {name: list[float]() for name in calls}
    for call in calls.values():
        call()
    turn, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end or turn < 2:
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            readings[name].append(time.perf_counter() - start)
        turn += 1
    return readings


def record(network: str, contenders: list[str], seconds: float, path: Path) -> None:
    """One run, appended to the file."""
    calls = step_calls(network, contenders) | around_calls(network)
    check = QuietCheck()
    readings = measure(calls, seconds)
    busy, stolen = check.read()
    run = {
        "network": network,
        "batch": TRAIN_BATCH[network],
        "threads": torch.get_num_threads(),
        "date": str(date.today()),
        "others": round(busy, 2),
        "stolen": round(stolen, 3),
        "rounds": len(readings[OWN]),
        "ms": {name: round(statistics.median(times) * 1e3, 3) for name, times in readings.items()},
    }
    kept = json.loads(path.read_text()) if path.is_file() else {"machine": machine_file.describe(), "runs": []}
    kept["runs"].append(run)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(kept))
    print(run, flush=True)


def page(kept: dict[str, Any]) -> str:
    """The tables."""
    machine = kept["machine"]
    lines = [
        "# Training steps, recorded, and what is around them",
        "",
        f"By `python -m bench.steps` on {machine['cpu']}; milliseconds, medians of the runs' medians. A ratio is the",
        "peer's time over the recorded step's in the same run. Runs beside which others had a tenth of a core or more",
        "count only where there are no quiet ones.",
    ]
    found = [run["network"] for run in kept["runs"]]
    for network in TRAIN_BATCH:
        if network in found:
            runs = [run for run in kept["runs"] if run["network"] == network]
            quiet = [run for run in runs if not machine_file.is_disturbed(run)]
            lines += ["", *_table(network, quiet or runs)]
    return "\n".join(lines) + "\n"


def _table(network: str, runs: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run["ms"] if name not in AROUND))
    others = max(run["others"] for run in runs)
    lines = [
        f"## {network}, batch {runs[0]['batch']}, {runs[0]['threads']} threads, others {others:.2f}",
        "",
        "| step | ms | ratio | rounds |",
        "|---|---|---|---|",
    ]
    for name in names:
        having = [run for run in runs if name in run["ms"]]
        ratio = statistics.median(run["ms"][name] / run["ms"][OWN] for run in having)
        rounds = sum(run["rounds"] for run in having)
        lines.append(f"| {name} | {_median(having, name):.4g} | {ratio:.2f}x | {rounds} |")
    missing = [name for name in networks.CONTENDERS if name not in names]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    step = _median(runs, OWN)
    lines += ["", "| around it | ms | of the step |", "|---|---|---|"]
    lines += [f"| {name} | {_median(runs, name):.3g} | {_median(runs, name) / step:.1%} |" for name in AROUND]
    return lines


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run["ms"][name] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+", choices=list(TRAIN_BATCH))
    parser.add_argument("--contenders", nargs="+", default=list(networks.STEP_CONTENDERS))
    parser.add_argument("--seconds", type=float, default=15.0, help="for each network")
    parser.add_argument("--out", type=Path, default=PATH)
    options = parser.parse_args()
    for network in options.networks:
        record(network, list(dict.fromkeys([OWN, *options.contenders])), options.seconds, options.out)


if __name__ == "__main__":
    main()
