# SPDX-License-Identifier: Apache-2.0
"""Files of ImageNet starts: wrapped, damaged, unfit, and meant to harm."""

from __future__ import annotations

import argparse
import copy
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stock_mobilenets import write_keras3

from fastfer.models import create_model, load_imagenet
from fastfer.models.pretrained.files import read_tensors


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
