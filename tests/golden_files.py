# SPDX-License-Identifier: Apache-2.0
"""The project's own golden files: what they hold, and ``python tests/golden_files.py`` to make them anew.

They pin today's behaviour on every machine and backend; that it is right is what the other tests show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastfer
from fastfer.data import Face, FaceCrop, Preprocess, drawn
from fastfer.models import FerModel, create_model, list_models

FOLDER = Path(__file__).parent / "golden"
PREPROCESS = FOLDER / "preprocess.npz"
NETWORKS = FOLDER / "networks.npz"
Arrays = dict[str, np.ndarray]
SIZES = {"fgw_fer": 48, "sepconv_attention": 48, "vgg16_csa": 64, "patt_lite": 224, "mobilenetv3_cpsca": 64}
"""Image sizes that keep a pass short; patt_lite's patches need the published size."""


PINNED: list[tuple[str, dict[str, object]]] = [
    ("fgw_fer", {"separable": False}),
    *(("sepconv_attention", {"attention": kind}) for kind in ("dot", "additive")),
    *(("vgg16_csa", {"attention": kind}) for kind in ("none", "ca", "sa", "se", "cbam", "scse")),
    *(("vgg16_csa", {"position": position}) for position in ("conv", "after_pool")),
    *(("patt_lite", {"extraction": kind}) for kind in ("P4", "NP7", "OP3", "OP5", "attention")),
    ("patt_lite", {"attention": "none", "depth": 7}),
    ("patt_lite", {"keras_padding": True}),
    *(("mobilenetv3_cpsca", {"attention": kind}) for kind in ("none", "ca", "maxca")),
    ("mobilenetv3_cpsca", {"attention": "none", "high_attention": "se", "halved": False, "act": "relu"}),
]
"""Variants whose logits are kept."""


def pattern(*shape: int) -> np.ndarray:
    """A uint8 picture without a period in it, from whole numbers alone."""
    total = np.zeros(shape, np.int64)
    for axis, factor in zip(np.indices(shape), (31, 47, 89, 17), strict=False):
        total += factor * axis + axis * axis * (factor % 5 + 1)
    return (total % 251).astype(np.uint8)


def label(name: str, options: dict[str, object]) -> str:
    """Of a variant: "vgg16_csa attention=se"."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def one_face(picture: np.ndarray) -> list[Face]:
    """A detector: a face in the middle of any picture, head tilted to the side."""
    height, width = picture.shape[:2]
    eyes = ((width * 0.4, height * 0.4), (width * 0.6, height * 0.46))
    return [Face((width * 0.3, height * 0.3, width * 0.4, height * 0.4), 0.9, (*eyes, *((0.0, 0.0),) * 3))]


def preprocess_cases() -> Iterator[tuple[str, Preprocess, Callable[[Preprocess], Tensor]]]:
    """(name, settings, their uint8 output)."""
    faces = torch.from_numpy(drawn.draw_faces(np.arange(2, dtype=np.int64), seed=1))
    colour = torch.from_numpy(pattern(1, 3, 31, 45))
    dark = torch.from_numpy(pattern(2, 1, 40, 40) // 5 + 20)
    scene = pattern(60, 90, 3)
    grey = {"mean": (0.5,), "std": (0.25,)}
    yield "stored", Preprocess(**grey), lambda p: p.pixels(faces)
    yield "shrunk", Preprocess(**grey, size=(20, 17)), lambda p: p.pixels(faces)
    yield "vgg16_csa", Preprocess(**grey, size=(32, 32), colour="grey", equalise=True), lambda p: p.pixels(colour)
    yield "equalised", Preprocess(**grey, equalise=True), lambda p: p.pixels(dark)
    yield "patt_lite", Preprocess.symmetric(3, size=(56, 56), colour="rgb"), lambda p: p.pixels(faces[:1])
    yield "mobilenetv3", Preprocess.imagenet(size=(24, 24)), lambda p: p.pixels(colour)
    for align in (False, True):
        crop = FaceCrop(0.2, align)
        settings = Preprocess.imagenet(size=(24, 24), crop=crop)
        yield f"crop-{'align' if align else 'upright'}", settings, lambda p: p.picture(scene, one_face)[None]


def preprocess_arrays() -> Arrays:
    """ "NAME/bytes": uint8 output; "NAME/mean", "NAME/corner": per channel, of the float32 output."""
    arrays: Arrays = {}
    for name, settings, run in preprocess_cases():
        output = run(settings)
        y = settings.normalise(output)
        arrays[f"{name}/bytes"] = output.numpy()
        arrays[f"{name}/mean"] = y.double().mean((0, 2, 3)).numpy()
        arrays[f"{name}/corner"] = y[:, :, :4, :4].contiguous().numpy()
    return arrays


def uniform(shape: tuple[int, ...], *seed: int) -> Tensor:
    """float64 in [-1, 1) from raw PCG64 words, the same on every machine and in every release of numpy and torch."""
    words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(int(np.prod(shape, dtype=np.int64)))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def numbered(name: str, **options: object) -> FerModel:
    """A network without dropout in float64, every tensor filled from its place in the state dict."""
    with torch.device("meta"):
        model = create_model(name, **options)
    model = model.to_empty(device="cpu").double().eval()
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for place, (key, tensor) in enumerate(model.state_dict().items()):
        module, _, leaf = key.rpartition(".")
        values = uniform(tuple(tensor.shape), 0, place)
        if leaf == "num_batches_tracked":
            values = torch.zeros(())
        elif leaf in ("running_var", "scale") or (leaf == "weight" and module in norms):
            values = 1 + values / 2
        elif tensor.ndim > 1:
            values *= (6 / tensor[0].numel()) ** 0.5
        else:
            values *= 0.3
        tensor.copy_(values)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def pictures(model: FerModel, count: int = 2) -> Tensor:
    size = SIZES[model.name]
    return 1.7 * uniform((count, model.in_chans, size, size), 1, model.in_chans)


def network_arrays(name: str) -> Arrays:
    """Logits in both modes and loss; of each gradient its norm and its product with numbers; running statistics."""
    model = numbered(name)
    x = pictures(model).requires_grad_()
    with torch.no_grad():
        arrays = {"eval": model(x).numpy()}
    logits = model.train()(x)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 5]))
    loss.backward()
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    running = [tensor for key, tensor in model.state_dict().items() if "running" in key]
    arrays |= {"train": logits.detach().numpy(), "loss": loss.detach().numpy()}
    for label, tensors in (("gradients", gradients), ("running", running)):
        products = [(g * uniform(tuple(g.shape), 2, place)).sum() for place, g in enumerate(tensors)]
        arrays[label] = torch.stack([torch.stack([g.norm() for g in tensors]), torch.stack(products)]).numpy()
    return {f"{name}/{key}": array for key, array in arrays.items()}


def variant_logits(name: str, options: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a variant in evaluation, (2, classes); and of the first image alone, (1, classes)."""
    model = numbered(name, **options)
    x = pictures(model)
    with torch.no_grad():
        return model(x).numpy(), model(x[:1]).numpy()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(PREPROCESS, allow_pickle=False, **preprocess_arrays())
    networks: Arrays = {}
    with fastfer.use("reference"):
        for name in list_models():
            networks |= network_arrays(name)
        for name, options in PINNED:
            networks[label(name, options)] = variant_logits(name, options)[0]
    np.savez_compressed(NETWORKS, allow_pickle=False, **networks)


if __name__ == "__main__":
    main()
