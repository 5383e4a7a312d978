# SPDX-License-Identifier: Apache-2.0
"""Files that mean harm: programs for Ghostscript, images and tables that grow for ever, names that lead elsewhere."""

from __future__ import annotations

import io
import json
import resource
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_trees import FER2013_NAMES, ballots, face, ferplus_folders, save, write_csv
from PIL import EpsImagePlugin, Image

from fastfer.data import DataError, Sample, Shards, ShardWriter, index_shards, load_dataset
from fastfer.data.__main__ import main
from fastfer.data.files import file_inside, printable, reference
from fastfer.data.formats import FORMATS, MAX_PIXELS, MAX_SIDE
from fastfer.data.images import decode, probe
from fastfer.data.pixels import resize

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n%%EOF\n"


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes any start of Ghostscript, whether it is installed or not."""
    started: list[str] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append("gs"))
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    return started


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A process that may take two gigabytes more than it has: what grows without end fails at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# images


def test_the_formats_are_rasters() -> None:
    assert not {"EPS", "WMF", "PDF", "HDF5", "GRIB", "BUFR", "MPEG", "FITS"} & FORMATS.keys()


def test_eps_named_png_is_no_image(tmp_path: Path, no_ghostscript: list[str]) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(EPS)
    with Image.open(path) as image:  # Pillow's own choice
        assert image.format == "EPS"
    for source in (path, EPS):
        with pytest.raises(DataError, match="no known format"):
            decode(Sample(source, None, "face.png"))
        assert probe(Sample(source, None, "face.png")) is None
    with (
        pytest.raises(DataError, match="expected an image file of a known format"),
        ShardWriter(tmp_path / "set", ["a"]) as writer,
    ):
        writer.add(path, "a")
    assert no_ghostscript == []


def test_eps_in_a_shard_is_no_image(tmp_path: Path, no_ghostscript: list[str]) -> None:
    tar(tmp_path / "a.tar", [("0.png", EPS), ("0.cls", b"0")])
    record = next(iter(index_shards(tmp_path, ["a"]).records()))
    with pytest.raises(DataError, match=r"a\.tar, 0 is not a readable image"):
        record.decode()
    assert no_ghostscript == []


def png(width: int, height: int) -> bytes:
    """The header of a grey PNG, and as much of its pixels as fits in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(100_000_000, 1), (1, 100_000_000), (MAX_SIDE + 1, 8), (16_000, 10_000)])
def test_huge_images_are_refused_by_their_header(size: tuple[int, int], little_memory: None) -> None:
    with pytest.raises(
        DataError, match=f"{size[0]}x{size[1]} pixels, expected at most {MAX_SIDE} a side and {MAX_PIXELS}"
    ):
        decode(Sample(png(*size), None, "strip.png"))
    assert probe(Sample(png(*size), None, "strip.png")) is None


def test_a_long_image_is_resized_in_pieces(little_memory: None) -> None:
    import torch

    strip = torch.zeros((1, 3, 5_000, 20_000), dtype=torch.uint8)  # 300 MB, as float64 2.4 GB
    strip[..., 10_000:] = 255
    small = resize(strip, (8, 8))
    assert small[0, 0, 0].tolist() == [0, 0, 0, 32, 223, 255, 255, 255]  # a triangle reaches over two pixels


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it meets in damaged files
@pytest.mark.parametrize("seed", range(3))
def test_damaged_images_raise_data_errors_alone(tmp_path: Path, seed: int) -> None:
    """Every format with bytes changed, cut and added: an image or a DataError."""
    random = np.random.default_rng(seed)
    Image.init()
    picture = Image.fromarray(face(1, 16, 16, colour=True))
    picture.getexif()[0x0112] = 6
    for name, suffixes in FORMATS.items():
        if name not in Image.SAVE:
            continue
        buffer = io.BytesIO()
        picture.save(buffer, name)
        for _ in range(40):
            content = bytearray(buffer.getvalue())
            for at in random.integers(0, len(content), random.integers(1, 6)):
                content[at] = random.integers(256)
            content = content[: random.integers(1, len(content) + 1)] if random.random() < 0.3 else content
            try:
                image = decode(Sample(bytes(content), None, f"x{suffixes[0]}"))
            except DataError:
                continue
            assert image.dtype == np.uint8


# one decoder, for shards too


def test_shards_turn_photographs_as_files_are_turned(tmp_path: Path) -> None:
    picture = Image.fromarray(face(1, 4, 6))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    deep = Image.fromarray((np.arange(24, dtype=np.uint16) * 2000).reshape(4, 6))
    deep.save(tmp_path / "b.png")
    with ShardWriter(tmp_path / "set", ["x"]) as writer:
        for name in ("a.png", "b.png"):
            writer.add(tmp_path / name, "x")
    first, second = (record.decode() for record in Shards(tmp_path / "set").records())
    np.testing.assert_array_equal(first, np.rot90(face(1, 4, 6), -1))
    np.testing.assert_array_equal(second, decode(Sample(tmp_path / "b.png", None, "b")))
    assert len(np.unique(second)) == 24  # not one level, as where 16 bits are clipped to 8


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), 0.5, np.float32), "floating-point pixels"),
        (np.full((4, 4), 70_000, np.int32), "70000 to 70000"),
        (np.full((4, 4), -1, np.int32), "-1 to -1, expected 8 or 16 bits"),
    ],
)
def test_pixels_of_unknown_scale_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    """As bytes they would all be one level."""
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=message):
        decode(Sample(tmp_path / "a.tiff", None, "a"))


# tar


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def header(name: str, size: bytes, kind: bytes = b"0", rest: bytes = b"") -> bytes:
    """A tar header block with ``size`` as it is, and a right checksum."""
    block = bytearray(512)
    block[:100] = name.encode().ljust(100, b"\0")
    block[100:108] = block[108:116] = block[116:124] = b"0000644\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar  \0"
    block[386 : 386 + len(rest)] = rest
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse(size: int) -> bytes:
    """GNU's old sparse file of one byte, and zeros up to ``size``."""
    number = b"%011o\0"
    entries = (number % 0 + number % 1).ljust(96, b"\0")
    return header("0.png", number % 1, b"S", entries + b"\0" + number % size) + b"x".ljust(512, b"\0")


HOSTILE_TARS = {
    "sparse": (sparse((1 << 33) - 1), r"0\.png: expected a plain file"),
    "negative size": (header("0.png", b"\xff" * 11 + b"\x00") * 2, "expected 0 to 268435456 bytes, got -256"),
    "huge size": (header("0.png", b"\x80" + b"\x00" * 3 + b"\xff" * 8), "expected 0 to|not a readable tar file"),
    "nested extended headers": (header("x", b"00000000000\0", b"L") * 5000, "not a readable tar file"),
    "sparse of endless numbers": (
        header("pax", b"%011o\0" % 58, b"x")
        + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n14 size=1000\n".ljust(512, b"\0")
        + header("0.png", b"%011o\0" % 512)
        + b"999999999\n1".ljust(512, b"1"),
        "expected a plain file|not a readable tar file",
    ),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE_TARS.values(), ids=HOSTILE_TARS)
def test_hostile_tars_are_refused(tmp_path: Path, content: bytes, message: str, little_memory: None) -> None:
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    with pytest.raises(DataError, match=message):
        index_shards(tmp_path, ["a"])


def test_an_image_of_too_many_members_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [(f"0.{k}", b"x") for k in range(20)])
    with pytest.raises(DataError, match="0: expected at most 16 members of 268435456 bytes in all"):
        index_shards(tmp_path, ["a"])


def test_deep_json_in_a_shard_is_named(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(face(1, 4, 4)).save(picture, "png")
    tar(tmp_path / "a.tar", [("0.png", picture.getvalue()), ("0.json", b"[" * 100_000)])
    with pytest.raises(DataError, match=r"a\.tar, 0: expected a label"):
        index_shards(tmp_path, ["a"])
    (tmp_path / "shards.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="expected the index of ShardWriter"):
        Shards(tmp_path)


def test_soft_labels_of_a_shard_are_distributions(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, ["a", "b"]) as writer:
        writer.add(face(1, 4, 4), "a", soft=np.array([np.nan, 1], np.float32))
    with pytest.raises(DataError, match="expected numbers from 0 that sum to 1"):
        next(iter(Shards(tmp_path).records()))


# parquet


def parquet(path: Path, columns: dict[str, object]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.table(columns), path)
    return path


def test_a_table_that_repeats_a_row_for_ever_is_refused(tmp_path: Path, little_memory: None) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    count = 3_000_000
    images = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(count, np.int32)), pyarrow.array([b"x" * 2000]))
    path = parquet(tmp_path / "train.parquet", {"image": images, "label": np.zeros(count, np.int8)})
    assert path.stat().st_size < 1_000_000  # and six gigabytes as bytes
    with pytest.raises(DataError, match=r"column '(image|label)': expected at most [0-9]+ bytes, 200 times the file"):
        load_dataset("fer2013", path, parts=("train",))


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(face(1)).save(buffer, "png")
    return buffer.getvalue()


ODD_ROWS: dict[str, tuple[dict[str, object], str]] = {
    "null label": ({"label": [0, None]}, "row 1: expected a label that is a number or a name, got none"),
    "fractions": ({"label": [0.0, 1.5]}, "row 0: expected a label that is a number or a name, got float '0.0'"),
    "booleans": ({"label": [True, False]}, "got bool 'True'"),
    "lists": ({"label": [[0], [1]]}, r"got list '\[0\]'"),
    "unknown name": ({"label": ["happy", "bored"]}, "row 1: unknown expression 'bored'"),
    "number as text": ({"label": ["happy", "9" * 400]}, "row 1: label: expected|row 1: unknown expression"),
    "null image": ({"image": [None, encoded()]}, "row 0: expected an image as bytes or pixels, got NoneType"),
    "odd image": ({"image": [3, 4]}, "row 0: expected an image as bytes or pixels, got int"),
    "uneven pixels": ({"image": [[[1, 2], [3]], [[1], [2]]]}, "row 0: expected 2304 pixels"),
    "path alone": (
        {"image": [{"bytes": None, "path": "gone.png"}, {"bytes": encoded(), "path": None}]},
        r"row 0 holds no image but the name of one, and .*gone\.png is missing",
    ),
    "path elsewhere": (
        {"image": [{"bytes": None, "path": "../../secret.png"}, {"bytes": encoded(), "path": None}]},
        "row 0: expected the name of a file in .* or below",
    ),
}


@pytest.mark.parametrize(("changes", "message"), ODD_ROWS.values(), ids=ODD_ROWS)
def test_odd_rows_are_named_and_can_be_skipped(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    columns: dict[str, object] = {"image": [encoded(), encoded()], "label": [0, 1], **changes}
    path = parquet(tmp_path / "train.parquet", columns)
    for name in ("fer2013", "raf_db"):
        if name == "raf_db" and "label" not in changes:
            continue
        with pytest.raises(DataError, match=message if name == "fer2013" else "."):
            load_dataset(name, path, parts=("train",))
    with pytest.raises(DataError), pytest.warns(UserWarning, match="skipped: "):
        load_dataset("fer2013", path, parts=("train",), skip_corrupt=True, classes=("angry", "disgust"))


def test_rows_with_a_path_alone_are_read_from_beside_the_table(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": f"images/{k}.png"} for k in range(7)]
    for k in range(7):
        save(tmp_path / "images" / f"{k}.png", face(k))
    parquet(tmp_path / "train.parquet", {"image": rows, "label": list(range(7))})
    split = load_dataset("fer2013", tmp_path, parts=("train",))["train"]
    np.testing.assert_array_equal(split.images, [face(k) for k in range(7)])


def test_parquet_in_split_folders(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        parquet(tmp_path / part / "0000.parquet", {"image": [encoded()] * 7, "label": [*FER2013_NAMES]})
    splits = load_dataset("fer2013", tmp_path, parts=("train", "test"))
    assert [len(split) for split in splits.values()] == [7, 7]
    assert splits["test"].ids is not None
    assert splits["test"].ids[0] == "test/0000.parquet row 0"


# names that lead elsewhere


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/passwd", "a/../../b.png", "..\\b.png", "C:\\b.png", "", "a\0b"]
)
def test_names_in_lists_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"line 3: expected the name of a file in .* or below, got"):
        file_inside(tmp_path, name, "line 3")


def test_names_in_lists_may_have_folders(tmp_path: Path) -> None:
    assert file_inside(tmp_path, "./a/my face 1.png", "") == tmp_path / "a" / "my face 1.png"
    for name in ("x" * 300, "a/" * 30 + "b"):
        with pytest.raises(DataError, match="expected a file's name"):
            file_inside(tmp_path, name, "")


@pytest.mark.parametrize("absolute", [False, True])
def test_ferplus_label_csv_reads_nothing_outside(tmp_path: Path, absolute: bool) -> None:
    secret = save(tmp_path / "secret.png", face(1))
    root = ferplus_folders(tmp_path / "data" / "set")
    name = str(secret) if absolute else "../../../secret.png"
    votes = ballots("fear")
    write_csv(root / "FER2013Train" / "label.csv", [[name, "(0, 0, 48, 48)", *votes]])
    with pytest.raises(DataError, match=r"label\.csv, line 1: expected the name of a file in .*FER2013Train or below"):
        load_dataset("ferplus", root)


# what leaves the machine, and what reaches a terminal


def test_a_reference_is_a_name_and_a_digest(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\n")
    found = reference(tmp_path / "list.txt")
    assert found == {"name": "list.txt", "sha256": "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"}
    with ShardWriter(tmp_path / "set", ["a"]) as writer:
        writer.add(face(1, 4, 4), "a")
    entry = reference(tmp_path / "set")
    assert entry["name"] == "set"
    assert str(tmp_path) not in json.dumps(entry)


def test_printable() -> None:
    assert printable("a\x1b[31m\nb\u202e\udcff é") == "a\\x1b[31m\\nb\\u202e\\udcff é"


def test_errors_of_the_command_line_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "no\x1b[31mwhere")]) == 2
    assert "\x1b" not in capsys.readouterr().err
