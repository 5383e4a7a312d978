# SPDX-License-Identifier: Apache-2.0
"""The functions of elements that a plan knows: names in the order of their codes, as ``csrc/engine/functions.h``."""

from __future__ import annotations

UNARY = (
    "abs", "sqrt", "rsqrt", "reciprocal", "exp", "log", "square", "power", "tanh", "erf", "gelu", "gelu_tanh", "elu",
    "leaky_relu", "mish", "softplus", "softsign", "log_sigmoid", "clamp", "at_least", "at_most", "threshold",
    "hard_shrink", "soft_shrink", "sign", "floor", "ceil", "round", "trunc", "is_nan", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal", "sin", "cos",
)  # fmt: skip
"""Of x and two numbers a and b.

power: x^a; elu: b·x above 0, else a·(exp(x) - 1); leaky_relu: a·x below 0; softplus with beta a and threshold b; clamp
to a and b; threshold: x above a, else b; shrink by a; comparisons with a, which give 1 or 0.
"""

BINARY = (
    "add", "sub", "mul", "div", "maximum", "minimum", "power", "equal", "not_equal", "less", "less_equal", "greater",
    "greater_equal", "leaky_relu",
)  # fmt: skip
"""Of x and y; leaky_relu: y·x below 0."""

SAMPLING = ("bilinear", "nearest", "bicubic")
"""Between the pixels of a map."""

OUTSIDE = ("zeros", "border", "reflection")

REDUCE = (
    "sum", "mean", "maximum", "minimum", "product", "norm1", "norm2", "variance", "deviation", "argmax", "argmin",
    "log_sum_exp",
)  # fmt: skip
