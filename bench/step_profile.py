# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.step_profile NETWORK ...``: each kernel of a recorded training step beside its ceiling.

Calls run in their order, so that each finds in the caches what the one before left there, and each is timed; the time
is the median over the steps. The ceiling is the larger of multiply-adds at the machine's peak and of the bytes of all
tensors, each once, at its bandwidth: of the last-level cache where they fit it together, else of memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from bench import networks
from bench.contenders import tiled
from bench.layers import TRAIN_BATCH
from bench.measure import Ceilings, cache_bytes, ceilings
from fastfer.step import Gradients
from fastfer.step.plan import Plan
from fastfer.step.record import Call, Params

_SIZES = ("c", "o", "kh", "sh", "rows", "channels", "count", "bytes")


@dataclass
class Line:
    """A call of the step: multiply-adds, bytes, seconds in each step."""

    name: str
    macs: int
    bytes: int
    times: list[float]

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    def share(self, peak: Ceilings) -> float:
        """Of the ceiling."""
        return peak.seconds(self.macs, self.bytes, self.bytes <= cache_bytes()) / self.seconds


def plan_of(network: str, batch: int) -> tuple[Plan, Callable[[], object]]:
    """A recorded step's plan, and the whole step."""
    model: Any = networks._own(network)
    x = tiled(networks._images(network, batch), batch).contiguous(memory_format=torch.channels_last)
    y = networks._labels(batch)
    passes = Gradients(lambda x, y: (nn.functional.cross_entropy(model(x), y),), [model], list(model.parameters()))
    passes(x, y)
    return passes.plans()[-1], lambda: passes(x, y)


def profile(network: str, seconds: float) -> tuple[list[Line], float]:
    """A line for each call, and the seconds of the whole step without the optimiser."""
    plan, step = plan_of(network, TRAIN_BATCH[network])
    each = plan.each()
    lines = [Line(_name(call), macs(call), _bytes(call), []) for call, _ in each]
    whole: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(whole) < 3:
        start = time.perf_counter()
        step()
        whole.append(time.perf_counter() - start)
        for line, (_, run) in zip(lines, each, strict=True):
            start = time.perf_counter()
            run()
            line.times.append(time.perf_counter() - start)
    return lines, statistics.median(whole)


def macs(call: Call) -> int:
    """Multiply-adds of convolutions as they are defined, forward or of all gradients; 0 for all else."""
    if not isinstance(call.function, str):
        return 0
    params = call.args[1].values
    backward = call.function.endswith("_bwd")
    total = sum(count * (_gradients(params, *wanted) if backward else 1) for count, *wanted in _products(params))
    return int(total)


def _gradients(params: dict[str, Any], *names: str) -> int:
    return sum(params.get(name) is not None for name in names)


def _products(params: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Multiply-adds of each convolution, and the names of its gradients."""
    shape = params["shape"].values if isinstance(params.get("shape"), Params) else {}
    window = shape.get("kh", 0) * shape.get("kw", 0)
    pixels = shape.get("n", 0) * shape.get("oh", 0) * shape.get("ow", 0)
    if "o" in shape:
        yield pixels * shape["o"] * shape["c"] * window, "dx", "d_weight"
    elif "in_channels" in params and shape:  # inverted bottlenecks
        inputs = shape["n"] * shape["h"] * shape["w"]
        yield inputs * params["in_channels"] * shape["c"], "dx", "d_expand"
        yield pixels * shape["c"] * window, "dout", "d_dw_weight"
        yield pixels * shape["c"] * params["out_channels"], "dout", "d_project"
    elif "in_channels" in params:
        yield params["rows"] * params["in_channels"] * params["out_channels"], "dx", "d_weight"
    elif shape and "pw_weight" in params:
        yield pixels * shape["c"] * window, "dx", "d_dw_weight"
        yield pixels * shape["c"] * params["out_channels"], "dout", "d_pw_weight"
    elif shape and "weight" in params:
        yield pixels * shape["c"] * window, "dx", "d_weight"


def _bytes(call: Call) -> int:
    tensors = {(ref.memory, ref.offset, ref.shape): ref for ref in call.refs()}
    return sum(prod(ref.shape) * ref.dtype.itemsize for ref in tensors.values())


def _name(call: Call) -> str:
    if not isinstance(call.function, str):
        return str(call.function)
    params = call.args[1].values
    shape = params["shape"].values if isinstance(params.get("shape"), Params) else params
    said = [f"{shape.get('h')}x{shape.get('w')}" if isinstance(shape.get("h"), int) else ""]
    said += [f"{key}{shape[key]}" for key in _SIZES if isinstance(shape.get(key), int)]
    said += [f"{key}{params[key]}" for key in ("in_channels", "out_channels") if key in params]
    return f"{call.function} {' '.join(part for part in said if part)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+", choices=list(TRAIN_BATCH))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each network")
    parser.add_argument("--least", type=float, default=0.005, help="share of the step from which a call is shown")
    options = parser.parse_args()
    peak = ceilings(0.3)
    threads = torch.get_num_threads()
    print(f"{peak.gmacs:.0f} GMAC/s, {peak.memory:.0f} GB/s memory, {peak.cache:.0f} cache; threads {threads}")
    for network in options.networks:
        lines, whole = profile(network, options.seconds)
        total = sum(line.seconds for line in lines)
        print(f"\n{network}: {whole * 1e3:.2f} ms, its calls one by one {total * 1e3:.2f} ms")
        for line in sorted(lines, key=lambda line: -line.seconds):
            if line.seconds >= options.least * total:
                rate, width = line.macs / line.seconds / 1e9, line.bytes / line.seconds / 1e9
                print(
                    f"{line.seconds * 1e3:7.3f} ms {line.seconds / total:5.1%} {line.share(peak):4.0%} of ceiling "
                    f"{rate:6.1f} GMAC/s {width:6.1f} GB/s  {line.name}"
                )


if __name__ == "__main__":
    main()
