# SPDX-License-Identifier: Apache-2.0
"""What every network has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive
from fastfer.nn.norm import updates_together

if TYPE_CHECKING:
    from fastfer.models.pretrained import LoadReport


class FerModel(nn.Module, ABC):
    """A classifier of face images (N, in_chans, H, W) into logits (N, num_classes).

    ``options`` are the constructor's arguments, enough to build the same network again; ``class_names``, where known,
    name the logits in order; ``pretrained`` says what `load_imagenet` did; ``embedding_dim`` is the width of
    `forward_features`; ``int8_ranges`` are those that quantisation-aware fine-tuning ended with.
    """

    name: ClassVar[str]
    """Name in `create_model`."""
    input_size: ClassVar[tuple[int, int]]
    """(H, W) of the published network; other sizes run where the network's page says so."""
    embedding_dim: int

    def __init__(self, num_classes: int, in_chans: int, **options: Any) -> None:
        super().__init__()
        self.num_classes = positive(self.name, "num_classes", num_classes)
        self.in_chans = positive(self.name, "in_chans", in_chans)
        self.options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, **options}
        self.class_names: tuple[str, ...] | None = None
        self.pretrained: LoadReport | None = None
        self.int8_ranges: list[list[float]] | None = None

    def __call__(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """As a module's, with one update of all norms' running statistics on a GPU."""
        if torch.compiler.is_compiling():
            return super().__call__(x, *args, **options)
        with updates_together(x):
            return super().__call__(x, *args, **options)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, num_classes)."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """The embedding (N, embedding_dim)."""

    def forward_head(self, features: Tensor) -> Tensor:
        """Embedding (N, embedding_dim) -> logits (N, num_classes); NotImplementedError where logits need more."""
        raise NotImplementedError(f"{self.name}: forward_head: the logits do not follow from the embedding")

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embedding of one pass, for losses on both."""
        features = self.forward_features(x)
        return self.forward_head(features), features
