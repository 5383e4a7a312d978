# SPDX-License-Identifier: Apache-2.0
"""ImageNet starts: the features of a stock network of each layout, what a report lists, files and downloads."""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import http.server
import pickle
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stock_mobilenets import TimmV1, TorchvisionV3, keras_arrays, keras_features, randomised, write_keras, write_keras3

from fastfer.models import DownloadError, FerModel, create_model, load_imagenet, load_weights, save_weights
from fastfer.models.pretrained import SOURCES, Source, cached_file, download
from fastfer.models.pretrained.files import read_tensors

PLAIN = {"attention": "none", "act": "relu"}
STOCK = {**PLAIN, "high_attention": "se", "halved": False}
KERAS = "keras_padding"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def torchvision(folder: Path) -> tuple[TorchvisionV3, Path]:
    torch.manual_seed(0)
    model, path = randomised(TorchvisionV3()), folder / "v3.pth"
    torch.save(model.state_dict(), path)
    return model.double(), path


@pytest.fixture(scope="module")
def timm(folder: Path) -> tuple[TimmV1, Path]:
    torch.manual_seed(1)
    model, path = randomised(TimmV1()), folder / "timm.safetensors"
    save_file(model.state_dict(), path)
    return model.double(), path


@pytest.fixture(scope="module")
def keras(folder: Path) -> tuple[dict[tuple[str, str], np.ndarray], Path]:
    pytest.importorskip("h5py")
    arrays = {(layer, name): array for layer, name, array in keras_arrays(np.random.default_rng(2))}
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    path = folder / "mobilenet_1_0_224_tf_no_top.h5"
    write_keras(path, arrays)
    return arrays, path


def picture(channels: int = 3) -> torch.Tensor:
    return torch.randn(1, channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert float(want.abs().mean()) > 1e-3  # a comparison of zeros proves nothing
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


def started(name: str, path: Path, **options: object) -> FerModel:
    """In float64, so that only the file's own rounding is left."""
    model = create_model(name, **options).double().eval()
    load_imagenet(model, path)
    return model


# the same features


@torch.no_grad()
def test_torchvision_whole(torchvision: tuple[TorchvisionV3, Path]) -> None:
    stock, path = torchvision
    model = started("mobilenetv3_cpsca", path, **STOCK)
    x = picture()
    maps = stock.features(x)
    close(model.forward_map(x), maps)
    close(model.forward_features(x), stock.classifier[:2](maps.mean((2, 3))))
    report = model.pretrained
    assert report is not None
    assert report.fresh == ("head.weight", "head.bias")
    assert report.skipped == ("classifier.3.weight", "classifier.3.bias")
    assert len(report.loaded) + 2 == sum("num_batches" not in key for key in model.state_dict())


@torch.no_grad()
def test_torchvision_halved(torchvision: tuple[TorchvisionV3, Path]) -> None:
    stock, path = torchvision
    x = picture()
    squeezed = started("mobilenetv3_cpsca", path, **PLAIN, high_attention="se")
    close(squeezed.blocks[:12](squeezed.stem(x)), stock.features[:13](x))
    model = started("mobilenetv3_cpsca", path, act="relu")
    close(model.blocks[:8](model.stem(x)), stock.features[:9](x))
    report = model.pretrained
    assert report is not None
    fresh = {".".join(key.split(".")[: 4 if key.startswith("blocks") else 1]) for key in report.fresh}
    attention = {f"blocks.{i}.body.1" for i in (8, 9, 10, 11)}
    top = {key for key in fresh if key.startswith(("blocks.12", "blocks.13", "blocks.14"))}
    assert fresh - top == attention | {"conv", "fc", "head"}
    assert not any(key.startswith(("blocks.12", "conv", "fc")) for key in report.loaded)
    left_out = {".".join(key.split(".")[:2]) for key in report.skipped}
    assert left_out == {f"features.{i}" for i in (11, 12, 13, 14, 15, 16)} | {"classifier.0", "classifier.3"}
    assert all(".block.2.fc" in key for key in report.skipped if key.startswith(("features.11", "features.12")))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"depth": 7}, {"extraction": "none"}])
def test_timm(timm: tuple[TimmV1, Path], options: dict) -> None:
    """Norms of eps 1e-5 in one of 1e-3: the same function, also where variances are near eps."""
    stock, path = timm
    model = started("patt_lite", path, **options)
    x = picture()
    depth = None if "extraction" in options else options.get("depth", 9)
    close(model.backbone(x), stock.features(x, depth))
    assert {key.split(".")[0] for key in model.pretrained.fresh} == {"patches", "classifier", "head"} - (
        {"patches"} if "extraction" in options else set()
    )
    used = model.pretrained.loaded
    assert len(used) == sum(key.startswith("backbone") and "num_batches" not in key for key in model.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"extraction": "none"}])
def test_keras(keras: tuple[dict, Path], options: dict) -> None:
    arrays, path = keras
    model = started("patt_lite", path, keras_padding=True, **options)
    x = picture()
    close(model.backbone(x), keras_features(arrays, x, None if options else 9))
    skipped = model.pretrained.skipped
    assert skipped == () if options else "conv_pw_9.weight" in skipped and "conv_dw_9.weight" not in skipped


def test_keras_file_of_a_whole_model(keras: tuple[dict, Path], tmp_path: Path) -> None:
    arrays, path = keras
    write_keras(tmp_path / "model.h5", arrays, nested=False)
    a, b = (create_model("patt_lite", pretrained=p, keras_padding=True) for p in (path, tmp_path / "model.h5"))
    keys = a.pretrained.loaded
    assert all(torch.equal(a.state_dict()[key], b.state_dict()[key]) for key in keys)


@torch.no_grad()
def test_grey_sees_what_rgb_copies_of_it_would(timm: tuple[TimmV1, Path]) -> None:
    stock, path = timm
    x = picture(1)
    close(started("patt_lite", path, in_chans=1).backbone(x), stock.features(x.expand(-1, 3, -1, -1), 9))
    with pytest.raises(ValueError, match=r"conv_stem.weight: expected shape \(32, 4, 3, 3\), got \(32, 3, 3, 3\)"):
        create_model("patt_lite", in_chans=4, pretrained=path)


# the report, and what is not filled


def test_create_model_reports(timm: tuple[TimmV1, Path], tmp_path: Path) -> None:
    path = timm[1]
    model = create_model("patt_lite", num_classes=3, pretrained=str(path))
    report = model.pretrained
    assert report is not None
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (report.source, report.layout, report.mean) == (str(path), "timm mobilenetv1_100", (0.5, 0.5, 0.5))
    text = str(report)
    assert f"loaded: {len(report.loaded)} tensors of backbone.0, backbone.1" in text
    assert "left fresh: " in text
    assert "blocks.4" in text
    assert create_model("patt_lite").pretrained is None
    assert "pretrained" not in model.options
    save_weights(model, tmp_path / "w.safetensors")
    again = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(again.backbone[0].weight, model.backbone[0].weight)


def test_fresh_weights_do_not_depend_on_the_start(timm: tuple[TimmV1, Path]) -> None:
    models = []
    for source in (None, timm[1]):
        torch.manual_seed(5)
        models.append(create_model("patt_lite", pretrained=source))
    assert torch.equal(models[0].head.weight, models[1].head.weight)
    assert not torch.equal(models[0].backbone[0].weight, models[1].backbone[0].weight)


def test_a_weight_file_cannot_ask_for_a_start(tmp_path: Path, timm: tuple[TimmV1, Path]) -> None:
    model = create_model("fgw_fer")
    model.options["pretrained"] = str(timm[1])
    save_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="expected the network's own options, got pretrained"):
        load_weights(tmp_path / "w.safetensors")


def edited(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(to: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, to)

    return write


BAD = {
    "empty": (lambda to: to.write_bytes(b""), "expected safetensors, torch.save's or HDF5"),
    "text": (lambda to: to.write_text("<html>not found</html>"), "expected safetensors, torch.save's or HDF5"),
    "hdf5": (lambda to: to.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "expected Keras' weights in HDF5"),
    "zip": (lambda to: to.write_bytes(b"PK" + bytes(99)), "expected a state dict that torch.save wrote"),
    "objects": (lambda to: torch.save({"a": 1}, to), "expected a state dict of tensors, .* got dict of other"),
    "foreign": (lambda to: torch.save({"fc": torch.zeros(2)}, to), "expected weights of torchvision .*keys such as fc"),
    "code": (lambda to: torch.save({"a": threading.Thread}, to), "expected a state dict that torch.save wrote"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    write, message = BAD[name]
    if name == "hdf5":
        pytest.importorskip("h5py")
    write(tmp_path / "w")
    with pytest.raises(ValueError, match=message):
        load_imagenet(create_model("mobilenetv3_cpsca"), tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.3.block.0.0.weight"), "got none for features.3.block.0.0.weight"),
        (lambda s: s["features.0.1.running_var"].fill_(float("nan")), "features.0.1.running_var: expected finite"),
        (lambda s: s.update({"features.0.0.weight": torch.zeros(16, 3, 5, 5)}), r"got \(16, 3, 5, 5\)"),
    ],
)
def test_an_unfit_file_changes_nothing(torchvision: tuple, tmp_path: Path, change: Callable, message: str) -> None:
    edited(torchvision[1], change)(tmp_path / "w.pth")
    model = create_model("mobilenetv3_cpsca")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_imagenet(model, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.pretrained is None


# checkpoints as training scripts write them


def torchvision_checkpoint(state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {
        "model": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": argparse.Namespace(data_path=Path("/data"), lr=0.1),
    }


WRAPPED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], tuple[str, ...]]] = {
    "DataParallel": (
        lambda state: {f"module.{key}": value for key, value in state.items()}, ('names without "module."',),
    ),
    "torch.compile": (
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()}, ('names without "_orig_mod."',),
    ),
    "both": (
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        ('names without "module."', 'names without "_orig_mod."'),
    ),
    "state_dict": (lambda state: {"state_dict": state}, ("state_dict of a checkpoint",)),
    "torchvision": (
        torchvision_checkpoint,
        ("model of a checkpoint (left out: optimizer, lr_scheduler, epoch, args)", 'names without "module."'),
    ),
    "timm": (
        lambda state: {"epoch": 1, "arch": "x", "state_dict": state, "state_dict_ema": state, "metric": np.float64(1)},
        ("state_dict of a checkpoint (left out: epoch, arch, state_dict_ema, metric)",),
    ),
    "average": (
        lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}}},
        ("model_ema of a checkpoint", 'names without "module."'),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrap", "notes"), WRAPPED.values(), ids=WRAPPED)
def test_wrappers_are_taken_off_and_said(
    torchvision: tuple, tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], object], notes: tuple[str, ...]
) -> None:
    state = torch.load(torchvision[1], weights_only=True)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    plain, model = (
        create_model("mobilenetv3_cpsca", pretrained=p) for p in (torchvision[1], tmp_path / "checkpoint.pth")
    )
    assert model.pretrained.unwrapped == notes
    assert all(f"taken: {note}" in str(model.pretrained) for note in notes)
    assert plain.pretrained.unwrapped == ()
    for key in model.pretrained.loaded:
        assert torch.equal(model.state_dict()[key], plain.state_dict()[key]), key


@pytest.mark.parametrize("names", [True, False], ids=["with names", "by order"])
@pytest.mark.parametrize("archive", [True, False], ids=["keras", "weights.h5"])
def test_keras_3(keras: tuple[dict, Path], tmp_path: Path, names: bool, archive: bool) -> None:
    """Arrays by class and number; in later releases with the layer's name beside them."""
    inner = tmp_path / "model.weights.h5"
    write_keras3(inner, keras[0], names)
    path = inner
    if archive:
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as target:
            target.write(inner, "model.weights.h5")
            target.writestr("config.json", "{}")
    a, b = (create_model("patt_lite", pretrained=p, keras_padding=True) for p in (keras[1], path))
    assert b.pretrained.unwrapped == (("model.weights.h5 of a Keras 3 archive",) if archive else ())
    assert a.pretrained.loaded == b.pretrained.loaded
    assert all(torch.equal(a.state_dict()[key], b.state_dict()[key]) for key in a.pretrained.loaded)


# files that mean harm


def deflated(to: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(1 << 20)}, to.with_suffix(".plain"))
    with zipfile.ZipFile(to.with_suffix(".plain")) as source, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))


def h5(write: Callable[[object, Path], object]) -> Callable[[Path], None]:
    def make(to: Path) -> None:
        h5py = pytest.importorskip("h5py")
        other = to.with_name("other.bin")
        other.write_bytes(bytes(4096))
        with h5py.File(to, "w") as file:
            write(file, other)

    return make


def virtual(file: object, other: Path) -> None:
    h5py = pytest.importorskip("h5py")
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "x", shape=(4,))
    file.create_group("conv1").create_virtual_dataset("kernel:0", layout)  # type: ignore[attr-defined]


def nested(file: object, other: Path) -> None:
    for _ in range(40):
        file = file.create_group("a")  # type: ignore[attr-defined]


REPEATED = b"})" + b"q\x01h\x01\x86" * 60 + b"K\x01s"
"""A dictionary whose key is a tuple that holds a tuple twice, and so on: 2 to the 60th parts."""
DEEP = b"})" + b"\x85" * 500_000 + b"K\x01s"
"""One whose key is a tuple in a tuple, and so on: hash() leaves the stack of C."""
MANY = b"](" + b"]" * (1 << 20) + b"e"
"""A list of a million lists, of 56 bytes each."""
LARGE = b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R"
"""bytearray(1 << 40), which torch's reader would make."""


def legacy(body: bytes) -> Callable[[Path], None]:
    """A file as older releases of torch wrote them, with this object."""
    before = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return lambda to: write(to, before + b"\x80\x02" + body + b"." + pickle.dumps([], 2))


def archive(body: bytes) -> Callable[[Path], None]:
    """A zip archive as torch writes them, with this object."""

    def make(to: Path) -> None:
        with zipfile.ZipFile(to, "w") as target:
            target.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
            target.writestr("archive/version", "3\n")

    return make


def write(to: Path, content: bytes) -> None:
    to.write_bytes(content)


def shared(to: Path) -> None:
    """An archive in which 100 storages are the same megabyte."""
    with zipfile.ZipFile(to, "w") as target:
        target.writestr("archive/data.pkl", pickle.dumps({}, 2))
        target.writestr("archive/data/0", bytes(1 << 20))
        for number in range(1, 100):
            again = copy.copy(target.filelist[-1])
            again.filename = f"archive/data/{number}"
            target.filelist.append(again)


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "stride 0": (
        lambda to: torch.save({"features.0.0.weight": torch.zeros(1).expand(1 << 40)}, to), "repeated by strides",
    ),
    "deflated": (deflated, "compressed members"),
    "shared": (shared, "members that share their bytes"),
    **{f"{name} in {kind.__name__}": (kind(body), message) for kind in (legacy, archive) for name, body, message in (
        ("repeated", REPEATED, "expected tuples of at most 4,096 parts and 64 deep"),
        ("deep", DEEP, "expected tuples of at most 4,096 parts and 64 deep"),
        ("many", MANY, "expected at most 1,048,576 instructions"),
        ("large", LARGE, "builtins.bytearray, which a state dict does not hold"),
    )},
    "sparse": (lambda to: torch.save({"a": torch.zeros(2, 2).to_sparse()}, to), "expected a plain tensor"),
    "external": (
        h5(lambda file, other: file.create_group("conv1").create_dataset(  # type: ignore[attr-defined]
            "kernel:0", (8,), "f4", external=[(str(other), 0, 32)])), "has its data in another file",
    ),
    "virtual": (h5(virtual), "has its data in another file"),
    "external link": (
        h5(lambda file, other: file.__setitem__("conv1", pytest.importorskip("h5py").ExternalLink(str(other), "/"))),  # type: ignore[attr-defined]
        "is a link to another place",
    ),
    "soft link": (
        h5(lambda file, other: file.__setitem__("conv1", pytest.importorskip("h5py").SoftLink("/conv1"))),  # type: ignore[attr-defined]
        "is a link to another place",
    ),
    "large": (
        h5(lambda file, other: file.create_group("conv1").create_dataset(  # type: ignore[attr-defined]
            "kernel:0", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))), "expected at most 268,435,456 numbers",
    ),
    "nested": (h5(nested), "groups nested deeper than 16"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True])
def test_ordinary_checkpoints_are_within_the_bounds(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(200)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 8)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7,
        "args": argparse.Namespace(rates=(0.1, (1, 2))), "seen": {1, 2},
    }  # fmt: skip
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    tensors, notes = read_tensors(tmp_path / "w.pth")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[key], value) for key, value in model.state_dict().items())
    assert notes[0].startswith("state_dict of a checkpoint")


@pytest.mark.parametrize(("make", "message"), HARM.values(), ids=HARM)
def test_files_that_mean_harm_are_refused_by_name(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "w"
    make(path)
    with pytest.raises(ValueError, match=rf"{path}: .*{message}"):
        load_imagenet(create_model("mobilenetv3_cpsca"), path)


@pytest.mark.parametrize("kind", ["pth", "h5", "safetensors"])
def test_damaged_files_raise_nothing_else(
    torchvision: tuple, keras: tuple, timm: tuple, tmp_path: Path, kind: str
) -> None:
    """Cut anywhere, or with bytes that are others: a ValueError with the file's name, or weights, and no third way."""
    source = {"pth": torchvision, "h5": keras, "safetensors": timm}[kind][1]
    whole, rng = source.read_bytes(), np.random.default_rng(0)
    for number in range(12):
        data = bytearray(whole[: int(rng.integers(len(whole)))] if number % 2 else whole)
        for place in rng.integers(0, min(len(data), 4096), 3) if data else ():
            data[int(place)] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(data)
        try:
            read_tensors(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - whether it raises depends on the bytes


def test_wrong_network_padding_or_checksum(torchvision: tuple, timm: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of mobilenetv3_cpsca, patt_lite, got fgw_fer"):
        create_model("fgw_fer", pretrained=timm[1])
    with pytest.raises(ValueError, match=r"expected weights of Keras .* for patt_lite, got torchvision"):
        create_model("patt_lite", pretrained=torchvision[1])
    with pytest.raises(ValueError, match=r"keras_padding: expected False for weights of timm .*, got True"):
        create_model("patt_lite", keras_padding=True, pretrained=timm[1])
    with pytest.raises(ValueError, match="sha256: expected 00, got"):
        load_imagenet(create_model("patt_lite"), timm[1], sha256="00")
    with pytest.raises(FileNotFoundError, match=r"expected a file or one of torchvision/mobilenet_v3_large, .*'nope'"):
        create_model("patt_lite", pretrained="nope")


def test_keras_files_name_the_extra(keras: tuple[dict, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"need h5py: pip install 'fastfer\[keras\]'"):
        create_model("patt_lite", keras_padding=True, pretrained=keras[1])


# downloads


@pytest.fixture
def server(timm: tuple[TimmV1, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list]]:
    """A server of the timm file; its address, and the paths that were asked for."""
    content, asked = timm[1].read_bytes(), []
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(content).hexdigest()}\nsize 1\n"
    bodies = {"/model.safetensors": content, "/pointer": pointer.encode(), "/cut.safetensors": content[:-9]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            if self.path.startswith("/drip"):
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                return
            body = bodies.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a pointer's reader stops early
                self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr(download, "_SCHEMES", ("http",))
    monkeypatch.setattr(download, "_HOSTS", ("127.0.0.1",))
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "FASTFER_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}", asked
        web.shutdown()
        thread.join()


def served(address: str, name: str = "model", digest: str | None = None) -> Source:
    return Source(f"{address}/{name}.safetensors", digest, None if digest else f"{address}/pointer")


def test_download_once_then_from_the_cache(server: tuple, timm: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    address, asked = server
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(address))
    model = create_model("patt_lite", pretrained="timm/mobilenetv1_100")
    assert model.pretrained.source == "timm/mobilenetv1_100"
    assert asked == ["/pointer", "/model.safetensors"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cached_file("timm/mobilenetv1_100").read_bytes() == timm[1].read_bytes()
    assert len(asked) == 2
    cached_file("timm/mobilenetv1_100").write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"model.safetensors is not the published file \(sha256:.*remove it"):
        create_model("patt_lite", pretrained="timm/mobilenetv1_100")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda a: served(a, "cut"), "checksum: expected sha256:.*, got another one of .* bytes"),
        (lambda a: served(a, digest="sha256:0000"), "checksum: expected sha256:0000, got"),
        (lambda a: served(a, "missing", "md5:00"), "404"),
        (lambda a: Source(f"{a}/model.safetensors", None, f"{a}/cut.safetensors"), "expected a Git-LFS pointer"),
        (lambda a: served("http://127.0.0.1:1"), "refused"),
    ],
)
def test_a_failed_download_is_an_error(
    server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable, message: str
) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", source(server[0]))
    with pytest.raises(DownloadError, match=f"(?s)timm/mobilenetv1_100: cannot fetch .*{message}.*give its path"):
        create_model("patt_lite", pretrained="timm/mobilenetv1_100")
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


@pytest.mark.parametrize(
    "place", ["http://localhost:1/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://127.0.0.1.evil.example/x"]
)
def test_redirects_to_other_places_are_refused(
    server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source = Source(f"{server[0]}/to/{place}", "sha256:00")
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", source)
    with pytest.raises(DownloadError, match=r"expected an address at 127.0.0.1 by http, got|[Rr]edirect"):
        cached_file("timm/mobilenetv1_100")
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


def test_only_https_to_the_publishers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFER_CACHE", str(tmp_path / "cache"))
    for url in ("http://download.pytorch.org/x", "https://pytorch.org.example.com/x", "file:///etc/passwd"):
        monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", Source(url, "sha256:00"))
        with pytest.raises(DownloadError, match=r"expected an address at download.pytorch.org, .* by https, got"):
            cached_file("timm/mobilenetv1_100")
    for source in SOURCES.values():
        if source.url.startswith("https"):
            download._check_address(source.url)
    download._check_address("https://cdn-lfs.hf.co/x")


def test_a_dripping_server_ends_at_the_deadline(server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_DEADLINE", 0.3)
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", Source(f"{server[0]}/drip", "sha256:00"))
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=r"not finished after 0\.3 seconds"):
        cached_file("timm/mobilenetv1_100")
    assert time.monotonic() - begun < 3
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


def test_a_file_without_its_record_is_proved_again(server: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(server[0]))
    path = cached_file("timm/mobilenetv1_100")
    path.with_name(f"{path.name}.digest").unlink()
    assert cached_file("timm/mobilenetv1_100") == path
    assert server[1][-1] == "/pointer"
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="is not the published file"):
        cached_file("timm/mobilenetv1_100")
    monkeypatch.setenv("FASTFER_OFFLINE", "1")
    with pytest.raises(DownloadError, match="the record of its checksum is not in the cache, and FASTFER_OFFLINE"):
        cached_file("timm/mobilenetv1_100")


def test_planted_links_are_not_followed(server: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(server[0]))
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "cache" / "timm--mobilenetv1_100" / "model.safetensors"
    path.parent.mkdir(parents=True)
    for name in (path.name, f"{path.name}.digest"):
        path.with_name(name).symlink_to(mine)
        with pytest.raises(DownloadError, match="is a link, which this package does not make"):
            cached_file("timm/mobilenetv1_100")
        path.with_name(name).unlink()
    assert mine.read_text() == "mine"


def test_threads_fetch_side_by_side(server: tuple, timm: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "timm/mobilenetv1_100", served(server[0]))
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(cached_file, ["timm/mobilenetv1_100"] * 16))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == timm[1].read_bytes()
    assert sorted(entry.name for entry in paths[0].parent.iterdir()) == [paths[0].name, f"{paths[0].name}.digest"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "FASTFER_OFFLINE"])
def test_offline(server: tuple, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"not in the cache .*{variable} forbids to fetch https://download"):
        create_model("mobilenetv3_cpsca", pretrained="torchvision/mobilenet_v3_large")
    assert server[1] == []


def test_published_sources_are_pinned() -> None:
    for name, source in SOURCES.items():
        assert source.url.startswith("https://"), name
        assert bool(source.digest) != bool(source.pointer), name
        if source.digest:
            method, digits = source.digest.split(":")
            assert method in hashlib.algorithms_available
            assert len(bytes.fromhex(digits)) >= 4
