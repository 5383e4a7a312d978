# SPDX-License-Identifier: Apache-2.0
"""Bad ONNX files: a clear error that names the file and the part, and no memory for what is not there."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfer
from fastfer.engine import UncoveredError
from tests.onnx_files import FLOAT, helper, model, node, onnx, written

_TENSOR = onnx.TensorProto


def _conv() -> Any:
    return model([node("Conv", "x", "w", kernel_shape=[3, 3])], constants={"w": np.ones((2, 4, 3, 3), np.float32)})


def _claims(dims: list[int]) -> Any:
    """A weight that says to be larger than it is."""
    proto = _conv()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    return proto


def _external(location: str, **more: str) -> Any:
    proto = _conv()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = _TENSOR.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return proto


def _changed(change: Callable[[Any], Any]) -> Any:
    proto = _conv()
    change(proto)
    return proto


def _in_another_domain(proto: Any) -> None:
    proto.graph.node[0].domain = "com.custom"


def _opset(version: int) -> Any:
    return _changed(lambda proto: setattr(proto.opset_import[0], "version", version))


def _weight_as_input(proto: Any) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("v", FLOAT, [2, 4, 3, 3]))
    proto.graph.node[0].input[1] = "v"


def _circle() -> Any:
    return model([node("Add", "x", "b", out="a"), node("Relu", "a", out="b"), node("Neg", "b")])


def _branch() -> Any:
    body = helper.make_graph(
        [node("Identity", "x", out="z")], "b", [], [helper.make_tensor_value_info("z", FLOAT, None)]
    )
    return model([node("If", "c", then_branch=body, else_branch=body)], constants={"c": np.array(True)})


def _calls_itself() -> Any:
    body = [helper.make_node("F", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("own", 1)])
    proto = model([helper.make_node("F", ["x"], ["y"], domain="own")])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(function)
    return proto


def _doubles(levels: int) -> Any:
    """Functions that call the one before twice: 2^levels nodes when written out."""
    proto = model([helper.make_node(f"F{levels}", ["x"], ["y"], domain="own")])
    own = helper.make_opsetid("own", 1)
    proto.opset_import.append(own)
    for level in range(levels + 1):
        before = (f"F{level - 1}", "own") if level else ("Neg", "")
        body = [helper.make_node(before[0], [a], [b], domain=before[1]) for a, b in (("a", "t"), ("t", "b"))]
        proto.functions.append(
            helper.make_function("own", f"F{level}", ["a"], ["b"], body, [own, helper.make_opsetid("", 17)])
        )
    return proto


def _large(count: int = 1) -> Any:
    """Constants of a thousand million numbers, in a file of some bytes."""
    sizes = np.array([1 << 15, 1 << 15], np.int64)
    return model([node("ConstantOfShape", "s", out="c"), node("Add", "x", "c")], constants={"s": sizes})


def _loop() -> Any:
    turns, more = (helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("a", 9)))
    body = helper.make_graph(
        [node("Identity", "a", out="b")], "b", [turns, more], [helper.make_tensor_value_info("b", 9, [])]
    )
    return model([node("Loop", "", "c", body=body)], constants={"c": np.array(True)})


def _twice(kind: str) -> Any:
    """A name that is there twice among inputs, outputs or initializers."""
    return _changed(lambda proto: getattr(proto.graph, kind).append(getattr(proto.graph, kind)[0]))


def _many_nodes(count: int) -> Any:
    proto = model([node("Relu", "x")])
    proto.graph.node.extend([onnx.NodeProto(op_type="Relu", input=["x"])] * count)
    return proto


def _repeated(count: int) -> Any:
    nodes = [node("Unsqueeze", "x", "a", out="u"), node("Expand", "u", "s")]
    return model(nodes, constants={"a": np.array([2]), "s": np.array([1, 4, count, 8, 8])})


def _sized(*shape: int | str) -> Any:
    return model([node("Relu", "x")], shape)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "claims more": (lambda: _claims([2, 4, 3, 300]), "expected 28800 bytes for the shape"),
    "claims a petabyte": (lambda: _claims([1 << 20, 1 << 20, 1 << 10]), "bytes for the shape"),
    "negative size": (lambda: _claims([-2, 4, 3, 3]), "sizes >= 0"),
    "outside its folder": (lambda: _external("../secret.bin"), "in the model's folder, got '../secret.bin'"),
    "absolute": (lambda: _external("/etc/passwd"), "in the model's folder, got '/etc/passwd'"),
    "missing data": (lambda: _external("none.bin"), "expected the file 'none.bin', got none"),
    "no number": (lambda: _external("w.bin", offset="x"), "expected numbers as offset"),
    "too long": (lambda: _external("w.bin", length=str(1 << 60)), "expected 288 bytes"),
    "beyond its end": (lambda: _external("w.bin", offset="1000"), "expected bytes 1000 to 1288"),
    "a circle": (_circle, "without a circle"),
    "control flow": (_branch, r"\(If\): expected no control flow"),
    "a loop": (_loop, r"\(Loop\): expected no control flow"),
    "two inputs of one name": (lambda: _twice("input"), "expected inputs of different names"),
    "two outputs of one name": (lambda: _twice("output"), "expected outputs of different names"),
    "two initializers of one name": (lambda: _twice("initializer"), "expected initializers of different names"),
    "a million nodes": (lambda: _many_nodes(1_000_000), "expected at most 100000 nodes, got 1000001"),
    "absurd repeats": (lambda: _repeated(1 << 40), r"\(Expand\): expected results of at most"),
    "absurd images": (lambda: _sized(1 << 62, 4, 8, 8), "input 'x': expected sizes of at most"),
    "many images": (lambda: _sized(1 << 30, 4, 8, 8), r"\(Relu\): expected results of at most"),
    "negative images": (lambda: _sized(-1, 4, 8, 8), "input 'x': expected sizes >= 0"),
    "absurd pixels": (lambda: _sized("n", 4, 1 << 40, 1 << 40), "input 'x': expected sizes of at most"),
    "absurd window": (
        lambda: model([node("MaxPool", "x", kernel_shape=[1 << 40] * 2, pads=[1 << 39] * 4)]),
        r"\(MaxPool\): kernel, strides, dilations, pads: expected numbers of at most",
    ),
    "custom domain": (lambda: _changed(_in_another_domain), "got the domain 'com.custom'"),
    "future opset": (lambda: _opset(999), "opset: expected 7 to [0-9]+, .* got 999"),
    "past opset": (lambda: _opset(3), "opset: expected 7 to"),
    "future format": (lambda: _changed(lambda p: setattr(p, "ir_version", 999)), "ir_version"),
    "no opset": (lambda: _changed(lambda p: p.ClearField("opset_import")), "opset: expected one version"),
    "no outputs": (lambda: _changed(lambda p: p.graph.ClearField("output")), "outputs, got none"),
    "free channels": (lambda: model([node("Relu", "x")], ("n", "c", 8, 8)), "fixed number of channels, got c"),
    "no writer": (lambda: model([node("Add", "x", "q")]), "value 'q', read by node"),
    "written twice": (lambda: model([node("Relu", "x"), node("Neg", "x")]), "written once"),
    "calls itself": (_calls_itself, "does not call itself"),
    "doubling functions": (lambda: _doubles(40), "nodes when written out"),
    "absurd constant": (_large, r"\(ConstantOfShape\): expected constants of at most"),
    "text": (lambda: model([node("Relu", "x")], dtype=_TENSOR.STRING), "expected floats or uint8"),
    "a weight as input": (lambda: _changed(_weight_as_input), "one number of images for all"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    (tmp_path / "w.bin").write_bytes(bytes(1024))
    path = written(make(), tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as error:
        fastfer.compile(path)
    assert str(path) in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = _conv().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"model\.onnx"):
            fastfer.compile(path)


def test_damaged_bytes_give_an_engine_or_an_error(tmp_path: Path) -> None:
    """Never another exception, and no absurd memory."""
    data = bytearray(_conv().SerializeToString())
    generator = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for at in generator.integers(0, len(data), 3):
            changed[at] = generator.integers(0, 256)
        path.write_bytes(changed)
        try:
            fastfer.compile(path)
        except (ValueError, UncoveredError):
            refused += 1
    assert refused > 20


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(1024))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ValueError, match="in the model's folder"):
        fastfer.compile(written(_external("w.bin"), folder))


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    weight = np.arange(72, dtype=np.float32).reshape(2, 4, 3, 3)
    (tmp_path / "w.bin").write_bytes(bytes(64) + weight.tobytes())
    path = written(_external("w.bin", offset="64", length=str(weight.nbytes)), tmp_path)
    whole = model([node("Conv", "x", "w", kernel_shape=[3, 3])], constants={"w": weight})
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    want = fastfer.compile(written(whole, tmp_path, "whole.onnx"))(x)
    np.testing.assert_array_equal(fastfer.compile(path)(x), want)


def test_no_file_and_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        fastfer.compile(tmp_path / "none.onnx")
    with pytest.raises(TypeError, match=r"got str: 'fgw' is no file, does not end in \.onnx"):
        fastfer.compile("fgw")
    with pytest.raises(ValueError, match="expected a file, got a folder"):
        fastfer.compile(tmp_path)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got int"):
        fastfer.compile(3)  # type: ignore[arg-type]


def test_an_operator_that_no_plan_has_is_named_with_its_node(tmp_path: Path) -> None:
    path = written(model([node("Relu", "x", out="r"), node("Det", "r")], ("n", 4, 8, 8)), tmp_path)
    with pytest.raises(UncoveredError, match=r"node 'Det_of_y' \(Det\): no such operator"):
        fastfer.compile(path)


def test_inputs_that_do_not_fit_are_named_with_their_node(tmp_path: Path) -> None:
    path = written(model([node("MatMul", "x", "w")], constants={"w": np.ones((5, 3), np.float32)}), tmp_path)
    with pytest.raises(ValueError, match=r"node 'MatMul_of_y' \(MatMul\): expected inputs and attributes that fit"):
        fastfer.compile(path)


def test_the_batch_baked_into_a_reshape_is_refused(tmp_path: Path) -> None:
    """A file for any number of images whose reshape knows only one."""
    nodes = [node("Reshape", "x", "s")]
    path = written(model(nodes, constants={"s": np.array([1, -1], np.int64)}), tmp_path)
    with pytest.raises(UncoveredError, match=r"node 'Reshape_of_y' \(Reshape\)"):
        fastfer.compile(path)
