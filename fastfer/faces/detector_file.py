# SPDX-License-Identifier: Apache-2.0
"""Where the face detector's file is: given, named by the environment, in an installed package, or on the hub.

Its ONNX file is compiled once, with torch and onnx; the engine file in the cache needs neither.
"""

from __future__ import annotations

from pathlib import Path

from fastfer import _cache, _environment
from fastfer._files import file_digest
from fastfer._messages import printable
from fastfer.faces import yunet

NAME = "face_detection_yunet_2023mar.onnx"
DIGEST = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
"""sha256 of the published file, 232,589 bytes."""
_HUB = f"https://huggingface.co/opencv/face_detection_yunet/resolve/main/{NAME}"

_FIRST = "its first use needs torch and onnx (pip install 'fastfer[onnx]'), which later ones do without"
_SIDE = 640
"""Of the square that the network is compiled for; `fastfer.engine.resized` makes other sizes of it."""


class DetectorNotFoundError(FileNotFoundError):
    """No face detector is here, and none could be fetched."""


def find_detector(path: str | Path | None = None) -> Path:
    """The file of YuNet, the first of: ``path``, FASTFER_DETECTOR, an installed package's, the cache's, the hub's.

    Only the published file is taken from a package, and from the hub it is fetched once, checked by its sha256;
    ``FASTFER_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` forbids that. Raises `DetectorNotFoundError` saying what to do.
    """
    for name, given in (("detector", path), ("FASTFER_DETECTOR", _environment.variable("FASTFER_DETECTOR"))):
        if given is not None:
            if not Path(given).is_file():
                shown = printable(str(given))
                raise DetectorNotFoundError(f"{name}: expected the file of a face detector, got {shown!r}")
            return Path(given)
    return _installed() or _fetched()


def engine_bytes(path: str | Path | None = None) -> bytes:
    """The detector's engine file for squares of _SIDE, from ``path`` or from where `find_detector` finds it.

    Raises as that; ImportError naming what compiling needs, ValueError for a file that is no YuNet.
    """
    given = path is not None or _environment.variable("FASTFER_DETECTOR") is not None
    if not given and (known := _read(_kept(DIGEST))) is not None:
        return known
    file = find_detector(path)
    if file.suffix == ".ffe":
        return _checked(file.read_bytes(), file)
    kept = _kept(file_digest(file))
    if (known := _read(kept)) is not None:
        return known
    data = _compiled(file)
    _cache.keep(kept, data)
    return data


def _kept(digits: str) -> Path:
    """The place in the cache of what was compiled from the file with that sha256."""
    return _cache.compiled("detector", digits)


def _read(kept: Path) -> bytes | None:
    """The content of a file in the cache; None where there is none, or none of use."""
    try:
        return _checked(kept.read_bytes(), kept)
    except (OSError, ValueError):
        return None


def _checked(data: bytes, path: Path) -> bytes:
    """The bytes of an engine file, if it is a YuNet's."""
    from fastfer.engine.resized import resized
    from fastfer.runtime import Engine

    engine = Engine(resized(data, (32, 32)), threads=1)
    cells = [(32 // stride) ** 2 for stride in yunet.STRIDES]
    expected = [(count, channels) for channels in yunet.KINDS.values() for count in cells]
    if list(engine.output_shapes) != expected:
        shapes = engine.output_shapes
        raise ValueError(f"{printable(str(path))}: expected a YuNet, whose outputs are {expected}, got {shapes}")
    return data


def _compiled(file: Path) -> bytes:
    """From the ONNX file. Its input are pixels 0 to 255 as they are."""
    try:
        from fastfer.engine.compiler import compile
    except ImportError as error:
        raise ImportError(f"{printable(str(file))}: {_FIRST}: {error}") from error
    engine = compile(file, (1, 3, _SIDE, _SIDE), mean=[0.0] * 3, std=[1 / 255] * 3)
    return _checked(bytes(engine._data), file)


def _installed() -> Path | None:
    """The published file among those of the installed packages."""
    from importlib import metadata  # slow to import, and seldom needed

    for distribution in metadata.distributions():
        record = distribution.read_text("RECORD")
        if record is None or NAME not in record:
            continue
        for file in distribution.files or ():
            found = Path(str(file.locate()))
            if file.name == NAME and found.is_file() and file_digest(found) == DIGEST:
                return found
    return None


def _fetched() -> Path:
    try:
        from fastfer.models.pretrained import DownloadError, Source, cached_file
    except ImportError as error:
        raise ImportError(f"no face detector in the cache ({_kept(DIGEST)}), and {_FIRST}: {error}") from error
    try:
        return cached_file("opencv/face_detection_yunet", Source(_HUB, f"sha256:{DIGEST}"))
    except DownloadError as error:
        raise DetectorNotFoundError(
            f"no face detector: {error}. Give detector= (or set FASTFER_DETECTOR) the path of {NAME}, "
            'any callable that gives faces, or faces="whole" for pictures that are faces already'
        ) from error
