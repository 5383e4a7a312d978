# SPDX-License-Identifier: Apache-2.0
"""What training minimises: targets of a split, and the weighted sum of losses on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfer.data import Split
from fastfer.models import FerModel
from fastfer.nn import TripletLoss
from fastfer.ops.loss import center_loss, cross_entropy, update_centers_
from fastfer.ops.norm import updates_together
from fastfer.train.options import LossOptions


@dataclass(frozen=True)
class Targets:
    """Labels (N,) int64 and, where the split has them, soft labels (N, K) float32 with what they are for."""

    labels: Tensor
    soft: Tensor | None = None
    mode: str = "crossentropy"

    @classmethod
    def of(cls, split: Split) -> Targets:
        """All targets of a split."""
        soft = None if split.soft is None else torch.from_numpy(split.soft)
        return cls(torch.from_numpy(split.labels), soft, split.soft_mode)

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self, generator: torch.Generator) -> Targets:
        """For one epoch: in the mode "probability" a label per image from its distribution, else the same targets."""
        if self.soft is None or self.mode != "probability":
            return self
        return Targets(torch.multinomial(self.soft, 1, generator=generator).squeeze(1))

    def take(self, chosen: Tensor) -> Targets:
        """Those at the indices ``chosen``."""
        return replace(self, labels=self.labels[chosen], soft=None if self.soft is None else self.soft[chosen])

    def clone(self) -> Targets:
        """In memory of their own."""
        return replace(self, labels=self.labels.clone(), soft=None if self.soft is None else self.soft.clone())

    def copy_(self, other: Targets) -> None:
        """Become ``other``, of the same shapes, in the same memory."""
        self.labels.copy_(other.labels)
        if self.soft is not None and other.soft is not None:
            self.soft.copy_(other.soft)

    def to(self, device: torch.device) -> Targets:
        """On ``device``."""
        soft = None if self.soft is None else self.soft.to(device, non_blocking=True)
        return replace(self, labels=self.labels.to(device, non_blocking=True), soft=soft)


class Objective(nn.Module):
    """The loss of a batch: a weighted sum of terms, each a mean over the batch but for a summed centre loss, 0-dim.

    Class weights multiply each image's cross-entropy before a mean over images, as in Keras, and not over the weights,
    as in torch. The centre loss is ½ |x_n - c_y(n)|², its mean over the batch or, as the equations of the joint loss
    have it beside a mean cross-entropy, its sum: at batch 64 the same λ then weighs 64 times as much. Its centres are
    moved by `learn_centers`, after backward.
    Soft labels of the mode "multi_target" have the loss -log max_c(t_c p_c) (Barsoum et al. 2016).
    """

    weight: Tensor | None
    centers: Tensor | None

    def __init__(
        self,
        options: LossOptions,
        counts: Mapping[str, int],
        embedding_dim: int,
        label_smoothing: float = 0.0,
        soft_mode: str | None = None,
    ) -> None:
        """``counts``: training images by class, in the order of the logits; ``soft_mode``: of the soft labels."""
        super().__init__()
        self.options = options
        self.label_smoothing = label_smoothing
        classes = len(counts)
        balanced = options.class_weights == "balanced"
        if soft_mode == "multi_target" and (balanced or label_smoothing):
            raise ValueError("loss: expected neither class weights nor label smoothing with multi_target labels")
        self.register_buffer("weight", _balanced(counts) if balanced else None)
        dim = embedding_dim if options.center_on == "embedding" else classes
        self.register_buffer("centers", torch.zeros(classes, dim) if options.center else None)
        self._triplet = TripletLoss(options.triplet_margin)

    @property
    def needs_embedding(self) -> bool:
        """Whether the loss looks at the embedding."""
        return bool(self.options.triplet or (self.options.center and self.options.center_on == "embedding"))

    def forward(self, logits: Tensor, embedding: Tensor | None, targets: Targets, batch: int | None = None) -> Tensor:
        """Logits (N, K), embedding (N, D) where `needs_embedding`, targets of N images.

        ``batch`` counts the images of all processes (default: N), among which a part's loss is weighed by its share.
        """
        logits = logits.float()
        terms = []
        if self.options.softmax:
            terms.append(self.options.softmax * self._entropy(logits, targets))
        if self.centers is not None:
            features = self._centered(logits, embedding)
            weight = self.options.center / len(targets)
            if self.options.center_reduction == "sum":
                weight *= batch or len(targets)
            terms.append(weight * center_loss(features, targets.labels, self.centers))
        if self.options.triplet and embedding is not None:
            terms.append(self.options.triplet * self._triplet(embedding.float(), targets.labels))
        return torch.stack(terms).sum()

    @torch.no_grad()
    def learn_centers(self, logits: Tensor, embedding: Tensor | None, labels: Tensor) -> None:
        """Move the centres towards the features of a batch, where there are centres (Wen et al. 2016, eq. 4)."""
        if self.centers is not None:
            update_centers_(self.centers, self._centered(logits, embedding), labels, self.options.center_alpha)

    def _centered(self, logits: Tensor, embedding: Tensor | None) -> Tensor:
        chosen = logits if self.options.center_on == "logits" or embedding is None else embedding
        return chosen.float()

    def _entropy(self, logits: Tensor, targets: Targets) -> Tensor:
        soft = targets.soft
        if soft is not None and targets.mode == "multi_target":
            return -(F.log_softmax(logits, 1) + soft.log()).amax(1).mean()
        if soft is None and self.weight is not None:
            # one_hot would look at the labels in Python, which a recorded step cannot do again
            soft = torch.zeros_like(logits).scatter(1, targets.labels[:, None], 1.0)
        target = targets.labels if soft is None else soft
        return cross_entropy(logits, target, weight=self.weight, label_smoothing=self.label_smoothing)


def _balanced(counts: Mapping[str, int]) -> Tensor:
    """N / (K · n_k) per class (K,): every class weighs the same in the sum over all images."""
    if not all(counts.values()):
        raise ValueError(f"loss.class_weights: balanced needs an image of every class, got {dict(counts)}")
    return torch.tensor([sum(counts.values()) / (len(counts) * count) for count in counts.values()])


class WithEmbedding(nn.Module):
    """The network as the loss sees it: images -> (logits, embedding), or (logits, None) where no term needs it.

    ``softmax_trains`` "head" keeps the gradients of the logits from the embedding.
    """

    def __init__(self, model: FerModel, embedding: bool, softmax_trains: str = "all") -> None:
        super().__init__()
        self.model = model
        self._embedding = embedding
        self._detached = softmax_trains == "head"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_compiling():
            return self._both(x)
        with updates_together(x):
            return self._both(x)

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._detached:
            embedding = self.model.forward_features(x)
            return self.model.forward_head(embedding.detach()), embedding
        if self._embedding:
            return self.model.forward_both(x)
        return self.model(x), None
