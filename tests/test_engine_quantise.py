# SPDX-License-Identifier: Apache-2.0
"""int8 that holds accuracy: the kernels' rounding, rules of ranges, corrected biases, steps kept in bfloat16."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_bytes import ISAS, Network, ranges_of, run
from engine_models import graph_of, logits, network
from torch.nn import functional as F

import fastfer
from fastfer import _C, runtime
from fastfer.engine import __main__ as command
from fastfer.engine import sensitivity
from fastfer.engine.calibrate import observed
from fastfer.engine.file import ByteNotes, to_bytes
from fastfer.engine.rounding import as_stored, map_scale, weights_as_stored
from fastfer.engine.rules import RULES, Seen

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


def two(seed: int = 0) -> tuple[Network, np.ndarray[Any, Any]]:
    """Two 1×1 convolutions: the second reads bytes. Weights of tens, so that rounding is plain to see."""
    net = Network(5, 6, 7, seed)
    for inputs, outputs in ((5, 20), (20, 9)):
        weight, bias = net.weight(outputs, inputs, 1, 1), net.weight(outputs)
        net.add("conv", [len(net.shapes) - 1], [1, 1, 1, 1, 0, 0, 0, 0, 1, 0], [weight, bias],
                lambda x, w=weight, b=bias: F.conv2d(x, w, b))  # fmt: skip
    return net, net.random.standard_normal((3, *net.shapes[0])).astype(np.float32)


def as_rounded(net: Network, x: np.ndarray[Any, Any], pair: tuple[float, float]) -> np.ndarray[Any, Any]:
    """What the second convolution makes of bytes, by the module of the formulas."""
    (w1, b1), (w2, b2) = (node[3] for node in net.nodes)
    middle = F.conv2d(torch.from_numpy(x).double(), w1, b1).numpy().astype(np.float32)
    stored = torch.from_numpy(as_stored(middle, *map_scale(*pair))).double()
    weight = torch.from_numpy(weights_as_stored(w2.numpy())).double()
    return F.conv2d(stored, weight, b2).numpy()


@pytest.mark.parametrize("isa", ISAS)
def test_rounding_is_that_of_the_kernels(isa: str) -> None:
    """Ranges with a zero point and without, and narrow ones, where bytes saturate."""
    net, x = two()
    whole = ranges_of(net.file(), x, net.shapes)
    for pair in (whole[1], (0.0, whole[1][1]), (whole[1][0] / 3, whole[1][1] / 3)):
        file = net.file(ranges=[whole[0], pair, whole[2]])
        (got,) = run(_C.EnginePlan(file, dtype="int8", isa=isa), x)
        want = as_rounded(net, x, pair)
        apart = np.abs(got - want).max((1, 2, 3)) / np.abs(want).max()
        assert apart.max() < 0.02  # a sum that lies on the border between two bytes may go to the other
        assert np.median(np.abs(got - want)) < 1e-5 * np.abs(want).max()


def test_values_stay_bfloat16_and_biases_are_corrected() -> None:
    net, x = two()
    (want,) = net.expected(x, [-1])
    half = struct.pack("<3I", 1, 1, 0)  # value 1, no corrections
    none = [(0.0, 0.0)] * 3
    for isa in ISAS:
        (got,) = run(_C.EnginePlan(net.file(ranges=none, notes=half), dtype="int8", isa=isa), x)
        (as_half,) = run(_C.EnginePlan(net.file(), dtype="bfloat16", isa=isa), x)
        assert np.array_equal(got, as_half)
        (exact,) = run(_C.EnginePlan(net.file(ranges=none), dtype="int8", isa=isa), x)
        assert np.abs(exact - want).max() < 1e-5 * np.abs(want).max()
    shifts = np.arange(9, dtype=np.float32)
    corrected = struct.pack("<4I", 0, 1, 1, 9) + shifts.tobytes()
    ranges = ranges_of(net.file(), x, net.shapes)
    (plain,) = run(_C.EnginePlan(net.file(ranges=ranges), dtype="int8"), x)
    (moved,) = run(_C.EnginePlan(net.file(ranges=ranges, notes=corrected), dtype="int8"), x)
    np.testing.assert_allclose(moved - plain, np.broadcast_to(shifts[:, None, None], plain.shape), atol=1e-4)
    (back,) = run(_C.EnginePlan(net.file(ranges=ranges, notes=corrected)), x)  # float32 needs none
    assert np.abs(back - want).max() < 1e-5 * np.abs(want).max()


def test_what_is_added_to_bytes_needs_a_range() -> None:
    """A sum of a convolution and a value without a range is kept in float32, whatever its own range."""
    net, x = two()
    weight, bias = net.weight(20, 20, 1, 1, scale=0.2), net.weight(20)
    one = [1, 1, 1, 1, 0, 0, 0, 0, 1, 0]
    y = net.add("conv", [1], one, [weight, bias], lambda v: F.conv2d(v, weight, bias))
    y = net.add("add", [y, 1], [0], [], lambda a, b: a + b)
    last = net.weight(6, 20, 1, 1)
    net.add("conv", [y], one, [last, net.weight(6)], lambda v: F.conv2d(v, last, net.nodes[-1][3][1]))
    (want,) = net.expected(x, [-1])
    ranges = ranges_of(net.file(), x, net.shapes)
    ranges[1] = (0.0, 0.0)
    (got,) = run(_C.EnginePlan(net.file(ranges=ranges), dtype="int8"), x)
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (struct.pack("<2I", 1, 3), "a value that stays bfloat16: expected a value below 3, got 3"),
        (struct.pack("<2I", 2, 1), "values that stay bfloat16: expected at most 65536 that fit"),
        (struct.pack("<4I", 0, 1, 2, 0), "a corrected node: expected a value below 2, got 2"),
        (struct.pack("<5I", 0, 1, 1, 1, 0), "correction of node 1: expected one for each bias of a convolution, got 1"),
        (struct.pack("<4I", 0, 1, 1, 9) + np.full(9, np.nan, np.float32).tobytes(), "node 1: expected finite numbers"),
        (struct.pack("<4I", 0, 2, 1, 9) + bytes(36) + struct.pack("<2I", 1, 9) + bytes(36), "expected one, got two"),
        (struct.pack("<3I", 0, 0, 0), "expected nothing after what plans of bytes need"),
    ],
)
def test_notes_that_are_refused(notes: bytes, message: str) -> None:
    net, _ = two()
    with pytest.raises(ValueError, match=message):
        _C.EnginePlan(net.file(ranges=[(0.0, 1.0)] * 3, notes=notes))


def test_rules() -> None:
    """Of many numbers near 0 and one far off: what each rule keeps of it."""
    random = np.random.default_rng(0)
    images = np.maximum(random.standard_normal((200, 400)), 0)
    images[7, 3] = 40.0
    seen = Seen(images.min(1), images.max(1), images.ravel())
    got = {name: rule(seen) for name, rule in RULES.items()}
    assert got["minmax"] == (0.0, 40.0)
    for name in ("images", "percentile"):
        assert 3 < got[name][1] < 5
    for name in ("mse", "entropy"):
        assert 4 < got[name][1] < 40
    assert {low for low, _ in got.values()} == {0.0}
    error = {
        name: np.square(as_stored(seen.sample, *map_scale(*pair)) - seen.sample).mean() for name, pair in got.items()
    }
    assert error["mse"] <= min(error["minmax"], error["images"], error["percentile"]) + 1e-12
    with pytest.raises(ValueError, match="rule: expected one of images, minmax, percentile, mse, entropy, got 'max'"):
        fastfer.compile("fgw_fer", dtype="int8", calibration=[], rule="max")


def test_correction_takes_the_mean_error_of_rounded_weights() -> None:
    """The mean of a 3×3 convolution's outputs with a border, of weights that lose much, is float32's again."""
    net = Network(8, 9, 9, 1)
    first, weight = net.weight(16, 8, 1, 1), net.weight(12, 16, 3, 3)
    weight[:, 0] *= 60  # the others have few levels left
    zero = torch.zeros(16), torch.zeros(12)
    x = np.abs(net.random.standard_normal((6, 8, 9, 9))).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 12, 3, 1, 1))
    state = dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), (first, zero[0], weight, zero[1]), strict=True))
    model.load_state_dict({name: value.float() for name, value in state.items()})
    graph = graph_of(model.eval(), (8, 9, 9))
    seen = observed(graph, [x], 1)
    with torch.no_grad():
        want = model(torch.from_numpy(x)).mean((0, 2, 3)).numpy()
    off = []
    for correct in (False, True):
        (got,) = run(_C.EnginePlan(to_bytes(graph, {}, seen.notes(graph, "minmax", correct)), dtype="int8"), x)
        off.append(np.abs(got.mean((0, 2, 3)) - want).mean())
    assert off[1] < 0.2 * off[0]


def test_sensitive_steps_stay_bfloat16(tmp_path: Path) -> None:
    """The table names every step, the dearest first; a kept one costs what it costs in bfloat16; the file keeps it."""
    model, x = network("sepconv_attention")
    images = torch.randn(40, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    graph = graph_of(model, tuple(x.shape[1:]))
    notes = observed(graph, [images], 1).notes(graph)
    members = sensitivity.groups(graph)
    everything = sensitivity.kept(graph, notes, [images.numpy()], 1e-9, 1, False)[1]
    assert {step.name for step in everything.steps} == set(members)
    assert not any(step.kept for step in everything.steps)
    assert [step.error for step in everything.steps] == sorted((step.error for step in everything.steps), reverse=True)
    values = [value for name in members for value in members[name]]
    halves = ByteNotes([(0.0, 0.0)] * len(graph.values), halves=frozenset(values))
    (mixed,) = run(_C.EnginePlan(to_bytes(graph, {}, halves), dtype="int8"), images.numpy())
    as_half = fastfer.compile(model, dtype="bfloat16")(images)
    torch.testing.assert_close(torch.from_numpy(mixed[..., 0, 0]), as_half, rtol=0, atol=1e-3)
    engine = fastfer.compile(model, dtype="int8", calibration=[images], agreement=1e-9, threads=1)
    assert engine.metadata["sensitivity"]["images"] == 40
    assert "step alone in bytes" in engine.plan()
    assert "0 of 5 steps in bfloat16" in engine.plan()
    engine.save(tmp_path / "kept.ffe")
    torch.testing.assert_close(runtime.load(tmp_path / "kept.ffe")(images), engine(images), rtol=0, atol=0)
    assert (engine(images) - logits(model, images)).abs().max() < 0.2 * logits(model, images).abs().max()


def test_as_many_steps_are_kept_as_the_share_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network("sepconv_attention")
    graph = graph_of(model, tuple(x.shape[1:]))
    images = x.numpy()
    notes = observed(graph, [images], 1).notes(graph)
    monkeypatch.setattr(
        sensitivity._Measured, "beside", lambda self, notes: (0.9 + 0.02 * len(notes.halves), 1e-3 * len(notes.ranges))
    )
    found, table = sensitivity.kept(graph, notes, [images], 0.935, 1, False)
    assert [step.kept for step in table.steps] == [True, True, False, False, False]
    assert len(found.halves) == 2
    assert all(found.ranges[value] == (0.0, 0.0) for value in found.halves)
    assert "asked 93.50%, with 2 of 5 steps in bfloat16" in sensitivity.table(json.loads(json.dumps(table.record())))
    with pytest.raises(ValueError, match=r"agreement: expected a share that int8 reaches .* fine-tune"):
        sensitivity.kept(graph, notes, [images], 0.999, 1, False)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "faces.npy", np.random.default_rng(0).standard_normal((8, 1, 48, 48)).astype(np.float32))
    arguments = ["fgw_fer", "--dtype", "int8", "--calibration", str(tmp_path / "faces.npy"), "--threads", "1"]
    assert command.main([*arguments, "--rule", "mse", "--agreement", "0.01"]) == 0
    assert "The plan agrees on" in capsys.readouterr().out
    assert command.main([*arguments, "--rule", "least"]) == 2
    assert "rule: expected one of" in capsys.readouterr().err
    assert command.main(["fgw_fer", "--agreement", "0.5"]) == 2
    assert "agreement: expected it with calibration images" in capsys.readouterr().err
