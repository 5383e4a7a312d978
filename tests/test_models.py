# SPDX-License-Identifier: Apache-2.0
"""FGW-FER's shapes and initial weights, the registry, options and inputs that are refused, weight files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastfer
from fastfer import models
from fastfer.models import FerModel, create_model, list_models, load_weights, read_metadata, save_weights


def settled(name: str, **options: object) -> FerModel:
    """A network in evaluation mode whose running statistics are not the initial ones."""
    model = create_model(name, **options)
    model(torch.randn(4, model.in_chans, *model.input_size))
    return model.eval()


def test_fgw_fer_dropout_is_before_the_head() -> None:
    model = create_model("fgw_fer", dropout=0.5).train()
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.randn(8, 1, 48, 48))
    assert 0.4 < (seen[0][seen[0] >= 0] == 0).double().mean() < 1
    model.eval()
    x = torch.randn(2, 1, 48, 48)
    plain = create_model("fgw_fer").eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    with pytest.raises(ValueError, match="fgw_fer: dropout: expected"):
        create_model("fgw_fer", dropout=1.5)


@pytest.mark.parametrize("options", [{}, {"separable": False}])
@pytest.mark.parametrize("size", [(48, 48), (33, 17), (1, 1)])
def test_fgw_fer_shapes(options: dict, size: tuple[int, int]) -> None:
    model = create_model("fgw_fer", num_classes=3, in_chans=2, **options).eval()
    x = torch.randn(2, 2, *size)
    features = model.forward_map(x)
    assert features.shape == (2, 128, -(-size[0] // 16), -(-size[1] // 16))
    torch.testing.assert_close(model.forward_features(x), features.mean((2, 3)))
    assert model(x).shape == (2, 3)
    assert model(x[:0]).shape == (0, 3)


def test_fgw_fer_initial_weights() -> None:
    torch.manual_seed(0)
    model = create_model("fgw_fer", separable=False)
    for key, p in model.named_parameters():
        if key.endswith("bias"):
            assert not p.any(), key
        elif "norm" in key:
            assert bool((p == 1).all()), key
        elif p.numel() > 2000:
            want = 0.05 if ".fc" in key else (2 / p[0].numel()) ** 0.5
            assert float(p.detach().std()) == pytest.approx(want, rel=0.1), key


def test_registry() -> None:
    assert "fgw_fer" in list_models()
    assert list_models("fgw*") == ["fgw_fer"]
    assert list_models("x*") == []
    assert fastfer.create_model is create_model
    assert fastfer.list_models is list_models
    with pytest.raises(ValueError, match=r"create_model: name: expected one of .*fgw_fer.*, got 'resnet'"):
        create_model("resnet")
    with pytest.raises(
        ValueError, match="option of fgw_fer: expected one of num_classes, in_chans, separable, dropout, got 'd'"
    ):
        create_model("fgw_fer", d=1)
    with pytest.raises(ValueError, match="register_model: name: expected a new one, got 'fgw_fer'"):
        models.register_model(models.FgwFer)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "fgw_fer: num_classes: expected an int >= 1, got 0"),
        ({"in_chans": "1"}, TypeError, "fgw_fer: in_chans: expected an int, got str"),
        ({"separable": 1}, TypeError, "fgw_fer: separable: expected a bool, got int"),
    ],
)
def test_bad_options(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_model("fgw_fer", **options)


def test_bad_input() -> None:
    model = create_model("fgw_fer")
    with pytest.raises(ValueError, match="x: expected 1 channels"):
        model(torch.zeros(2, 3, 48, 48))
    with pytest.raises(ValueError, match="x: expected 4 dimensions"):
        model(torch.zeros(1, 48, 48))
    with pytest.raises(TypeError, match="x: expected dtype float32 or float64, got uint8"):
        model(torch.zeros(2, 1, 48, 48, dtype=torch.uint8))


CLASSES = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]


@pytest.mark.parametrize("options", [{}, {"separable": False}, {"in_chans": 3}])
def test_weights_round_trip(tmp_path: Path, options: dict) -> None:
    model = settled("fgw_fer", **options)
    path = tmp_path / "model.safetensors"
    save_weights(model, path, {"classes": CLASSES, "accuracy": 0.5, "note": "für"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    again = load_weights(path)
    assert type(again) is type(model)
    assert again.options == model.options
    assert not again.training
    assert again.class_names == tuple(CLASSES)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    x = torch.randn(2, model.in_chans, 48, 48)
    assert torch.equal(again(x), model(x))
    assert again(x).requires_grad
    metadata = read_metadata(path)
    assert metadata["model"] == "fgw_fer"
    assert metadata["accuracy"] == 0.5
    assert metadata["note"] == "für"
    save_weights(again, path)
    assert read_metadata(path)["classes"] == CLASSES


def test_weights_keep_their_dtype_and_classes_are_optional(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(create_model("fgw_fer").double(), str(path))
    model = load_weights(str(path))
    assert model.class_names is None
    assert next(model.parameters()).dtype == torch.float64


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(create_model("fgw_fer"), path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(create_model("fgw_fer"), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"classes": ["a", "b"]}, ValueError, "classes: expected 7 distinct names"),
        ({"classes": ["a"] * 7}, ValueError, "classes: expected 7 distinct names"),
        ({"classes": "abcdefg"}, TypeError, "classes: expected a list of names"),
        ({"model": "vgg"}, ValueError, r"metadata\['model'\]: expected 'fgw_fer' or nothing, got 'vgg'"),
        ({"mean": torch.zeros(1)}, TypeError, "metadata: expected JSON values"),
    ],
)
def test_save_errors(tmp_path: Path, metadata: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        save_weights(create_model("fgw_fer"), tmp_path / "w.safetensors", metadata)
    assert not list(tmp_path.iterdir())


def test_save_wants_a_network(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model: expected a fastfer model, got Linear"):
        save_weights(nn.Linear(1, 1), tmp_path / "w.safetensors")  # type: ignore[arg-type]


def test_load_refuses_what_is_no_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        load_weights(path)
    torch.save(create_model("fgw_fer").state_dict(), path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(path)
    save_weights(create_model("fgw_fer"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected a header entry 'fastfer', got none"):
        load_weights(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fastfer": "2"}, "expected layout 1, got '2'"),
        ({"fastfer": "{"}, "expected JSON in the header"),
        ({"model": '"resnet"'}, "name: expected one of .*, got 'resnet'"),
        ({"model": "null"}, "expected a model's name and options"),
        ({"options": "[]"}, "expected a model's name and options"),
        ({"options": '{"depth": 3}'}, "expected one of num_classes, in_chans, separable, dropout, got 'depth'"),
        ({"options": '{"name": "x"}'}, "name"),
        ({"options": '{"num_classes": "7"}'}, "num_classes: expected an int, got str"),
        ({"options": '{"num_classes": 1000000000}'}, r"head.weight: expected shape \(1000000000, 128, 3, 3\)"),
        ({"options": '{"num_classes": 1e30}'}, "num_classes: expected an int, got float"),
        ({"options": f'{{"num_classes": {10**30}}}'}, "w.safetensors"),
        ({"options": '{"separable": false}'}, "missing .*unknown"),
        ({"classes": '["a"]'}, "classes: expected 7 distinct names"),
        ({"classes": "3"}, "classes: expected a list of names"),
    ],
)
def test_load_refuses_a_wrong_header(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "w.safetensors"
    model = create_model("fgw_fer")
    header = {"fastfer": "1", "model": '"fgw_fer"', "options": json.dumps(model.options), "classes": "null"}
    save_file(dict(model.state_dict()), path, header | changes)
    with pytest.raises(ValueError, match=message):
        load_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), r"missing \['head.bias'\], unknown \[\]"),
        (lambda state: state.update(extra=torch.zeros(1)), r"missing \[\], unknown \['extra'\]"),
        (lambda state: state.update({"head.bias": torch.zeros(8)}), r"head.bias: expected shape \(7,\), got \(8,\)"),
        (
            lambda state: state.update({"head.bias": torch.zeros(7).int()}),
            "head.bias: expected a dtype like torch.float32",
        ),
        (lambda state: state.update({"head.bias": torch.zeros(7).half()}), "expected one floating dtype"),
    ],
)
def test_load_refuses_wrong_tensors(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "w.safetensors"
    model = create_model("fgw_fer")
    header = {"fastfer": "1", "model": '"fgw_fer"', "options": json.dumps(model.options)}
    state = dict(model.state_dict())
    change(state)
    save_file(state, path, header)
    with pytest.raises(ValueError, match=message):
        load_weights(path)
