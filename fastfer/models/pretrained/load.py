# SPDX-License-Identifier: Apache-2.0
"""``load_imagenet``: reads, checks everything, then fills the network, and says what went where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastfer._files import file_digest
from fastfer.models.base import FerModel
from fastfer.models.pretrained.download import SOURCES, cached_file
from fastfer.models.pretrained.files import read_tensors
from fastfer.models.pretrained.layouts import LAYOUTS, Layout

_LEAVES = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What an ImageNet start did; ``print`` it.

    source   name or path
    sha256   of the file
    layout   library and network that the file belongs to
    loaded   our tensors that were filled
    skipped  the file's tensors without a place in our network
    fresh    our tensors that keep their initial values
    unwrapped  what was taken off around the tensors, in words: a checkpoint's other entries, prefixes of names
    mean, std  per channel on the scale 0..1: how the input was normalised when the weights were trained
    """

    source: str
    sha256: str
    layout: str
    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    fresh: tuple[str, ...]
    unwrapped: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        lines = [f"{self.layout} from {self.source} (sha256 {self.sha256[:16]})"]
        lines += [f"  taken: {note}" for note in self.unwrapped]
        for what, keys in (("loaded", self.loaded), ("skipped", self.skipped), ("left fresh", self.fresh)):
            lines.append(f"  {what}: {len(keys)} tensors" + (f" of {_modules(keys)}" if keys else ""))
        return "\n".join(lines)


def _modules(keys: tuple[str, ...]) -> str:
    """Their first two levels: "blocks.12, blocks.13, fc"."""
    return ", ".join(dict.fromkeys(".".join(key.split(".")[:-1][:2]) for key in keys))


def load_imagenet(model: FerModel, source: str | Path, *, sha256: str | None = None) -> LoadReport:
    """Fill ``model`` from a stock MobileNet that was trained on ImageNet, and set ``model.pretrained`` to the report.

    ``source`` is the path of a file, or a name in `SOURCES`, which is fetched unless it is in the cache; ``sha256``,
    where given, must be that of the file. With ``in_chans=1`` the first convolution is summed over RGB, which gives
    a grey image the features of its RGB copy; norms of another eps are rescaled to the same function in evaluation.
    The model is filled whole or, with an error, not at all: FileNotFoundError, DownloadError, ImportError (Keras' files
    without h5py), ValueError for a file of no known layout or one that does not fit the network.
    """
    if not isinstance(model, FerModel):
        raise TypeError(f"load_imagenet: model: expected a fastfer model, got {type(model).__name__}")
    path = cached_file(source) if isinstance(source, str) and source in SOURCES else Path(source)
    if not path.is_file():
        known = ", ".join(SOURCES)
        raise FileNotFoundError(f"load_imagenet: source: expected a file or one of {known}, got {str(source)!r}")
    digest = file_digest(path)
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{path}: sha256: expected {sha256.lower()}, got {digest}")
    theirs, unwrapped = read_tensors(path)
    layout = _layout(path, model, theirs)
    names = {
        f"{ours}.{leaf}": f"{other}.{leaf}"
        for ours, other in layout.pairs(model)
        for leaf in _LEAVES
        if f"{ours}.{leaf}" in model.state_dict()
    }
    values = _fitted(path, model, names, theirs)
    _rescale(model, layout.eps, values)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key in values:
                tensor.copy_(values[key])
    used = set(names.values())
    report = LoadReport(
        source=str(source),
        sha256=digest,
        layout=layout.name,
        loaded=tuple(names),
        skipped=tuple(key for key in theirs if key not in used and not key.endswith(_COUNTER)),
        fresh=tuple(key for key in model.state_dict() if key not in names and not key.endswith(_COUNTER)),
        unwrapped=unwrapped,
        mean=layout.mean,
        std=layout.std,
    )
    model.pretrained = report
    return report


def _layout(path: Path, model: FerModel, theirs: Mapping[str, Tensor]) -> Layout:
    fitting = [layout for layout in LAYOUTS if isinstance(model, layout.network)]
    if not fitting:
        networks = ", ".join(sorted({layout.network.name for layout in LAYOUTS}))
        raise ValueError(f"load_imagenet: model: expected one of {networks}, got {model.name}, which has no such start")
    found = [layout for layout in LAYOUTS if layout.key in theirs]
    if not found:
        names = ", ".join(layout.name for layout in LAYOUTS)
        raise ValueError(f"{path}: expected weights of {names}, got keys such as {', '.join(list(theirs)[:3])}")
    if found[0] not in fitting:
        names = " or ".join(layout.name for layout in fitting)
        raise ValueError(f"{path}: expected weights of {names} for {model.name}, got {found[0].name}")
    layout = found[0]
    if layout.keras_padding is not None and model.options["keras_padding"] != layout.keras_padding:
        raise ValueError(
            f"{path}: {model.name}: keras_padding: expected {layout.keras_padding} for weights of {layout.name}, "
            f"got {model.options['keras_padding']}"
        )
    return layout


def _fitted(path: Path, model: FerModel, names: Mapping[str, str], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes, in float64."""
    missing = [key for key in names.values() if key not in theirs]
    if missing:
        raise ValueError(f"{path}: expected {len(names)} tensors of the network, got none for {', '.join(missing[:5])}")
    values, state = {}, model.state_dict()
    for key, name in names.items():
        want, got = state[key].shape, theirs[name].double()
        if got.ndim == 4 and got.shape[1] == 3 and want[1:2] == (1,) and want != got.shape:
            got = got.sum(1, keepdim=True)
        # Squeeze-and-excitation has linear layers here and 1×1 convolutions there.
        if [n for n in got.shape if n > 1] != [n for n in want if n > 1]:
            raise ValueError(f"{path}: {name}: expected shape {tuple(want)}, got {tuple(theirs[name].shape)}")
        if not got.isfinite().all():
            raise ValueError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
        values[key] = got.reshape(want)
    return values


def _rescale(model: nn.Module, eps: float, values: dict[str, Tensor]) -> None:
    """Norms' weights so that weight / sqrt(var + our eps) is what weight / sqrt(var + ``eps``) was."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_var" in values and module.eps != eps:
            var = values[f"{name}.running_var"]
            values[f"{name}.weight"] = values[f"{name}.weight"] * ((var + module.eps) / (var + eps)).sqrt()
