# SPDX-License-Identifier: Apache-2.0
"""What int8 plans need of a graph's values, seen over a set of images: their ranges, by a rule of `rules`, from which
follow the scales of activations, and what the biases lack where weights are rounded.

A float32 plan whose steps are not fused gives each value of each image. Scales of weights are the kernels' matter, one
a channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfer.engine.file import ByteNotes, to_bytes
from fastfer.engine.graph import Array, Graph, Node, Shape
from fastfer.engine.rounding import weights_as_stored
from fastfer.engine.rules import RULES, USUAL, Seen
from fastfer.runtime import as_array, native

_SAMPLE = 256
"""Elements of a value that are kept of each image."""


@dataclass(frozen=True)
class Observed:
    """Of each value of a graph what a rule needs, and its mean in each channel."""

    seen: list[Seen]
    means: list[Array]

    def notes(self, graph: Graph, rule: str = USUAL, correct: bool = True) -> ByteNotes:
        """Ranges by ``rule``, and corrected biases where these are asked for."""
        ranges = [RULES[rule](seen) for seen in self.seen]
        corrections = {}
        for number, node in enumerate(graph.nodes):
            if correct and is_dense(node):
                corrections[number] = _correction(graph, node, self.means[node.inputs[0]])
        return ByteNotes(ranges, corrections=corrections)


def check_rule(rule: Any) -> None:
    """Raise ValueError unless there is such a rule."""
    if rule not in RULES:
        raise ValueError(f"compile: rule: expected one of {', '.join(RULES)}, got {rule!r}")


def is_dense(node: Node) -> bool:
    """Whether a node is a convolution that bytes may compute."""
    return node.op == "conv" and node.attr("groups") == 1


def observed(graph: Graph, images: Iterable[Any], threads: int) -> Observed:
    """What there is to see of each value, in the order of ``graph.values``.

    ``images`` gives float32 batches (N, C, H, W), arrays or tensors, or pairs with such a batch first. Raises
    ValueError where there are none, where one does not fit, where all are equal, and where a value is not finite;
    TypeError for no array.
    """
    plan = native().EnginePlan(to_bytes(graph, {}), threads, apart=True)
    values = [np.zeros(shape, np.float32) for shape in graph.values]
    places = [value.ctypes.data for value in values]
    random = np.random.default_rng(0)
    picks = [random.integers(0, value.size, min(_SAMPLE, value.size)) for value in values]
    extremes, samples = [], []
    sums = [np.zeros(shape.channels) for shape in graph.values]
    first, differ = None, False
    batches = batches_of(images, graph.values[graph.input])
    for image in (image for batch in batches for image in batch):
        plan.values(image.ctypes.data, "float32", places)
        values[graph.input][...] = image  # no step of the plan writes it
        extremes.append([(value.min(), value.max()) for value in values])
        samples.append([value.reshape(-1)[pick] for value, pick in zip(values, picks, strict=True)])
        for total, value in zip(sums, values, strict=True):
            total += value.mean((1, 2), dtype=np.float64)
        first = image.copy() if first is None else first
        differ = differ or not np.array_equal(first, image)
    _check(extremes, differ, first)
    bounds = np.array(extremes, np.float64)
    seen = [
        Seen(bounds[:, v, 0], bounds[:, v, 1], np.concatenate([sample[v] for sample in samples]))
        for v in range(len(values))
    ]
    return Observed(seen, [total / len(extremes) for total in sums])


def _check(extremes: list[Any], differ: bool, first: Array | None) -> None:
    """Raise ValueError where images say nothing of a network's values."""
    if first is None:
        raise ValueError("compile: calibration: expected images, got none")
    if not np.isfinite(np.array(extremes)).all():
        raise ValueError("compile: calibration: expected finite activations, got NaN or infinity")
    if not differ and (len(extremes) > 1 or first.min() == first.max()):
        raise ValueError(
            f"compile: calibration: expected images that differ, got {len(extremes)} that are all equal: their ranges "
            "would hold for nothing else; a few hundred pictures like those of later use are enough"
        )


def batches_of(images: Iterable[Any], shape: Shape) -> Iterable[Array]:
    """The batches, checked."""
    for number, item in enumerate(images):
        batch = _batch(item, shape, number)
        if not np.isfinite(batch).all():
            raise ValueError(f"compile: calibration: batch {number}: expected finite images, got NaN or infinity")
        yield np.ascontiguousarray(batch)


def _batch(item: Any, shape: Shape, number: int) -> Array:
    """The images of what a loader gave."""
    batch = item[0] if isinstance(item, (list, tuple)) else item
    if hasattr(batch, "cpu"):
        batch = batch.detach().cpu()
    array: Array = as_array("compile: calibration", f"batch {number}", batch)
    if array.dtype != np.float32 or array.shape[1:] != tuple(shape):
        want = f"(N, {shape.channels}, {shape.height}, {shape.width})"
        raise ValueError(
            f"compile: calibration: batch {number}: expected float32 images {want}, as the network takes them, "
            f"got {array.dtype} {array.shape}"
        )
    return array


def _correction(graph: Graph, node: Node, means: Array) -> Array:
    """What the sums lack on average where weights are rounded: (W - stored W) · the mean input, which is zero where a
    tap lies in the border (Nagel et al., "Data-free quantization through weight equalization", ICCV 2019)."""
    x, y = graph.values[node.inputs[0]], graph.values[node.output]
    kh, kw, sh, sw, top, left = node.attrs[:6]
    weight = node.weight("weight").reshape(y.channels, x.channels, kh, kw)
    rows = [np.mean([0 <= i * sh + k - top < x.height for i in range(y.height)]) for k in range(kh)]
    columns = [np.mean([0 <= i * sw + k - left < x.width for i in range(y.width)]) for k in range(kw)]
    lost = weight - weights_as_stored(weight)
    result: Array = np.einsum("ockl,c,k,l->o", lost, means, rows, columns)
    return result


def with_trained(graph: Graph, ranges: list[list[float]]) -> ByteNotes:
    """Ranges that fine-tuning left, of what each convolution of a map reads, as `fastfer.train.quantise` lists them.

    Raises ValueError where they are another network's.
    """
    found = [(0.0, 0.0)] * len(graph.values)
    convs = [n for n in graph.nodes if n.op == "conv" and graph.values[n.output][1:] != (1, 1)]
    kinds = [[n.attr("kh"), n.attr("kw"), n.attr("groups"), graph.values[n.output].channels] for n in convs]
    if kinds != [kind for *kind, _, _ in ranges]:
        raise ValueError("compile: dtype: expected ranges of this network's convolutions with its weights, got others")
    for node, (*_, least, largest) in zip(convs, ranges, strict=True):
        if least < largest:
            found[node.inputs[0]] = (least, largest)
    return ByteNotes(found)
