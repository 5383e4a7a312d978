# SPDX-License-Identifier: Apache-2.0
"""Device, precision and processes of a run, by accelerate: one process, or several that torchrun started.

With several, each computes its part of every batch and the gradients are averaged, so that a step is that of one
process on the whole batch but for what looks at other images of the batch: BatchNorm uses the statistics of each
process's part unless they are synchronised (the first process's running ones are kept), the triplet loss mines within
it; and each process draws its own augmentation and dropout.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["fp32", "bf16", "fp16"]
_MIXED: dict[str, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def is_main_process() -> bool:
    """Whether this is the only process or the first of those that torchrun started."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def leave_processes() -> None:
    """End the connection between the processes, where there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Placement:
    """Where a run computes. ``device`` is "auto" (CUDA where there is one), "cpu" or "cuda".

    ImportError without accelerate, ValueError for a device or precision that cannot run here.
    """

    def __init__(self, device: str = "auto", precision: Precision = "fp32") -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: expected auto or cpu, because torch finds no CUDA device here; got cuda")
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        if precision == "fp16" and on_cpu:
            raise ValueError("precision: expected fp32 or bf16 on the CPU, got fp16")
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        self._accelerator: Any = Accelerator(cpu=on_cpu, mixed_precision=_MIXED[precision])
        self.device: torch.device = self._accelerator.device
        self.processes: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.precision = precision

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates, shows and writes."""
        return self.rank == 0

    def prepare(self, module: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The module that runs in the chosen precision and shares gradients, and its optimiser."""
        prepared: Any = self._accelerator.prepare_model(module)
        return prepared, self._accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Gradients of ``loss``, scaled in fp16 and averaged over the processes."""
        self._accelerator.backward(loss)

    def clip(self, parameters: list[Tensor], norm: float) -> None:
        """Scale the gradients together down to ``norm`` where they are longer."""
        self._accelerator.clip_grad_norm_(parameters, norm)

    def part(self, chosen: Tensor) -> Tensor:
        """This process's part of a batch, in order."""
        return torch.tensor_split(chosen, self.processes)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.processes > 1:
            value = value.detach().clone()
            torch.distributed.all_reduce(value)
        return value

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order; each may have another number of them."""
        if self.processes == 1:
            return rows
        counts = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(self.processes)]
        torch.distributed.all_gather(counts, torch.tensor(len(rows), device=self.device))
        sizes = [int(count) for count in counts]
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def agreed(self, value: Any) -> Any:
        """The main process's ``value``, in every process."""
        if self.processes == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()

    def scaler_state(self) -> dict[str, Any]:
        """The loss scale of fp16; empty in other precisions."""
        scaler = self._accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Continue from what `scaler_state` gave."""
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)
