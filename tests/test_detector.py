# SPDX-License-Identifier: Apache-2.0
"""YuNet around its network, where its file is found, and engine files for other sizes."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastfer
from fastfer.engine.resized import resized
from fastfer.faces import detector_file, yunet
from fastfer.faces.detector import as_face
from fastfer.models.pretrained import download
from fastfer.predict import DetectorNotFoundError, YuNet, find_detector
from fastfer.runtime import Engine

SIZE = (64, 96)


def maps() -> dict[str, np.ndarray[Any, Any]]:
    """Of a picture of SIZE without faces."""
    return {
        f"{kind}_{stride}": np.zeros((SIZE[0] // stride * (SIZE[1] // stride), width), np.float32)
        for kind, width in yunet.KINDS.items()
        for stride in yunet.STRIDES
    }


def put(
    into: dict[str, np.ndarray[Any, Any]],
    stride: int,
    column: int,
    row: int,
    scores: tuple[float, float],
    box: tuple[float, float, float, float],
) -> None:
    """A face of box (centre x, centre y, width, height) in that cell, its points at the centre and 1 to 4 right."""
    at = row * (SIZE[1] // stride) + column
    x, y, width, height = box
    into[f"cls_{stride}"][at], into[f"obj_{stride}"][at] = scores
    into[f"bbox_{stride}"][at] = [
        x / stride - column,
        y / stride - row,
        math.log(width / stride),
        math.log(height / stride),
    ]
    into[f"kps_{stride}"][at] = [v for i in range(5) for v in ((x + i) / stride - column, y / stride - row)]


def test_faces_of_every_stride() -> None:
    into = maps()
    put(into, 8, 3, 2, (0.9, 0.9), (30, 20, 12, 16))
    put(into, 16, 5, 3, (0.81, 1.0), (84, 50, 20, 22))
    put(into, 32, 0, 0, (1.0, 0.49), (10, 12, 60, 60))
    found = yunet.faces(into, SIZE, score=0.65, overlap=0.3)
    assert [round(face.score, 5) for face in found] == [0.9, 0.9, 0.7]
    boxes = sorted(face.box for face in found)
    np.testing.assert_allclose(boxes, [(-20, -18, 60, 60), (24, 12, 12, 16), (74, 39, 20, 22)], atol=1e-4)
    first = next(face for face in found if face.box[0] > 70)
    np.testing.assert_allclose(first.points, [(84 + i, 50) for i in range(5)], atol=1e-4)
    assert len(yunet.faces(into, SIZE, score=0.75, overlap=0.3)) == 2
    assert yunet.faces(maps(), SIZE, score=0.5, overlap=0.3) == []


def test_weaker_boxes_over_better_ones_are_left_out() -> None:
    into = maps()
    put(into, 8, 3, 2, (0.8, 0.8), (30, 20, 20, 20))
    put(into, 8, 4, 2, (0.9, 0.9), (33, 20, 20, 20))  # 17 / 23 in common
    put(into, 8, 4, 5, (0.7, 0.7), (44, 31, 20, 20))  # 9 * 9 of 719
    found = yunet.faces(into, SIZE, score=0.5, overlap=0.3)
    assert [round(face.score, 3) for face in found] == [0.9, 0.7]
    assert len(yunet.faces(into, SIZE, score=0.5, overlap=0.8)) == 3
    assert len(yunet.faces(into, SIZE, score=0.5, overlap=0.05)) == 1
    assert len(yunet.faces(into, SIZE, score=0.5, overlap=1.0)) == 3


def test_scores_beyond_one_are_cut() -> None:
    into = maps()
    put(into, 8, 3, 2, (1.5, 1.2), (30, 20, 20, 20))
    assert yunet.faces(into, SIZE, score=0.5, overlap=0.3)[0].score == 1.0


def test_pictures_become_blue_green_red_planes() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    assert yunet.input_size(30, 41) == (32, 64)
    assert yunet.input_size(32, 64) == (32, 64)
    out = np.full((3, 32, 64), 9, np.uint8)
    yunet.to_input(picture, out)
    np.testing.assert_array_equal(out[:, :30, :41], picture[..., ::-1].transpose(2, 0, 1))
    assert not out[:, 30:].any()
    assert not out[:, :, 41:].any()
    yunet.to_input(picture[..., 0], out)
    np.testing.assert_array_equal(out[1, :30, :41], picture[..., 0])


def test_rows_of_detectors() -> None:
    assert as_face((1, 2, 3, 4)).score == 1.0
    assert as_face(np.float32([1, 2, 3, 4, 0.5])).box == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="4, 5 or 15 finite numbers"):
        as_face((1, 2, 3, math.nan))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, no variable."""
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTFER_OFFLINE", "1")
    monkeypatch.delenv("FASTFER_DETECTOR", raising=False)
    return tmp_path


def test_where_the_file_is_looked_for(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("given.onnx", "named.onnx"):
        (nowhere / name).write_bytes(b"x")
    with pytest.raises(DetectorNotFoundError, match="FASTFER_OFFLINE forbids"):
        find_detector()
    monkeypatch.setenv("FASTFER_DETECTOR", str(nowhere / "named.onnx"))
    assert find_detector() == nowhere / "named.onnx"
    assert find_detector(nowhere / "given.onnx") == nowhere / "given.onnx"
    with pytest.raises(DetectorNotFoundError, match=r"detector: expected the file .* got '.*none.onnx'"):
        find_detector(nowhere / "none.onnx")
    monkeypatch.setenv("FASTFER_DETECTOR", str(nowhere / "gone.onnx"))
    with pytest.raises(DetectorNotFoundError, match=r"FASTFER_DETECTOR: .*gone.onnx"):
        find_detector()


def test_packages_that_ship_the_file(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = nowhere / "site"
    (site / "faces" / "models").mkdir(parents=True)
    (site / "faces-1.0.dist-info").mkdir()
    content = b"the published file"
    file = site / "faces" / "models" / detector_file.NAME
    file.write_bytes(content)
    (site / "faces-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: faces\nVersion: 1.0\n")
    (site / "faces-1.0.dist-info" / "RECORD").write_text(f"faces/models/{detector_file.NAME},,\n")
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(DetectorNotFoundError):  # another file of that name
        find_detector()
    monkeypatch.setattr(detector_file, "DIGEST", hashlib.sha256(content).hexdigest())
    assert find_detector() == file


def test_the_hub_is_asked_once(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"the published file"
    monkeypatch.delenv("FASTFER_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(detector_file, "DIGEST", hashlib.sha256(content).hexdigest())
    asked = []

    def fetch(url: str, path: Path) -> int:
        asked.append(url)
        path.write_bytes(content)
        return len(content)

    monkeypatch.setattr(download, "_fetch", fetch)
    found = find_detector()
    assert found.read_bytes() == content
    assert found == find_detector()
    assert asked == [f"https://huggingface.co/opencv/face_detection_yunet/resolve/main/{detector_file.NAME}"]
    monkeypatch.setattr(detector_file, "DIGEST", "00" * 32)
    with pytest.raises(DetectorNotFoundError, match="not the published file"):
        find_detector()


@pytest.mark.parametrize(
    "changes", [{"score": 0}, {"score": 1.5}, {"overlap": -1}, {"longest": 10}, {"longest": 100_000}]
)
def test_wrong_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="score, overlap, longest"):
        YuNet("any.onnx", **changes)


class Net(nn.Module):
    """Convolutions, a pooling, a resize, pixels as rows, heads of few channels: maps that scale with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.third = nn.Conv2d(8, 4, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, count, 1), nn.Conv2d(count, count, 3, 1, 1, groups=count))
            for count in (1, 1, 4, 10)
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        small = self.third(nn.functional.max_pool2d(x, 2))
        wide = nn.functional.interpolate(small, scale_factor=2.0, mode="nearest")
        made = {"large": x, "small": small, "rows": rows(small), "wide": wide}
        for number, head in enumerate(self.heads):
            made[f"head {number}"] = rows(head(x).sigmoid() if number < 2 else head(x))
        return made


def rows(x: torch.Tensor) -> torch.Tensor:
    """Pixels as rows, as YuNet gives them."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (128, 64), (4, 4)])
def test_engine_files_for_other_sizes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    engine = fastfer.compile(model, (3, 64, 64), threads=1, mean=[0.0] * 3, std=[1 / 255] * 3)
    other = Engine(resized(engine._data, size), threads=1)
    assert other.input_shape == (3, *size)
    x = np.random.default_rng(0).integers(0, 256, (2, 3, *size), np.uint8)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(x).float())
    got = other(x)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-3)


def test_engine_files_that_have_one_size_alone() -> None:
    data = fastfer.compile(fastfer.create_model("fgw_fer").eval(), threads=1)._data
    assert resized(data, (48, 48)) == data
    with pytest.raises(ValueError, match="expected operations that scale"):
        resized(data, (96, 96))
    net = fastfer.compile(Net().eval(), (3, 64, 64), threads=1)._data
    with pytest.raises(ValueError, match="expected a size"):
        resized(net, (0, 64))
    for damaged in (b"", net[:50], b"X" + net[1:], net[:200]):
        with pytest.raises(ValueError, match="engine file"):
            resized(damaged, (32, 32))


MODEL = Path(__file__).resolve().parents[2] / "shared" / "models" / detector_file.NAME


@pytest.fixture(scope="module")
def model() -> Path:
    """The published file: FASTFER_TEST_DETECTOR, or ../shared/models beside the repository."""
    path = Path(os.environ.get("FASTFER_TEST_DETECTOR", MODEL))
    if not path.is_file():
        pytest.skip(f"no YuNet at {path}: set FASTFER_TEST_DETECTOR")
    return path


@pytest.fixture(scope="module")
def cached(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the compiled detector."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFER_CACHE", str(cache))
        YuNet(model)
    return cache


def overlap(a: Any, b: Any) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return float(common / (a[2] * a[3] + b[2] * b[3] - common))


def photographs() -> list[np.ndarray[Any, Any]]:
    """The astronaut, cut to several sizes, and five of her in one picture."""
    astronaut = pytest.importorskip("skimage.data").astronaut()
    image = Image.new("RGB", (640, 480), (90, 90, 90))
    for side, left, top in ((320, 0, 0), (240, 330, 10), (160, 20, 310), (120, 250, 330), (200, 400, 270)):
        image.paste(Image.fromarray(astronaut).resize((side, side)), (left, top))
    return [astronaut, astronaut[:301, :423], np.asarray(image)]


@pytest.mark.parametrize(("dtype", "within"), [(None, (0.999, 1e-3, 0.05)), ("bfloat16", (0.99, 1e-2, 0.5))])
def test_boxes_are_those_of_the_network_in_onnx_runtime(
    model: Path, cached: Path, monkeypatch: Any, dtype: str | None, within: tuple[float, float, float]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setenv("FASTFER_CACHE", str(cached))
    detector = YuNet(model, score=0.6, threads=1, longest=640, dtype=dtype)
    session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for picture in [np.random.default_rng(1).integers(0, 256, (640, 640, 3), np.uint8), *photographs()]:
        square = np.zeros((640, 640, 3), np.uint8)  # the only size that the file takes
        square[: picture.shape[0], : picture.shape[1]] = picture
        x = np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1)[None], np.float32)
        names = [output.name for output in session.get_outputs()]
        values = dict(zip(names, (value[0] for value in session.run(None, {"input": x})), strict=True))
        wanted, found = yunet.faces(values, (640, 640), 0.6, 0.3), detector(square)
        assert len(found) == len(wanted)
        for got, face in zip(found, wanted, strict=True):
            assert overlap(got.box, face.box) > within[0]
            assert got.score == pytest.approx(face.score, abs=within[1])
            np.testing.assert_allclose(got.points, face.points, atol=within[2])


def test_boxes_are_those_of_opencv(model: Path, cached: Path, monkeypatch: Any) -> None:
    cv2 = pytest.importorskip("cv2")
    if cv2.__version__.startswith("5"):
        pytest.skip("OpenCV 5 does not take the file of 2023mar")
    monkeypatch.setenv("FASTFER_CACHE", str(cached))
    detector = YuNet(model, score=0.6, threads=1)
    counts = []
    for picture in photographs():
        other = cv2.FaceDetectorYN.create(str(model), "", picture.shape[1::-1], 0.6)
        rows = other.detect(np.ascontiguousarray(picture[..., ::-1]))[1]
        found = detector(picture)
        counts.append(len(found))
        assert len(found) == len(rows)
        for got, row in zip(found, rows, strict=True):
            assert overlap(got.box, row) >= 0.99
            np.testing.assert_allclose(np.ravel(got.points), row[4:14], atol=0.5)
    assert counts == [1, 1, 5]


def test_pillow_images_and_precisions(model: Path, cached: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FASTFER_CACHE", str(cached))
    astronaut = photographs()[0]
    detector = YuNet(model, threads=1)
    for picture in (astronaut, astronaut[..., 0]):
        assert detector(Image.fromarray(picture)) == detector(picture)
    with pytest.raises(ValueError, match="mode RGB or L, got RGBA"):
        detector(Image.fromarray(astronaut).convert("RGBA"))
    low = detector.computing_in("bfloat16")
    assert (detector.engine((32, 32)).dtype, low.engine((32, 32)).dtype) == ("float32", "bfloat16")
    assert overlap(low(astronaut)[0].box, detector(astronaut)[0].box) > 0.99
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16, got 'int8'"):
        YuNet(model, dtype="int8")


def test_photographs_of_any_size(model: Path, cached: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FASTFER_CACHE", str(cached))
    astronaut = photographs()[0]
    detector = YuNet(model, threads=1)
    box = detector(astronaut)[0].box
    for scale in (0.5, 2.0, 5.0):
        side = round(512 * scale)
        large = np.asarray(Image.fromarray(astronaut).resize((side, side)))
        found = detector(large)
        assert len(found) == 1
        assert overlap([v / scale for v in found[0].box], box) > 0.85
    grey = np.asarray(Image.fromarray(astronaut).convert("L"))
    assert overlap(detector(grey)[0].box, box) > 0.85
    copied = pickle.loads(pickle.dumps(detector))
    assert copied(grey) == detector(grey)
    quick = YuNet(model, threads=1, longest=320)
    assert overlap(quick(astronaut)[0].box, box) > 0.8
    for tiny in ((1, 1), (3, 2000), (2000, 3), (31, 33)):
        assert detector(np.zeros(tiny, np.uint8)) == []


def test_the_second_time_needs_no_torch(cached: Path) -> None:
    code = (
        "import sys\nimport numpy as np\nfrom fastfer.predict import YuNet\n"
        "assert YuNet(threads=1)(np.zeros((48, 64, 3), np.uint8)) == []\n"
        "assert not {'torch', 'onnx', 'cv2'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "FASTFER_CACHE": str(cached), "FASTFER_OFFLINE": "1"}
    environment.pop("FASTFER_DETECTOR", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_files_that_are_no_yunet(nowhere: Path) -> None:
    torch.manual_seed(0)
    file = nowhere / "other.ffe"
    fastfer.compile(Net().eval(), (3, 64, 64), threads=1, mean=[0.0] * 3, std=[1 / 255] * 3).save(file)
    with pytest.raises(ValueError, match=r"other.ffe: expected a YuNet"):
        YuNet(file)
    damaged = nowhere / "damaged.ffe"
    damaged.write_bytes(b"FFENGINE")
    with pytest.raises(ValueError, match="engine file"):
        YuNet(damaged)


@pytest.mark.parametrize("given", [True, False])
def test_the_first_time_without_torch_says_what_it_needs(nowhere: Path, given: bool) -> None:
    (nowhere / "yunet.onnx").write_bytes(b"x")
    path = str(nowhere / "yunet.onnx") if given else None
    code = f"import sys; sys.modules['torch'] = None\nfrom fastfer.predict import YuNet\nYuNet({path!r})\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError" in ended.stderr
    assert "its first use needs torch and onnx (pip install 'fastfer[onnx]')" in ended.stderr
