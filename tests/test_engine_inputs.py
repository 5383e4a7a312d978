# SPDX-License-Identifier: Apache-2.0
"""Networks of several inputs, or of one that is no image: modules and ONNX files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastfer


class Both(nn.Module):
    """An image, gated by a vector, and tokens beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate, self.tokens = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(5, 6), nn.Linear(4, 6)

    def forward(self, image: Tensor, state: Tensor, words: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.conv(image)) * torch.sigmoid(self.gate(state))[:, :, None, None]
        return {"map": y, "logits": y.mean((2, 3)) + self.tokens(words).mean(1)}


def _given(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((count, 3, 8, 7), (count, 5), (count, 9, 4))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def _agree(got: Any, want: Any) -> None:
    for name, value in want.items():
        torch.testing.assert_close(torch.as_tensor(got[name]), value, atol=1e-5, rtol=1e-4)


def test_a_module_of_several_inputs(tmp_path: Path) -> None:
    network, given = Both().eval(), _given()
    engine = fastfer.compile(network, given)
    with torch.no_grad():
        want = network(*given)
    _agree(engine(*given), want)
    _agree(engine(given[0], words=given[2], state=given[1]), want)
    arrays = [t.numpy() for t in given]
    assert isinstance(engine(*arrays)["map"], np.ndarray)
    engine.save(tmp_path / "both.ffe")
    for one in (fastfer.runtime.load(tmp_path / "both.ffe"), pickle.loads(pickle.dumps(engine)).warmup()):
        assert one.inputs == (("image", "state", "words"), ((3, 8, 7), (5,), (9, 4)))
        _agree(one(*arrays), want)
    shapes = [tuple(t.shape) for t in given]
    _agree(fastfer.compile(network, shapes)(*_given(2)), {k: v.detach() for k, v in network(*_given(2)).items()})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: (g[:2], {}), TypeError, "inputs: expected image, state, words, got 2 in order"),
        (lambda g: (g, {"words": g[2]}), TypeError, "inputs: expected image, state, words, got 3 in order, words"),
        (lambda g: (g[:2], {"word": g[2]}), TypeError, "got 2 in order, word"),
        (lambda g: ((g[0], g[1], g[2][:2]), {}), ValueError, r"words: expected shape \(3, 9, 4\), got \(2, 9, 4\)"),
        (lambda g: ((g[0], g[1].double(), g[2]), {}), TypeError, "state: expected dtype float32, got float64"),
        (
            lambda g: ((g[0], g[1].numpy(), g[2]), {}),
            TypeError,
            "state: expected arrays of numpy, or tensors, got ndarray",
        ),
    ],
)
def test_inputs_that_are_refused(change: Any, error: type[Exception], message: str) -> None:
    engine = fastfer.compile(Both(), _given())
    given, named = change(_given())
    with pytest.raises(error, match=message):
        engine(*given, **named)


def test_one_image_takes_no_second_input() -> None:
    engine = fastfer.compile(nn.Conv2d(3, 2, 1), (3, 4, 4))
    x = torch.zeros(1, 3, 4, 4)
    assert engine(x=x).shape == (1, 2, 4, 4)
    for given, named in (((x, x), {}), ((), {}), ((x,), {"y": x})):
        with pytest.raises(TypeError, match="inputs: expected one, x"):
            engine(*given, **named)


def test_several_inputs_with_what_torch_runs() -> None:
    class Uncovered(nn.Module):
        def forward(self, image: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return torch.special.erfcx(image).mean((2, 3)) + state

    network, image, state = Uncovered(), torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    engine = fastfer.compile(network, (image, state), fallback="torch")
    assert engine.islands
    for copy in (engine, pickle.loads(pickle.dumps(engine))):
        torch.testing.assert_close(copy(image, state=state), network(image, state))


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_several_inputs(tmp_path: Path) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network, given, path = Both().eval(), _given(), tmp_path / "both.onnx"
    names = ["image", "state", "words"]
    axes = {name: {0: "n"} for name in (*names, "map", "logits")}
    torch.onnx.export(
        network,
        given,
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["map", "logits"],
        dynamic_axes=axes,
    )
    feeds = {name: value.numpy() for name, value in zip(names, _given(4), strict=True)}
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = dict(zip(("map", "logits"), map(torch.from_numpy, session.run(None, feeds)), strict=True))
    _agree(fastfer.compile(path)(**feeds), want)
    from fastfer.engine.onnx_source import opened

    subject = opened(path)
    assert subject.in_onnxruntime is not None
    header = {**subject.known, "mean": None, "std": None}
    _agree(subject.in_onnxruntime(header, subject.size, 1)(**feeds), want)
    with pytest.raises(ValueError, match="expected a shape of input 'state'"):
        fastfer.compile(path, ((1, 3, 8, 7), (1, 6), (1, 9, 4)))


def test_numbers_are_not_the_images_of_another(tmp_path: Path) -> None:
    from tests.onnx_files import FLOAT, helper, model, node, written

    proto = model([node("Add", "x", "z")], ("n", 4, 8, 8))
    proto.graph.input.append(helper.make_tensor_value_info("z", FLOAT, [2, 4, 8, 8]))
    with pytest.raises(ValueError, match="one number of images for all of them"):
        fastfer.compile(written(proto, tmp_path))
