# SPDX-License-Identifier: Apache-2.0
"""ImageNet starts: the features of a stock network of each layout, and what a report lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from pretrained_starts import PLAIN, STOCK, close, picture, started
from stock_mobilenets import TimmV1, TorchvisionV3, keras_features, write_keras

from fastfer.models import create_model, load_weights, save_weights

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
