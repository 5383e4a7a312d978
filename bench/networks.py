# SPDX-License-Identifier: Apache-2.0
"""A whole training step of a network: forward, cross-entropy, backward, fused AdamW; and the memory that it takes.

fastfer_step_native records fastfer's step and replays it, as `fastfer.compile_step` does. The stock contenders are the
builds of ``bench/stock.py``, eager or through ``torch.compile`` (the forward and backward; the loss and the optimiser
are the same calls for all), NCHW or channels_last. All start from the same weights; the optimiser's rate is small
enough to stay near them. ``python -m bench.networks NETWORK CONTENDER BATCH`` prints the growth of this process's
memory in a step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastfer
from bench import stock
from bench.contenders import Problem, backend_of, compiled, tiled
from bench.layers import MACS
from bench.measure import Runner
from fastfer.models import create_model
from fastfer.step import Gradients, Update

CONTENDERS = (
    "fastfer_native",
    "torch_nchw",
    "torch_channels_last",
    "torch_compile_nchw",
    "torch_compile_channels_last",
)
STEP_CONTENDERS = (*CONTENDERS, "fastfer_step_native")
_RATE = 1e-6
_TERMS = 1 << 20
"""For the error's limit: as rounding of a sum this long, which is what a network's depth makes of short ones."""


def _own(network: str) -> Any:
    """fastfer's network in training mode, seeded, without dropout."""
    torch.manual_seed(0)
    model = create_model(network).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _model(network: str, contender: str) -> nn.Module:
    """The contender's build; ValueError where its parameters are not fastfer's in number."""
    own: nn.Module = _own(network)
    if backend_of(contender):
        return own
    other = stock.BUILDERS[network]().train()
    counts = [sum(p.numel() for p in module.parameters()) for module in (own, other)]
    if counts[0] != counts[1]:
        raise ValueError(f"{network}: expected {counts[0]} parameters in the stock build, got {counts[1]}")
    stock.copy_weights(own, other)
    return other


def _layout(contender: str) -> torch.memory_format:
    return torch.contiguous_format if contender.endswith("nchw") else torch.channels_last


def _images(network: str, batch: int) -> Tensor:
    model = create_model(network)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(min(batch, 2), model.in_chans, *model.input_size, generator=generator)


def stepper(network: str, contender: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of images and labels that trains one step and returns the logits."""
    stock_or_own: Any = _model(network, contender)  # torch's annotations leave out memory_format
    model: nn.Module = stock_or_own if backend_of(contender) else stock_or_own.to(memory_format=_layout(contender))
    on_gpu = next(model.parameters()).is_cuda  # where the step must not wait for the device
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, fused=True, capturable=on_gpu)
    if contender == "fastfer_step_native":
        return _recorded(model, optimizer)
    call = compiled(model) if "compile" in contender else model

    def step(x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = call(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
        return logits.detach()

    return step


def _recorded(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], Tensor]:
    """`stepper` of a recorded step."""

    def computed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = model(x)
        return nn.functional.cross_entropy(logits, y), logits

    passes, update = Gradients(computed, [model], list(model.parameters())), Update(optimizer)

    def step(x: Tensor, y: Tensor) -> Tensor:
        _, logits = passes(x, y)
        update()
        assert logits is not None
        return logits

    return step


def _labels(batch: int) -> Tensor:
    return torch.arange(batch) % 2


def training_step(network: str, batch: int) -> Problem:
    """The step as a problem whose result is the logits before it; checked against the stock build in float64."""
    image = _images(network, batch)
    parameters = sum(p.numel() for p in create_model(network).parameters())

    def oracle() -> list[Tensor]:
        with torch.no_grad():
            return [_model(network, "torch_nchw").double()(image.double())]

    def build(contender: str) -> Runner:
        step = stepper(network, contender)
        x, y = tiled(image, batch).contiguous(memory_format=_layout(contender)), _labels(batch)
        return lambda slot: (step(x, y),)

    return Problem(
        macs=3 * batch * MACS[network],
        traffic=4 * (batch * image[0].numel() + 7 * parameters),  # the optimiser reads four tensors and writes three
        terms=_TERMS,
        slots=1,
        mode=torch.enable_grad,
        oracle=oracle,
        build=build,
    )


def inference(network: str, batch: int) -> Problem:
    """The forward pass in evaluation, without gradients; checked against the stock build in float64."""
    image = _images(network, batch)

    def oracle() -> list[Tensor]:
        with torch.no_grad():
            return [_model(network, "torch_nchw").eval().double()(image.double())]

    def build(contender: str) -> Runner:
        stock_or_own: Any = _model(network, contender).eval()  # torch's annotations leave out memory_format
        if not backend_of(contender):
            stock_or_own = stock_or_own.to(memory_format=_layout(contender))
        call = compiled(stock_or_own, freezing=True) if "compile" in contender else stock_or_own
        x = tiled(image, batch).contiguous(memory_format=_layout(contender))
        return lambda slot: (call(x),)

    traffic = 4 * (batch * image[0].numel() + sum(p.numel() for p in create_model(network).parameters()))
    return Problem(batch * MACS[network], traffic, _TERMS, 1, torch.no_grad, oracle, build)


def _status(field: str) -> int:
    """Bytes of a field of this process's memory, as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field} in /proc/self/status")


def growth(network: str, contender: str, batch: int) -> int:
    """Bytes by which the resident set grows at its highest in a step, beyond model, optimiser, libraries and inputs.

    A first step loads libraries, compiles, and makes the optimiser's state and the gradients; what it leaves free in
    the heap is given back before the measured ones.
    """
    backend, layout = backend_of(contender), _layout(contender)
    with fastfer.use(backend) if backend else nullcontext():
        step = stepper(network, contender)
        x, y = tiled(_images(network, batch), batch).contiguous(memory_format=layout), _labels(batch)
        step(x, y)
        gc.collect()
        fastfer.backend.release_memory()  # what fastfer keeps for reuse counts as growth when it is taken again
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again from here
        before = _status("VmRSS")
        for _ in range(2):
            step(x, y)
        return _status("VmHWM") - before


def peak_mib(network: str, contender: str, batch: int) -> float:
    """`growth` in a process of its own, in MiB; RuntimeError with what that process said where it fails."""
    command = [sys.executable, "-m", "bench.networks", network, contender, str(batch)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=growth.__doc__)
    parser.add_argument("network", choices=tuple(stock.BUILDERS))
    parser.add_argument("contender", choices=STEP_CONTENDERS)
    parser.add_argument("batch", type=int)
    options = parser.parse_args()
    print(f"{growth(options.network, options.contender, options.batch) / 2**20:.2f}")


if __name__ == "__main__":
    main()
