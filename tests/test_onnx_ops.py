# SPDX-License-Identifier: Apache-2.0
"""Each ONNX operator that is read, against ONNX Runtime: as a plan where there is one, else through torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastfer
from tests import onnx_files
from tests.onnx_files import images, model, node, written

pytest.importorskip("onnxruntime")


class Case(NamedTuple):
    op: str
    attrs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    constants: tuple[Any, ...] = ()
    shape: tuple[int, ...] = (4, 8, 9)
    opset: int = 17
    positive: bool = False


def _w(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


CASES = [
    *(
        Case(op)
        for op in (
            "Abs",
            "Ceil",
            "Cos",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Neg",
            "Relu",
            "Round",
            "Selu",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
            "Softsign",
            "Tanh",
            "ThresholdedRelu",
            "Identity",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Flatten",
            "Dropout",
            "Celu",
            "Softmax",
            "LogSoftmax",
            "Reciprocal",
        )
    ),
    Case("RMSNormalization", {}, (_w(9),), opset=23),
    Case("MeanVarianceNormalization", {"axes": [2, 3]}),
    Case("Mish", opset=18),
    Case("Gelu", opset=20),
    Case("Gelu", {"approximate": "tanh"}, opset=20),
    Case("Log", positive=True),
    Case("Sqrt", positive=True),
    Case("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    Case("Elu", {"alpha": 0.5}),
    Case("LeakyRelu", {"alpha": 0.3}),
    Case("PRelu", {}, (_w(4, 1, 1),)),
    Case("PRelu", {}, (_w(1),)),
    Case("Clip", {}, (np.float32(-0.3), np.float32(0.7))),
    Case("Clip", {"min": 0.0, "max": 6.0}, opset=7),
    Case("Clip", {}, (np.float32(0), np.float32(3.4028235e38))),
    *(Case(op, {}, (_w(1, 4, 1, 1),)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, {}, (np.float32(0.3),)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    Case("Pow", {}, (np.float32(2),)),
    Case("Pow", {}, (np.float32(0.5),), positive=True),
    *(
        Case(op, {"axes": [2, 3]})
        for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceSumSquare")
    ),
    Case("ReduceSum", {"keepdims": 0}, (_i(1),)),
    Case("ReduceMean", {}, (_i(-1),), opset=18),
    Case("ReduceLogSumExp", {"axes": [1]}),
    Case("ReduceProd", {"axes": [1, 3]}),
    Case("Softmax", {"axis": 1}, opset=11),
    Case("Softmax", {"axis": 1}, opset=13),
    Case("Softmax", {"axis": -1}),
    Case("Conv", {"pads": [1, 1, 1, 1]}, (_w(6, 4, 3, 3), _w(6))),
    Case("Conv", {"strides": [2, 1], "pads": [0, 1, 1, 2]}, (_w(6, 4, 3, 3),)),
    Case("Conv", {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, (_w(4, 1, 3, 3), _w(4))),
    Case("Conv", {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]}, (_w(8, 2, 3, 3), _w(8))),
    Case("Conv", {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, (_w(3, 4, 3, 3), _w(3))),
    Case("ConvTranspose", {"strides": [2, 2]}, (_w(4, 3, 2, 2), _w(3))),
    Case("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, (_w(4, 3, 3, 3), _w(3))),
    Case("ConvTranspose", {"strides": [3, 2], "pads": [0, 1, 2, 0]}, (_w(4, 3, 4, 3),)),
    Case("ConvTranspose", {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, (_w(4, 3, 3, 3),)),
    Case("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 0], "ceil_mode": 1}),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    Case("BatchNormalization", {}, (_w(4), _w(4), _w(4), abs(_w(4)) + 1)),
    Case("InstanceNormalization", {}, (_w(4), _w(4))),
    Case("LayerNormalization", {}, (_w(9), _w(9))),
    Case("LayerNormalization", {"axis": 1}, (_w(4, 8, 9), _w(4, 8, 9))),
    Case("GroupNormalization", {"num_groups": 2}, (_w(4), _w(4)), opset=21),
    Case("LRN", {"size": 3}),
    Case("LRN", {"size": 5, "alpha": 0.5}),
    Case("LpNormalization", {"axis": 1}),
    Case("LpNormalization", {"axis": 1, "p": 1}),
    Case("Transpose", {"perm": [0, 2, 3, 1]}),
    Case("Reshape", {}, (_i(0, -1),)),
    Case("Reshape", {}, (_i(0, 2, 2, 8, 9),)),
    Case("Reshape", {}, (_i(-1, 4, 72),)),
    Case("Unsqueeze", {}, (_i(2),)),
    Case("Squeeze", {}, (_i(-1, -2),), shape=(4, 1, 1)),
    Case("Unsqueeze", {"axes": [1]}, opset=11),
    Case("Flatten", {"axis": 2}),
    Case("Flatten", {"axis": 0}),
    Case("Slice", {}, (_i(1), _i(3), _i(1))),
    Case("Slice", {}, (_i(-1), _i(-(2**62)), _i(3), _i(-2))),
    Case("Slice", {}, (_i(0, 1), _i(2**62, -1), _i(2, 3), _i(2, 3))),
    Case("Slice", {"starts": [1], "ends": [3], "axes": [2]}, opset=9),
    Case("Gather", {"axis": 1}, (_i(2, 0, -1),)),
    Case("Gather", {"axis": 2}, (np.int64(3),)),
    Case("Pad", {}, (_i(0, 0, 1, 2, 0, 0, 3, 0),)),
    Case("Pad", {"mode": "reflect"}, (_i(0, 0, 1, 2, 0, 0, 3, 0),)),
    Case("Pad", {"mode": "edge"}, (_i(0, 0, 1, 2, 0, 0, 3, 0),)),
    Case("Pad", {}, (_i(0, 0, -1, 0, 0, 0, 2, 0), np.float32(0.5))),
    Case("Pad", {}, (_i(0, 1, 0, 0, 0, 2, 0, 0),)),
    Case("Tile", {}, (_i(1, 2, 1, 1),)),
    Case("Expand", {}, (_i(1, 4, 8, 9),)),
    Case("Expand", {}, (_i(1, 4, 5, 9),), shape=(4, 1, 9)),
    Case("DepthToSpace", {"blocksize": 2}, shape=(8, 3, 5)),
    Case("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, shape=(8, 3, 5)),
    Case("SpaceToDepth", {"blocksize": 2}, shape=(3, 4, 6)),
    Case("MatMul", {}, (_w(9, 5),)),
    Case("Gemm", {"alpha": 0.5, "beta": 2.0}, (_w(7, 3), _w(3)), shape=(7,)),
    Case("Gemm", {"transB": 1}, (_w(3, 7), _w(1, 3)), shape=(7,)),
    Case("Einsum", {"equation": "nchw,cd->ndhw"}, (_w(4, 5),)),
    Case("Trilu"),
    Case("CumSum", {}, (_i(1),)),
    *(Case("CumSum", {"exclusive": e, "reverse": r}, (_i(-1),)) for e, r in ((0, 1), (1, 0), (1, 1))),
]


def _resizes() -> list[Case]:
    empty = np.zeros(0, np.float32)
    double, odd = np.array([1, 1, 2, 2], np.float32), np.array([1, 1, 1.7, 2.3], np.float32)
    asymmetric = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    cases = [Case("Resize", asymmetric, (empty, double)), Case("Resize", asymmetric, (empty, odd))]
    cases += [Case("Resize", {"mode": "nearest"}, (empty, scales)) for scales in (double, odd)]
    cases += [
        Case("Resize", {"mode": mode, "coordinate_transformation_mode": how}, (empty, scales))
        for mode in ("linear", "cubic")
        for how in ("half_pixel", "align_corners", "pytorch_half_pixel")
        for scales in (double, odd)
    ]
    cases += [
        Case("Resize", {"mode": mode, "coordinate_transformation_mode": "asymmetric", **more}, (empty, scales))
        for mode, more in (("linear", {}), ("cubic", {"cubic_coeff_a": -0.5}), ("cubic", {"exclude_outside": 1}))
        for scales in (double, odd)
    ]
    cases.append(Case("Resize", {"mode": "cubic", "exclude_outside": 1}, (empty, odd)))
    return cases


CASES += _resizes()


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case.op}" for i, case in enumerate(CASES)])
def test_an_operator_is_as_in_onnx_runtime(case: Case, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(len(case.constants))]
    proto = model(
        [node(case.op, "x", *names, **case.attrs)],
        ("n", *case.shape),
        dict(zip(names, case.constants, strict=True)),
        case.opset,
    )
    path = written(proto, tmp_path)
    engine = fastfer.compile(path, fallback="torch")
    x = images(3, *case.shape)
    x = np.abs(x) + 0.1 if case.positive else x
    want, got = onnx_files.run(path, x)["y"], engine(x)
    if case.op == "Flatten" and case.attrs.get("axis") == 0:
        got = got.reshape(want.shape)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-4 * max(np.abs(want).max(), 1), rtol=1e-4)


@pytest.mark.parametrize(
    ("mode", "outside", "corners", "opset"),
    [
        ("bilinear", "zeros", 0, 16),
        ("nearest", "border", 1, 17),
        ("bicubic", "reflection", 0, 17),
        ("linear", "border", 0, 20),
        ("cubic", "zeros", 1, 20),
    ],
)
def test_a_map_is_sampled_as_in_onnx_runtime(mode: str, outside: str, corners: int, opset: int, tmp_path: Path) -> None:
    """At the same places of each image, and at places that the image itself says."""
    options = {"mode": mode, "padding_mode": outside, "align_corners": corners}
    nodes = [
        node("GridSample", "x", "grid", out="y", **options),
        node("Conv", "x", "w", out="c"),
        node("Transpose", "c", out="places", perm=[0, 2, 3, 1]),
        node("GridSample", "x", "places", out="z", **options),
    ]
    grid, weight = _w(1, 5, 6, 2), 0.3 * _w(2, 4, 1, 1)
    path = written(model(nodes, (1, 4, 8, 9), {"grid": grid, "w": weight}, opset, ("y", "z")), tmp_path)
    x = images(3, 4, 8, 9)
    got = fastfer.compile(path)(x)
    for n in range(3):
        want = onnx_files.run(path, x[n : n + 1])
        for name in ("y", "z"):
            np.testing.assert_allclose(got[name][n : n + 1], want[name], atol=1e-4)


def test_constants_beside_the_images_of_a_file_for_one(tmp_path: Path) -> None:
    """Coordinates joined to the channels: the file has them once, the engine for each of its images."""
    path = written(model([node("Concat", "x", "c", axis=1)], (1, 4, 8, 9), {"c": _w(1, 2, 8, 9)}), tmp_path)
    x = images(3, 4, 8, 9)
    want = np.concatenate([onnx_files.run(path, x[n : n + 1])["y"] for n in range(3)])
    np.testing.assert_array_equal(fastfer.compile(path)(x), want)
