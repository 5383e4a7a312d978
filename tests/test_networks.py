# SPDX-License-Identifier: Apache-2.0
"""Every network: golden numbers, independence of the batch, compile, autocast, training, weight files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastfer
from fastfer.models import FerModel, create_model, list_models, load_weights, save_weights

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
SMALL = {"fgw_fer": 48, "sepconv_attention": 48, "vgg16_csa": 64, "patt_lite": 224, "mobilenetv3_cpsca": 64}
"""Image sizes that keep a test short; patt_lite's patches need the published size."""
GRADIENT_ERROR = {"mobilenetv3_cpsca": 5e-8}
"""torch's gradient of hard-sigmoid, behind the golden one, has 1/6 in float32."""


def small(model: FerModel, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    size = SMALL[model.name]
    return torch.randn(batch, model.in_chans, size, size, dtype=dtype)


def our_keys(model: FerModel, golden: dict[str, np.ndarray]) -> dict[str, str]:
    """Our names of the golden weights: both list tensors in the order of the network's table, theirs a scale first."""
    keys = [key[2:] for key in golden if key.startswith("w:")]
    ours = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    ours.sort(key=lambda key: not key.endswith(".scale"))
    return dict(zip(keys, ours, strict=True))


def load_golden(name: str) -> tuple[FerModel, dict[str, np.ndarray], dict[str, str]]:
    """The network with its golden weights, in float64, without dropout; the numbers; and our names by theirs."""
    path = GOLDEN / f"{name}.npz"
    if not path.is_file():
        pytest.skip("the golden numbers are not beside this repository (../shared/golden)")
    golden = dict(np.load(path))
    model = create_model(name)
    names, state = our_keys(model, golden), model.state_dict()
    for key, ours in names.items():
        value = torch.from_numpy(golden[f"w:{key}"])
        assert [n for n in value.shape if n > 1] == [n for n in state[ours].shape if n > 1], (key, ours)
        state[ours].copy_(value.view_as(state[ours]))
    return without_dropout(model).double(), golden, names


def without_dropout(model: FerModel) -> FerModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(params=["native", "numba"])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    entry = fastfer.list_backends()[request.param]
    if not entry.available:
        pytest.skip(f"backend {entry.name}: {entry.reason}")
    with fastfer.use(entry.name):
        yield entry.name


@pytest.mark.parametrize("name", list_models())
def test_golden_numbers(name: str, cpu_backend: str) -> None:
    model, golden, names = load_golden(name)
    x = torch.from_numpy(golden["x"]).double().requires_grad_()
    close = {"rtol": 1e-9, "atol": 1e-10}
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), torch.from_numpy(golden["logits_eval"]), **close)
    logits = model.train()(x)
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits_train"]), **close)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(golden["y"]))
    torch.testing.assert_close(loss, torch.tensor(float(golden["loss_train"]), dtype=torch.float64), **close)
    loss.backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(golden["grad_x"]).double(), rtol=1e-5, atol=1e-8)
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert len(gradients) == len(golden["grad_norm_names"])
    for key, want in zip(golden["grad_norm_names"], golden["grad_norms"], strict=True):
        grad = gradients[names[str(key)]]
        assert grad is not None
        assert float(grad.norm()) == pytest.approx(float(want), rel=GRADIENT_ERROR.get(name, 1e-8), abs=1e-10), key
    state = model.state_dict()
    after = {names[key[6:]]: value for key, value in golden.items() if key.startswith("after:")}
    assert len(after) == sum("running" in key for key in state)
    for key, value in after.items():
        torch.testing.assert_close(state[key], torch.from_numpy(value).double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", list_models())
def test_stock_build(name: str) -> None:
    """Logits of both modes, gradients and running statistics are those of ``torch.nn`` layers with the same weights."""
    stock = pytest.importorskip("bench.stock", reason="bench is not beside the tests: not a checkout")
    torch.manual_seed(0)
    model = without_dropout(settled(name)).double()
    other = stock.BUILDERS[name]().double().eval()
    stock.copy_weights(model, other)
    x = small(model, 2, torch.float64)
    torch.testing.assert_close(model(x), other(x), rtol=1e-8, atol=1e-10)
    got, want = model.train()(x), other.train()(x)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    grads = (torch.autograd.grad(y.square().mean(), list(m.parameters())) for y, m in ((got, model), (want, other)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours.flatten(), theirs.flatten(), rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        if ours.dim():  # not the batch counter: one batch went through before the weights were copied
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("fgw_fer", 4.17),
        ("sepconv_attention", 25.5),
        ("vgg16_csa", 589.4),
        ("patt_lite", 336.8),
        ("mobilenetv3_cpsca", 183.1),
    ],
)
def test_multiply_adds(name: str, millions: float) -> None:
    """Of convolutions and matrix products, counted in the stock build, for one image of the published size."""
    stock = pytest.importorskip("bench.stock", reason="bench is not beside the tests: not a checkout")
    model = create_model(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stock.BUILDERS[name]().eval()(torch.zeros(1, model.in_chans, *model.input_size))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, rel=0.003)


@pytest.mark.parametrize("name", list_models())
def test_golden_logits_in_float32(name: str, cpu_backend: str) -> None:
    model, golden, _ = load_golden(name)
    with torch.no_grad():
        logits = model.float().eval()(torch.from_numpy(golden["x"]))
    want = torch.from_numpy(golden["logits_eval"])
    torch.testing.assert_close(logits.double(), want, rtol=1e-4, atol=2e-4 * max(1.0, float(want.abs().max())))


def settled(name: str, **options: object) -> FerModel:
    """A network in evaluation mode whose running statistics are not the initial ones."""
    model = create_model(name, **options)
    model(small(model, 2))
    return model.eval()


@pytest.mark.parametrize("name", list_models())
def test_logits_of_an_image_do_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    model = settled(name).double()
    x = small(model, 3, torch.float64)
    other = torch.cat([torch.randn_like(x[:1]) * 9, x[1:2], torch.zeros_like(x[2:])])
    with torch.no_grad():
        alone, together, mixed = model(x[1:2])[0], model(x)[1], model(other)[1]
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixed, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list_models())
def test_embedding_and_empty_batch(name: str) -> None:
    model = settled(name, num_classes=3)
    x = small(model, 2)
    with torch.no_grad():
        assert model.forward_features(x).shape == (2, model.embedding_dim)
        assert model(x).shape == (2, 3)
        assert model(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("through", ["eager", pytest.param("aot_eager", marks=pytest.mark.full)])
def test_compiles_without_graph_breaks(through: str, name: str) -> None:
    """The graph has no break. The ops' own tests show that each can be traced and differentiated, `aot_eager` that the
    whole can."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = settled(name)
    x = small(model, 2)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, through)(x), model(x), rtol=1e-4, atol=1e-4)
    # In float64: of two images, gradients in float32 are 1 % and more off by rounding, and eager ops are linked.
    without_dropout(model).double().train()
    x, twin = x.double(), copy.deepcopy(model)
    want, got = twin(x), compiled(model, through)(x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(want.square().sum(), list(twin.parameters()))
    actual = torch.autograd.grad(got.square().sum(), list(model.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def compiled(model: FerModel, through: str) -> FerModel:
    return torch.compile(model, fullgraph=True, backend=through)  # type: ignore[return-value]


@pytest.mark.parametrize("name", list_models())
def test_autocast(name: str) -> None:
    torch.manual_seed(0)
    model = settled(name)
    x = small(model, 4)
    want = model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
        loss = nn.functional.cross_entropy(model.train()(x), torch.arange(4))
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1 * float(want.abs().max()))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    x, y = small(model, 4), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", list_models())
def test_weights_round_trip(tmp_path: Path, name: str) -> None:
    model = settled(name, num_classes=6)
    save_weights(model, tmp_path / "w.safetensors")
    again = load_weights(tmp_path / "w.safetensors")
    assert type(again) is type(model)
    assert again.options == model.options
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    x = small(model, 1)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("sepconv_attention", {"attention": kind}) for kind in ("dot", "additive")),
        *(("vgg16_csa", {"attention": kind}) for kind in ("none", "ca", "sa", "csa", "se", "eca", "cbam", "scse")),
        *(("vgg16_csa", {"position": position}) for position in ("conv", "after_pool")),
        *(("patt_lite", {"extraction": kind}) for kind in ("P4", "P8", "NP7", "OP3", "OP5", "attention", "none")),
        ("patt_lite", {"attention": "none"}),
        ("patt_lite", {"depth": 6, "keras_padding": True}),
        ("mobilenetv3_cpsca", {"attention": "maxca", "act": "relu"}),
        ("mobilenetv3_cpsca", {"attention": "se", "high_attention": "none"}),
        ("mobilenetv3_cpsca", {"halved": False}),
    ],
)
def test_variants_train(name: str, options: dict) -> None:
    """Every parameter of a variant gets a gradient, and its options come back from a copy."""
    torch.manual_seed(0)
    model = create_model(name, **options)
    nn.functional.cross_entropy(model(small(model, 2)), torch.arange(2)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    twin = create_model(name, **model.options)
    twin.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("extraction", "places"), [("separable", 2), ("P4", 4), ("P8", 2), ("NP7", 2), ("OP3", 5), ("OP5", 3), ("none", 7)]
)
def test_patches(extraction: str, places: int) -> None:
    model = create_model("patt_lite", extraction=extraction).eval()
    with torch.no_grad():
        assert model.forward_map(torch.zeros(1, 3, 224, 224)).shape[2:] == (places, places)


def test_patt_lite_as_published_mixes_the_batch() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="logits of an image depend on the other images"):
        model = create_model("patt_lite", attention="batch").eval()
    x = small(model, 3)
    with torch.no_grad():
        assert not torch.allclose(model(x)[1], model(x[1:])[0], rtol=1e-3)
        with pytest.raises(ValueError, match="expected a batch of at least 2 images"):
            model(x[:1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sepconv_attention", {"attention": "cbam"}, "attention: expected one of both, dot, additive, got 'cbam'"),
        ("sepconv_attention", {"dropout": 2}, "dropout: expected 0 <= dropout <= 1, got 2"),
        ("patt_lite", {"depth": 5}, "depth: expected 6 to 11, got 5"),
        ("patt_lite", {"extraction": "P5"}, "extraction: expected one of separable, P4, .*, none, got 'P5'"),
        ("mobilenetv3_cpsca", {"act": "silu"}, "act: expected one of relu, hardswish, got 'silu'"),
        ("vgg16_csa", {"plain": True}, "attention: expected 'none' for plain=True, got 'csa'"),
        ("vgg16_csa", {"position": "before"}, "position: expected one of conv, before_pool, after_pool, got 'before'"),
    ],
)
def test_bad_options(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        create_model(name, **options)


def test_plain_vgg16_runs() -> None:
    torch.manual_seed(0)
    model = create_model("vgg16_csa", plain=True, attention="none").eval()
    x = torch.randn(1, 1, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.head(model.forward_features(x)))
        assert model.forward_features(x).shape == (1, model.embedding_dim)
