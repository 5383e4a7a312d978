# SPDX-License-Identifier: Apache-2.0
"""Shards: what is written comes back; order, sharing and threads of the loader; whatever can be wrong with files."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastfer.data import (
    Batch,
    DataError,
    Preprocess,
    ShardLoader,
    Shards,
    ShardWriter,
    Split,
    index_shards,
    write_shards,
)

NAMES = ("calm", "glad")
COUNT, FILES = 50, (11, 11, 11, 11, 6)


def pictures(count: int = COUNT, side: int = 6) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count)  # the picture says which it is
    return images


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    split = Split(pictures(), np.arange(COUNT, dtype=np.int64) % 2, NAMES)
    return write_shards(tmp_path / "set", split, images=11)


def seen(batches: list[Batch]) -> list[int]:
    return [int(image[0, 0, 0]) for batch in batches for image in batch.images]


def whole(shards: Shards, batch: int = 8, epoch: int = 0, **options: object) -> list[Batch]:
    return list(ShardLoader(shards, batch, **options).batches(epoch))


# what is written comes back


def test_round_trip(shards: Shards) -> None:
    assert len(shards) == COUNT
    assert (shards.names, shards.counts, shards.labels) == (NAMES, FILES, {"calm": 25, "glad": 25})
    batches = whole(shards)
    assert [len(batch.labels) for batch in batches] == [8] * 6 + [2]
    images = torch.cat([batch.images for batch in batches])
    assert images.shape == (COUNT, 1, 6, 6)
    np.testing.assert_array_equal(images[:, 0].numpy(), pictures())
    assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 2 for i in range(COUNT)]
    assert batches[0].soft is None
    assert batches[0].ids == tuple(map(str, range(8)))
    shards.verify()


def test_all_that_a_split_says_is_kept(tmp_path: Path) -> None:
    """Decoded one by one, in colour, with soft labels, persons and names."""
    planes = np.random.default_rng(1).integers(0, 256, (3, 3, 5, 4), dtype=np.uint8)
    soft = np.array([[0.5, 0.5], [0.25, 0.75], [1, 0]], np.float32)
    split = SimpleNamespace(
        names=NAMES,
        labels=np.array([0, 1, 0]),
        load=lambda i: planes[i],
        ids=("a", "b", "c"),
        subjects=("x", "x", "y"),
        soft=soft,
        soft_mode="probability",
        protocol="some, well shuffled",
    )
    shards = write_shards(tmp_path, split)
    (batch,) = whole(shards)
    np.testing.assert_array_equal(batch.images.numpy(), planes)
    np.testing.assert_array_equal(batch.soft, soft)
    assert batch.ids == ("a", "b", "c")
    assert [record.subject for record in shards.records()] == ["x", "x", "y"]
    assert (shards.has_soft, shards.soft_mode, shards.protocol) == (True, "probability", "some, well shuffled")


def test_encoded_files_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photo.JPG"
    Image.fromarray(pictures(1, 32)[0]).save(path, "jpeg")
    with ShardWriter(tmp_path / "set", NAMES) as writer:
        writer.add(path, "glad", id="from disk")
        writer.add(path.read_bytes(), "calm", subject="S1")
    first, second = Shards(tmp_path / "set").records()
    assert first.image == second.image == path.read_bytes()
    assert (first.id, first.label, second.id, second.subject) == ("from disk", 1, "1", "S1")
    np.testing.assert_array_equal(first.decode(), np.asarray(Image.open(path)))
    with tarfile.open(tmp_path / "set" / "images-00000.tar") as file:
        assert file.getnames() == ["00000000.jpg", "00000000.json", "00000001.jpg", "00000001.json"]


def test_the_same_images_give_the_same_bytes(tmp_path: Path, shards: Shards) -> None:
    split = Split(pictures(), np.arange(COUNT, dtype=np.int64) % 2, NAMES)
    again = write_shards(tmp_path / "again", split, images=11)
    assert again.fingerprint() == shards.fingerprint()
    for file in shards.files:
        assert (again.folder / file).read_bytes() == (shards.folder / file).read_bytes()
    other = Split(split.images, 1 - split.labels, NAMES)
    assert write_shards(tmp_path / "other", other, images=11).fingerprint() != shards.fingerprint()


def test_statistics_of_a_stream(shards: Shards) -> None:
    split = Split(pictures(), np.zeros(COUNT, np.int64), NAMES)
    assert Preprocess.of(batch.images for batch in ShardLoader(shards, 7).batches()) == Preprocess.of(split)


# order


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(shards: Shards) -> None:
    orders = [seen(whole(shards, shuffle=20, seed=3, epoch=epoch)) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(COUNT))
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == seen(whole(shards, shuffle=20, seed=3, epoch=1))
    assert orders[0] != seen(whole(shards, shuffle=20, seed=4))
    assert seen(whole(shards)) == list(range(COUNT))


def test_the_buffer_mixes_over_files(shards: Shards) -> None:
    """With one as large as the set every order is possible: the mean image number of each batch is near the middle."""
    means = [np.mean(seen([batch])) for epoch in range(20) for batch in whole(shards, 10, epoch, shuffle=COUNT)]
    assert np.std(means) == pytest.approx(COUNT / 12**0.5 / 10**0.5 * 0.9, rel=0.2)  # drawn without replacement
    stored = [np.mean(seen([batch])) for batch in whole(shards, 10)]
    assert np.std(stored) > 3 * np.std(means)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (4, 1), (3, 8)])
def test_threads_change_nothing(shards: Shards, threads: int, prefetch: int) -> None:
    assert seen(whole(shards, shuffle=15, threads=threads, prefetch=prefetch)) == seen(whole(shards, shuffle=15))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_images_see_what_one_sees(shards: Shards, world: int) -> None:
    options = {"shuffle": 20, "seed": 1, "drop_last": True}
    alone = whole(shards, 8, 2, **options)
    parts = [whole(shards, 8, 2, **options, rank=rank, world=world) for rank in range(world)]
    for index, batch in enumerate(alone):
        shared = [torch.tensor_split(batch.images, world)[rank] for rank in range(world)]
        for part, want in zip(parts, shared, strict=True):
            assert torch.equal(part[index].images, want)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_that_share_files(shards: Shards, world: int) -> None:
    loaders = [ShardLoader(shards, 4, shuffle=9, rank=r, world=world, share="shards") for r in range(world)]
    for epoch in range(3):
        parts = [list(loader.batches(epoch)) for loader in loaders]
        assert {len(part) for part in parts} == {len(loaders[0])}
        assert {len(batch.labels) for part in parts for batch in part} == {4 // world}
        images = [number for part in parts for number in seen(part)]
        assert len(images) == len(set(images)) == 4 * len(loaders[0])
    assert len(loaders[0]) == {2: 17 // 2, 4: 6}[world]  # what the smallest files fill
    assert seen(list(loaders[0].batches(0))) != seen(list(loaders[0].batches(1)))


def test_length(shards: Shards) -> None:
    for size, drop in ((8, False), (8, True), (50, False), (99, False), (99, True)):
        loader = ShardLoader(shards, size, drop_last=drop)
        assert len(loader) == len(list(loader.batches()))


# threads


def test_leaving_early_ends_the_threads_and_decodes_little(shards: Shards) -> None:
    decoded: list[int] = []

    def note(picture: np.ndarray) -> np.ndarray:
        decoded.append(int(picture[0, 0]))
        return picture

    before = threading.active_count()
    batches = ShardLoader(shards, 2, transform=note, prefetch=3).batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(decoded) <= 2 * (1 + 3)


def test_an_error_reaches_the_loop(shards: Shards) -> None:
    def refuse(picture: np.ndarray) -> np.ndarray:
        if picture[0, 0] == 20:
            raise ZeroDivisionError
        return picture

    before = threading.active_count()
    taken: list[Batch] = []
    with pytest.raises(ZeroDivisionError):
        taken.extend(ShardLoader(shards, 8, transform=refuse).batches())
    assert threading.active_count() == before


def test_sizes_must_agree(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, NAMES) as writer:
        writer.add(pictures(1, 6)[0], "calm")
        writer.add(pictures(1, 9)[0], "calm")
    shards, resize = Shards(tmp_path), Preprocess((0.5,), (0.5,), size=(8, 8))
    with pytest.raises(DataError, match=r"00000001: expected an image of shape \(6, 6\) like 0, got \(9, 9\); give a"):
        whole(shards)
    (batch,) = whole(shards, transform=lambda picture: resize.picture(picture)[0].numpy())
    assert batch.images.shape == (2, 1, 8, 8)


# what can be wrong


def rewrite(shards: Shards, change: Callable[[str, bytes], tuple[str, bytes] | None], file: int = 1) -> None:
    """Every member of a shard, changed or left out."""
    path = shards.folder / shards.files[file]
    with tarfile.open(path) as old:
        members = [(member.name, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as new:
        for changed in filter(None, (change(*member) for member in members)):
            info = tarfile.TarInfo(changed[0])
            info.size = len(changed[1])
            new.addfile(info, io.BytesIO(changed[1]))


def only(key: str, content: bytes | None) -> Callable[[str, bytes], tuple[str, bytes] | None]:
    """Change of one member; None removes it."""
    return lambda name, old: (name, old) if name != key else None if content is None else (name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only("00000012.png", b"no png"), "images-00001.tar, 00000012 is not a readable image"),
        (only("00000012.png", None), "00000012: expected one image and json or cls, got json"),
        (only("00000012.json", None), "00000012: expected one image and json or cls, got png"),
        (only("00000012.json", b"{"), "00000012: expected a label of calm, glad"),
        (only("00000012.json", b'{"label": "angry", "id": "1"}'), "00000012: expected a label of calm, glad, .*angry"),
        (only("00000012.json", b'{"label": 2}'), "00000012: expected a label .*0 to 1, got 2"),
        (only("00000012.json", b"[]"), "00000012: expected a label"),
        (lambda name, old: None if name.startswith("00000021") else (name, old), "expected 11 images, got 10"),
    ],
)
def test_bad_members_are_named(shards: Shards, change: Callable, message: str) -> None:
    rewrite(shards, change)
    with pytest.raises(DataError, match=message):
        whole(shards)
    with pytest.raises(DataError, match=r"images-00001.tar is not the file that shards.json lists"):
        shards.verify()


def test_corrupt_images_can_be_skipped(shards: Shards) -> None:
    rewrite(shards, lambda name, old: (name, b"" if name in ("00000012.png", "00000017.png") else old))
    loader = ShardLoader(shards, 8, skip_corrupt=True)
    numbers = seen(list(loader.batches()))
    assert numbers == [i for i in range(COUNT) if i not in (12, 17)]
    assert len(loader.skipped) == 2
    assert "00000012 is not a readable image" in loader.skipped[0]
    rewrite(shards, lambda name, old: (name, b"" if name.endswith("png") else old))
    assert len(seen(whole(shards, 11, skip_corrupt=True))) == COUNT - 11


@pytest.mark.parametrize("keep", [0.3, 0.01])
def test_a_cut_file_is_named(shards: Shards, keep: float) -> None:
    path = shards.folder / shards.files[2]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"images-00002.tar.*(seems to|may) be cut"):
        whole(shards)


def test_links_in_a_shard_are_refused(shards: Shards) -> None:
    with tarfile.open(shards.folder / shards.files[0], "w") as file:
        link = tarfile.TarInfo("00000000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    with pytest.raises(DataError, match=r"00000000\.png: expected a plain file"):
        whole(shards)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(fastfer=2), "expected layout 1, got 2"),
        (lambda entry: entry.pop("names"), "expected the index of ShardWriter"),
        (lambda entry: entry.update(shards=7), "expected the index of ShardWriter"),
        (lambda entry: entry["shards"][0].update(file="../x.tar"), "expected names of files beside it"),
        (lambda entry: entry["shards"][0].update(file="x.tar"), "lists 5 shards, of which are missing: x.tar"),
    ],
)
def test_bad_indices(shards: Shards, change: Callable, message: str) -> None:
    path = shards.folder / "shards.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    with pytest.raises(DataError, match=message):
        Shards(shards.folder)


def test_shards_from_elsewhere(shards: Shards) -> None:
    """Without a list, with KEY.cls for KEY.json, in one file as index and in another as name."""
    (shards.folder / "shards.json").unlink()
    for file, written in ((0, lambda number: b"01"[number % 2 :][:1]), (1, lambda n: NAMES[n % 2].encode() + b"\n")):
        rewrite(
            shards,
            lambda name, old, written=written: (
                (name[:8] + ".cls", written(int(name[:8]))) if name.endswith("json") else (name, old)
            ),
            file,
        )
    found = index_shards(shards.folder, NAMES, protocol="found")
    assert (found.counts, found.labels, found.protocol) == (FILES, {"calm": 25, "glad": 25}, "found")
    batches = whole(found)
    assert seen(batches) == list(range(COUNT))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 2 for i in range(COUNT)]
    assert batches[0].ids[:2] == ("00000000", "00000001")
    found.verify()
    with pytest.raises(DataError, match="holds shards already"):
        index_shards(shards.folder, NAMES)


def test_no_shards(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(DataError, match=r"holds no shards: no shards.json"):
        Shards(tmp_path)
    with pytest.raises(DataError, match=r"expected files \*.tar, got none"):
        index_shards(tmp_path, NAMES)
    (shards.folder / "shards.json").write_text("[]")
    with pytest.raises(DataError, match="expected the index of ShardWriter"):
        Shards(shards.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((pictures(1)[0], "angry"), "label: expected one of calm, glad, got 'angry'"),
        ((pictures(1)[0].astype(np.float32), "calm"), r"image: expected uint8 \(H, W\)"),
        ((b"no image", "calm"), "image: expected an image file of a known format"),
    ],
)
def test_a_failed_writer_leaves_nothing(tmp_path: Path, arguments: tuple, message: str) -> None:
    def write() -> None:
        with ShardWriter(tmp_path, NAMES, images=1) as writer:
            writer.add(pictures(1)[0], "calm")
            writer.add(*arguments)

    with pytest.raises(DataError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_writers_refuse(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(DataError, match=r"holds shards already \(shards.json\)"):
        ShardWriter(shards.folder, NAMES)
    with pytest.raises(ValueError, match="names: expected distinct class names"):
        ShardWriter(tmp_path, ("a", "a"))
    with pytest.raises(DataError, match="expected images to write, got none"), ShardWriter(tmp_path / "new", NAMES):
        pass
    writer = ShardWriter(tmp_path / "new", NAMES)
    writer.add(pictures(1)[0], "calm", soft=np.array([0.5, 0.5], np.float32))
    with pytest.raises(DataError, match="soft: expected a distribution over 2 classes for all images or for none"):
        writer.add(pictures(1)[0], "calm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"threads": 0}, "threads: expected 1 or more, got 0"),
        ({"rank": 2, "world": 2}, "rank: expected 0 to 1, got 2"),
        ({"share": "pixels"}, "share: expected images or shards, got 'pixels'"),
        ({"world": 3}, "drop_last: expected True, as 3 processes cannot share a last batch of 2"),
        ({"world": 9, "drop_last": True}, "batch_size: expected 9 or more for 9 processes"),
        ({"world": 3, "share": "shards"}, "batch_size: expected a multiple of 3 processes, got 8"),
        ({"world": 8, "share": "shards"}, "world: expected at most 5 processes, one a file; got 8"),
    ],
)
def test_bad_options(shards: Shards, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardLoader(shards, **{"batch_size": 8, **options})
