# SPDX-License-Identifier: Apache-2.0
"""Every public op with random arguments: the rows of `test_properties`, one an op, and how its arguments are drawn."""

from __future__ import annotations

from functools import partial

import torch
from properties import Call, Draw, Row

from fastfer import ops
from fastfer._checks import ACTIVATIONS, compute_dtype

KERNELS, STRIDES = (1, 2, 3, 3, 4, 5), (1, 1, 2, 3)
MOMENTS = 8
"""Values a channel from which batch statistics are drawn: fewer leave gradients that are all rounding."""


def extent(d: Draw, kernel: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image that ``kernel`` fits in."""
    return kernel[0] + d.size(8) - 1, kernel[1] + d.size(8) - 1


def training(d: Draw, values: int) -> bool:
    return d.flag("training") and values >= MOMENTS


def out_size(size: int, pads: tuple[int, int], kernel: int, stride: int) -> int:
    return (size + sum(pads) - kernel) // stride + 1


def sides(padding: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return (padding,) * 4
    return padding if len(padding) == 4 else (*padding, *padding)  # type: ignore[return-value]


def convolved(d: Draw, n: int, kernel: tuple[int, int], c: int) -> tuple[tuple[int, int], int | tuple[int, ...], int]:
    """Draws the image of a convolution; its stride, padding and the values a channel that come out."""
    stride, padding, (h, w) = d.pair("stride", STRIDES), d.padding(kernel), extent(d, kernel)
    d.image("x", n, c, h, w)
    top, left, bottom, right = sides(padding)
    rows = out_size(h, (top, bottom), kernel[0], stride[0])
    return stride, padding, n * rows * out_size(w, (left, right), kernel[1], stride[1])


def activation(name: str, d: Draw) -> Call:
    if d.flag("image"):
        d.image("x", d.batch(), d.channels(), d.size(), d.size())
    else:
        d.tensor("x", *(d.size(40) for _ in range(d.size(3))))
    return lambda t: getattr(ops, name)(t["x"])


def named_activation(d: Draw) -> Call:
    d.image("x", d.batch(), d.channels(), d.size(), d.size())
    act = d.option("act", ACTIVATIONS[1:])
    return lambda t: ops.activation(t["x"], act)


def batch_norm(d: Draw) -> Call:
    n, c, h, w = d.batch(), d.channels(), d.size(), d.size()
    d.image("x", n, c, h, w)
    d.norm("norm", c)
    act, train = d.act(), training(d, n * h * w)
    return lambda t: ops.batch_norm(t["x"], t.norm("norm"), act=act, training=train)


def conv2d(d: Draw) -> Call:
    n, c, o, kernel = d.batch(), d.channels(), d.channels(), d.pair("kernel", KERNELS)
    stride, padding, values = convolved(d, n, kernel, c)
    d.weight("weight", o, c, *kernel)
    d.maybe_weight("bias", o)
    d.maybe_norm("norm", o)
    act, train = d.act(), training(d, values)
    pool = d.option("pool", (None, None, ops.Pool(1), ops.Pool(3, (2, 1), 1), ops.Pool(2, 2, (1, 0, 0, 1))))
    h, w = d.leaves["x"].shape[2:]
    top, left, bottom, right = sides(padding)
    rows = out_size(h, (top, bottom), kernel[0], stride[0])
    if min(rows, out_size(w, (left, right), kernel[1], stride[1])) < 2:
        pool = None
    return lambda t: ops.conv2d(
        t["x"],
        t["weight"],
        t.get("bias"),
        norm=t.norm("norm"),
        act=act,
        stride=stride,
        padding=padding,
        pool=pool,
        training=train,
    )


def depthwise_conv2d(d: Draw) -> Call:
    c, kernel = d.channels(), d.pair("kernel", KERNELS)
    n = d.batch()
    stride, padding, values = convolved(d, n, kernel, c)
    d.weight("weight", c, 1, *kernel)
    d.maybe_weight("bias", c)
    d.maybe_norm("norm", c)
    act, train = d.act(), training(d, values)
    return lambda t: ops.depthwise_conv2d(
        t["x"], t["weight"], t.get("bias"), stride, padding, norm=t.norm("norm"), act=act, training=train
    )


def pointwise_conv2d(d: Draw) -> Call:
    c, o = d.channels(), d.channels()
    d.image("x", d.batch(), c, d.size(), d.size())
    d.weight("weight", o, c, 1, 1)
    d.maybe_weight("bias", o)
    return lambda t: ops.pointwise_conv2d(t["x"], t["weight"], t.get("bias"))


def separable_conv2d(d: Draw) -> Call:
    n, c, o, kernel = d.batch(), d.channels(), d.channels(), d.pair("kernel", KERNELS)
    stride, padding, values = convolved(d, n, kernel, c)
    d.weight("dw", c, 1, *kernel)
    d.weight("pw", o, c, 1, 1)
    d.maybe_weight("dw_bias", c)
    d.maybe_weight("pw_bias", o)
    d.maybe_norm("norm1", c)
    d.maybe_norm("norm2", o)
    act1, act2, train = d.act("act1"), d.act("act2"), training(d, values)
    return lambda t: ops.separable_conv2d(
        t["x"], t["dw"], t["pw"], dw_bias=t.get("dw_bias"), norm1=t.norm("norm1"), act1=act1,
        pw_bias=t.get("pw_bias"), norm2=t.norm("norm2"), act2=act2, stride=stride, padding=padding, training=train,
    )  # fmt: skip


def inverted_bottleneck(d: Draw) -> Call:
    n, c, hidden, kernel = d.batch(), d.channels(), d.channels(), d.pair("kernel", KERNELS)
    stride, padding, values = convolved(d, n, kernel, c)
    h, w = d.options["x"][1][2:]
    d.weight("expand", hidden, c, 1, 1)
    d.weight("dw", hidden, 1, *kernel)
    for name in ("norm1", "norm2"):
        d.norm(name, hidden)
    projected, residual = d.flag("projected", 0.7), False
    if projected:
        top, left, bottom, right = sides(padding)
        rows, columns = (
            out_size(h, (top, bottom), kernel[0], stride[0]),
            out_size(w, (left, right), kernel[1], stride[1]),
        )
        residual = (rows, columns) == (h, w) and d.flag("residual")
        outputs = c if residual else d.channels()
        d.weight("project", outputs, hidden, 1, 1)
        d.norm("norm3", outputs)
    act, train = d.act(), training(d, min(values, n * h * w))
    return lambda t: ops.inverted_bottleneck(
        t["x"], t["expand"], t.norm("norm1"), t["dw"], t.norm("norm2"), t.get("project"), t.norm("norm3"), act=act,
        stride=stride, padding=padding, residual=residual, training=train,
    )  # fmt: skip


def max_pool2d(d: Draw) -> Call:
    kernel = d.pair("kernel", KERNELS)
    h, w = extent(d, kernel)
    d.image("x", d.batch(), d.channels(), h, w)
    stride, padding = d.option("stride", (None, 1, 2, (2, 1))), d.padding((kernel[0] // 2, kernel[1] // 2))
    return lambda t: ops.max_pool2d(t["x"], kernel, stride, padding)


def pooled(name: str, d: Draw) -> Call:
    d.image("x", d.batch(), d.channels(), d.size(), d.size())
    return lambda t: getattr(ops, name)(t["x"])


def channel_mlp(d: Draw) -> int:
    """Draws the image and the channel gate's perceptron; values of its image."""
    n, c, hidden, h, w = d.batch(), d.channels(), d.size(5), d.size(), d.size()
    d.image("x", n, c, h, w)
    d.weight("w1", hidden, c)
    d.weight("b1", hidden)
    d.weight("w2", c, hidden)
    d.weight("b2", c)
    return n * h * w


def spatial(d: Draw) -> None:
    size = d.option("kernel", (1, 3, 7))
    d.weight("spatial", 1, 2, size, size)
    d.norm("norm", 1)


def channel_gate(d: Draw) -> Call:
    channel_mlp(d)
    return lambda t: ops.channel_gate(t["x"], t["w1"], t["b1"], t["w2"], t["b2"])


def spatial_gate(d: Draw) -> Call:
    n, h, w = d.batch(), d.size(), d.size()
    d.image("x", n, d.channels(), h, w)
    spatial(d)
    train = training(d, n * h * w)
    return lambda t: ops.spatial_gate(t["x"], t["spatial"], t.norm("norm"), training=train)


def cbam(d: Draw) -> Call:
    values = channel_mlp(d)
    spatial(d)
    train = training(d, values)
    return lambda t: ops.cbam(t["x"], t["w1"], t["b1"], t["w2"], t["b2"], t["spatial"], t.norm("norm"), training=train)


def coordinate_attention(d: Draw) -> Call:
    n, c, m, h, w = d.batch(), d.channels(), d.channels(), d.size(), d.size()
    d.image("x", n, c, h, w)
    d.weight("weight", m, c, 1, 1)
    d.weight("bias", m)
    d.norm("norm", m)
    for name in ("h", "w"):
        d.weight(f"{name}_weight", c, m, 1, 1)
        d.weight(f"{name}_bias", c)
    kind, act, train = d.option("kind", ("ca", "maxca", "cpsca")), d.act(), training(d, n * (h + w))
    return lambda t: ops.coordinate_attention(
        t["x"], t["weight"], t["bias"], t.norm("norm"), t["h_weight"], t["h_bias"], t["w_weight"], t["w_bias"],
        kind=kind, act=act, training=train,
    )  # fmt: skip


def squeeze_excite(d: Draw) -> Call:
    channel_mlp(d)
    act, gate = d.act(), d.option("gate", ("hardsigmoid", "sigmoid"))
    return lambda t: ops.squeeze_excite(t["x"], t["w1"], t["b1"], t["w2"], t["b2"], act=act, gate=gate)


def channel_conv(d: Draw, smallest: int = 1) -> int:
    """Draws the image and the weights of a convolution over its channels; returns C."""
    c, kernel = d.channels(), d.option("kernel", (1, 3, 5))
    d.image("x", d.batch(), c, d.size() + smallest - 1, d.size() + smallest - 1)
    d.weight("channel", 1, 1, kernel)
    return c


def eca(d: Draw) -> Call:
    channel_conv(d)
    return lambda t: ops.eca(t["x"], t["channel"])


def csa(d: Draw) -> Call:
    pool = d.flag("pool")
    channel_conv(d, 2 if pool else 1)
    d.weight("spatial", 1, 2, 1, 1)
    d.weight("bias", 1)
    return lambda t: ops.csa(t["x"], t["channel"], t["spatial"], t["bias"], pool=pool)


def sa(d: Draw) -> Call:
    d.image("x", d.batch(), d.channels(), d.size(), d.size())
    d.weight("weight", 1, 2, 1, 1)
    d.weight("bias", 1)
    return lambda t: ops.sa(t["x"], t["weight"], t["bias"])


def scse(d: Draw) -> Call:
    channel_mlp(d)
    d.weight("spatial", 1, d.leaves["w2"].shape[0], 1, 1)
    d.weight("bias", 1)
    return lambda t: ops.scse(t["x"], t["w1"], t["b1"], t["w2"], t["b2"], t["spatial"], t["bias"])


def dot_product_attention(d: Draw) -> Call:
    b, queries, keys, depth, width = d.batch(), d.size(), d.size(20), d.channels(), d.channels()
    d.tensor("q", b, queries, depth)
    d.tensor("k", b, keys, depth)
    d.tensor("v", b, keys, width)
    factor = depth**-0.5
    if d.flag("learnt scale"):
        d.weight("scale", 1)
    number = d.option("number", (None, 0.7))
    return lambda t: ops.dot_product_attention(
        t["q"], t["k"], t["v"], scale=t.get("scale", number), factor=factor if "scale" in t else 1.0
    )


def additive_attention(d: Draw) -> Call:
    b, tokens, depth, hidden = d.batch(), d.size(20), d.channels(), d.channels()
    d.tensor("x", b, tokens, depth)
    d.tensor("h", b, tokens, depth)
    d.weight("weight", hidden, 2 * depth)
    d.weight("bias", hidden)
    d.weight("v", *d.option("v", ((hidden,), (1, hidden))))
    d.weight("v_bias", 1)
    return lambda t: ops.additive_attention(t["x"], t["h"], t["weight"], t["bias"], t["v"], t["v_bias"])


def labelled(d: Draw, name: str) -> int:
    """Draws ``name`` (N, K or D) and the labels of its N rows; returns the number of classes."""
    n, classes = d.size(30), d.size(9)
    d.tensor(name, n, classes)
    d.labels("labels", n, classes)
    return classes


def center_loss(d: Draw) -> Call:
    classes = labelled(d, "features")
    d.leaves["centers"] = d.values(classes, classes)
    return lambda t: ops.center_loss(t["features"], t["labels"], t["centers"])


def update_centers(d: Draw) -> Call:
    classes, alpha = labelled(d, "features"), d.option("alpha", (0.0, 0.5, 1.0))
    d.state["centers"] = d.values(classes, classes)  # in place: compared as running statistics are
    return lambda t: ops.update_centers_(t["centers"], t["features"].detach(), t["labels"], alpha).new_zeros(0)


def triplet_loss(d: Draw) -> Call:
    labelled(d, "features")
    margin = d.option("margin", (0.0, 0.3, 5.0))
    return lambda t: ops.triplet_loss(t["features"], t["labels"], margin)


def cross_entropy(d: Draw) -> Call:
    classes = labelled(d, "logits")
    smoothing = d.option("label_smoothing", (0.0, 0.1))
    if d.flag("weighted"):
        d.constants["weight"] = torch.rand(classes, generator=d.generator) + 0.5
    return lambda t: ops.cross_entropy(
        t["logits"],
        t["labels"],
        weight=t["weight"].to(compute_dtype(t["logits"])) if "weight" in t else None,
        label_smoothing=smoothing,
    )


ROWS = (
    Row("activation", 4, named_activation),
    *(Row(name, 1, partial(activation, name)) for name in ACTIVATIONS[1:]),
    Row("additive_attention", 4, additive_attention),
    Row("batch_norm", 6, batch_norm),
    Row("cbam", 4, cbam),
    Row("center_loss", 2, center_loss),
    Row("channel_gate", 3, channel_gate),
    Row("conv2d", 12, conv2d),
    Row("coordinate_attention", 8, coordinate_attention),
    Row("cpsca_pool", 3, partial(pooled, "cpsca_pool")),
    Row("cross_entropy", 3, cross_entropy),
    Row("csa", 4, csa),
    Row("depthwise_conv2d", 8, depthwise_conv2d),
    Row("dot_product_attention", 5, dot_product_attention),
    Row("eca", 3, eca),
    Row("global_avg_max_pool", 2, partial(pooled, "global_avg_max_pool")),
    Row("global_avg_pool", 2, partial(pooled, "global_avg_pool")),
    Row("global_max_pool", 2, partial(pooled, "global_max_pool")),
    Row("inverted_bottleneck", 8, inverted_bottleneck),
    Row("max_pool2d", 5, max_pool2d),
    Row("pointwise_conv2d", 5, pointwise_conv2d),
    Row("sa", 3, sa),
    Row("scse", 3, scse),
    Row("separable_conv2d", 12, separable_conv2d),
    Row("spatial_gate", 3, spatial_gate),
    Row("squeeze_excite", 4, squeeze_excite),
    Row("triplet_loss", 2, triplet_loss),
    Row("update_centers_", 2, update_centers),
)
