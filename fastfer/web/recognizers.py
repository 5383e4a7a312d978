# SPDX-License-Identifier: Apache-2.0
"""The recognizers of a server: which weights are on offer, and each loaded once for all who use it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from fastfer import weights as shipped
from fastfer.data.files import printable
from fastfer.faces.detector import Detector, YuNet
from fastfer.faces.detector_file import DetectorNotFoundError
from fastfer.predict.recognizer import Recognizer
from fastfer.runtime import own_precisions
from fastfer.web.settings import FACES, Settings

_KEPT = 6
"""Loaded networks that are kept."""


class Recognizers:
    """Of one server; `get` may be called from several threads.

    offers            the precisions of each name that a page may choose; None is as the engine file was compiled
    start             the settings of a page that has chosen nothing yet
    detector_missing  why faces cannot be found; None where they can
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        detector: Detector | str | Path | None = None,
        faces: str = "detect",
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        """Load the network ``weights`` (a file, or a name of those that ship) and the detector, as `Recognizer` does.

        Without ``detector`` one is looked for, and where none is found pictures can still be taken as whole faces.
        Raises FileNotFoundError, ImportError, TypeError or ValueError.
        """
        if faces not in FACES:
            raise ValueError(f"faces: expected 'detect' or 'whole', got {faces!r}")
        self._threads = threads
        self._sources: dict[str, str | Path] = {name: name for name in shipped.list()}
        first = str(weights)
        if first not in self._sources or Path(weights).is_file():
            first = printable(Path(weights).name)
            first = f"{first} (file)" if first in self._sources else first
            self._sources = {first: weights, **self._sources}
        self.offers = {name: _precisions(source) for name, source in self._sources.items()}
        wanted = self.offers[first][0] if precision is None else precision
        if wanted not in self.offers[first]:
            names = ", ".join(name for name in self.offers[first] if name)
            raise ValueError(f"precision: expected one of {names}, got {wanted!r}")
        self._loaded: OrderedDict[tuple[str, str | None], dict[str, Recognizer]] = OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._detector: Detector | None = None
        self.detector_missing: str | None = "the server was started without one"
        network = self._network(first, wanted)  # before the detector, which may have to be fetched
        if faces == "detect":
            self.detector_missing = None
            self._find(detector)
        self.start = Settings(first, wanted, "whole" if self._detector is None else "detect")
        self._keep((first, wanted), network)

    def get(self, settings: Settings) -> Recognizer:
        """The recognizer of these settings, loaded if it is not yet: that may take seconds."""
        key = settings.weights, settings.precision
        if (known := self._known(key)) is None:
            with self._loading:
                known = self._known(key) or self._load(key)
        return known[settings.faces]

    def is_loaded(self, settings: Settings) -> bool:
        """Whether `get` takes no time."""
        return self._known((settings.weights, settings.precision)) is not None

    def _known(self, key: tuple[str, str | None]) -> dict[str, Recognizer] | None:
        with self._lock:
            if key in self._loaded:
                self._loaded.move_to_end(key)
            return self._loaded.get(key)

    def _load(self, key: tuple[str, str | None]) -> dict[str, Recognizer]:
        return self._keep(key, self._network(*key))

    def _network(self, name: str, precision: str | None) -> Recognizer:
        return Recognizer(self._sources[name], faces="whole", threads=self._threads, precision=precision)

    def _keep(self, key: tuple[str, str | None], whole: Recognizer) -> dict[str, Recognizer]:
        loaded = {"whole": whole}
        if self._detector is not None:
            detector = self._detector
            if isinstance(detector, YuNet) and key[1] == "bfloat16":
                detector = detector.computing_in("bfloat16")
            loaded["detect"] = Recognizer(whole.engine, detector=detector)
        with self._lock:
            while len(self._loaded) >= _KEPT:
                self._loaded.popitem(last=False)
            self._loaded[key] = loaded
        return loaded

    def _find(self, detector: Detector | str | Path | None) -> None:
        """The detector that was given, or the one that is found."""
        try:
            if detector is None or isinstance(detector, str | Path):
                self._detector = YuNet(detector, threads=self._threads)
            else:
                self._detector = detector
        except (DetectorNotFoundError, ImportError) as error:
            if detector is not None:
                raise
            self.detector_missing = printable(str(error))


def _precisions(source: str | Path) -> tuple[str | None, ...]:
    """What this CPU computes in; an engine file may be of another precision than these, and be left as it is."""
    known = own_precisions()
    return (None, *known) if Path(source).suffix == ".ffe" else known
