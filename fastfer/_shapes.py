# SPDX-License-Identifier: Apache-2.0
"""The shapes of the registered forward ops' tensors, for calls that have passed no check of ``fastfer.ops``.

A shape is a line of sizes; the same letter is the same size in all arguments of a call, and alternatives stand between
bars. Names are those of torch's schema, as regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_Line = str | Callable[[Mapping[str, Any]], str]
_IMAGE: dict[str, _Line] = {"x": "n c h w"}
_LINK: dict[str, _Line] = {"link_stats": "3 c", "link_(weight|bias)": "c"}
_NORM, _LEFT = "norm_(weight|bias|mean|var)", "left_(mean|var)"
_MLP: dict[str, _Line] = {"mlp_w1": "m c", "mlp_b1": "m", "mlp_w2": "c m", "mlp_b2": "c"}
_CONV: dict[str, _Line] = {**_IMAGE, "weight": "o c p q", "bias": "o", _NORM: "o", _LEFT: "o"}
_TOKENS: dict[str, _Line] = {"weight": "a e", "bias": "a", "v": "1 a|a", "v_bias": "1", "x": "b t d", "h": "b t d"}
_SEPARABLE: dict[str, _Line] = {
    **_IMAGE, **_LINK, "dw_weight": "c 1 p q", "dw_bias": "c", r"norm1_(weight|bias|mean|var)": "c",
    "pw_weight": "o c 1 1", "pw_bias": "o", r"norm2_(weight|bias|mean|var)": "o", _LEFT: "o",
}  # fmt: skip

_OPS: dict[str, dict[str, _Line]] = {
    "additive_attention": _TOKENS,
    "batch_norm": {**_IMAGE, rf"weight|bias|mean|var|{_NORM}": "c"},
    "cbam": {**_IMAGE, **_MLP, "weight": "1 2 k k", _NORM: "1"},
    "center_loss": {"features": "n d", "labels": "n", "centers": "k d"},
    "channel_gate": {**_IMAGE, **_MLP},
    "conv2d": _CONV,
    "coordinate_attention": {
        **_IMAGE, "weight": "m c 1 1", "bias": "m", _NORM: "m", "(h|w)_weight": "c m 1 1", "(h|w)_bias": "c",
    },
    "cpsca_pool": _IMAGE,
    "cross_entropy": {
        "logits": "n k", "target": lambda a: "n k" if a["target"].is_floating_point() else "n", "weight": "k",
    },
    "depthwise_conv2d": {**_IMAGE, "weight": "c 1 p q", "bias": "c"},
    "depthwise_norm": {**_IMAGE, **_LINK, "weight": "c 1 p q", "bias": "c", _NORM: "c"},
    "dot_product_attention": {"q": "b t d", "k": "b s d", "v": "b s e", "scale": "|1"},
    "gate": {
        **_IMAGE, **_LINK, "w1": lambda a: "1 1 k" if a["w2"] is None else "m c|m c 1 1", "b1": "m",
        "w2": "c m|c m 1 1", "b2": "c", "sw": lambda a: "1 c 1 1" if a["linear"] else "1 2 1 1", "sb": "1",
    },
    "global_avg_max_pool": _IMAGE,
    "global_avg_pool": _IMAGE,
    "global_max_pool": _IMAGE,
    "inverted_bottleneck": {
        **_IMAGE, "expand_weight": "i c 1 1", r"norm[12]_(weight|bias|mean|var)": "i", "dw_weight": "i 1 p q",
        "project_weight": "o i 1 1", r"norm3_(weight|bias|mean|var)": "o",
    },
    "max_pool2d": _IMAGE,
    "pointwise_conv2d": {**_IMAGE, "weight": "o c 1 1", "bias": "o"},
    "separable_conv2d": _SEPARABLE,
    "spatial_gate": {**_IMAGE, "weight": "1 2 k k", _NORM: "1"},
    "triplet_loss": {"features": "n d", "labels": "n"},
}  # fmt: skip


_WHOLE_IMAGES = ("cbam", "channel_gate", "spatial_gate", "coordinate", "cpsca", "gate", "global_max", "global_avg_max")
"""Ops that look for a maximum over an image or its channels, of which there has to be one."""


def lines(op: str, names: list[str]) -> dict[str, _Line]:
    """The shapes of an op's arguments by name; none for an op that is not listed."""
    table = _OPS.get(re.sub(r"(_pool)?(_train|_linked)$", "", op), {})
    found = {}
    for name in names:
        for pattern, line in table.items():
            if re.fullmatch(pattern, name):
                found[name] = line
    return found


def _fits(shape: tuple[int, ...], line: str, sizes: dict[str, int]) -> bool:
    parts = line.split()
    if len(parts) != len(shape):
        return False
    known = dict(sizes)
    for part, size in zip(parts, shape, strict=True):
        if known.setdefault(part, int(part) if part.isdigit() else size) != size:
            return False
    sizes.update(known)
    return True


def check(op: str, table: Mapping[str, _Line], values: Mapping[str, Any]) -> None:
    """ValueError naming the first tensor whose shape does not fit the others."""
    sizes: dict[str, int] = {}
    for name, line in table.items():
        t = values[name]
        if not isinstance(t, Tensor):
            continue
        text = line if isinstance(line, str) else line(values)
        if not any(_fits(tuple(t.shape), one, sizes) for one in text.split("|")):
            known = {part: size for part, size in sizes.items() if not part.isdigit()}
            raise ValueError(f"{op}: {name}: expected shape ({text}) with {known}, got {tuple(t.shape)}")
    least = "pqkmchw" if op.startswith(_WHOLE_IMAGES) else "pqkm"
    empty = [part for part, size in sizes.items() if size == 0 and part in least]
    if empty:
        raise ValueError(f"{op}: expected sizes of at least 1, got {dict.fromkeys(empty, 0)}")
    if op.startswith("additive_attention") and sizes["e"] != 2 * sizes["d"]:
        raise ValueError(f"{op}: weight: expected 2 * {sizes['d']} columns, got {sizes['e']}")
    kernel = values["kernel"] if "kernel" in values else (sizes.get("p"), sizes.get("q"))
    if "padding" in values and None not in kernel:
        top, left, bottom, right = values["padding"]
        if sizes["h"] + top + bottom < kernel[0] or sizes["w"] + left + right < kernel[1]:
            raise ValueError(f"{op}: x: expected a padded image of at least the window {tuple(kernel)}")
