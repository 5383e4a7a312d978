# SPDX-License-Identifier: Apache-2.0
"""Engines: float32 results against torch, dtypes and batches, callers side by side, files, life without torch."""

from __future__ import annotations

import json
import os
import runpy
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import engine_bytes
import numpy as np
import pytest
import torch
from engine_models import close, graph_of, logits, network
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer
from fastfer import runtime
from fastfer.engine import file
from fastfer.engine.record import recorded
from fastfer.engine.trace import traced
from fastfer.models import create_model, list_models

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor, runtime.Engine]:
    model, x = network()
    mean, std = [0.45], [0.25]
    names = [f"class {i}" for i in range(7)]
    return model, x, fastfer.compile(model, mean=mean, std=std, class_names=names, metadata={"note": "é"}, threads=2)


@pytest.mark.parametrize("name", list_models())
def test_networks(name: str) -> None:
    model, x = network(name)
    engine = fastfer.compile(model, x, threads=2)
    want = logits(model, x)
    close(engine(x), want)
    close(engine(x[:1]), want[:1])
    assert engine.metadata["model"] == name
    assert engine.output_shapes == ((7,),)


@pytest.mark.parametrize("name", list_models())
def test_recorded_calls_are_those_of_torch_export(name: str) -> None:
    """The quick trace of fastfer's own networks, and the slow one, give the same bytes."""
    model = create_model(name).eval()
    size = (model.in_chans, *model.input_size)
    quick, slow = recorded(model, size), traced(model, size)
    assert quick is not None
    assert [c.name for c in quick.calls] == [c.name for c in slow.calls]
    assert [c.bound().keys() for c in quick.calls] == [c.bound().keys() for c in slow.calls]


class Reads(nn.Module):
    """A part that looks at the values of what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_reads_values_is_left_to_torch_export() -> None:
    model = create_model("fgw_fer")
    model.pool = nn.Sequential(model.pool, Reads())
    assert recorded(model, (1, 48, 48)) is None
    with pytest.raises(ValueError, match=r"expected one that torch\.export traces"):
        fastfer.compile(model)


def test_batches_and_kinds_of_arrays(small: Any) -> None:
    model, x, engine = small
    many = torch.cat([x, x.flip(0), x])
    want = logits(model, many)
    for count in (0, 1, 2, 9):
        got = engine(many[:count])
        assert isinstance(got, Tensor)
        assert got.shape == (count, 7)
        close(got, want[:count]) if count else None
    got = engine(many.numpy())
    assert isinstance(got, np.ndarray)
    close(got, want)
    strided = many.contiguous(memory_format=torch.channels_last)[::2]
    close(engine(strided), want[::2])
    close(engine(np.asfortranarray(many.numpy())[::-1]), want.flip(0))
    close(engine(many.requires_grad_()), want)


def test_pixels_are_normalised_inside(small: Any) -> None:
    model, _, engine = small
    pixels = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    want = logits(model, (pixels / 255 - 0.45) / 0.25)
    close(engine(pixels), want)
    close(engine(pixels.numpy()), want)


def test_several_outputs_and_images_as_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 5, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, y.mean((2, 3))

    model, x = Two().eval(), torch.randn(2, 2, 6, 5)
    engine = fastfer.compile(model, x.shape)
    got = engine(x)
    assert isinstance(got, tuple)
    for ours, want in zip(got, logits(model, x), strict=True):
        close(ours, want)


def test_callers_side_by_side(small: Any) -> None:
    model, x, engine = small
    wants = [logits(model, x * (i + 1)) for i in range(4)]
    errors: list[BaseException] = []

    def call(i: int) -> None:
        try:
            for _ in range(20):
                close(engine(x * (i + 1)), wants[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    model, x = network("mobilenetv3_cpsca")
    one, some = (fastfer.compile(model, x, threads=count) for count in (1, threads))
    assert some.threads == threads
    for images in (x, x[:1]):
        torch.testing.assert_close(some(images), one(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "engine: x: expected a numpy.ndarray or a torch.Tensor, got list"),
        (torch.zeros(1, 1, 48, 48, dtype=torch.float64), TypeError, "expected dtype float32 or uint8, got float64"),
        (np.zeros((1, 1, 48, 48)), TypeError, "expected dtype float32 or uint8, got float64"),
        (torch.zeros(1, 1, 48, 47), ValueError, r"expected shape \(N, 1, 48, 48\), got \(1, 1, 48, 47\)"),
        (torch.zeros(1, 48, 48), ValueError, r"expected shape \(N, 1, 48, 48\), got \(1, 48, 48\)"),
        (torch.zeros(1, 1, 48, 48, device="meta"), ValueError, "expected a tensor on the CPU, got one on meta"),
    ],
)
def test_images_that_are_refused(small: Any, x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small[2](x)


def test_pixels_need_mean_and_std() -> None:
    engine = fastfer.compile(network()[0])
    with pytest.raises(TypeError, match=r"expected dtype float32, got uint8 \(uint8 needs .mean. and .std."):
        engine(torch.zeros(1, 1, 48, 48, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "fgw"}, TypeError, "expected a torch.nn.Module, got str: 'fgw' is no file, .* is none of fgw_fer, "),
        ({"model": nn.Conv2d(1, 1, 1)}, TypeError, "example: expected an input or its shape for a model that is not"),
        ({"example": (1, 48)}, ValueError, r"example: expected a shape \(N, C, H, W\) or \(C, H, W\), got \(1, 48\)"),
        ({"dtype": "float16"}, ValueError, "dtype: expected one of float32, bfloat16, int8 or auto, got 'float16'"),
        ({"threads": 0}, ValueError, "threads: expected an int of 1 to [0-9]+, got 0"),
        ({"mean": [0.5]}, ValueError, "std: expected a list of numbers, got None"),
        ({"mean": [0.5, 0.5], "std": [1, 1]}, ValueError, "mean: expected 1 numbers, one a channel, got 2"),
        ({"mean": [0.5], "std": [0]}, ValueError, "std above 0"),
        ({"class_names": ["a", "b"]}, ValueError, r"classes: expected distinct names of the outputs \(7,\)"),
        ({"metadata": {"a": object()}}, TypeError, "metadata: expected JSON values"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastfer.compile(**{"model": create_model("fgw_fer"), **arguments})


def test_weights_that_are_not_finite_are_refused() -> None:
    model = create_model("fgw_fer")
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(ValueError, match="conv: expected finite weights within float32, got NaN or infinity"):
        fastfer.compile(model)


def test_later_changes_do_not_reach_the_engine() -> None:
    model, x = network()
    engine, want = fastfer.compile(model), logits(model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    close(engine(x), want)


def test_save_and_load(small: Any, tmp_path: Path) -> None:
    _, x, engine = small
    path = tmp_path / "model.ffe"
    engine.save(path)
    again = runtime.load(path, threads=1)
    assert again.class_names == tuple(f"class {i}" for i in range(7))
    assert again.metadata == engine.metadata
    assert again.metadata["note"] == "é"
    assert (again.input_shape, again.threads) == ((1, 48, 48), 1)
    torch.testing.assert_close(again(x), engine(x), rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ffe"]


def test_a_save_that_fails_leaves_the_file(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ffe"
    path.write_bytes(b"before")

    def full(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        small[2].save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ffe"]
    assert path.read_bytes() == b"before"


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.ffe"):
        runtime.load(tmp_path / "missing.ffe")
    path = tmp_path / "broken.ffe"
    path.write_bytes(b"FFENGINE" + bytes(200))
    with pytest.raises(ValueError, match=r"broken\.ffe: engine file: version: expected 1, got 0"):
        runtime.load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"\xff", "metadata: expected JSON in UTF-8"),
        (b"[" * 100_000, "metadata: expected JSON in UTF-8"),
        (b"[1]", "metadata: expected a JSON object, got list"),
        (b'{"classes": ["a"]}', "classes: expected distinct names of the outputs"),
        (b'{"classes": [1, 2, 3, 4, 5, 6, 7]}', "classes: expected a list of names"),
        (b'{"outputs": [[8]]}', r"outputs: expected shapes of \[\(7, 1, 1\)\], got \[\[8\]\]"),
        (b'{"outputs": 3}', "outputs: expected shapes"),
        (b'{"mean": [1e999], "std": [1]}', "mean: expected a list of numbers"),
        (b'{"mean": "a", "std": [1]}', "mean: expected a list of numbers"),
        (b'{"dtype": 3}', "dtype: expected"),
    ],
)
def test_hostile_metadata(metadata: bytes, message: str) -> None:
    """A file that is whole, but whose metadata are not those of an engine."""
    data = file.to_bytes(graph_of(create_model("fgw_fer"), (1, 48, 48)), {})
    with pytest.raises(ValueError, match=message):
        runtime.Engine(with_metadata(data, metadata))


def with_metadata(data: bytes, metadata: bytes) -> bytes:
    """The file with other metadata, at its end."""
    out = bytearray(data + metadata)
    struct.pack_into("<2Q", out, 32, len(data), len(metadata))
    struct.pack_into("<Q", out, 16, len(out))
    struct.pack_into("<Q", out, 24, engine_bytes.checksum(bytes(out[32:])))
    return bytes(out)


def test_checksum_is_the_extensions() -> None:
    from fastfer import _C

    for size in (0, 1, 7, 8, 31, 32, 33, 100, 1024):
        data = bytes((i * 37 + size) % 256 for i in range(size))
        assert engine_bytes.checksum(data) == _C.engine_checksum(data)


def test_files_read_back() -> None:
    graph = graph_of(create_model("sepconv_attention"), (1, 48, 48))
    again, metadata = engine_bytes.from_bytes(file.to_bytes(graph, {"a": [1]}))
    assert metadata == {"a": [1]}
    assert (again.values, again.input, again.outputs) == (graph.values, graph.input, graph.outputs)
    for ours, theirs in zip(again.nodes, graph.nodes, strict=True):
        assert (ours.op, ours.inputs, ours.output, ours.attrs) == (
            theirs.op,
            theirs.inputs,
            theirs.output,
            theirs.attrs,
        )
        for a, b in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_array_equal(a, b.astype(np.float32).reshape(-1))


def test_the_runtime_needs_no_torch(small: Any, tmp_path: Path) -> None:
    """A process that cannot import torch loads the file and gives the same logits; importing takes no numpy either."""
    _, x, engine = small
    engine.save(tmp_path / "model.ffe")
    np.save(tmp_path / "x.npy", x.numpy())
    code = """
import sys
sys.modules["torch"] = None
import fastfer.runtime
assert "numpy" not in sys.modules and "json" not in sys.modules
import numpy as np
engine = fastfer.runtime.load("model.ffe", threads=2).warmup()
np.save("y.npy", engine(np.load("x.npy")))
print(engine, list(engine.class_names), engine.profile(repeats=2))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(fastfer.__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), engine(x).numpy())
    assert "class 6" in done.stdout


def test_default_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTFER_NUM_THREADS", raising=False)
    assert runtime.default_threads() == torch.get_num_threads()
    monkeypatch.setenv("FASTFER_NUM_THREADS", "3")
    assert runtime.default_threads() == 3
    assert runtime.default_threads(1) == 1
    monkeypatch.setenv("FASTFER_NUM_THREADS", "many")
    with pytest.raises(ValueError, match=r"FASTFER_NUM_THREADS: expected an integer of 1 to [0-9]+, got 'many'"):
        runtime.default_threads()


def test_strict() -> None:
    model, x = network("sepconv_attention")
    want = logits(model.double(), x.double())
    model.float()
    engine = fastfer.compile(model, strict=True)
    assert engine.strict
    assert engine.metadata["strict"] is True
    np.testing.assert_allclose(engine(x).numpy(), want.numpy(), rtol=0, atol=1e-5 * float(want.abs().max()))


def test_a_short_network_answers_the_same_at_any_pace() -> None:
    """Runs that follow each other closely are tried on one thread and on two; after a pause there is one again."""
    model, x = network("fgw_fer")
    engine = fastfer.compile(model, threads=2)
    want = engine(x[:1])
    for run in range(600):
        if run % 200 == 199:
            time.sleep(0.001)
        assert torch.equal(engine(x[:1]), want), run


@pytest.fixture(scope="module")
def faces(real_data: Path) -> Tensor:
    """The 3,589 faces of PublicTest, uint8 (N, 1, 48, 48)."""
    unpack = runpy.run_path(str(real_data / "unpack.py"))
    rows, images = unpack["read"]()
    chosen = [i for i, row in enumerate(rows) if row["usage"] == "PublicTest"]
    return torch.from_numpy(images[chosen])[:, None]


@pytest.mark.parametrize(("name", "count"), [
    ("fgw_fer", 1024), ("sepconv_attention", 1024), ("vgg16_csa", 16), ("patt_lite", 16), ("mobilenetv3_cpsca", 16),
])  # fmt: skip
def test_real_faces(name: str, count: int, faces: Tensor) -> None:
    """The same class as torch for every face, from pixels; either where torch's two largest are within rounding."""
    torch.manual_seed(0)
    model = create_model(name)
    size = model.input_size
    pixels = F.interpolate(faces[:count].float(), size, mode="bilinear").round().byte()
    pixels = pixels.expand(-1, model.in_chans, -1, -1).contiguous()
    images = (pixels / 255 - 0.5) / 0.25
    with torch.no_grad():
        model.train()(images[:16])
        model.eval()
        want = torch.cat([model(part) for part in images.split(256)])
    got = fastfer.compile(model, mean=[0.5] * model.in_chans, std=[0.25] * model.in_chans)(pixels)
    close(got, want)
    best = want.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-4 * want.abs().max()
    assert bool((got.argmax(1) == want.argmax(1))[clear].all())
    assert clear.float().mean() > 0.9


def test_names_of_the_package() -> None:
    assert fastfer.engine.compile is fastfer.compile
    assert fastfer.engine.Engine is runtime.Engine
    assert set(fastfer.__all__) <= set(dir(fastfer))
    assert isinstance(fastfer.__version__, str)
    for module in (fastfer, fastfer.engine):
        with pytest.raises(AttributeError, match="has no attribute 'missing'"):
            module.missing  # noqa: B018
    assert json.loads(json.dumps(fastfer.compile(create_model("fgw_fer")).metadata))["dtype"] == "float32"
