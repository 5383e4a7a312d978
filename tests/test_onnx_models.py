# SPDX-License-Identifier: Apache-2.0
"""Whole ONNX files as engines: names, sizes, metadata, quantised ones, fallback, and the command line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastfer
from fastfer.engine import UncoveredError
from fastfer.engine.__main__ import main
from tests import onnx_files
from tests.conftest import REPOSITORY
from tests.onnx_files import images, model, node, onnx, written

pytest.importorskip("onnxruntime")

MODELS = Path(os.environ.get("FASTFER_TEST_MODELS", REPOSITORY.parent / "shared" / "models"))
FACES = MODELS / "face_detection_yunet_2023mar.onnx"


def _agree(got: dict[str, Any], want: dict[str, Any], most: float = 1e-4) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        assert np.abs(got[name].reshape(-1) - array.reshape(-1)).max() <= most * max(np.abs(array).max(), 1), name


@pytest.mark.skipif(not FACES.is_file(), reason=f"no file {FACES}")
@pytest.mark.parametrize("size", [(320, 320), (480, 640)])
def test_a_face_detector_runs_at_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    """The file fixes 640×640, twelve named outputs, and one image."""
    engine = fastfer.compile(FACES, input_size=size)
    x = (images(2, 3, *size) * 60 + 120).clip(0, 255)
    from fastfer.engine.onnx_peer import sized

    path = tmp_path / "sized.onnx"
    path.write_bytes(sized(str(FACES), (3, *size)))
    got = engine(x)
    assert engine.metadata["output_names"] == list(got)
    for i in range(2):
        _agree({name: y[i : i + 1] for name, y in got.items()}, onnx_files.run(path, x[i : i + 1]))


def _small() -> Any:
    w = np.random.default_rng(2).standard_normal
    nodes = [
        node("Conv", "x", "w", out="a", pads=[1, 1, 1, 1]),
        node("Relu", "a", out="b"),
        node("GlobalAveragePool", "b", out="c"),
        node("Flatten", "c", out="features"),
        node("Gemm", "features", "v", out="logits"),
    ]
    constants = {"w": w((5, 4, 3, 3)).astype(np.float32), "v": w((5, 3)).astype(np.float32)}
    return model(nodes, ("n", 4, "h", "w"), constants, outputs=("logits", "features"))


def test_outputs_come_by_name_and_survive_the_file(tmp_path: Path) -> None:
    path = written(_small(), tmp_path, "small.onnx")
    engine = fastfer.compile(str(path), input_size=12)
    x = images(3, 4, 12, 12)
    _agree(engine(x), onnx_files.run(path, x))
    engine.save(tmp_path / "small.ffe")
    loaded = fastfer.runtime.load(tmp_path / "small.ffe")
    assert loaded.metadata["input_names"] == ["x"]
    assert loaded.metadata["model"] == "small"
    _agree(loaded(x), engine(x), 0)
    assert all(isinstance(y, torch.Tensor) for y in loaded(torch.from_numpy(x)).values())


def test_a_free_size_is_asked_for(tmp_path: Path) -> None:
    path = written(_small(), tmp_path)
    with pytest.raises(ValueError, match=r"input_size: expected \(height, width\), as input 'x' has"):
        fastfer.compile(path)
    with pytest.raises(ValueError, match="expected 4 channels"):
        fastfer.compile(path, (1, 3, 8, 8))
    with pytest.raises(ValueError, match="none beside an example"):
        fastfer.compile(path, (1, 4, 8, 8), input_size=8)
    with pytest.raises(ValueError, match="input_size: expected the height and width"):
        fastfer.compile(path, input_size=(8, -8))
    with pytest.raises(ValueError, match="at most"):
        fastfer.compile(path, input_size=1 << 20)
    with pytest.raises(ValueError, match="input_size: expected None for a module"):
        fastfer.compile(torch.nn.Conv2d(4, 1, 1), (4, 8, 8), input_size=8)


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21])
def test_arithmetic_with_shapes_disappears(opset: int, tmp_path: Path) -> None:
    """A flatten written with the shape of its input, as exporters do: the number of images stays free."""
    nodes = [
        node("Shape", "x", out="s"),
        node("Gather", "s", "zero", out="n", axis=0),
        node("Unsqueeze", "n", *(["zeros"] if opset >= 13 else []), out="n1", **({} if opset >= 13 else {"axes": [0]})),
        node("Concat", "n1", "rest", out="t", axis=0),
        node("Reshape", "x", "t"),
    ]
    constants = {"zero": np.int64(0), "zeros": np.array([0]), "rest": np.array([-1])}
    if opset < 13:
        del constants["zeros"]
    engine = fastfer.compile(written(model(nodes, constants=constants, opset=opset), tmp_path))
    x = images(3, 4, 8, 8)
    np.testing.assert_array_equal(engine(x), x.reshape(3, -1))


def test_one_fixed_image_stands_for_any_number(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", out="a"), node("Reshape", "a", "s")]
    engine = fastfer.compile(written(model(nodes, (1, 4, 8, 8), {"s": np.array([1, 256])}), tmp_path))
    x = images(3, 4, 8, 8)
    np.testing.assert_array_equal(engine(x), np.maximum(x, 0).reshape(3, -1))


def test_a_fixed_number_of_images_that_outputs_mix_is_refused(tmp_path: Path) -> None:
    path = written(model([node("Reshape", "x", "s")], (2, 4, 8, 8), {"s": np.array([4, -1])}), tmp_path)
    with pytest.raises(ValueError, match=r"one row for each of the 2 images|the number of images"):
        fastfer.compile(path)


def test_sixteen_bit_floats_are_computed_in_float32(tmp_path: Path) -> None:
    half = onnx.TensorProto.FLOAT16
    nodes = [node("Conv", "x", "w", out="a"), node("Cast", "a", to=1)]
    weight = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(np.float16)
    path = written(model(nodes, constants={"w": weight}, dtype=half), tmp_path)
    x = images(2, 4, 8, 8)
    want = onnx_files.run(path, x.astype(np.float16))["y"]
    np.testing.assert_allclose(fastfer.compile(path)(x), want, atol=0.05)


def test_a_vector_is_an_input(tmp_path: Path) -> None:
    path = written(model([node("Gemm", "x", "w")], ("n", 7), {"w": np.ones((7, 3), np.float32)}), tmp_path)
    x = images(5, 7)
    np.testing.assert_allclose(fastfer.compile(path)(x), x @ np.ones((7, 3)), rtol=1e-4, atol=1e-5)


def test_onnx_runtime_takes_over_what_no_plan_has(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", out="r"), node("Det", "r", out="d"), node("Neg", "r", out="m")]
    path = written(model(nodes, outputs=("d", "m")), tmp_path)
    with pytest.raises(UncoveredError, match="Det"):
        fastfer.compile(path, fallback="torch")
    engine = fastfer.compile(path, fallback="onnxruntime")
    x = images(3, 4, 8, 8)
    want = onnx_files.run(path, x)
    for one in (engine, pickle.loads(pickle.dumps(engine))):
        _agree(one(x), want)
    assert isinstance(engine(torch.from_numpy(x))["d"], torch.Tensor)
    assert engine.output_shapes == ((4,), (4, 8, 8))
    assert "ONNX Runtime" in engine.islands[0]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="without fallback"):
        engine.save(tmp_path / "x.ffe")
    with pytest.raises(ValueError, match="expected 'error' or 'torch', got 'onnxruntime'"):
        fastfer.compile(_Sorts(), (4, 8, 8), fallback="onnxruntime")


class _Sorts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sort(dim=1).values.cumprod(1)


def test_quantised_pairs_stand_for_floats(tmp_path: Path) -> None:
    """Weights are dequantised, a pair around an activation keeps the limits of its integers: a ReLU that was."""
    scale, zero = np.float32(0.02), np.int8(-128)
    weight = np.random.default_rng(0).integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
    rates = np.linspace(0.001, 0.004, 6).astype(np.float32)
    nodes = [
        node("QuantizeLinear", "x", "xs", "xz", out="xq"),
        node("DequantizeLinear", "xq", "xs", "xz", out="xf"),
        node("DequantizeLinear", "w", "ws", "wz", out="wf", axis=0),
        node("Conv", "xf", "wf", out="c"),
        node("QuantizeLinear", "c", "cs", "cz", out="cq"),
        node("DequantizeLinear", "cq", "cs", "cz"),
    ]
    constants = {
        "xs": np.float32(0.03),
        "xz": np.int8(0),
        "w": weight,
        "ws": rates,
        "wz": np.zeros(6, np.int8),
        "cs": scale,
        "cz": zero,
    }
    path = written(model(nodes, constants=constants), tmp_path)
    x = images(2, 4, 8, 8)
    got, want = fastfer.compile(path, fallback="torch")(x), onnx_files.run(path, x)["y"]
    assert got.min() >= 0
    assert got.max() <= 255 * scale + 1e-6
    assert np.abs(got - want).max() < 0.1  # a few steps of the integers
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999


def test_our_export_keeps_its_classes_and_pixels(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from fastfer.export.onnx import to_onnx

    torch.manual_seed(0)
    network = fastfer.create_model("sepconv_attention").eval()
    path = tmp_path / "network.onnx"
    classes = [f"c{i}" for i in range(network.num_classes)]
    header = {"classes": classes, "mean": [0.5] * network.in_chans, "std": [0.25] * network.in_chans}
    to_onnx(network, path, header)
    engine = fastfer.compile(path, fallback="torch")
    assert engine.class_names == tuple(classes)
    assert engine.metadata["model"] == "sepconv_attention"
    x = np.random.default_rng(0).integers(0, 256, (2, *engine.input_shape)).astype(np.uint8)
    with torch.no_grad():
        want = network((torch.from_numpy(x) / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(engine(x), want, atol=1e-3 * np.abs(want).max())


def test_the_command_line_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, saved = written(_small(), tmp_path), tmp_path / "small.ffe"
    assert main([str(path), "--size", "16", "16", "--save", str(saved), "--profile", "--threads", "1"]) == 0
    assert fastfer.runtime.load(saved).input_shape == (4, 16, 16)
    arguments = ["--size", "16", "16", "--compare", "--others", "onnxruntime", "--batch", "2", "--rounds", "1"]
    assert main([str(path), *arguments]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert main([str(path)]) == 2
    assert "input_size" in capsys.readouterr().err


def test_other_sizes_are_planned_once_and_a_bounded_number_is_kept(tmp_path: Path) -> None:
    from fastfer.engine.recipe import MOST_SIZES

    path = written(_small(), tmp_path)
    engine = fastfer.compile(path, input_size=12)
    for side in range(8, 8 + MOST_SIZES + 3):
        x = images(2, 4, side, side + 1)
        _agree(engine(x), onnx_files.run(path, x))
    kept = list(engine.sizes.engines)
    assert len(kept) == MOST_SIZES
    last = engine.sizes.engines[kept[-1]]
    engine(images(1, *kept[-1]))
    assert engine.sizes.engines[kept[-1]] is last
    again = pickle.loads(pickle.dumps(engine))
    assert not again.sizes.engines
    x = images(2, 4, 9, 30)
    _agree(again(x), engine(x), 0)
    fixed = fastfer.compile(path, input_size=12, sizes="fixed")
    with pytest.raises(ValueError, match=r"expected shape \(N, 4, 12, 12\), got \(2, 4, 9, 30\)"):
        fixed(x)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", out="f"), node("Gemm", "f", "w")]
    engine = fastfer.compile(written(model(nodes, constants={"w": np.ones((256, 3), np.float32)}), tmp_path))
    with pytest.raises(
        ValueError, match=r"expected shape \(N, 4, 8, 8\), or another size .* got images of \(4, 8, 9\)"
    ):
        engine(images(1, 4, 8, 9))
    with pytest.raises(ValueError, match=r"expected shape \(N, 4, 8, 8\), got \(1, 3, 8, 8\)"):
        engine(images(1, 3, 8, 8))


def test_a_module_takes_other_sizes_where_it_is_asked_to() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()
    engine = fastfer.compile(network, (3, 8, 8), sizes="any")
    x = torch.randn(2, 3, 12, 9)
    with torch.no_grad():
        want = network(x)
        torch.testing.assert_close(engine(x), want, atol=1e-5, rtol=1e-5)
        network[0].weight.zero_()  # of a copy, later changes are not seen
    torch.testing.assert_close(fastfer.compile(network, (3, 8, 8), sizes="any")(x), network(x).detach())
    torch.testing.assert_close(pickle.loads(pickle.dumps(engine))(x), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="sizes: expected 'any' or 'fixed', got 'all'"):
        fastfer.compile(network, (3, 8, 8), sizes="all")
